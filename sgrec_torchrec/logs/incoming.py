"""Incoming tables (log, catalogue) -> tables staged on disk by DuckDB.

Every check that fails names the file, the column and the mend. Rows are counted from 0
in file order; a header line does not count.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from sgrec_torchrec.logs.columns import Column, cast_of, check_type, quote
from sgrec_torchrec.logs.json_lines import stage_lines
from sgrec_torchrec.logs.text_lines import (
    BrokenRows,
    JsonLines,
    cannot_be_read,
    delimiter_hint,
)

EMPTY = '"NULL"'
"""DuckDB's type of a column that holds nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A table to import and the name that errors call it by.

    ``source`` is a SELECT statement that DuckDB runs, an Arrow table, a stream of Arrow
    batches (read once, never held whole), or lines of JSON.
    """

    name: str
    source: str | pa.Table | pa.RecordBatchReader | JsonLines
    mapping: Mapping[str, str] = field(default_factory=dict)
    """Canonical column -> its name in ``source``, where the two differ."""
    broken: BrokenRows = field(default_factory=BrokenRows)
    """Rows of a text file that are no rows of a table; known once it is staged."""
    lacking: Mapping[str, str] = field(default_factory=dict)
    """Column in ``source`` -> which files of a folder lack it, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A table staged under the name ``table``, with the column ``file_row``."""

    name: str
    table: str
    types: dict[str, str]
    """Canonical column -> DuckDB type as it arrived; only columns that are there."""
    named: dict[str, str]
    """Canonical column -> its name in the file."""
    ignored: tuple[str, ...]
    """Columns of the file that the canonical format does not have."""
    notes: tuple[str, ...]
    """What a reader of the report should know of them."""
    broken: BrokenRows
    lacking: dict[str, str]
    """Canonical column -> which files of a folder lack it, in words."""
    num_rows: int
    """Rows of the file, broken ones included."""

    def their_name(self, column: str) -> str:
        """A canonical column as errors call it: by the file's name, then by ours."""
        theirs = self.named.get(column, column)
        return repr(column) if theirs == column else f"{theirs!r} ({column})"


def open_database(folder: Path, memory_limit_gib: float) -> duckdb.DuckDBPyConnection:
    """A DuckDB database in ``folder`` that spills there beyond the memory limit."""
    connection = duckdb.connect(str(folder / "stage.duckdb"))
    connection.execute(f"SET memory_limit = '{int(memory_limit_gib * 1024)}MiB'")
    connection.execute("SET temp_directory = $1", [str(folder / "spill")])
    connection.execute("SET preserve_insertion_order = true")
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def stage(
    connection: duckdb.DuckDBPyConnection,
    incoming: Incoming,
    columns: Sequence[Column],
    table: str,
) -> Staged:
    """Copy the known columns of ``incoming`` into a table, numbered in file order.

    Disk grows with rows x columns; memory stays under the connection's limit.

    Raises:
        ValueError: for a source that cannot be read, a missing column (with near
            names), a type that cannot hold the column, or no rows at all.
    """
    view = f"arrived_{table}"
    try:
        arrived = _describe(connection, incoming, view)
        named = _named(incoming, columns, arrived)
        for column in columns:
            if column.name in named:
                theirs = named[column.name]
                check_type(incoming.name, theirs, column, arrived[theirs])
        names = ", ".join(
            f"{quote(theirs)} AS {quote(ours)}" for ours, theirs in named.items()
        )
        connection.execute(
            f"CREATE TABLE {table} AS SELECT {names}, "
            f"row_number() OVER () - 1 AS file_row FROM {view}"
        )
    except (duckdb.Error, pa.ArrowException) as error:
        raise ValueError(cannot_be_read(incoming.name, error)) from error
    _make_room(connection, table, incoming.broken)
    num_rows = int(scalar(connection, f"SELECT count(*) FROM {table}"))
    if num_rows + incoming.broken.num_rows == 0:
        raise ValueError(f"{incoming.name}: has no rows; give a file with data")
    ignored = tuple(name for name in arrived if name not in named.values())
    return Staged(
        name=incoming.name,
        table=table,
        types={ours: arrived[theirs] for ours, theirs in named.items()},
        named=named,
        ignored=ignored,
        notes=tuple(_note(name, columns, named, arrived[name]) for name in ignored),
        broken=incoming.broken,
        lacking={
            ours: incoming.lacking[theirs]
            for ours, theirs in named.items()
            if theirs in incoming.lacking
        },
        num_rows=num_rows + incoming.broken.num_rows,
    )


