"""Interaction logs -> how often item j stands near item i, as integers that add up.

Of every two events of one user at most ``max_distance`` places apart it is kept which
items they are of, which came first (or that they share a basket), how far apart they
are, and the user's fold; equal ones are counted. Any weight of visits is a sum over
these counts in units of 2^-20: neither the order of the log nor how it was cut changes
a bit, and a fold is left out by not adding it.

    covisits-K.parquet  words and how many of each, by rising word (``pair_kernels``
                        says what a word holds), of the K-th range of items
    popularity_FN.npy, recent_FN.npy    events of each item by fold
    covisits.json       sealed: what was counted, the ranges, sums of the files

Scale: the log is read once. R events have at most 2 R max_distance pairs; they are
sorted in runs of ``max_pairs``, 8 bytes each, which go to disk. Then ranges of items
are joined from all runs, 24 bytes for each of ``max_pairs`` (``pair_shards`` does both
as tasks of many processes or hosts): memory does not grow with
the log's pairs, and time does by one pass over them for each doubling of the runs. On
disk a kept pair takes about 4 bytes, of a run 12 until the end. Counting how often each
item occurs takes 32 bytes an event for a moment, and 16 N for each fold.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sgrec_torchrec.files.array_folder import read_arrays
from sgrec_torchrec.files.atomic import atomic_folder, sha256_file
from sgrec_torchrec.files.run_folder import nth
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.item_graph.pair_layout import Layout
from sgrec_torchrec.item_graph.pair_runs import (
    SCHEMA,
    Run,
    item_ranges,
    join_runs,
    write_runs,
)
from sgrec_torchrec.schema import Int32Array, Int64Array, Sequences

FORMAT_VERSION = 2
MANIFEST, PAIRS = "covisits.json", "covisits-*.parquet"
MAX_PAIRS = 20_000_000
RECENT_SHARE = 0.2
ARRAYS = ("popularity_FN", "recent_FN")
MEND = "build the pair counts again"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCounts:
    """The pairs of a period, in a folder, and how often each item occurs in it."""

    folder: Path
    layout: Layout
    ranges: Sequence[tuple[int, int]]
    """First item, and the one after the last: a file each."""
    popularity_FN: Int64Array
    recent_FN: Int64Array
    """Events among the newest 20 % of the whole period."""

    def popularity(self, without: int | None = None) -> Int64Array:
        """Events of each item, int64 [N]."""
        return _total(self.popularity_FN, without)

    def recent(self, without: int | None = None) -> Int64Array:
        """Events of each item among the newest 20 %, int64 [N]."""
        return _total(self.recent_FN, without)

    def blocks(self) -> Iterator[tuple[int, int, Run]]:
        """Yield (low, high, run): all words whose source is in [low, high)."""
        for number, (low, high) in enumerate(self.ranges):
            path = self.folder / nth(PAIRS, number)
            table = pq.read_table(path, page_checksum_verification=True)
            words, count_W = (table[name].to_numpy() for name in SCHEMA.names)
            yield low, high, (words, count_W)

    @property
    def manifest(self) -> Path:
        """Names the sums of all else in the folder."""
        return self.folder / MANIFEST

    @classmethod
    def load(cls, folder: Path, *, verify: bool = True) -> "PairCounts":
        """Read what ``count_pairs`` wrote.

        Args:
            verify: compare the files' sums. False: who handed out this task did.

        Raises:
            FileNotFoundError, ValueError: as ``read_arrays``.
        """
        arrays, facts = read_arrays(
            folder / MANIFEST,
            ARRAYS,
            {"layout": dict, "ranges": list, "pairs_sha256": list},
            format_version=FORMAT_VERSION,
            what="the pair counts",
            verify=verify,
        )
        for number, digest in enumerate(facts["pairs_sha256"]):
            path = folder / nth(PAIRS, number)
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: {MEND}")
            if verify and sha256_file(path) != digest:
                raise ValueError(
                    f"{path} is damaged (its SHA-256 is not that of {MANIFEST}): {MEND}"
                )
        return cls(
            folder=folder,
            layout=Layout(**facts["layout"]),
            ranges=[(low, high) for low, high in facts["ranges"]],
            **arrays,
        )


def count_pairs(
    sequences: Sequences,
    end_U: Int32Array,
    folder: Path,
    *,
    max_distance: int,
    fold_U: Int64Array | None = None,
    num_folds: int = 1,
    max_pairs: int = MAX_PAIRS,
) -> PairCounts:
    """Count the pairs among the first ``end_U[u]`` events of each user u.

    Deterministic, whatever ``max_pairs``. Ranks do not communicate.

    Args:
        folder: is written whole or not at all.
        fold_U: below ``num_folds``, for each user; None puts all into fold 0.
        max_pairs: bounds memory.

    Raises:
        ValueError: where pairs of so many items do not fit a word.
    """
    folds = np.zeros(sequences.num_users, np.int64) if fold_U is None else fold_U
    layout = Layout(
        num_items=sequences.num_items,
        num_folds=num_folds,
        max_distance=max_distance,
    )
    occurrences = occurrences_of(sequences, end_U, folds, layout)
    ranges = ranges_of(occurrences[0], layout, max_pairs)
    with atomic_folder(folder) as temporary:
        paths = [temporary / nth(PAIRS, number) for number in range(len(ranges))]
        with tempfile.TemporaryDirectory(dir=temporary) as place:
            runs = write_runs(sequences, end_U, folds, layout, Path(place), max_pairs)
            join_runs(runs, layout, ranges, paths)
            del runs  # mapped files cannot go everywhere
        write_rest(temporary, layout, ranges, occurrences)
    return PairCounts(
        folder=folder,
        layout=layout,
        ranges=ranges,
        popularity_FN=occurrences[0],
        recent_FN=occurrences[1],
    )


def ranges_of(
    popularity_FN: Int64Array, layout: Layout, max_pairs: int
) -> list[tuple[int, int]]:
    """Ranges of items whose pairs can be held at once, however often they are equal."""
    return item_ranges(2 * layout.max_distance * popularity_FN.sum(axis=0), max_pairs)


def write_rest(
    folder: Path,
    layout: Layout,
    ranges: Sequence[tuple[int, int]],
    occurrences: tuple[Int64Array, Int64Array],
) -> None:
    """Beside the files of the ranges: occurrences, and the manifest."""
    for name, array in zip(ARRAYS, occurrences, strict=True):
        np.save(folder / f"{name}.npy", array)
    paths = [folder / nth(PAIRS, number) for number in range(len(ranges))]
    facts = {
        "format_version": FORMAT_VERSION,
        "layout": asdict(layout),
        "ranges": ranges,
        "sha256": {name: sha256_file(folder / f"{name}.npy") for name in ARRAYS},
        "pairs_sha256": [sha256_file(path) for path in paths],
    }
    write_sealed(folder / MANIFEST, facts)


@contextmanager
def counted(
    sequences: Sequences,
    end_U: Int32Array,
    *,
    max_distance: int,
    fold_U: Int64Array | None = None,
    num_folds: int = 1,
    given: PairCounts | None = None,
) -> Iterator[PairCounts]:
    """``count_pairs`` into a folder that goes at the end; or what is given."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="covisits-") as place:
        yield count_pairs(
            sequences,
            end_U,
            Path(place) / "counts",
            max_distance=max_distance,
            fold_U=fold_U,
            num_folds=num_folds,
        )


