"""Judged pairs as Parquet -> a reward table, or one more segment of it.

An external sort: the files are streamed once into runs by the hash of the user (see
``runs``), then each run is sorted in memory, written and deleted. A second thread reads
and sorts one step ahead of the writing. Memory stays under ``max_memory_gib`` (runs
that fit in half of it never touch the disk), beside two batches of rows, 24 bytes for
each distinct user (168 and the text where users are texts), and for the items: 4 bytes
for each id from the lowest to the highest where these are few (``IDS_PER_PAIR``) and
the files' statistics tell them, else 144 for each distinct item. Disk grows with pairs:
16 bytes each (and 4 for each aspect) in runs, which shrink as the 6 bytes (and 2 for
each aspect) of the table grow; as_of takes 24 bytes more each time that it differs from
the row before.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from sgrec_torchrec.reward_table.build_report import (
    BuildReport,
    report_of,
    told_of_full_disk,
)
from sgrec_torchrec.reward_table.conflicts import describe_conflict
from sgrec_torchrec.reward_table.hash_map import Numbering, hash_ids, sorted_ids
from sgrec_torchrec.reward_table.ids import Ids, Texts, Uint32Array
from sgrec_torchrec.reward_table.judged_files import (
    BATCH_ROWS,
    JudgedBatch,
    check_same_columns,
    list_files,
    read_batches,
    read_columns,
)
from sgrec_torchrec.reward_table.lookup import NO_ITEM
from sgrec_torchrec.reward_table.manifest import (
    Manifest,
    next_name,
    publish,
    read_manifest,
    writing,
)
from sgrec_torchrec.reward_table.row_writer import Origin, RowWriter
from sgrec_torchrec.reward_table.rows import (
    POLICIES,
    ConflictError,
    OnConflict,
    Rows,
    rows_of,
)
from sgrec_torchrec.reward_table.runs import (
    Runs,
    UnexpectedItemError,
    bytes_per_row,
)
from sgrec_torchrec.reward_table.segment import Segment, SegmentFiles, open_segments

Step = TypeVar("Step")
PAIRS_PER_BUCKET = 1 << 17
"""A run of this many pairs is sorted within the processor's cache."""
MAX_BUCKETS = 1024
MAX_FILES = 256
"""Buckets on disk: two open files each; the usual limit is 1024 for a process."""
IDS_PER_PAIR = 4
"""Items are counted in an array of all ids between the lowest and the highest one where
it has no more places than this for each row, and a few."""
WORK_BYTES_PER_PAIR = 128


def build_reward_table(
    parquet: Path | str | Sequence[Path | str],
    out_dir: Path | str,
    *,
    reward_range: tuple[float, float] = (0.0, 1.0),
    aspect_range: tuple[float, float] = (0.0, 1.0),
    on_conflict: OnConflict = "error",
    max_memory_gib: float = 4.0,
    token_cost: Mapping[str, float] | None = None,
) -> BuildReport:
    """Build a table of one segment; a table that stood there gives way at the end.

    Rewards are kept as 16-bit fixed point: off by at most 1/131070 of the range, exact
    at both ends of it, and equal where the input is equal. Aspects likewise.

    Args:
        parquet: a file, a folder of *.parquet, or several of them, with the columns
            ``user_id`` and ``item_id`` (integers or strings), ``reward`` (float32/64)
            and, if there, ``aspect_*`` (and those that the schema metadata "aspects"
            lists), ``as_of`` (events of the user's log that the judge saw) with
            ``history_hash``, one of each per user, ``judge_version``,
            ``prompt_version``.
        reward_range: what a reward may be; a reward beyond it is an error.
        on_conflict: for a pair with different scores: ``error``, the ``last`` row in
            the order of the input, or the ``mean``.
        max_memory_gib: for sorting; see the module for what comes on top.
        token_cost: what the judging cost, kept in the manifest as it is.

    Raises:
        ValueError: naming file, row and mend, for input that breaks these rules.
        FileNotFoundError: for input that is missing.
        BlockingIOError: where another process writes the table.
        OSError: on a full disk. After any error all is as it was before.
    """
    _check_settings(reward_range, aspect_range, on_conflict, max_memory_gib)
    files, folder = list_files(parquet), Path(out_dir)
    columns, num_rows, item_range = read_columns(files)
    empty = Manifest(
        columns=columns,
        reward_range=(float(reward_range[0]), float(reward_range[1])),
        aspect_range=(float(aspect_range[0]), float(aspect_range[1])),
        segments=(),
    )
    with writing(folder, must_exist=False) as building, told_of_full_disk(folder):
        build = _Build(
            files=files,
            num_rows=num_rows,
            item_range=item_range,
            table=empty,
            on_conflict=on_conflict,
            max_memory_gib=max_memory_gib,
        )
        return build.run(folder, building, (), token_cost or {})


