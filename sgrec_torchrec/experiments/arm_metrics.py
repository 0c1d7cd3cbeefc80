"""Lists of a post-trained arm -> what each row earned, in a file; arms tested in pairs.

A file holds one system of one arm and seed: ``user_id``, ``row`` and
``target_item_id`` as in a run's hits, then a float64 column for each of ``METRICS``,
NaN where there is nothing to say of the row. Letters: E rows, K places, M metrics, U
users, S seeds, D draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sgrec_torchrec.evaluation.compare import (
    NUM_BOOTSTRAP,
    NUM_SIGN_FLIPS,
    Difference,
    sign_flip_p_values,
)
from sgrec_torchrec.evaluation.ranking import (
    BLOCK_RESAMPLES,
    INTERVAL_PERCENT,
    metric_values,
    sums_by_user,
    target_ranks,
)
from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.files.text_column import taken
from sgrec_torchrec.logs.prompts import target_values
from sgrec_torchrec.reward_table import RewardTable
from sgrec_torchrec.schema import (
    EvalRows,
    Float64Array,
    Int32Array,
    Int64Array,
    SplitLog,
)

DEPTH = 10
METRICS = ("HR@10", "NDCG@10", "value@10", "judged reward@10", "in table@10")
"""HR and NDCG; the money of the target where it is hit (without money 1 / rank); of
users that the judge knows the mean reward of those listed items that it has judged, and
the share that these are of the list."""
KEYS = ("user_id", "row", "target_item_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRows:
    """What one arm of one seed earned, row by row."""

    user_id_E: npt.NDArray[np.object_]
    row_E: Int64Array
    target_item_id_E: npt.NDArray[np.object_]
    values_EM: Float64Array

    def means(self) -> dict[str, float | None]:
        """Over the rows of which there is something to say; None for no such row."""
        known_EM = ~np.isnan(self.values_EM)
        total_M = np.where(known_EM, self.values_EM, 0).sum(0)
        pairs = zip(METRICS, total_M.tolist(), known_EM.sum(0).tolist(), strict=True)
        return {name: part / count if count else None for name, part, count in pairs}


def arm_rows(
    items_EK: Int32Array,
    rows: EvalRows,
    row_E: Int64Array,
    split: SplitLog,
    table: RewardTable | None,
) -> ArmRows:
    """The values of each row's first ``DEPTH`` items. No ranks communicate.

    Args:
        items_EK: best first, -1 beyond the last.
        row_E: int64, the number of each row in its split.
        table: of the judge, who judged each user at one prefix of the train period:
            here that opinion is asked about later lists.

    Raises:
        ValueError: for a list that holds an item twice.
    """
    top_EK = items_EK[:, :DEPTH]
    rank_E = target_ranks(top_EK, rows.target_E)
    ranked_E2 = metric_values(rank_E, (DEPTH,))
    judged_E2 = _judged(top_EK, rows, split, table)
    value_E = _values(rank_E, rows, split)
    users = taken(split.user_ids, rows.user_E)
    items = taken(split.catalogue.item_ids, rows.target_E)
    return ArmRows(
        user_id_E=np.array(users, dtype=object),
        row_E=row_E,
        target_item_id_E=np.array(items, dtype=object),
        values_EM=np.column_stack([ranked_E2, value_E, judged_E2]),
    )


def _values(rank_E: Int32Array, rows: EvalRows, split: SplitLog) -> Float64Array:
    """float64 [E]: what the hit was worth; NaN where the log does not say."""
    is_hit_E = rank_E > 0
    if not split.sequences.has_value:
        return is_hit_E / np.maximum(rank_E, 1)
    # A refund is worth no more than nothing.
    return np.asarray(target_values(rows, split).clip(min=0) * is_hit_E)


def _judged(
    top_EK: Int32Array, rows: EvalRows, split: SplitLog, table: RewardTable | None
) -> Float64Array:
    """float64 [E, 2]: mean reward of the judged items, and their share of the list."""
    judged_E2 = np.full((len(rows), 2), np.nan)
    if table is None:
        return judged_E2
    known_U = table.as_of(split.user_ids)[2]
    ids = split.catalogue.item_ids
    for row in np.flatnonzero(known_U[rows.user_E]).tolist():
        items = [ids[item] for item in top_EK[row].tolist() if item >= 0]
        if items:
            user = split.user_ids[rows.user_E[row]]
            reward_K, found_K = table.lookup([user] * len(items), items)
            judged_E2[row, 1] = found_K.mean()
            if found_K.any():
                judged_E2[row, 0] = reward_K[found_K].mean(dtype=np.float64)
    return judged_E2


def write_arm(path: Path, arm: ArmRows) -> None:
    """Write the rows, whole or not at all; call it on one rank."""
    columns: dict[str, Any] = {
        "user_id": pa.array(arm.user_id_E, pa.string()),
        "row": pa.array(arm.row_E, pa.int64()),
        "target_item_id": pa.array(arm.target_item_id_E, pa.string()),
    }
    values = dict(zip(METRICS, map(pa.array, arm.values_EM.T), strict=True))
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns | values), temporary, write_page_checksum=True)


def read_arm(path: Path) -> ArmRows:
    """What ``write_arm`` wrote, by row number.

    Raises:
        FileNotFoundError: naming the file.
        ValueError: naming the file, where it is damaged or of another version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run the arm again")
    try:
        table = pq.read_table(
            path, columns=[*KEYS, *METRICS], page_checksum_verification=True
        ).sort_by("row")
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is damaged ({error}): run the arm again") from error
    if table.schema.names != [*KEYS, *METRICS]:
        raise ValueError(f"{path} lacks some of {', '.join(METRICS)}: run the arm anew")
    user_id_E, row_E, target_item_id_E = (table.column(k).to_numpy() for k in KEYS)
    return ArmRows(
        user_id_E=user_id_E,
        row_E=row_E,
        target_item_id_E=target_item_id_E,
        values_EM=np.column_stack([table.column(name).to_numpy() for name in METRICS]),
    )


