"""Ranks, HR, NDCG and their intervals, by hand and against a kept library."""

import math

import numpy as np
import pytest
from cornac.metrics import NDCG, HitRatio

from sgrec_torchrec.evaluation.ranking import (
    KS,
    bootstrap_interval,
    metric_names,
    metric_values,
    ranking_table,
    sums_by_user,
    target_ranks,
)


def test_rank_is_the_place_from_one_and_zero_where_absent() -> None:
    items_EK = np.array([[4, 7, 9], [4, 7, 9], [9, -1, -1], [-1, -1, -1]])
    ranks = target_ranks(items_EK, np.array([4, 9, 7, 0]))
    assert ranks.tolist() == [1, 3, 0, 0]
    assert ranks.dtype == np.int32


def test_a_list_with_an_item_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 1 lists an item twice \(\[5, 2, 5\]\)"):
        target_ranks(np.array([[1, 2, 3], [5, 2, 5]]), np.array([1, 2]))


def test_of_many_lists_with_an_item_twice_the_first_is_named() -> None:
    items_EK = np.array([[1, 2, 3], [0, 0, 1], [2, 4, 4], [5, 5, 5]])
    with pytest.raises(ValueError, match=r"row 1 lists an item twice \(\[0, 0, 1\]\)"):
        target_ranks(items_EK, np.array([1, 2, 3, 4]))


def test_one_list_for_all_targets_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\), target_E \(3,\)"):
        target_ranks(np.array([1, 2, 3]), np.array([1, 2, 3]))


def test_lists_and_targets_must_pair() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 1\), target_E \(3,\)"):
        target_ranks(np.array([[1], [2]]), np.array([1, 2, 3]))


@pytest.mark.parametrize(
    ("k", "hit_rate", "ndcg"),
    [
        # Ranks 1, 3, not found, 11: gains 1, 1/log2(4) = 1/2, 0, 1/log2(12).
        (1, 1 / 4, 1 / 4 * 1),
        (3, 2 / 4, 1 / 4 * (1 + 1 / 2)),
        (10, 2 / 4, 1 / 4 * (1 + 1 / 2)),
        (20, 3 / 4, 1 / 4 * (1 + 1 / 2 + 1 / math.log2(12))),
    ],
)
def test_metrics_by_hand(k: int, hit_rate: float, ndcg: float) -> None:
    rank_E = np.array([1, 3, 0, 11], dtype=np.int32)
    table = ranking_table(rank_E, np.arange(4), seed=0)
    assert table.metrics[f"HR@{k}"] == pytest.approx(hit_rate, rel=1e-12)
    assert table.metrics[f"NDCG@{k}"] == pytest.approx(ndcg, rel=1e-12)


@pytest.mark.parametrize("k", KS)
def test_every_row_agrees_with_cornac(k: int) -> None:
    generator = np.random.default_rng(5)
    items_EK = np.stack([generator.permutation(80)[:60] for _ in range(40)])
    target_E = generator.integers(0, 80, size=40).astype(np.int32)
    values = metric_values(target_ranks(items_EK, target_E), (k,))
    for row in range(40):
        target = target_E[row : row + 1]
        expected_hit = HitRatio(k=k).compute(gt_pos=target, pd_rank=items_EK[row])
        expected_ndcg = NDCG(k=k).compute(gt_pos=target, pd_rank=items_EK[row])
        assert values[row].tolist() == pytest.approx([expected_hit, expected_ndcg])


def test_the_metrics_of_a_run_are_these() -> None:
    ks = (1, 3, 5, 10, 20, 50)
    names = [f"{metric}@{k}" for metric in ("HR", "NDCG") for k in ks]
    assert metric_names() == names
    # Found at 5, 6, 50 and 51.
    table = ranking_table(np.array([5, 6, 50, 51], np.int32), np.arange(4), seed=0)
    assert list(table.metrics) == list(table.intervals) == names
    hit_rates = [table.metrics[f"HR@{k}"] for k in ks]
    assert hit_rates == [0, 0, 1 / 4, 2 / 4, 2 / 4, 3 / 4]


