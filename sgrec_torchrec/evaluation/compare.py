"""Two runs' hits on the same rows to paired differences, intervals and p values.

A run's hits are one Parquet file: ``user_id`` string, ``row`` int64 (the number of the
evaluation row in its split), ``target_item_id`` string, ``rank`` int32 (from 1; 0 means
not found within the list). Files carry page checksums, verified when read.

Scale: bounded by ``evaluation.max_rows``; the tests hold blocks of U users times
BLOCK_RESAMPLES draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from sgrec_torchrec.evaluation.ranking import (
    BLOCK_RESAMPLES,
    KS,
    bootstrap_interval,
    metric_names,
    metric_values,
    sums_by_user,
)
from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.files.text_column import taken
from sgrec_torchrec.schema import (
    EvalRows,
    Float64Array,
    Int32Array,
    Int64Array,
    SplitLog,
)

COLUMNS: list[tuple[str, pa.DataType]] = [
    ("user_id", pa.string()),
    ("row", pa.int64()),
    ("target_item_id", pa.string()),
    ("rank", pa.int32()),
]
NUM_BOOTSTRAP = 2000
NUM_SIGN_FLIPS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """One run's ranks, ordered by row number."""

    user_id_E: npt.NDArray[np.object_]
    row_E: Int64Array
    target_item_id_E: npt.NDArray[np.object_]
    rank_E: Int32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of run A and of run B on the same rows."""

    metric: str
    value_a: float
    value_b: float
    difference: float
    """B - A."""
    low: float
    high: float
    """95 % interval of the difference, users resampled."""
    p_value: float
    """Two-sided, from flipping the sign of users' differences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All metrics; ``metric_names()`` order."""

    num_rows: int
    num_users: int
    differences: tuple[Difference, ...]


def hits_path(folder: Path, system: str) -> Path:
    """Where an evaluation folder keeps a system's ranks."""
    return folder / f"hits-{system.replace(' ', '-')}.parquet"


def render(comparison: Comparison) -> None:
    """Print the comparison as a table."""
    table = Table("metric", "A", "B", "B - A", "95 % interval", "p")
    for part in comparison.differences:
        table.add_row(
            part.metric,
            f"{part.value_a:.4f}",
            f"{part.value_b:.4f}",
            f"{part.difference:+.4f}",
            f"[{part.low:+.4f}, {part.high:+.4f}]",
            f"{part.p_value:.4f}",
        )
    table.title = f"{comparison.num_rows} rows of {comparison.num_users} users"
    Console().print(table)


def write_hits(
    path: Path, split: SplitLog, rows: EvalRows, row_E: Int64Array, rank_E: Int32Array
) -> None:
    """Write a run's ranks, whole or not at all; call it on one rank.

    Args:
        rows: the evaluated rows.
        row_E: the number of each in its split's valid or test rows.
        rank_E: int32, from 1; 0 means not found.

    Raises:
        ValueError: if the lengths differ.
    """
    if not len(rows) == len(row_E) == len(rank_E):
        raise ValueError(
            f"{len(rows)} rows, {len(row_E)} row numbers and {len(rank_E)} ranks: "
            "there must be one of each per evaluated row"
        )
    table = pa.table(
        [
            pa.array(taken(split.user_ids, rows.user_E), type=pa.string()),
            pa.array(row_E, type=pa.int64()),
            pa.array(taken(split.catalogue.item_ids, rows.target_E), type=pa.string()),
            pa.array(rank_E, type=pa.int32()),
        ],
        schema=pa.schema(COLUMNS),
    )
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


