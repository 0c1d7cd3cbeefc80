"""Coverage, novelty, diversity and slices, by hand."""

import math

import numpy as np
import pytest
import scipy.sparse as sp

from sgrec_torchrec.evaluation import beyond as module
from sgrec_torchrec.evaluation.beyond import (
    beyond_accuracy,
    cold_rows,
    coverage,
    diversity,
    novelty,
    short_history_rows,
    slice_metrics,
)
from sgrec_torchrec.schema import EvalRows

EMPTY = np.full((2, 3), -1, dtype=np.int32)


def rows_with(start: list[int], end: list[int], target: list[int]) -> EvalRows:
    return EvalRows(
        user_E=np.arange(len(target)),
        history_start_E=np.array(start, dtype=np.int32),
        history_end_E=np.array(end, dtype=np.int32),
        target_E=np.array(target, dtype=np.int32),
        target_timestamp_E=np.zeros(len(target), dtype=np.int64),
    )


def test_coverage_counts_distinct_items_and_no_empty_slot() -> None:
    items = np.array([[0, 1, -1], [1, 4, -1]], dtype=np.int32)
    assert coverage(items, 10) == 3 / 10


def test_novelty_by_hand() -> None:
    # (3 + 1) / (4 + 4) = 1/2: 1 bit; (0 + 1) / 8: 3 bits; mean over three slots.
    items = np.array([[0, 2], [0, -1]], dtype=np.int32)
    assert novelty(items, np.array([3, 1, 0, 0])) == pytest.approx((1 + 3 + 1) / 3)


def test_diversity_by_hand() -> None:
    vectors = np.array([[2, 0], [0, 3], [5, 5], [0, 0]], dtype=np.float32)
    half = 1 / math.sqrt(2)
    # Pairs of [0, 1, 2]: cosines 0, 1/sqrt 2, 1/sqrt 2.
    first = 1 - (0 + half + half) / 3
    # [1, 2]: one pair. [3, 0]: a zero vector, cosine 0. [0]: no pair, not counted.
    items = np.array([[0, 1, 2], [1, 2, -1], [3, 0, -1], [0, -1, -1]], dtype=np.int32)
    expected = (first + (1 - half) + 1) / 3
    assert diversity(items, vectors) == pytest.approx(expected, rel=1e-12)
    assert diversity(items, sp.csr_matrix(vectors)) == pytest.approx(expected)


def test_diversity_does_not_depend_on_blocks(monkeypatch) -> None:
    generator = np.random.default_rng(0)
    items = generator.permuted(np.tile(np.arange(12), (9, 1)), axis=1)[:, :4]
    vectors = generator.normal(size=(12, 3))
    whole = diversity(items.astype(np.int32), vectors)
    monkeypatch.setattr(module, "BLOCK_ROWS", 2)
    assert diversity(items.astype(np.int32), vectors) == pytest.approx(whole)


def test_only_the_first_k_items_count() -> None:
    items = np.array([[0, 1, 2]], dtype=np.int32)
    found = beyond_accuracy(items, np.array([1, 1, 1, 1]), np.eye(4), k=2)
    assert (found.k, found.coverage, found.novelty) == (2, 2 / 4, 2.0)
    assert found.diversity == pytest.approx(1.0)


def test_empty_lists_give_nan_not_zero() -> None:
    assert math.isnan(novelty(EMPTY, np.array([1, 2])))
    assert math.isnan(diversity(EMPTY, np.eye(2)))
    assert coverage(EMPTY, 2) == 0


def test_cold_slice_holds_targets_unseen_in_the_fitted_period() -> None:
    rows = rows_with([0, 0, 0], [1, 1, 1], [0, 1, 1])
    cold = cold_rows(rows, np.array([4, 0]))
    assert cold.tolist() == [False, True, True]
    # Ranks 3 and not found: HR 1/2, NDCG 1/2 * 1/log2(4).
    found = slice_metrics(np.array([1, 3, 0], dtype=np.int32), cold)
    assert found.num_rows == 2
    assert found.metrics == pytest.approx({"HR@10": 1 / 2, "NDCG@10": 1 / 4})


def test_short_histories_are_counted_from_their_start() -> None:
    rows = rows_with([0, 7, 0], [5, 9, 6], [0, 0, 0])
    assert short_history_rows(rows).tolist() == [True, True, False]


def test_an_empty_slice_is_nan() -> None:
    found = slice_metrics(np.array([1], dtype=np.int32), np.array([False]))
    assert found.num_rows == 0
    assert math.isnan(found.metrics["HR@10"])
