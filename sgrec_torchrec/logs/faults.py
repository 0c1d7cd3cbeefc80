"""Rules -> the rows of a staged table that break them: told together, or dropped.

A fault names the file, the file's own column, the first rows with their values, how
many there are, and the mend.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from sgrec_torchrec.logs.columns import Rule, quote
from sgrec_torchrec.logs.incoming import Staged, one_row
from sgrec_torchrec.logs.text_lines import SHOWN_CHARACTERS

SHOWN_ROWS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Rows that break one rule. Rows count from 0; a header does not count."""

    table: str
    text: str


def find_faults(
    connection: duckdb.DuckDBPyConnection, staged: Staged, rules: Sequence[Rule]
) -> list[Fault]:
    """What is wrong with which rows. One scan of the table, and a look a fault."""
    if not rules:
        return []
    firsts = ", ".join(
        f"min(file_row, {SHOWN_ROWS}) FILTER (WHERE {rule.is_bad}), "
        f"count(*) FILTER (WHERE {rule.is_bad})"
        for rule in rules
    )
    row = one_row(connection, f"SELECT {firsts} FROM {staged.table}")
    return [
        describe_rows(connection, staged, rule, first, count)
        for rule, first, count in zip(rules, row[0::2], row[1::2], strict=True)
        if count
    ]


def describe_rows(
    connection: duckdb.DuckDBPyConnection,
    staged: Staged,
    rule: Rule,
    rows: Sequence[int],
    count: int,
) -> Fault:
    """The fault of ``count`` rows that break ``rule``, the first of them ``rows``."""
    found = dict(
        connection.execute(
            f"SELECT file_row, left(CAST({quote(rule.column)} AS VARCHAR), "
            f"{SHOWN_CHARACTERS}) FROM {staged.table} WHERE file_row IN "
            f"({', '.join(map(str, rows))})"
        ).fetchall()
    )
    first, *others = rows
    more = f" (and {count - 1} more rows)" if count > 1 else ""
    if others:
        next_rows = [f"row {at}: {_shown(found[at])}" for at in others]
        more += f", next: {', '.join(next_rows)}"
    if found[first] is None and rule.column in staged.lacking:
        more += f"; {staged.lacking[rule.column]}"
    text = (
        f"{staged.name}, column {staged.their_name(rule.column)}, row {first}: "
        f"{_shown(found[first])} {rule.problem}{more}; {rule.mend}"
    )
    return Fault(table=staged.table, text=text)


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def broken_fault(staged: Staged) -> list[Fault]:
    """Rows of a text file that are no rows of a table, as one fault."""
    broken = staged.broken
    if not broken.num_rows:
        return []
    (first, what, text), *others = broken.first
    more = f" (and {broken.num_rows - 1} more rows)" if broken.num_rows > 1 else ""
    if others:
        rows = ", ".join(str(row) for row, *_ in others[: SHOWN_ROWS - 1])
        more += f", next: {rows}"
    shown = repr(text[:SHOWN_CHARACTERS])
    text = f"{staged.name}, row {first}: {what}: {shown}{more}; mend the row"
    return [Fault(table=staged.table, text=text)]


def refuse(faults: Sequence[Fault], hint: str = "") -> None:
    """Raise for all faults together, if there are any.

    Args:
        hint: what a user may ask for instead, at the end.

    Raises:
        ValueError: a line for each.
    """
    if faults:
        raise ValueError(join([fault.text for fault in faults]) + hint)


def join(lines: Sequence[str]) -> str:
    """Several errors as one text."""
    if len(lines) == 1:
        return lines[0]
    return "\n  ".join([f"{len(lines)} kinds of faults:", *lines])


def drop_rows(
    connection: duckdb.DuckDBPyConnection, staged: Staged, rules: Sequence[Rule]
) -> int:
    """Move the rows that break a rule into the table ``dropped_<table>``; how many."""
    reasons = ", ".join(
        f"CASE WHEN {rule.is_bad} THEN {_literal(_reason(staged, rule))} END"
        for rule in rules
    )
    any_bad = " OR ".join(f"coalesce({rule.is_bad}, false)" for rule in rules)
    table = f"dropped_{staged.table}"
    rows = (
        f"SELECT file_row AS row, concat_ws('; ', {reasons}) AS reason, "
        f"* EXCLUDE (file_row) FROM {staged.table} WHERE {any_bad}"
    )
    is_there = one_row(
        connection,
        f"SELECT count(*) FROM duckdb_tables() WHERE table_name = '{table}'",
    )[0]
    make = f"INSERT INTO {table}" if is_there else f"CREATE TABLE {table} AS"
    connection.execute(f"{make} {rows}")
    # By number: a rule may look at the table itself.
    (count,) = one_row(
        connection,
        f"DELETE FROM {staged.table} WHERE file_row IN (SELECT row FROM {table})",
    )
    return int(count)


def write_dropped(
    connection: duckdb.DuckDBPyConnection, staged: Staged, path: Path
) -> None:
    """Write the dropped rows with their reasons as CSV; of broken ones, the text."""
    rows, reasons, texts = [], [], []
    for row, reason, text in staged.broken.first:
        rows.append(row)
        reasons.append(reason)
        texts.append(text)
    connection.execute(
        f"COPY (SELECT *, NULL AS text FROM dropped_{staged.table} UNION ALL BY NAME "
        "SELECT unnest($1::BIGINT[]) AS row, unnest($2::VARCHAR[]) AS reason, "
        "unnest($3::VARCHAR[]) AS text ORDER BY row) "
        f"TO {_literal(str(path))} (FORMAT csv, HEADER)",
        [rows, reasons, texts],
    )


def _reason(staged: Staged, rule: Rule) -> str:
    return f"{staged.their_name(rule.column)} {rule.problem}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