def read_hits(path: Path) -> Hits:
    """Read and check what ``write_hits`` wrote; rows come back by row number.

    Raises:
        FileNotFoundError: naming the file.
        ValueError: naming the file, and the column or first row that is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: evaluate the run first")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is damaged ({error}): evaluate again") from error
    for name, kind in COLUMNS:
        found = (
            table.schema.field(name).type if name in table.schema.names else "absent"
        )
        if found != kind:
            raise ValueError(
                f"{path}: column {name} is {found}, not {kind}: evaluate again"
            )
        if table.column(name).null_count:
            raise ValueError(f"{path}: column {name} has nulls: evaluate again")
    table = table.sort_by("row")
    row_E = table.column("row").to_numpy()
    twice = np.flatnonzero(row_E[1:] == row_E[:-1])
    if len(twice):
        raise ValueError(f"{path}: row {row_E[twice[0]]} occurs twice: evaluate again")
    rank_E = table.column("rank").to_numpy()
    if (rank_E < 0).any():
        row = row_E[np.flatnonzero(rank_E < 0)[0]]
        raise ValueError(f"{path}: row {row} has a negative rank: evaluate again")
    return Hits(
        user_id_E=table.column("user_id").to_numpy(),
        row_E=row_E,
        target_item_id_E=table.column("target_item_id").to_numpy(),
        rank_E=rank_E,
    )


def compare(
    path_a: Path,
    path_b: Path,
    *,
    seed: int = 0,
    ks: tuple[int, ...] = KS,
    num_bootstrap: int = NUM_BOOTSTRAP,
    num_sign_flips: int = NUM_SIGN_FLIPS,
) -> Comparison:
    """Run B against run A, row by row: ``compare_seeds`` of one run each."""
    return compare_seeds(
        [path_a],
        [path_b],
        seed=seed,
        ks=ks,
        num_bootstrap=num_bootstrap,
        num_sign_flips=num_sign_flips,
    )


def compare_seeds(
    paths_a: Sequence[Path],
    paths_b: Sequence[Path],
    *,
    seed: int = 0,
    ks: tuple[int, ...] = KS,
    num_bootstrap: int = NUM_BOOTSTRAP,
    num_sign_flips: int = NUM_SIGN_FLIPS,
) -> Comparison:
    """System B against system A, row by row, users as the unit of both tests.

    A row's value is its mean over a system's runs (one per seed, any number). The
    interval resamples users with replacement; the p value is that of the paired
    permutation test: under the null hypothesis a user's difference is as likely to
    have the other sign. p = (1 + flips at least as extreme) / (1 + flips).

    Raises:
        FileNotFoundError, ValueError: as ``read_hits``; also naming the first row in
            which the runs differ (another user, target, or a row only one has), or
            where there are none.
    """
    if not paths_a or not paths_b:
        raise ValueError("nothing to compare: each system needs the hits of a run")
    a = read_hits(paths_a[0])
    values_a, values_b = (
        _mean_values(paths, paths_a[0], a, ks) for paths in (paths_a, paths_b)
    )
    sums_UM, rows_U = sums_by_user(values_b - values_a, a.user_id_E.astype(str))
    low_M, high_M = bootstrap_interval(
        sums_UM, rows_U, seed=seed, num_resamples=num_bootstrap
    )
    p_M = sign_flip_p_values(sums_UM, seed=seed, num_flips=num_sign_flips)
    mean_a, mean_b = values_a.mean(axis=0), values_b.mean(axis=0)
    differences = tuple(
        Difference(
            metric=name,
            value_a=float(mean_a[m]),
            value_b=float(mean_b[m]),
            difference=float(mean_b[m] - mean_a[m]),
            low=float(low_M[m]),
            high=float(high_M[m]),
            p_value=float(p_M[m]),
        )
        for m, name in enumerate(metric_names(ks))
    )
    return Comparison(
        num_rows=len(a.row_E), num_users=len(rows_U), differences=differences
    )


def _mean_values(
    paths: Sequence[Path], first_path: Path, first: Hits, ks: tuple[int, ...]
) -> Float64Array:
    """Metrics of each row, averaged over the runs: [E, M]."""
    total = np.zeros((len(first.row_E), len(metric_names(ks))))
    for path in paths:
        hits = read_hits(path)
        _check_same_rows(first_path, first, path, hits)
        total += metric_values(hits.rank_E, ks)
    return total / len(paths)


def sign_flip_p_values(
    sums_UM: Float64Array, *, seed: int, num_flips: int
) -> Float64Array:
    """Two-sided p value of each column's sum under random signs of its rows: [M]."""
    generator = np.random.default_rng(seed)
    # Users without a difference change no sum, whatever their sign.
    differing = sums_UM[(sums_UM != 0).any(axis=1)]
    observed_M = np.abs(differing.sum(axis=0))
    # Sums of many flips equal the observed one up to rounding: they count.
    bound_M = observed_M - 1e-9 * np.maximum(np.abs(differing).sum(axis=0), 1e-300)
    extreme_M = np.zeros(sums_UM.shape[1], dtype=np.int64)
    for start in range(0, num_flips, BLOCK_RESAMPLES):
        block = min(BLOCK_RESAMPLES, num_flips - start)
        sign_SU = generator.integers(0, 2, size=(block, len(differing))) * 2.0 - 1.0
        extreme_M += (np.abs(sign_SU @ differing) >= bound_M).sum(axis=0)
    p_M: Float64Array = (1 + extreme_M) / (1 + num_flips)
    return p_M


def _check_same_rows(path_a: Path, a: Hits, path_b: Path, b: Hits) -> None:
    if not len(a.row_E) or not len(b.row_E):
        empty = path_b if len(a.row_E) else path_a
        raise ValueError(f"{empty} has no rows: nothing to compare")
    common = min(len(a.row_E), len(b.row_E))
    for name in ("row_E", "user_id_E", "target_item_id_E"):
        differs = getattr(a, name)[:common] != getattr(b, name)[:common]
        if differs.any() or (name == "row_E" and len(a.row_E) != len(b.row_E)):
            first = int(np.flatnonzero(differs)[0]) if differs.any() else common
            raise ValueError(
                f"{path_a} and {path_b} are not of the same rows; first difference: "
                f"{_describe(a, first)} against {_describe(b, first)}. Evaluate both "
                "runs on the same split, seed and max_rows"
            )


def _describe(hits: Hits, index: int) -> str:
    if index >= len(hits.row_E):
        return "no further row"
    return (
        f"row {hits.row_E[index]} (user {hits.user_id_E[index]}, "
        f"target {hits.target_item_id_E[index]})"
    )
