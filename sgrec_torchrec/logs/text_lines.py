"""CSV, TSV and JSON lines -> Arrow batches of text; nothing of them is guessed.

Arrow reads the bytes: a path is a path and no pattern, every field is text, a quoted
field may hold lines, and a row with too few or too many fields is kept apart with its
number. Memory: one block.
"""

import csv
import gzip
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv as pc

from sgrec_torchrec.logs.quotes import CheckedQuotes

BLOCK_BYTES = 1 << 24
"""The longest row that a file may hold."""
NO_DELIMITER = "\x01"
"""A control character: no line of JSON may hold it."""
LINE = "line"
SHOWN_CHARACTERS = 60
KEPT_ROWS = 1000
"""Broken rows that are kept in words; the others are counted."""
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(slots=True)
class BrokenRows:
    """Rows of a file that are no rows of its table, found while it is read."""

    num_rows: int = 0
    first: list[tuple[int, str, str]] = field(default_factory=list)
    """Row (from 0, the header left out), what is wrong, the text."""

    def skip(self, row: pc.InvalidRow) -> Literal["skip"]:
        """Arrow's handler."""
        self.num_rows += 1
        if len(self.first) < KEPT_ROWS:
            number = -1 if row.number is None else row.number - 2
            what = f"has {row.actual_columns} fields in place of {row.expected_columns}"
            if '"' in row.text and "\n" in row.text:
                what += " (a quote that nothing closes?)"
            self.first.append((number, what, row.text))
        return "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLines:
    """A file of JSON lines, as a column ``line``; the columns are its objects' keys."""

    lines: pa.RecordBatchReader


def open_delimited(
    path: Path, delimiter: str, broken: BrokenRows
) -> pa.RecordBatchReader:
    """All columns as text. TSV has no quotes: a quote there is a character.

    A column without a name, as index columns have it, is called ``unnamed``.

    Raises:
        ValueError: naming the file, for a header that cannot be read or that names a
            column twice.
    """
    header = _header(path, delimiter)
    names = [name if name.strip() else "unnamed" for name in header]
    for name, count in Counter(names).items():
        if count > 1 and name != "unnamed":
            raise ValueError(f"{path}: column {name!r} appears twice; rename one")
    blank = [at for at, name in enumerate(names) if name == "unnamed"]
    for nth, at in enumerate(blank[1:], start=2):
        names[at] = f"unnamed {nth}"
    return _open(path, delimiter, names, broken, is_quoted=delimiter != "\t", skip=1)


def open_json_lines(path: Path) -> JsonLines:
    """The lines of a file; blank ones are left out."""
    lines = _open(path, NO_DELIMITER, [LINE], BrokenRows(), is_quoted=False, skip=0)
    return JsonLines(lines=lines)


def delimiter_hint(columns: Sequence[str]) -> str:
    """What to try where a header came out as a single column."""
    if len(columns) != 1:
        return ""
    there = [mark for mark in DELIMITERS if mark in columns[0]]
    if not there:
        return ""
    return (
        f"; its fields seem to be parted by {DELIMITERS[there[0]]}: "
        f"--delimiter {there[0]!r}"
    )


def _open(
    path: Path,
    delimiter: str,
    names: list[str],
    broken: BrokenRows,
    *,
    is_quoted: bool,
    skip: int,
) -> pa.RecordBatchReader:
    try:
        source: Any = pa.input_stream(str(path), compression="detect")
        if is_quoted:
            source = pa.PythonFile(CheckedQuotes(source, path, delimiter), mode="r")
        return pc.open_csv(
            source,
            read_options=pc.ReadOptions(
                # In order, and rows have numbers.
                use_threads=False,
                block_size=BLOCK_BYTES,
                column_names=names,
                skip_rows_after_names=skip,
            ),
            parse_options=pc.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if is_quoted else False,
                newlines_in_values=is_quoted,
                invalid_row_handler=broken.skip,
            ),
            convert_options=pc.ConvertOptions(
                column_types={name: pa.string() for name in names},
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(cannot_be_read(str(path), error)) from error


def cannot_be_read(name: str, error: Exception) -> str:
    """What a library said of a file, whole but on one line, and what to do."""
    said = " ".join(str(error).split())
    # DuckDB tells of a stream first, and of Python's own words last.
    said = said.partition("failed: ")[2] or said
    said = said.partition(" Detail: Python exception")[0].removeprefix("Invalid: ")
    if said.startswith(name):
        return said
    mend = "mend that place, or export the file again"
    if "UTF8" in said or isinstance(error, UnicodeDecodeError):
        mend = "write it again as UTF-8 text"
    elif "straddling" in said:
        mend = f"a row may have {BLOCK_BYTES >> 20} MiB: look for a quote left open"
    return f"{name}: cannot be read ({said}); {mend}"


def _header(path: Path, delimiter: str) -> list[str]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(
            path, "rt", encoding="utf-8-sig", newline=""
        ) as file:
            if delimiter == "\t":
                reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
            else:
                reader = csv.reader(file, delimiter=delimiter)
            return next(reader, [])
    except (UnicodeDecodeError, OSError, EOFError, csv.Error) as error:
        raise ValueError(cannot_be_read(str(path), error)) from error
