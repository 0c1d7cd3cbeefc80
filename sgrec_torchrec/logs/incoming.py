"""Incoming tables (log, catalogue) -> tables staged on disk by DuckDB, then checked.

Every check that fails names the file, the column, the first offending row and the mend.
Rows are counted from 0 in file order; a header line does not count.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from sgrec_torchrec.logs.columns import Column, Rule, cast_of, check_type, quote


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A table to import and the name that errors call it by.

    ``source`` is a SELECT statement that DuckDB runs, an Arrow table, or a stream of
    Arrow batches (read once, never held whole).
    """

    name: str
    source: str | pa.Table | pa.RecordBatchReader
    mapping: Mapping[str, str] = field(default_factory=dict)
    """Canonical column -> its name in ``source``, where the two differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A table staged under the name ``table``, with the column ``file_row``."""

    name: str
    table: str
    types: dict[str, str]
    """Canonical column -> DuckDB type as it arrived; only columns that are there."""
    ignored: tuple[str, ...]
    num_rows: int


def open_database(folder: Path, memory_limit_gib: float) -> duckdb.DuckDBPyConnection:
    """A DuckDB database in ``folder`` that spills there beyond the memory limit."""
    connection = duckdb.connect(str(folder / "stage.duckdb"))
    connection.execute(f"SET memory_limit = '{int(memory_limit_gib * 1024)}MiB'")
    connection.execute("SET temp_directory = $1", [str(folder / "spill")])
    connection.execute("SET preserve_insertion_order = true")
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
    try:
        view = f"arrived_{table}"
        arrived = _describe(connection, incoming, view)
        named = _named(incoming, columns, list(arrived))
        for column in columns:
            if column.name in named:
                check_type(incoming.name, column, arrived[named[column.name]])
        names = ", ".join(
            f"{quote(theirs)} AS {quote(ours)}" for ours, theirs in named.items()
        )
        connection.execute(
            f"CREATE TABLE {table} AS SELECT {names}, "
            f"row_number() OVER () - 1 AS file_row FROM {view}"
        )
    except (duckdb.Error, pa.ArrowException) as error:
        raise ValueError(
            f"{incoming.name}: cannot be read ({str(error).splitlines()[0]}); "
            "write or copy the file again"
        ) from error
    num_rows = int(scalar(connection, f"SELECT count(*) FROM {table}"))
    if num_rows == 0:
        raise ValueError(f"{incoming.name}: has no rows; give a file with data")
    return Staged(
        name=incoming.name,
        table=table,
        types={ours: arrived[theirs] for ours, theirs in named.items()},
        ignored=tuple(name for name in arrived if name not in named.values()),
        num_rows=num_rows,
    )


def _describe(
    connection: duckdb.DuckDBPyConnection, incoming: Incoming, view: str
) -> dict[str, str]:
    """Make the view; its columns and DuckDB types."""
    if isinstance(incoming.source, str):
        connection.execute(f"CREATE TEMP VIEW {view} AS {incoming.source}")
    else:
        connection.register(view, incoming.source)
    rows = connection.execute(f"DESCRIBE {view}").fetchall()
    return {str(row[0]): str(row[1]) for row in rows}


def _named(
    incoming: Incoming, columns: Sequence[Column], arrived: list[str]
) -> dict[str, str]:
    """Canonical name -> name in the source, for the columns that are there."""
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
    return {ours: theirs for ours, theirs in named.items() if theirs in arrived}


def _missing(column: Column, arrived: list[str]) -> str:
    near = _near((column.name, *column.synonyms), arrived)
    there = f"no column {column.name!r} in {', '.join(map(repr, arrived))}"
    if near:
        return (
            f"{there}; did you mean {near!r}? Rename it, or map it: "
            f"{column.name}={near}"
        )
    return f"{there}; map the right one: {column.name}=ITS_NAME"


def _near(wanted: Sequence[str], arrived: list[str]) -> str | None:
    """The arrived name most like one of ``wanted`` (the first counts most), if any."""
    plain_of = {_plain(candidate): candidate for candidate in arrived}
    plain = [_plain(text) for text in wanted]
    exact = [text for text in plain if text in plain_of]
    close = difflib.get_close_matches(plain[0], list(plain_of), cutoff=0.6)
    return next((plain_of[text] for text in (*exact, *close)), None)


def _plain(text: str) -> str:
    return text.lower().replace("_", "").replace(" ", "").replace("-", "")


def check_rows(
    connection: duckdb.DuckDBPyConnection, staged: Staged, rules: Sequence[Rule]
) -> None:
    """Raise for the first rule that a row breaks. One scan of the staged table.

    Raises:
        ValueError: naming file, column, first such row, its value, count and mend.
    """
    firsts = ", ".join(
        f"min(file_row) FILTER (WHERE {rule.is_bad}), "
        f"count(*) FILTER (WHERE {rule.is_bad})"
        for rule in rules
    )
    row = one_row(connection, f"SELECT {firsts} FROM {staged.table}")
    for rule, first, count in zip(rules, row[0::2], row[1::2], strict=True):
        if count:
            raise ValueError(describe_row(connection, staged, rule, first, count))


def describe_row(
    connection: duckdb.DuckDBPyConnection,
    staged: Staged,
    rule: Rule,
    first: int,
    count: int,
) -> str:
    """The message for ``count`` rows that break ``rule``, the first at ``first``."""
    value = scalar(
        connection,
        f"SELECT left(CAST({quote(rule.column)} AS VARCHAR), 60) "
        f"FROM {staged.table} WHERE file_row = {first}",
    )
    shown = "null" if value is None else repr(value)
    more = f" (and {count - 1} more rows)" if count > 1 else ""
    return (
        f"{staged.name}, column {rule.column!r}, row {first}: {shown} "
        f"{rule.problem}{more}; {rule.mend}"
    )


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
