"""Co-visits are the plain formula, however they are counted and cut."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.item_graph import covisitation
from sgrec_torchrec.item_graph.covisitation import (
    covisitation_edges,
    fit_ends,
    popularity,
)
from sgrec_torchrec.item_graph.pair_counts import counted
from sgrec_torchrec.schema import Int32Array, Sequences

UNDAMPED = {"row_exponent": 0.0, "column_exponent": 0.0}
ROUNDED = {"rtol": 1e-5, "atol": 2e-5}
"""A pair's weight is rounded to 2^-20."""


def edges_of(
    sequences: Sequences, config: GraphConfig, end_U: Int32Array
) -> sp.csr_matrix:
    with counted(sequences, end_U, max_distance=config.max_distance) as pairs:
        (edges,) = covisitation_edges(pairs, [config])
    return edges


def counts(sequences: Sequences, config: GraphConfig, end_U: Int32Array) -> np.ndarray:
    undamped = dataclasses.replace(config, **UNDAMPED)
    return edges_of(sequences, undamped, end_U).toarray()


def reference(
    sequences: Sequences, config: GraphConfig, end_U: Int32Array
) -> np.ndarray:
    """The formula, one pair at a time."""
    total = np.zeros((sequences.num_items, sequences.num_items))
    for user in range(sequences.num_users):
        start = sequences.offsets_U1[user]
        items = sequences.items_R[start : start + end_U[user]]
        times = sequences.timestamps_R[start : start + end_U[user]]
        for p in range(len(items)):
            for q in range(p + 1, min(p + config.max_distance, len(items) - 1) + 1):
                forward, backward = config.forward_weight, config.backward_weight
                if times[p] == times[q]:
                    forward = backward = (forward + backward) / 2
                near = (q - p) ** -config.distance_exponent
                total[items[p], items[q]] += forward * near
                total[items[q], items[p]] += backward * near
    return total


def test_pairs_weigh_one_over_distance_forward_and_less_backward(make_split) -> None:
    sequences = make_split([[0, 1, 2]], 4).sequences
    config = GraphConfig(max_distance=2, backward_weight=0.3)
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 2] = 1.0
    expected[0, 2] = 1 / 2
    expected[1, 0] = expected[2, 1] = 0.3
    expected[2, 0] = 0.3 / 2
    found = counts(sequences, config, sequences.train_end_U)
    np.testing.assert_allclose(found, expected, **ROUNDED)


def test_pairs_of_one_basket_weigh_the_same_both_ways(make_split) -> None:
    # Items 0 and 1 share a timestamp: (1 + .3) / 2 = .65 each way; 2 comes later.
    sequences = make_split([[0, 1, 2]], 3, timestamps=[[5, 5, 9]]).sequences
    found = counts(sequences, GraphConfig(max_distance=1), sequences.train_end_U)
    expected = [[0, 0.65, 0], [0.65, 0, 1.0], [0, 0.3, 0]]
    np.testing.assert_allclose(found, expected, **ROUNDED)


def test_forward_weight_and_distance_exponent_by_hand(make_split) -> None:
    # Items 0 and 1 share a timestamp: (3 + 1) / 2 = 2 each way at distance 1.
    sequences = make_split([[0, 1, 2]], 3, timestamps=[[5, 5, 9]]).sequences
    config = GraphConfig(forward_weight=3.0, backward_weight=1.0, distance_exponent=2.0)
    found = counts(sequences, config, sequences.train_end_U)
    expected = [[0, 2, 3 / 2**2], [2, 0, 3], [1 / 2**2, 1, 0]]
    np.testing.assert_allclose(found, expected, **ROUNDED)


