"""TF-IDF and squared similarity are the plain formulas."""

import math
import re

import numpy as np
import pytest

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.item_graph import heaviest
from sgrec_torchrec.item_graph import text as module
from sgrec_torchrec.item_graph.text import (
    item_texts,
    squared_similarity,
    text_edges,
    tf_idf,
)


def reference(texts: list[str], *, binary: bool) -> np.ndarray:
    """S, one pair of items at a time."""
    terms = [re.findall(r"[a-z0-9]+", text.lower()) for text in texts]
    documents = {t: sum(t in other for other in terms) for item in terms for t in item}
    vectors = []
    for item in terms:
        vector = {
            t: (1.0 if binary else 1.0 + math.log(item.count(t)))
            * math.log(len(texts) / documents[t])
            for t in set(item)
        }
        length = math.sqrt(sum(weight**2 for weight in vector.values()))
        vectors.append({t: w / length for t, w in vector.items()} if length else {})
    similarity = np.zeros((len(texts), len(texts)))
    for i, first in enumerate(vectors):
        for j, second in enumerate(vectors):
            if i != j:
                similarity[i, j] = sum(w * second.get(t, 0) for t, w in first.items())
    return similarity


def test_weights_by_hand() -> None:
    # N = 4. "pen": df 2, ln 2; "red": df 1, ln 4 = 2 ln 2, twice: (1 + ln 2) 2 ln 2.
    terms = tf_idf(["Pen RED red", "pen!", "", "box"]).toarray()
    raw = [math.log(2), (1 + math.log(2)) * 2 * math.log(2)]
    length = math.hypot(*raw)
    found = sorted(terms[0][terms[0] > 0].tolist())
    np.testing.assert_allclose(found, [raw[0] / length, raw[1] / length], rtol=1e-12)
    assert terms[2].max() == 0


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("block_entries", [1, 60, 10**9])
def test_squared_similarity_is_the_formula(
    random_split, monkeypatch, binary, block_entries
) -> None:
    monkeypatch.setattr(heaviest, "BLOCK_ENTRIES", block_entries)
    texts = item_texts(random_split.catalogue)
    found = squared_similarity(tf_idf(texts, binary=binary), max_neighbours=100)
    expected = reference(texts, binary=binary) ** 2
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-10, atol=1e-14)


def test_floor_drops_similarities_not_their_squares(random_split) -> None:
    texts = item_texts(random_split.catalogue)
    config = GraphConfig(text_floor=0.4, binary_text=True)
    expected = reference(texts, binary=True)
    assert ((expected > 0.2) & (expected < 0.4)).any()
    expected[expected < 0.4] = 0.0
    found = text_edges(random_split.catalogue, config).toarray()
    np.testing.assert_allclose(found, expected**2, rtol=1e-10, atol=1e-14)


def test_only_the_most_similar_items_are_kept(random_split) -> None:
    texts = item_texts(random_split.catalogue)
    whole = squared_similarity(tf_idf(texts), max_neighbours=100).toarray()
    cut = squared_similarity(tf_idf(texts), max_neighbours=3).toarray()
    assert (cut > 0).sum(axis=1).max() == 3
    np.testing.assert_array_equal(np.sort(cut)[:, -3:], np.sort(whole)[:, -3:])


def test_frequent_terms_leave_the_product_when_it_costs_too_much(monkeypatch) -> None:
    # df: pen 3, red 2, blue 2, box 1; 1 + 4 + 4 products are allowed, 9 more are not.
    texts = ["pen red", "pen red", "pen blue", "blue", "box"]
    monkeypatch.setattr(module, "FREE_PRODUCTS", 9)
    monkeypatch.setattr(module, "PRODUCTS_PER_ITEM", 0)
    found = squared_similarity(tf_idf(texts), max_neighbours=100).toarray()
    assert found[0, 1] > 0
    assert found[2, 3] > 0
    assert found[0, 2] == 0


def test_title_and_brand_are_compared(make_split) -> None:
    split = make_split([[0]], 3, titles=["x", "y", "z"], brands=["Acme", "acme", ""])
    found = text_edges(split.catalogue, GraphConfig()).toarray()
    assert found[0, 1] > 0
    assert found[0, 2] == 0


def test_a_catalogue_without_text_has_no_edges(make_split) -> None:
    split = make_split([[0]], 3)
    assert text_edges(split.catalogue, GraphConfig()).nnz == 0


