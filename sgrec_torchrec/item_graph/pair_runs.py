"""Events of users -> sorted runs of pairs -> a file for each range of items."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.item_graph import pair_kernels as kernels
from sgrec_torchrec.item_graph.pair_layout import Layout
from sgrec_torchrec.schema import Int32Array, Int64Array, Sequences

GROUP_ROWS = 1 << 24
WORD_BYTES = 16
"""On disk: 12 in a run, and what stays of it."""
SCHEMA = pa.schema(
    [
        pa.field("word", pa.uint64(), nullable=False),
        pa.field("count", pa.uint32(), nullable=False),
    ]
)
WORDS, COUNTS = "words", "counts"
"""Files of ``write_runs``: all runs end to end, 8 and 4 bytes for each entry."""
Run = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]
"""Rising words, and how many of each."""


def item_ranges(pairs_N: Int64Array, max_pairs: int) -> list[tuple[int, int]]:
    """Cut [0, N) into ranges of at most ``max_pairs`` pairs, or of a single item."""
    total = np.cumsum(pairs_N)
    ranges, low, done = [], 0, 0
    while low < len(pairs_N):
        high = int(np.searchsorted(total, done + max_pairs, side="right"))
        high = max(high, low + 1)
        ranges.append((low, high))
        low, done = high, int(total[high - 1])
    return ranges


def bytes_for_pairs(end_U: Int32Array, max_distance: int) -> int:
    """At most on disk, while the pairs of so many events of each user are counted."""
    return WORD_BYTES * int(words_of_users(end_U, max_distance).sum())


def words_of_users(end_U: Int32Array, max_distance: int) -> Int64Array:
    """How many words the first ``end_U[u]`` events of each user make, int64 [U]."""
    length_U = end_U.astype(np.int64)
    near_U = np.clip(length_U - 1, 0, max_distance)
    words_U: Int64Array = 2 * near_U * length_U - near_U * (near_U + 1)
    return words_U


def _user_chunks(words_U: Int64Array, max_pairs: int) -> list[tuple[int, int, int]]:
    """(first user, the one after the last, words): of about ``max_pairs`` words."""
    chunks = [
        (low, high, int(words_U[low:high].sum()))
        for low, high in item_ranges(words_U, max_pairs)
    ]
    return [chunk for chunk in chunks if chunk[2]]


def write_runs(
    sequences: Sequences,
    end_U: Int32Array,
    folds: Int64Array,
    layout: Layout,
    place: Path,
    max_pairs: int,
) -> list[Run]:
    """Words of whole users, sorted and counted; mapped from two files of ``place``.

    Args:
        folds: of these users, int64 [U].
        max_pairs: of a run.
    """
    chunks = _user_chunks(words_of_users(end_U, layout.max_distance), max_pairs)
    first_U = sequences.offsets_U1[:-1]
    paths, cuts = (place / WORDS, place / COUNTS), [0]
    with paths[0].open("wb") as word_file, paths[1].open("wb") as count_file:
        for low, high, num_words in progress(
            chunks, description="co-visits", unit="run"
        ):
            words = np.empty(num_words, dtype=np.uint64)
            kernels.emit(
                first_U[low:high],
                first_U[low:high] + end_U[low:high],
                folds[low:high],
                sequences.items_R,
                sequences.timestamps_R,
                layout.max_distance,
                layout.bits,
                words,
            )
            words.sort()
            count_W = np.empty(num_words, dtype=np.uint32)
            kept = kernels.run_lengths(words, count_W)
            words[:kept].tofile(word_file)
            count_W[:kept].tofile(count_file)
            cuts.append(cuts[-1] + kept)
    if not chunks:
        return []
    words_W = np.memmap(paths[0], dtype=np.uint64, mode="r")
    counts_W = np.memmap(paths[1], dtype=np.uint32, mode="r")
    return [(words_W[low:high], counts_W[low:high]) for low, high in pairwise(cuts)]


def cut_runs(
    runs: Sequence[Run], layout: Layout, ranges: Sequence[tuple[int, int]]
) -> list[Int64Array]:
    """Where each range of items begins in each run, and the last one ends."""
    cuts = np.array([*(low for low, _ in ranges), layout.num_items])
    firsts = layout.first_words(cuts)
    # The last may be past 64 bits: all words are before it.
    return [
        np.append(np.searchsorted(words, firsts[:-1]), len(words)) for words, _ in runs
    ]


def join_runs(
    runs: Sequence[Run],
    layout: Layout,
    ranges: Sequence[tuple[int, int]],
    paths: Sequence[Path],
) -> None:
    """All runs -> a file for each range of items."""
    places = cut_runs(runs, layout, ranges)
    for number, path in enumerate(
        progress(paths, description="joining co-visits", unit="range")
    ):
        slices = [
            (words[at[number] : at[number + 1]], count_W[at[number] : at[number + 1]])
            for (words, count_W), at in zip(runs, places, strict=True)
        ]
        write_joined(slices, path)


def write_joined(runs: list[Run], path: Path) -> None:
    """Runs of one range of items -> its file."""
    words, count_W = _joined(runs)
    with pq.ParquetWriter(
        path,
        SCHEMA,
        compression="zstd",
        use_dictionary=["count"],  # type: ignore[arg-type]
        column_encoding={"word": "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
        version="2.6",
    ) as writer:
        if len(words):
            table = pa.table([pa.array(words), pa.array(count_W)], schema=SCHEMA)
            writer.write_table(table, row_group_size=GROUP_ROWS)


def _joined(runs: list[Run]) -> Run:
    """The runs as one, joined by twos."""
    if not runs:
        return np.empty(0, np.uint64), np.empty(0, np.uint32)
    while len(runs) > 1:
        joined = [_joined_two(*runs[at : at + 2]) for at in range(0, len(runs) - 1, 2)]
        runs = joined + (runs[-1:] if len(runs) % 2 else [])
    return runs[0]


def _joined_two(first: Run, second: Run) -> Run:
    size = len(first[0]) + len(second[0])
    words, count_W = np.empty(size, np.uint64), np.empty(size, np.uint32)
    kept = kernels.join(*first, *second, words, count_W)
    return words[:kept], count_W[:kept]