def compare_arms(
    paths_a: Sequence[Path], paths_b: Sequence[Path], *, seed: int = 0
) -> list[Difference]:
    """Arm B against arm A, seed by seed and row by row, in the order of ``METRICS``.

    A row counts where both have something to say of it. The interval draws users and
    seeds with replacement; the p value flips the signs of users' differences, all seeds
    together. A metric without rows is left out.

    Args:
        paths_a, paths_b: one file a seed, in the same order.

    Raises:
        FileNotFoundError, ValueError: as ``read_arm``; also where the rows differ.
    """
    first = read_arm(paths_a[0])
    values_a, values_b = (
        np.stack([_values_of(path, first, paths_a[0]) for path in paths])
        for paths in (paths_a, paths_b)
    )
    known_SEM = ~np.isnan(values_a) & ~np.isnan(values_b)
    lead_SEM = np.where(known_SEM, values_b - values_a, 0)
    user_E = first.user_id_E.astype(str)
    sum_SUM, rows_SUM = (
        np.stack([sums_by_user(part_EM * 1.0, user_E)[0] for part_EM in part_SEM])
        for part_SEM in (lead_SEM, known_SEM)
    )
    low_M, high_M = _interval(sum_SUM, rows_SUM, seed)
    p_M = sign_flip_p_values(sum_SUM.sum(0), seed=seed, num_flips=NUM_SIGN_FLIPS)
    differences = []
    for m, name in enumerate(METRICS):
        is_known = known_SEM[..., m]
        if is_known.any():
            value_a = float(values_a[..., m][is_known].mean())
            value_b = float(values_b[..., m][is_known].mean())
            differences.append(
                Difference(
                    metric=name,
                    value_a=value_a,
                    value_b=value_b,
                    difference=value_b - value_a,
                    low=float(low_M[m]),
                    high=float(high_M[m]),
                    p_value=float(p_M[m]),
                )
            )
    return differences


def _values_of(path: Path, first: ArmRows, first_path: Path) -> Float64Array:
    arm = read_arm(path)
    for name in ("row_E", "user_id_E", "target_item_id_E"):
        if not np.array_equal(getattr(arm, name), getattr(first, name)):
            raise ValueError(
                f"{first_path} and {path} are not of the same rows: run both arms on "
                "the same split, seed and max_rows"
            )
    return arm.values_EM


def _interval(
    sum_SUM: Float64Array, rows_SUM: Float64Array, seed: int
) -> tuple[Float64Array, Float64Array]:
    """Percentile bootstrap of sum(sums) / sum(rows), users and seeds drawn anew: [M].

    NaN for a metric without rows.
    """
    generator = np.random.default_rng(seed)
    num_seeds, num_users, num_metrics = sum_SUM.shape
    shares = [np.full(num, 1 / num) for num in (num_seeds, num_users)]
    means = []
    for start in range(0, NUM_BOOTSTRAP, BLOCK_RESAMPLES):
        block = min(BLOCK_RESAMPLES, NUM_BOOTSTRAP - start)
        times_DS, times_DU = (
            generator.multinomial(len(share), share, size=block).astype(np.float64)
            for share in shares
        )
        total_DM, rows_DM = (
            np.einsum("ds,sdm->dm", times_DS, times_DU @ part_SUM)
            for part_SUM in (sum_SUM, rows_SUM)
        )
        # A draw without any row says nothing.
        means.append(
            np.divide(total_DM, rows_DM, where=rows_DM > 0, out=total_DM * np.nan)
        )
    mean_DM = np.concatenate(means)
    bounds = np.full((2, num_metrics), np.nan)
    has_rows_M = ~np.isnan(mean_DM).all(0)
    bounds[:, has_rows_M] = np.nanpercentile(
        mean_DM[:, has_rows_M], INTERVAL_PERCENT, axis=0
    )
    return bounds[0], bounds[1]