def append_segment(
    folder: Path | str,
    parquet: Path | str | Sequence[Path | str],
    *,
    on_conflict: OnConflict = "error",
    max_memory_gib: float = 4.0,
    token_cost: Mapping[str, float] | None = None,
) -> BuildReport:
    """Add newer judgements: they win over what the table says of the same pairs.

    A user whose ``as_of`` or ``history_hash`` is another than before loses all older
    pairs: they were judged for another prefix. Ranges are those of the table; columns
    must be, too. Lookups take time for each segment until ``compact`` merges them.

    Raises:
        ValueError, FileNotFoundError, BlockingIOError, OSError: as for
            ``build_reward_table``.
    """
    files, folder = list_files(parquet), Path(folder)
    columns, num_rows, item_range = read_columns(files)
    with writing(folder, must_exist=True) as building, told_of_full_disk(folder):
        table = read_manifest(folder)
        _check_settings(
            table.reward_range, table.aspect_range, on_conflict, max_memory_gib
        )
        check_same_columns(columns, table.columns, str(files[0]), f"the table {folder}")
        older = open_segments(folder, table)[::-1]
        build = _Build(
            files=files,
            num_rows=num_rows,
            item_range=item_range,
            table=table,
            on_conflict=on_conflict,
            max_memory_gib=max_memory_gib,
        )
        return build.run(folder, building, older, token_cost or {})