def occurrences_of(
    sequences: Sequences,
    end_U: Int32Array,
    folds: Int64Array,
    layout: Layout,
) -> tuple[Int64Array, Int64Array]:
    """Events of each item by fold, int64 [F, N]: all, and the newest 20 %."""
    length_U = np.diff(sequences.offsets_U1)
    place_R = np.arange(len(sequences.items_R)) - np.repeat(
        sequences.offsets_U1[:-1], length_U
    )
    known_R = place_R < np.repeat(end_U, length_U)
    del place_R
    times = sequences.timestamps_R[known_R]
    oldest = np.quantile(times, 1.0 - RECENT_SHARE) if len(times) else 0
    shape = (layout.num_folds, layout.num_items)
    place = (
        np.repeat(folds.astype(np.int64), length_U)[known_R] * layout.num_items
        + sequences.items_R[known_R]
    )
    size = shape[0] * shape[1]
    all_FN = np.bincount(place, minlength=size).reshape(shape)
    recent_FN = np.bincount(place[times >= oldest], minlength=size).reshape(shape)
    return all_FN.astype(np.int64), recent_FN.astype(np.int64)


def _total(count_FN: Int64Array, without: int | None) -> Int64Array:
    total_N: Int64Array = count_FN.sum(axis=0)
    return total_N if without is None else total_N - count_FN[without]
