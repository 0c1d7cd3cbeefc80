"""Top-k lists and targets to HR@k and NDCG@k, with intervals over users.

A row has one target, so HR@k = 1[rank <= k] and NDCG@k = 1[rank <= k] / log2(1 + rank)
(the ideal gain is 1); a metric is the mean over rows. Shape letters: E rows, K list
length, U users, M metrics, S resamples.

Scale: 4 bytes a row for the ranks; the bootstrap works on sums by user in blocks of
resamples, about 8 bytes x U x BLOCK_RESAMPLES. The number of rows is bounded by
``evaluation.max_rows``, whatever the size of the log.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.schema import Float64Array, Int32Array, Int64Array

KS = (1, 3, 5, 10, 20, 50)
NUM_RESAMPLES = 1000
BLOCK_RESAMPLES = 64
INTERVAL_PERCENT = (2.5, 97.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingTable:
    """Metrics by name (``HR@10``), each with its 95 % interval [low, high]."""

    num_rows: int
    num_users: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def metric_names(ks: tuple[int, ...] = KS) -> list[str]:
    """The metrics' names, in the column order of ``metric_values``."""
    return [f"HR@{k}" for k in ks] + [f"NDCG@{k}" for k in ks]


def target_ranks(items_EK: npt.NDArray[np.integer], target_E: Int32Array) -> Int32Array:
    """Place of each row's target in its list, from 1; 0 where it is not there.

    Args:
        items_EK: item indices, best first; -1 marks an empty slot.
        target_E: item indices.

    Returns:
        int32 [E].

    Raises:
        ValueError: naming the first row that lists an item twice, or if the two
            arguments differ in rows.
    """
    if items_EK.ndim != 2 or len(items_EK) != len(target_E):
        raise ValueError(
            f"items_EK has shape {items_EK.shape}, target_E {target_E.shape}: one list "
            "per target"
        )
    ordered = np.sort(items_EK, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise ValueError(
            f"row {row} lists an item twice ({items_EK[row].tolist()}): a list must "
            "hold distinct items"
        )
    rank_E = np.zeros(len(target_E), dtype=np.int32)
    row_of_hit, place = np.nonzero(items_EK == target_E[:, None])
    rank_E[row_of_hit] = place + 1
    return rank_E


def metric_values(rank_E: Int32Array, ks: tuple[int, ...] = KS) -> Float64Array:
    """HR and NDCG of each row: float64 [E, M], columns as ``metric_names(ks)``.

    Args:
        rank_E: from 1; 0 means not found.
    """
    hit_EM = (rank_E[:, None] > 0) & (rank_E[:, None] <= np.asarray(ks))
    gain_E = 1.0 / np.log2(1.0 + np.maximum(rank_E, 1))
    return np.concatenate([hit_EM.astype(np.float64), hit_EM * gain_E[:, None]], axis=1)


def ranking_table(
    rank_E: Int32Array,
    user_E: npt.NDArray[np.integer] | npt.NDArray[np.str_],
    *,
    seed: int,
    ks: tuple[int, ...] = KS,
    num_resamples: int = NUM_RESAMPLES,
) -> RankingTable:
    """Means over rows, with percentile intervals from resampled users.

    A user's rows depend on each other, so a resample draws users with replacement and
    takes all rows of each. Ranks do not communicate.

    Raises:
        ValueError: if there are no rows.
    """
    if not len(rank_E):
        raise ValueError("no evaluation rows: nothing to measure")
    values_EM = metric_values(rank_E, ks)
    sums_UM, rows_U = sums_by_user(values_EM, user_E)
    low_M, high_M = bootstrap_interval(
        sums_UM, rows_U, seed=seed, num_resamples=num_resamples
    )
    names = metric_names(ks)
    bounds = zip(low_M.tolist(), high_M.tolist(), strict=True)
    return RankingTable(
        num_rows=len(rank_E),
        num_users=len(rows_U),
        metrics=dict(zip(names, values_EM.mean(axis=0).tolist(), strict=True)),
        intervals=dict(zip(names, bounds, strict=True)),
    )


def sums_by_user(
    values_EM: Float64Array, user_E: npt.NDArray[np.integer] | npt.NDArray[np.str_]
) -> tuple[Float64Array, Int64Array]:
    """Sum of each user's rows [U, M] and their number int64 [U], users ascending."""
    _, code_E = np.unique(user_E, return_inverse=True)
    rows_U = np.bincount(code_E)
    columns = [np.bincount(code_E, weights=column) for column in values_EM.T]
    return np.stack(columns, axis=1), rows_U


def bootstrap_interval(
    sums_UM: Float64Array, rows_U: Int64Array, *, seed: int, num_resamples: int
) -> tuple[Float64Array, Float64Array]:
    """Percentile bootstrap over users of sum(sums) / sum(rows): low [M], high [M]."""
    generator = np.random.default_rng(seed)
    num_users = len(rows_U)
    share_U = np.full(num_users, 1.0 / num_users)
    means = []
    for start in range(0, num_resamples, BLOCK_RESAMPLES):
        block = min(BLOCK_RESAMPLES, num_resamples - start)
        times_SU = generator.multinomial(num_users, share_U, size=block)
        times_SU = times_SU.astype(np.float64)
        means.append((times_SU @ sums_UM) / (times_SU @ rows_U)[:, None])
    low_M, high_M = np.percentile(np.concatenate(means), INTERVAL_PERCENT, axis=0)
    return low_M, high_M
