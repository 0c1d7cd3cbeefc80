"""What an import read, changed and wrote: lines for people, facts for the manifest."""

import time
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sgrec_torchrec.files.run_folder import MANIFEST

DAY_S = 86_400
YEAR_1990_S = 631_152_000
DROPPED_LOG, DROPPED_ITEMS = "dropped_rows.csv", "dropped_items.csv"
"""Rows that ``--bad-rows drop`` left out, with their reasons, in the log's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import read, changed and wrote."""

    importer: str
    folder: Path
    rows_read: int
    rows: int
    users: int
    items: int
    items_in_log: int
    out_of_order_rows: int
    duplicate_rows: int
    duplicates: str
    """Rule for rows that are equal in all columns: keep, drop or error."""
    has_clock: bool
    counts: Mapping[str, int]
    """Further counts of the importer, by what they count."""
    note: str
    """Source, terms and caveats."""
    dropped_rows: int = 0
    """Bad rows of the log that were left out, each with its reason in a file."""
    dropped_items: int = 0
    """The same of the catalogue."""
    first_timestamp: int | None = None
    last_timestamp: int | None = None
    """Of the rows written; None in a log of an older release."""
    warnings: tuple[str, ...] = ()
    """What was left out, and what looks unlike what it should be."""

    def lines(self) -> list[str]:
        """The report as lines of text."""
        done = {"keep": "kept", "drop": "dropped", "error": "none"}[self.duplicates]
        size = (
            f"{self.importer}: {self.rows:,} rows, {self.users:,} users, "
            f"{self.items:,} items ({self.items_in_log:,} of them in the log) "
            f"-> {self.folder}"
        )
        changes = (
            f"read {self.rows_read:,} rows; {self.out_of_order_rows:,} out of order "
            f"(sorted); {self.duplicate_rows:,} exact duplicates ({done})"
        )
        lines = [size, changes]
        for count, name in (
            (self.dropped_rows, DROPPED_LOG),
            (self.dropped_items, DROPPED_ITEMS),
        ):
            if count:
                lines.append(
                    f"dropped {count:,} bad rows: {self.folder / name} says why"
                )
        lines += self._times()
        lines += [
            f"{name.replace('_', ' ')}: {count:,}"
            for name, count in self.counts.items()
        ]
        lines += [f"warning: {one}" for one in self.warnings]
        return [*lines, self.note]

    def _times(self) -> list[str]:
        if not self.has_clock:
            return ["timestamps are ordinals: only their order means something"]
        if self.first_timestamp is None or self.last_timestamp is None:
            return []
        first, last = as_time(self.first_timestamp), as_time(self.last_timestamp)
        return [f"times: {first} to {last} (UTC)"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a log comes from, as its manifest tells."""

    importer: str
    note: str
    """Source, terms of use and caveats, in a sentence or two."""
    has_clock: bool = True
    counts: Mapping[str, int] = field(default_factory=dict)
    hint: str = ""
    """What errors of rows end with."""
    value_counts: bool = True
    """False: rows that differ in value and split alone are duplicates, too."""


def report_of(manifest: Mapping[str, Any], folder: Path) -> ImportReport:
    """The report of the import that wrote ``manifest``, for its copy in ``folder``.

    Raises:
        ValueError: where it lacks a fact that every release writes.
    """
    if lacking := [
        part.name
        for part in REPORTED
        if part.default is MISSING and part.name not in manifest
    ]:
        raise ValueError(
            f"{folder / MANIFEST} is damaged (it has no {lacking[0]}): import the log "
            "again"
        )
    facts = {
        part.name: manifest[part.name] for part in REPORTED if part.name in manifest
    }
    if "warnings" in facts:
        facts["warnings"] = tuple(facts["warnings"])
    return ImportReport(folder=folder, **facts)


REPORTED = [part for part in fields(ImportReport) if part.name != "folder"]
"""What a manifest holds of it."""


def as_time(seconds: int) -> str:
    """2024-01-31 12:00:00, or the number where no calendar reaches."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:,} s after 1970"


def time_warnings(first: int, last: int, now: float | None = None) -> list[str]:
    """What is odd about the times of a log that has a clock.

    Args:
        first, last: seconds since 1970.
        now: the same; None asks the clock.
    """
    now = time.time() if now is None else now
    warnings = []
    if first < YEAR_1990_S:
        guess = ""
        if first >= 19_000_101 and last <= 21_001_231:
            guess = ": dates written as 20240131? Write them as 2024-01-31"
        elif last < 100_000:
            guess = ": days of a spreadsheet, or ordinals (--ordinal)?"
        elif first <= 0:
            guess = ": times that were not known?"
        warnings.append(f"the earliest time is {as_time(first)}, before 1990{guess}")
    if last > now + DAY_S:
        warnings.append(
            f"the latest time is {as_time(last)}, after tomorrow: milliseconds, or a "
            "clock that is wrong?"
        )
    return warnings