SHARED = [
    *("red pen", "blue pen", "red pen", "", "pen box", "red pen", ""),
    *("blue pen", "!?", "A4 paper box", "red paper", "ink", "blue pen", "Red Pen"),
]
"""Texts of 3, 3 and 2 items, one in two spellings, three without a term."""


@pytest.mark.parametrize("spread_rows", [1, 3, 1024])
@pytest.mark.parametrize("floor", [0.0, 0.4])
@pytest.mark.parametrize("binary", [False, True])
def test_items_of_one_text_have_the_edges_of_the_whole_product(
    make_split, monkeypatch, spread_rows: int, floor: float, binary: bool
) -> None:
    monkeypatch.setattr(module, "SPREAD_ROWS", spread_rows)
    split = make_split([[0]], len(SHARED), titles=SHARED)
    config = GraphConfig(text_floor=floor, binary_text=binary, max_neighbours=50)
    found = text_edges(split.catalogue, config)
    expected = reference(SHARED, binary=binary)
    assert ((expected > 0) & (expected < 0.4)).any()
    expected[expected < floor] = 0.0
    np.testing.assert_allclose(found.toarray(), expected**2, rtol=1e-10, atol=1e-14)
    assert found.has_sorted_indices


def test_items_of_one_text_are_wholly_similar_to_each_other_alone(make_split) -> None:
    split = make_split([[0]], len(SHARED), titles=SHARED)
    found = text_edges(split.catalogue, GraphConfig(max_neighbours=50)).toarray()
    assert (found[0, [2, 5]] == 1).all()
    assert found[0, 13] == pytest.approx(1)  # another spelling
    assert (np.diag(found) == 0).all()


def test_texts_without_a_telling_term_have_no_edges(make_split) -> None:
    split = make_split([[0]], len(SHARED), titles=SHARED)
    found = text_edges(split.catalogue, GraphConfig(max_neighbours=50)).toarray()
    blank = [3, 6, 8]
    assert not found[blank].any()
    assert not found[:, blank].any()
    # One text for all: its terms tell nothing, ln(N / df) = 0.
    split = make_split([[0]], 4, titles=["red pen"] * 4)
    assert text_edges(split.catalogue, GraphConfig()).nnz == 0


@pytest.mark.parametrize(
    ("max_neighbours", "expected"),
    [
        (1, [[2], [3], [0], [1], [0], [1], [0], []]),
        (2, [[2, 4], [3, 5], [0, 4], [1, 5], [0, 2], [1, 3], [0, 1], []]),
        (
            3,
            [
                *([2, 4, 6], [3, 5, 6], [0, 4, 6], [1, 5, 6]),
                *([0, 2, 6], [1, 3, 6], [0, 1, 2], []),
            ],
        ),
    ],
)
def test_shared_texts_cut_ties_to_smaller_columns(
    make_split, max_neighbours: int, expected: list[list[int]]
) -> None:
    # Red 0, 2, 4 and blue 1, 3, 5 are equally near to 6, and nearer to it than to
    # each other.
    titles = [*["red pen", "blue pen"] * 3, "pen", "box"]
    split = make_split([[0]], 8, titles=titles)
    config = GraphConfig(max_neighbours=max_neighbours)
    found = text_edges(split.catalogue, config)
    rows = np.split(found.indices, found.indptr[1:-1])
    assert [row.tolist() for row in rows] == expected


def test_own_item_does_not_take_a_neighbours_place(make_split) -> None:
    # Six of one text, two neighbours: the last one's are the first two, whatever the
    # item itself ties with.
    split = make_split([[0]], 7, titles=["red pen"] * 6 + ["box"])
    found = text_edges(split.catalogue, GraphConfig(max_neighbours=2))
    rows = np.split(found.indices, found.indptr[1:-1])
    assert [row.tolist() for row in rows] == [
        *([1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1], [])
    ]


@pytest.mark.parametrize(
    "titles", [SHARED, [f"{text} {n}" for n, text in enumerate(SHARED)]]
)
def test_rows_that_are_asked_for_are_those_of_the_whole(make_split, titles) -> None:
    catalogue = make_split([[0]], len(titles), titles=titles).catalogue
    wanted_N = np.arange(len(titles)) % 3 == 0
    found = text_edges(catalogue, GraphConfig(), wanted_N=wanted_N).toarray()
    whole = text_edges(catalogue, GraphConfig()).toarray()
    np.testing.assert_array_equal(found[wanted_N], whole[wanted_N])
    assert whole[~wanted_N].any()