def test_names_follow_the_columns() -> None:
    assert metric_names((1, 5)) == ["HR@1", "HR@5", "NDCG@1", "NDCG@5"]
    # Rank 2: a hit at 5 alone, with gain 1 / log2(3).
    found = metric_values(np.array([2]), (1, 5))
    np.testing.assert_allclose(found, [[0, 1, 0, 1 / math.log2(3)]])


def test_a_users_rows_stay_together() -> None:
    values_EM = np.array([[1.0], [2.0], [4.0], [8.0]])
    sums_UM, rows_U = sums_by_user(values_EM, np.array([9, 3, 9, 5]))
    assert sums_UM.tolist() == [[2.0], [8.0], [5.0]]
    assert rows_U.tolist() == [1, 1, 2]


def test_interval_is_that_of_a_loop_over_resampled_users() -> None:
    generator = np.random.default_rng(1)
    rows_U = generator.integers(1, 6, size=50)
    hits_U = generator.binomial(rows_U, 0.3).astype(np.float64)
    low, high = bootstrap_interval(hits_U[:, None], rows_U, seed=2, num_resamples=4000)
    means = []
    for _ in range(4000):
        users = generator.integers(0, 50, size=50)
        means.append(hits_U[users].sum() / rows_U[users].sum())
    expected = np.percentile(means, [2.5, 97.5])
    np.testing.assert_allclose([low[0], high[0]], expected, atol=0.012)


def test_interval_is_that_of_1000_resamples_one_by_one() -> None:
    noise = np.random.default_rng(1)
    user_E = noise.integers(0, 30, size=90)
    rank_E = noise.integers(0, 4, size=90).astype(np.int32)
    hits_of: dict[int, list[int]] = {user: [] for user in range(30)}
    for rank, user in zip(rank_E.tolist(), user_E.tolist(), strict=True):
        hits_of[user].append(int(0 < rank <= 3))
    users = [hits for _, hits in sorted(hits_of.items()) if hits]
    generator = np.random.default_rng(7)
    means = []
    for _ in range(1000):
        times = generator.multinomial(len(users), [1 / len(users)] * len(users))
        hits = sum(time * sum(of) for time, of in zip(times, users, strict=True))
        rows = sum(time * len(of) for time, of in zip(times, users, strict=True))
        means.append(hits / rows)
    expected = tuple(np.percentile(means, [2.5, 97.5]))
    found = ranking_table(rank_E, user_E, seed=7).intervals["HR@3"]
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_resample_divides_by_its_own_rows() -> None:
    # Every row hits, so every resample's mean is 1, however many rows it draws.
    user_E = np.array([0, 1, 1, 1, 1, 2, 2])
    table = ranking_table(np.ones(7, dtype=np.int32), user_E, seed=0)
    assert table.intervals["HR@1"] == (1.0, 1.0)


def test_a_user_with_many_equal_rows_widens_the_interval() -> None:
    rank_E = np.array([1] * 50 + [0] * 50, dtype=np.int32)
    many = ranking_table(rank_E, np.arange(100), seed=0).intervals["HR@10"]
    few = ranking_table(rank_E, np.arange(100) // 10, seed=0).intervals["HR@10"]
    assert few[1] - few[0] > 2 * (many[1] - many[0])


def test_table_counts_and_repeats_itself_by_seed() -> None:
    rank_E = np.array([1, 0, 4, 2, 0, 0], dtype=np.int32)
    user_E = np.array([0, 0, 1, 2, 3, 3])
    first = ranking_table(rank_E, user_E, seed=3)
    assert (first.num_rows, first.num_users) == (6, 4)
    assert ranking_table(rank_E, user_E, seed=3) == first
    assert ranking_table(rank_E, user_E, seed=4).intervals != first.intervals
    for name, (low, high) in first.intervals.items():
        assert low <= first.metrics[name] <= high


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no evaluation rows"):
        ranking_table(np.empty(0, dtype=np.int32), np.empty(0), seed=0)