def test_a_direction_of_weight_zero_has_no_edges(make_split) -> None:
    sequences = make_split([[0, 1, 2]], 3).sequences
    end_U = sequences.train_end_U
    config = GraphConfig(forward_weight=0.0, backward_weight=1.0)
    edges = edges_of(sequences, config, end_U)
    assert edges.nnz == 3
    assert (np.triu(edges.toarray()) == 0).all()
    config = GraphConfig(backward_weight=0.0)
    edges = edges_of(sequences, config, end_U)
    assert edges.nnz == 3
    assert (np.tril(edges.toarray()) == 0).all()


def test_events_after_the_cut_and_other_users_never_pair(make_split) -> None:
    split = make_split([[0, 1, 2], [3, 4]], 5, train_end=[2, 1])
    sequences = split.sequences
    found = counts(sequences, GraphConfig(), sequences.train_end_U)
    assert set(zip(*np.nonzero(found), strict=True)) == {(0, 1), (1, 0)}


@pytest.mark.parametrize(
    ("forward", "backward", "exponent"),
    [(1.0, 0.2, 1.0), (0.0, 1.0, 1.0), (1.0, 0.0, 0.5), (0.7, 1.3, 2.0), (1.0, 1.0, 0)],
)
def test_baskets_agree_with_the_formula_on_a_random_log(
    make_split, forward: float, backward: float, exponent: float
) -> None:
    generator = np.random.default_rng(3)
    users = [generator.integers(0, 9, size=20).tolist() for _ in range(12)]
    times = [np.sort(generator.integers(0, 7, size=20)).tolist() for _ in range(12)]
    sequences = make_split(users, 9, timestamps=times).sequences
    config = GraphConfig(
        forward_weight=forward, backward_weight=backward, distance_exponent=exponent
    )
    end_U = sequences.valid_end_U
    found = counts(sequences, config, end_U)
    np.testing.assert_allclose(found, reference(sequences, config, end_U), **ROUNDED)


def test_popularity_counts_learned_events_only(make_split) -> None:
    sequences = make_split([[0, 1, 1], [1, 2]], 4, train_end=[2, 2]).sequences
    assert popularity(sequences, sequences.train_end_U).tolist() == [1, 2, 1, 0]
    assert popularity(sequences, sequences.valid_end_U).tolist() == [1, 3, 1, 0]


@pytest.mark.parametrize("chunk_events", [1, 37, 10**6])
def test_popularity_does_not_depend_on_how_the_log_is_read(
    random_split, monkeypatch: pytest.MonkeyPatch, chunk_events: int
) -> None:
    monkeypatch.setattr(covisitation, "CHUNK_EVENTS", chunk_events)
    sequences = random_split.sequences
    _, known_R = sequences.events_until(sequences.train_end_U)
    expected = np.bincount(sequences.items_R[known_R], minlength=sequences.num_items)
    found = popularity(sequences, sequences.train_end_U)
    assert found.tolist() == expected.tolist()


def test_edges_are_damped_by_row_and_column(make_split) -> None:
    # Items 0 and 1 once each in the pair; 0 thrice and 1 eight times in all.
    users = [[0, 1], *[[0]] * 2, *[[1]] * 7]
    sequences = make_split(users, 2).sequences
    config = GraphConfig(row_exponent=0.5, column_exponent=1.0)
    edges = edges_of(sequences, config, sequences.train_end_U)
    # C[0, 1] = 1, / sqrt(1 + 3) / (1 + 8); C[1, 0] = .3, / sqrt(1 + 8) / (1 + 3)
    expected = [[0, 1 / 2 / 9], [0.3 / 3 / 4, 0]]
    np.testing.assert_allclose(edges.toarray(), expected, rtol=1e-5)


def test_an_empty_log_has_no_edges(make_split) -> None:
    sequences = make_split([[], []], 3).sequences
    found = counts(sequences, GraphConfig(), sequences.train_end_U)
    assert found.shape == (3, 3)
    assert not found.any()


def test_unknown_period_is_refused(random_split) -> None:
    with pytest.raises(ValueError, match="fit_on = 'test': choose one of train"):
        fit_ends(random_split.sequences, "test")
