"""Judgements -> Parquet parts, losing nothing that was judged when a run is killed.

    journal.jsonl         one line a user since the last part, flushed at once
    part-00000.parquet    ... of whole users, about ``PAIRS_PER_PART`` pairs each

A user's pairs count as judged once their line is whole, so a run that goes on judges no
pair twice. A torn last line is that of a user whose judging was cut off.
"""

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.files.checked_parquet import read_checked
from sgrec_torchrec.files.listed_sums import check_listed, sums_of
from sgrec_torchrec.files.run_folder import PARTS, nth, number_of

PAIRS_PER_PART = 100_000
JOURNAL, LOCK = "journal.jsonl", ".lock"
PAIR = ("user_id", "item_id")
READ = (*PAIR, "history_hash")
MEND = "delete it, and its users are judged again"
Row = dict[str, Any]


def locked(folder: Path) -> TextIO:
    """A lock that is held until it is closed, or its process ends.

    Raises:
        BlockingIOError: where another process writes here.
    """
    file = (folder / LOCK).open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BlockingIOError(
            f"{folder}: another process is judging into this folder; wait for it, or "
            "write to another one"
        ) from None
    return file


class Journal:
    """The judged pairs of one folder; one writer at a time.

    ``done`` holds the judged items of each user: memory grows with the pairs, some 100
    bytes each; of more than one machine's memory, ``in_parts`` judges parts.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        """Open or begin.

        Raises:
            ValueError: naming the part that cannot be read.
            BlockingIOError: where another process writes here.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = locked(folder)
        self.folder = folder
        self.schema = schema
        self.done: dict[str, set[str]] = {}
        self.history_hash: dict[str, int] = {}
        """Of the prefix that each judged user was judged at."""
        self.num_pairs = 0
        check_listed(self.parts, MEND)
        self.sums = sums_of(self.parts)
        """Of each part, for the manifest."""
        for path in self.parts:
            self._count(read_checked(path, MEND, list(READ)).to_pylist())
        self._rows: list[Row] = []
        for rows in _whole_lines(folder / JOURNAL):
            # A part may have been written just before the journal could go.
            self._rows += [
                row for row in rows if not self.has(row["user_id"], row["item_id"])
            ]
        self._count(self._rows)
        self._rewrite()
        self._file = self._open()

    @property
    def parts(self) -> list[Path]:
        """The parts so far, in order."""
        return sorted(self.folder.glob(PARTS))

    def has(self, user_id: str, item_id: str) -> bool:
        """Has this pair been judged?"""
        return item_id in self.done.get(user_id, ())

    def add(self, rows: Sequence[Row]) -> None:
        """All pairs of one user; on disk when this returns."""
        self._file.write(json.dumps(list(rows), allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._rows += rows
        self._count(rows)
        if len(self._rows) >= PAIRS_PER_PART:
            self.seal()

    def seal(self) -> None:
        """Write what the journal holds as a part, and empty it."""
        if not self._rows:
            return
        path = self.folder / nth(PARTS, next_part(self.folder))
        table = pa.Table.from_pylist(self._rows, schema=self.schema)
        with atomic_file(path) as temporary:
            pq.write_table(
                table, temporary, compression="zstd", write_page_checksum=True
            )
        self.sums |= sums_of([path])
        self._file.close()
        self._rows = []
        self._rewrite()
        self._file = self._open()

    def close(self) -> None:
        """Leave the journal as it is, for the next run."""
        self._file.close()
        self._lock.close()

    def _count(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.done.setdefault(row["user_id"], set()).add(row["item_id"])
            self.history_hash[row["user_id"]] = row["history_hash"]
        self.num_pairs += len(rows)

    def _rewrite(self) -> None:
        by_user: dict[str, list[Row]] = {}
        for row in self._rows:
            by_user.setdefault(row["user_id"], []).append(row)
        with atomic_file(self.folder / JOURNAL) as temporary:
            lines = [json.dumps(rows) + "\n" for rows in by_user.values()]
            temporary.write_text("".join(lines), encoding="utf-8")

    def _open(self) -> TextIO:
        return (self.folder / JOURNAL).open("a", encoding="utf-8")


def next_part(folder: Path) -> int:
    """The number of the part to come; one that was deleted leaves a gap."""
    return 1 + max(map(number_of, folder.glob(PARTS)), default=-1)


def other_history(folder: Path, user_id: str) -> ValueError:
    """A folder holds one prefix a user, for a table takes no more: how to go on."""
    return ValueError(
        f"{folder}: user {user_id!r} was judged there after another history; judge "
        "into another folder (--out) and `sgrec table append` it"
    )


def _whole_lines(path: Path) -> list[list[Row]]:
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    found = []
    # What follows the last newline was cut off while it was written.
    for place, line in enumerate(lines[:-1], 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {place}: cannot be read ({error}): delete the line, and "
                "its user is judged again"
            ) from None
    return found