def _make_room(
    connection: duckdb.DuckDBPyConnection, table: str, broken: BrokenRows
) -> None:
    """Number rows as the file does, which counts the broken ones, too."""
    places = [row - nth for nth, (row, *_) in enumerate(broken.first)]
    if places:
        connection.execute(
            f"UPDATE {table} SET file_row = file_row + "
            "len(list_filter($1, lambda place: place <= file_row))",
            [places],
        )


def _note(
    theirs: str, columns: Sequence[Column], named: Mapping[str, str], arrived: str
) -> str:
    """Of an ignored column: which one of ours it might be."""
    free = {column.name: column for column in columns if column.name not in named}
    near = [
        ours
        for ours, column in free.items()
        if _plain(theirs) in map(_plain, (ours, *column.synonyms))
    ]
    if near and arrived == EMPTY:
        return f"column {theirs!r} is empty: left out"
    near += difflib.get_close_matches(_plain(theirs), list(free), n=1, cutoff=0.75)
    hint = f"; if it is the {near[0]}: {near[0]}={theirs}" if near else ""
    return f"column {theirs!r} is left out{hint}"


def _describe(
    connection: duckdb.DuckDBPyConnection, incoming: Incoming, view: str
) -> dict[str, str]:
    """Make the view; its columns and DuckDB types."""
    if isinstance(incoming.source, JsonLines):
        stage_lines(connection, incoming.source, view, incoming.broken)
    elif isinstance(incoming.source, str):
        connection.execute(f"CREATE TEMP VIEW {view} AS {incoming.source}")
    else:
        connection.register(view, incoming.source)
    rows = connection.execute(f"DESCRIBE {view}").fetchall()
    return {str(row[0]): str(row[1]) for row in rows}


def _named(
    incoming: Incoming, columns: Sequence[Column], types: Mapping[str, str]
) -> dict[str, str]:
    """Canonical name -> name in the source, for the columns that are there.

    An optional column without any value is as good as none.
    """
    arrived = list(types)
    known = {column.name: column for column in columns}
    for ours, theirs in incoming.mapping.items():
        if ours not in known:
            raise ValueError(
                f"{incoming.name}: cannot map {theirs!r} to {ours!r}; the columns are "
                f"{', '.join(known)}"
            )
        if theirs not in arrived:
            hint = _near((theirs,), arrived)
            raise ValueError(
                f"{incoming.name}: no column {theirs!r} (mapped to {ours!r}) in "
                f"{', '.join(map(repr, arrived))}; "
                + (f"did you mean {hint!r}?" if hint else "mend the mapping")
            )
    named = {name: incoming.mapping.get(name, name) for name in known}
    for column in columns:
        if column.is_required and named[column.name] not in arrived:
            raise ValueError(f"{incoming.name}: {_missing(column, arrived)}")
    return {
        ours: theirs
        for ours, theirs in named.items()
        if theirs in types and (known[ours].is_required or types[theirs] != EMPTY)
    }


def _missing(column: Column, arrived: list[str]) -> str:
    near = _near((column.name, *column.synonyms), arrived)
    there = f"no column {column.name!r} in {', '.join(map(repr, arrived))}"
    if near:
        return (
            f"{there}; did you mean {near!r}? Rename it, or map it: "
            f"{column.name}={near}"
        )
    hint = delimiter_hint(arrived)
    return f"{there}{hint}; map the right one: {column.name}=ITS_NAME"


def _near(wanted: Sequence[str], arrived: list[str]) -> str | None:
    """The arrived name most like one of ``wanted`` (the first counts most), if any."""
    plain_of = {_plain(candidate): candidate for candidate in arrived}
    plain = [_plain(text) for text in wanted]
    exact = [text for text in plain if text in plain_of]
    close = difflib.get_close_matches(plain[0], list(plain_of), cutoff=0.6)
    return next((plain_of[text] for text in (*exact, *close)), None)


def _plain(text: str) -> str:
    return text.lower().replace("_", "").replace(" ", "").replace("-", "")


def cast_list(staged: Staged, columns: Sequence[Column]) -> str:
    """SQL list of the staged columns, cast to their canonical types and named."""
    return ", ".join(
        f"{cast_of(column, staged.types[column.name])} AS {quote(column.name)}"
        for column in columns
        if column.name in staged.types
    )


def one_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The only row that a query yields."""
    (row,) = connection.execute(query).fetchall()
    return tuple(row)


def scalar(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """The only value of the only row that a query yields."""
    (value,) = one_row(connection, query)
    return value
