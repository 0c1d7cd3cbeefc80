"""TF-IDF and squared similarity are the plain formulas."""

import math
import re

import numpy as np
import pytest

from sgrec_torchrec.config import GraphConfig
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
    monkeypatch.setattr(module, "BLOCK_ENTRIES", block_entries)
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
    monkeypatch.setattr(module, "MAX_PRODUCTS", 9)
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