class _Build:
    """One pass over the input, one over the runs."""

    def __init__(
        self,
        files: list[Path],
        num_rows: int,
        item_range: range | None,
        table: Manifest,
        on_conflict: OnConflict,
        max_memory_gib: float,
    ) -> None:
        self._files = files
        self._num_rows = num_rows
        self._item_range = _countable(item_range, num_rows)
        self._table = table
        self._columns = table.columns
        self._on_conflict: OnConflict = on_conflict
        self._max_memory_gib = max_memory_gib
        self._items = Numbering(is_text=self._columns.item_is_text)
        self._users = Numbering(is_text=True) if self._columns.user_is_text else None
        self._versions: dict[str, set[str]] = {}
        self._peak_disk_bytes = 0

    def run(
        self,
        folder: Path,
        building: Path,
        older: Sequence[Segment],
        token_cost: Mapping[str, float],
    ) -> BuildReport:
        """Build in ``building``, then make the table in ``folder`` name the result."""
        start_s = time.perf_counter()
        runs_folder = building / "runs"
        runs_folder.mkdir()
        with self._filled(runs_folder) as runs, SegmentFiles(building) as files:
            ids, number_N = self._numbered_items()
            writer = RowWriter(files, self._columns, ids, older)
            self._sort(runs, writer, files, number_N)
            facts = writer.finish(next_name(folder), self._origin(token_cost))
        runs_folder.rmdir()
        segments = (*self._table.segments, facts)
        publish(folder, building, replace(self._table, segments=segments), facts)
        return report_of(
            facts, self._num_rows, self._peak_disk_bytes, time.perf_counter() - start_s
        )

    def _numbered_items(self) -> tuple[Ids | range, Uint32Array | None]:
        """The items' ids, and the place there of each number (None: the number)."""
        if self._item_range is not None:
            return self._item_range, None
        return sorted_ids(self._items)

    def _origin(self, token_cost: Mapping[str, float]) -> Origin:
        return Origin(
            judge_versions=tuple(sorted(self._versions.get("judge_version", ()))),
            prompt_versions=tuple(sorted(self._versions.get("prompt_version", ()))),
            sources=tuple(map(str, self._files)),
            token_cost={name: float(cost) for name, cost in token_cost.items()},
        )

    def _batches(self) -> Iterator[JudgedBatch]:
        return read_batches(
            self._files,
            self._columns,
            reward_range=self._table.reward_range,
            aspect_range=self._table.aspect_range,
        )

    def _filled(self, folder: Path) -> Runs:
        """The runs of all rows."""
        try:
            return self._fill(self._empty_runs(folder))
        except UnexpectedItemError:
            # statistics of a file are hints of whoever wrote it: do without them
            self._item_range = None
            return self._fill(self._empty_runs(folder))

    def _empty_runs(self, folder: Path) -> Runs:
        num_aspects, has_as_of = len(self._columns.aspects), self._columns.has_as_of
        memory_bytes = int(self._max_memory_gib * 2**30) // 2
        is_kept = self._num_rows * bytes_per_row(num_aspects, has_as_of) < memory_bytes
        wanted = max(-(-self._num_rows // PAIRS_PER_BUCKET), 1)
        return Runs(
            folder,
            num_buckets=min(wanted, MAX_BUCKETS if is_kept else MAX_FILES),
            num_aspects=num_aspects,
            num_rows=self._num_rows,
            memory_bytes=memory_bytes,
            has_prefixes=has_as_of,
        )

    def _fill(self, runs: Runs) -> Runs:
        num_batches = -(-self._num_rows // BATCH_ROWS)
        batches = _shown(self._batches(), "read judged pairs", num_batches)
        try:
            for batch in one_ahead(batches):
                self._add(runs, batch)
            runs.finish()
        except BaseException:
            runs.close()
            raise
        return runs

    def _add(self, runs: Runs, batch: JudgedBatch) -> None:
        hashes = None
        if isinstance(batch.users, Texts):
            assert self._users is not None
            users = self._users.number(batch.users).astype(np.int64)
            hashes = hash_ids(batch.users)
        else:
            users = np.ascontiguousarray(batch.users)
        if self._item_range is None:
            items = self._items.number(batch.items)
            runs.add(users, hashes, items, batch.scores)
        else:
            assert not isinstance(batch.items, Texts)
            runs.add(users, hashes, batch.items, batch.scores, self._item_range)
        if batch.as_of is not None:
            runs.add_prefixes(users, hashes, batch.as_of, batch.history_hash)
        for name, found in batch.versions.items():
            self._versions.setdefault(name, set()).update(found)

    def _sort(
        self,
        runs: Runs,
        writer: RowWriter,
        files: SegmentFiles,
        number_N: Uint32Array | None,
    ) -> None:
        """Sort the runs; item n of them is ``number_N[n]`` (None: n) in the table."""
        low_high = [self._table.reward_range]
        low_high += [self._table.aspect_range] * len(self._columns.aspects)
        ranges = np.array(low_high, np.float64)
        names = self._users.ids() if self._users is not None else None
        hashes_of_users = self._users.hashes() if self._users is not None else None

        def sorted_rows() -> Iterator[Rows]:
            for bucket in _shown(range(len(runs)), "sort", len(runs)):
                self._check_memory(runs.num_records(bucket))
                records, prefixes = runs.take(bucket)
                if number_N is not None:
                    records[:, 2] = number_N[records[:, 2]]
                yield rows_of(
                    records,
                    prefixes if self._columns.has_as_of else None,
                    ranges,
                    self._on_conflict,
                    hashes_of_users,
                )

        try:
            for rows in one_ahead(sorted_rows()):
                users: Ids = rows.users_U
                if isinstance(names, Texts):
                    users = names.take(rows.users_U)
                writer.add(
                    users,
                    hashes_U=rows.hashes_U,
                    lengths_U=rows.lengths_U,
                    items_P=rows.items_P,
                    codes_PS=rows.codes_PS,
                    prefixes_U2=rows.prefixes_U2,
                )
                used = runs.disk_bytes + files.num_bytes
                self._peak_disk_bytes = max(self._peak_disk_bytes, used)
        except ConflictError as error:
            told = describe_conflict(error, self._batches(), names, writer.item_ids)
            raise ValueError(told) from None

    def _check_memory(self, num_records: int) -> None:
        per_pair = WORK_BYTES_PER_PAIR + 10 * len(self._columns.aspects)
        needed_gib = num_records * per_pair / 2**30
        if needed_gib > self._max_memory_gib:
            raise ValueError(
                f"sorting {num_records} pairs at once needs {needed_gib:.1f} GiB, "
                f"max_memory_gib is {self._max_memory_gib:g}: raise it, or split the "
                "input over several tables"
            )


def _countable(item_range: range | None, num_rows: int) -> range | None:
    """The range, unless an array of it were far larger than the input."""
    most = min(IDS_PER_PAIR * num_rows + (1 << 16), NO_ITEM)
    if item_range is None or item_range.stop - item_range.start > most:
        return None
    return item_range


def _check_settings(
    reward_range: tuple[float, float],
    aspect_range: tuple[float, float],
    on_conflict: str,
    max_memory_gib: float,
) -> None:
    for name, (low, high) in (("reward", reward_range), ("aspect", aspect_range)):
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"{name}_range ({low:g}, {high:g}): give two finite numbers, the lower "
                "one first"
            )
    if on_conflict not in POLICIES:
        raise ValueError(
            f"on_conflict {on_conflict!r}: choose one of {', '.join(POLICIES)}"
        )
    if not max_memory_gib > 0:
        raise ValueError(f"max_memory_gib {max_memory_gib:g}: give more than 0")


def one_ahead(steps: Iterable[Step]) -> Iterator[Step]:
    """The same steps, each made in a thread while the one before it is used."""
    iterator = iter(steps)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, None)
        while (step := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield step


def _shown(steps: Iterable[Step], description: str, total: int) -> Iterator[Step]:
    from sgrec_torchrec.distributed.progress import progress

    yield from progress(steps, description=description, total=total)
