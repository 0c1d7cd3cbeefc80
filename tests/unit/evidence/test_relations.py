"""Each relation by hand on a tiny log; nothing of later events enters any."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.evidence.relations import (
    RELATIONS,
    Relations,
    build_relations,
)
from sgrec_torchrec.evidence.texts import NEAREST_TEXTS, text_relation
from sgrec_torchrec.schema import Catalogue

SETTINGS = EvidenceConfig()
ARRAYS = tuple(field.name for field in dataclasses.fields(Relations))


def no_text(num_items: int) -> sp.csr_matrix:
    return sp.csr_matrix((num_items, num_items))


def by_name(relations: Relations) -> dict[str, np.ndarray]:
    """Relation -> dense [N, N]."""
    count = relations.num_items
    rows = sp.csr_matrix(
        (relations.weights_E, relations.neighbours_E, relations.indptr_R1),
        shape=(len(RELATIONS) * count, count),
    ).toarray()
    return dict(zip(RELATIONS, rows.reshape(-1, count, count), strict=True))


def catalogue(titles: list[str]) -> Catalogue:
    blank = [""] * len(titles)
    return Catalogue(
        item_ids=titles,
        titles=titles,
        brands=blank,
        categories=blank,
        texts=titles,
        embedding_ND=None,
        sid_NL=None,
    )


@pytest.fixture
def tiny(make_sequences) -> dict[str, np.ndarray]:
    """[0, 1, 2] and [0, 1]: popularity 2, 2, 1. Texts 0 and 2 near, 0 and 1 far."""
    text = np.zeros((3, 3))
    text[0, 2] = text[2, 0] = 0.5
    text[0, 1] = text[1, 0] = 0.03
    sequences = make_sequences([[0, 1, 2], [0, 1]], 3)
    relations = build_relations(
        sequences, sequences.train_end_U, sp.csr_matrix(text), SETTINGS
    )
    relations.validate()
    assert relations.popularity_N.tolist() == [2, 2, 1]
    return by_name(relations)


# In all of these i is damped by 1 / sqrt(1 + pop_i): sqrt 3, sqrt 3 and sqrt 2.
S3, S2 = 1 / np.sqrt(3), 1 / np.sqrt(2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("forward", [[0, 2 * S3, 0.5 * S3], [0, 0, S3], [0, 0, 0]]),
        ("backward", [[0, 0, 0], [2 * S3, 0, 0], [0.5 * S2, S2, 0]]),
        # Whatever the distance, both ways, and damped by j too.
        ("around", [[0, 2 / 3, S3 * S2], [2 / 3, 0, S3 * S2], [S3 * S2] * 2 + [0]]),
        ("text", [[0, 0.03, 0.5], [0.03, 0, 0], [0.5, 0, 0]]),
        # .5 / (1 + .5) = 1/3 of the near text's visits, forward + .3 backward; .03 is
        # under .04. Visits of 2: .15 and .3, of 0: 2 and .5.
        (
            "text-visits",
            [[0.05 * S2, 0.1 * S2, 0], [0, 0, 0], [0, 2 / 3 * S3, 0.5 / 3 * S3]],
        ),
        # 0 -> 2 (.5), 1 -> 2 (1), 1 -> 0 (.6) and 2 -> 0 (.15), then 2 <-> 0 by text.
        (
            "visits-text",
            [[0.5 / 3 * S3, 0, 0], [S3 / 3, 0, 0.2 * S3], [0, 0, 0.05 * S2]],
        ),
    ],
)
def test_relation_by_hand(tiny, name: str, expected: list[list[float]]) -> None:
    np.testing.assert_allclose(tiny[name], expected, rtol=1e-6, atol=1e-9)


def test_forward_reaches_five_events_and_around_twenty(make_sequences) -> None:
    sequences = make_sequences([list(range(23))], 23)
    found = by_name(
        build_relations(sequences, sequences.train_end_U, no_text(23), SETTINGS)
    )
    # Every popularity is 1: damped by sqrt 2, around by 2.
    first = np.zeros(23)
    first[1:6] = 1 / np.arange(1, 6) / np.sqrt(2)
    np.testing.assert_allclose(found["forward"][0], first, rtol=1e-6)
    last = np.zeros(23)
    last[17:22] = 1 / np.arange(5, 0, -1) / np.sqrt(2)
    np.testing.assert_allclose(found["backward"][22], last, rtol=1e-6)
    around = np.zeros(23)
    around[1:21] = 0.5
    np.testing.assert_allclose(found["around"][0], around, rtol=1e-6)


def test_one_basket_has_no_order(make_sequences) -> None:
    sequences = make_sequences([[0, 1]], 2, timestamps=[[4, 4]])
    found = by_name(
        build_relations(sequences, sequences.train_end_U, no_text(2), SETTINGS)
    )
    # (1 + 0) / 2 each way, damped by sqrt 2; around (1 + 1) / 2, damped by 2.
    both = np.array([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(found["forward"], both / 2 / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(found["backward"], found["forward"], rtol=1e-6)
    np.testing.assert_allclose(found["around"], both / 2, rtol=1e-6)


def test_only_the_nearest_texts_lend_their_visits(make_sequences) -> None:
    count = NEAREST_TEXTS + 5
    text = np.zeros((count, count))
    text[0, 1:-1] = 0.9 - 0.01 * np.arange(1, count - 1)
    # Each of the texts is followed by the last item, once.
    users = [[near, count - 1] for near in range(1, count - 1)]
    sequences = make_sequences(users, count)
    found = by_name(
        build_relations(sequences, sequences.train_end_U, sp.csr_matrix(text), SETTINGS)
    )
    nearest = text[0, 1 : NEAREST_TEXTS + 1].sum()
    expected = nearest / (1 + nearest) / np.sqrt(2)
    assert found["text-visits"][0, -1] == pytest.approx(expected, rel=1e-6)


def test_events_after_the_period_change_nothing(make_sequences) -> None:
    generator = np.random.default_rng(2)
    kept = [generator.integers(0, 12, 8).tolist() for _ in range(9)]
    later = [[generator.integers(0, 12, 5).tolist() for _ in range(9)] for _ in "ab"]
    text = text_relation(catalogue([f"t{n % 4} u{n % 3}" for n in range(12)]), SETTINGS)
    found = []
    for more in later:
        users = [before + after for before, after in zip(kept, more, strict=True)]
        sequences = make_sequences(users, 12, train_end=[8] * 9)
        end_U = sequences.train_end_U
        found.append(build_relations(sequences, end_U, text, SETTINGS))
    for name in ARRAYS:
        first, second = (getattr(one, name) for one in found)
        np.testing.assert_array_equal(first, second)


def test_every_relation_is_cut_to_its_heaviest_neighbours(make_sequences) -> None:
    generator = np.random.default_rng(4)
    users = [generator.integers(0, 12, 15).tolist() for _ in range(9)]
    sequences = make_sequences(users, 12)
    end_U = sequences.train_end_U
    titles = catalogue([f"t{n % 4} u{n % 3} v{n % 5}" for n in range(12)])
    few = dataclasses.replace(SETTINGS, max_neighbours=3)
    relations = build_relations(sequences, end_U, text_relation(titles, few), few)
    relations.validate()
    cut = by_name(relations)
    whole = by_name(
        build_relations(sequences, end_U, text_relation(titles, SETTINGS), SETTINGS)
    )
    for name in RELATIONS:
        assert ((cut[name] > 0).sum(axis=1) <= 3).all(), name
        assert (cut[name] > 0).sum(axis=1).max() == 3, name
    for name in ("forward", "backward", "around", "text"):
        np.testing.assert_allclose(
            np.sort(cut[name])[:, -3:], np.sort(whole[name])[:, -3:], rtol=1e-6
        )


def test_without_texts_only_visits_relate(make_sequences) -> None:
    sequences = make_sequences([[0, 1, 2], [2, 0]], 3)
    text = text_relation(catalogue([""] * 3), SETTINGS)
    relations = build_relations(sequences, sequences.train_end_U, text, SETTINGS)
    relations.validate()
    assert relations.num_relations == len(RELATIONS) == 6
    sizes = {name: np.count_nonzero(rows) for name, rows in by_name(relations).items()}
    assert sizes["text"] == sizes["text-visits"] == sizes["visits-text"] == 0
    assert min(sizes["forward"], sizes["backward"], sizes["around"]) > 0


def test_a_period_without_events_relates_by_text_alone(make_sequences) -> None:
    sequences = make_sequences([[0, 1]], 3, train_end=[0])
    text = text_relation(catalogue(["red pen", "red box", "blue"]), SETTINGS)
    relations = build_relations(sequences, sequences.train_end_U, text, SETTINGS)
    relations.validate()
    sizes = {name: np.count_nonzero(rows) for name, rows in by_name(relations).items()}
    assert sizes.pop("text") == 2
    assert set(sizes.values()) == {0}
    assert relations.popularity_N.tolist() == relations.recent_N.tolist() == [0] * 3


def test_arrays_have_the_types_of_the_record(make_sequences) -> None:
    sequences = make_sequences([[0, 1]], 2)
    relations = build_relations(sequences, sequences.train_end_U, no_text(2), SETTINGS)
    types = [str(getattr(relations, name).dtype) for name in ARRAYS]
    assert types == ["int64", "int32", "float32", "int64", "int64"]


def test_recent_events_are_the_newest_fifth(make_sequences) -> None:
    # Ten events at seconds 0 to 9 in two users; the quantile .8 is 7.2: 8 and 9 count.
    sequences = make_sequences(
        [[0, 1, 2, 0, 1], [2, 0, 3, 3, 1]],
        4,
        timestamps=[[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]],
    )
    end_U = sequences.train_end_U
    found = build_relations(sequences, end_U, no_text(4), SETTINGS)
    assert found.recent_N.tolist() == [0, 2, 0, 0]
    # Seconds 0, 2, 4 and 1, 3, 5, 7 of the shorter period: the quantile is 4.8.
    end_U = np.array([3, 4], dtype=np.int32)
    found = build_relations(sequences, end_U, no_text(4), SETTINGS)
    assert found.recent_N.tolist() == [0, 0, 0, 2]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("indptr_R1", np.array([1, 2, 2, 3, 4]), "must start at 0 and never fall"),
        ("indptr_R1", np.array([0, 2, 1, 3, 4]), "must start at 0 and never fall"),
        ("indptr_R1", np.array([0, 2, 3, 4]), "has 3 rows, no multiple of the 2 items"),
        ("indptr_R1", np.array([0, 1, 2, 3, 3]), "indptr_R1 ends at 3; neighbours_E"),
        ("weights_E", np.ones(3, np.float32), "has 4 entries, weights_E 3"),
        (
            "neighbours_E",
            np.array([1, 0, 2, 0], np.int32),
            r"_E\[2\] is outside \[0, 2",
        ),
        ("neighbours_E", np.array([1, -1, 1, 0], np.int32), r"_E\[1\] is outside"),
        ("weights_E", np.array([1, 0, 1, 1], np.float32), "must be finite and > 0"),
        ("weights_E", np.array([1, np.inf, 1, 1], np.float32), "finite and > 0"),
        ("weights_E", np.array([1, np.nan, 1, 1], np.float32), "finite and > 0"),
    ],
)
def test_broken_relations_are_refused(make_relations, field, value, message) -> None:
    relations = make_relations(np.ones((2, 2, 2)) - np.eye(2), [3, 3])
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(relations, **{field: value}).validate()


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("indptr_R1", "int32", "int64"),
        ("neighbours_E", "int64", "int32"),
        ("weights_E", "float64", "float32"),
        ("popularity_N", "int32", "int64"),
        ("recent_N", "float64", "int64"),
    ],
)
def test_arrays_of_other_types_are_refused(make_relations, field, wrong, right) -> None:
    relations = make_relations(np.ones((2, 2, 2)) - np.eye(2), [3, 3])
    other = getattr(relations, field).astype(wrong)
    with pytest.raises(ValueError, match=f"{field} is {wrong}, not {right}"):
        dataclasses.replace(relations, **{field: other}).validate()


@pytest.mark.parametrize("length", [0, 1, 3])
def test_recent_counts_of_another_catalogue_are_refused(make_relations, length) -> None:
    relations = make_relations(np.ones((2, 2, 2)) - np.eye(2), [3, 3])
    odd = dataclasses.replace(relations, recent_N=np.zeros(length, dtype=np.int64))
    with pytest.raises(ValueError, match=f"recent_N has {length} items, popularity_N"):
        odd.validate()


def test_settings_say_which_relations_and_in_which_order(make_sequences) -> None:
    sequences = make_sequences([[0, 1, 2, 0], [2, 1, 0]], 3)
    end_U = sequences.train_end_U
    some = dataclasses.replace(SETTINGS, relations="backward,forward")
    found = build_relations(sequences, end_U, no_text(3), some)
    whole = by_name(build_relations(sequences, end_U, no_text(3), SETTINGS))
    assert found.num_relations == 2
    dense = sp.csr_matrix(
        (found.weights_E, found.neighbours_E, found.indptr_R1), shape=(6, 3)
    ).toarray()
    np.testing.assert_array_equal(dense[:3], whole["backward"])
    np.testing.assert_array_equal(dense[3:], whole["forward"])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (np.eye(3), r" gave \(3, 3\): it must give a sparse matrix of 3 items by 3"),
        (None, " gave NoneType: it must give a sparse matrix of 3 items by 3"),
        (sp.csr_matrix((3, 4)), r" gave \(3, 4\): it must give a sparse"),
        (sp.csr_matrix(np.ones((3, 3))), " gave an item 3 neighbours: keep at most"),
        (-sp.eye_array(3).tocsr(), ": weights must be finite and > 0"),
        (np.inf * sp.eye_array(3).tocsr(), ": weights must be finite and > 0"),
    ],
)
def test_what_is_no_relation_is_refused_by_name(
    make_sequences, monkeypatch: pytest.MonkeyPatch, made: object, message: str
) -> None:
    registry = SimpleNamespace(load=lambda name: lambda source: made)
    monkeypatch.setattr("sgrec_torchrec.evidence.relations.RELATIONS", registry)
    sequences = make_sequences([[0, 1, 2, 0], [2, 1, 0]], 3)
    few = EvidenceConfig(max_neighbours=2, relations="text")
    with pytest.raises(ValueError, match=f"item relation 'text'{message}"):
        build_relations(sequences, sequences.train_end_U, no_text(3), few)
