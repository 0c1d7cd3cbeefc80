"""Incoming tables -> a canonical log folder: checked, sorted, duplicates counted.

Everything runs out of core in DuckDB: disk grows with rows, memory has a set limit.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from sgrec_torchrec.config import check_choice
from sgrec_torchrec.files.atomic import atomic_folder, write_json
from sgrec_torchrec.files.run_folder import ITEMS, MANIFEST
from sgrec_torchrec.logs.canonical import (
    FORMAT_VERSION,
    ROWS_PER_GROUP,
    ROWS_PER_PART,
    file_facts,
    parquet_writer,
    write_parts,
)
from sgrec_torchrec.logs.columns import (
    INTERACTION_COLUMNS,
    ITEM_COLUMNS,
    ITEM_ID,
    Rule,
    cast_of,
    log_rules,
    quote,
    rules_of,
)
from sgrec_torchrec.logs.incoming import (
    Incoming,
    Staged,
    cast_list,
    check_rows,
    describe_row,
    one_row,
    open_database,
    scalar,
    stage,
)
from sgrec_torchrec.logs.sorted_rows import SortedRows


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
    """Rule for rows that share user, item, timestamp and event: keep or drop."""
    has_clock: bool
    counts: Mapping[str, int]
    """Further counts of the importer, by what they count."""
    note: str
    """Source, terms and caveats."""

    def lines(self) -> list[str]:
        """The report as lines of text."""
        done = {"keep": "kept", "drop": "dropped"}[self.duplicates]
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
        if not self.has_clock:
            lines.append("timestamps are ordinals: only their order means something")
        lines += [
            f"{name.replace('_', ' ')}: {count:,}"
            for name, count in self.counts.items()
        ]
        return [*lines, self.note]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a log comes from, as its manifest tells."""

    importer: str
    note: str
    """Source, terms of use and caveats, in a sentence or two."""
    has_clock: bool = True
    counts: Mapping[str, int] = field(default_factory=dict)


def write_canonical(
    out_dir: Path,
    log: Incoming,
    items: Incoming | None,
    origin: Origin,
    *,
    duplicates: str | None = None,
    memory_limit_gib: float = 2.0,
    rows_per_part: int = ROWS_PER_PART,
) -> ImportReport:
    """Check two incoming tables and write them as one canonical folder.

    The folder appears whole under ``out_dir`` (replacing an older canonical log there)
    or not at all. Without ``items`` the catalogue is made from the log, with the id as
    title. ``duplicates`` is keep or drop (of rows equal in user, item, timestamp and
    event the first in the file stays); None: drop, or keep where the log has no clock.
    Disk beside ``out_dir`` grows with about twice the log; memory is bounded by
    ``memory_limit_gib`` and one batch of ``ROWS_PER_GROUP`` rows.

    Raises:
        ValueError: naming file, column, first offending row and mend; see ``columns``.
        FileNotFoundError: for an output folder that cannot be written.
    """
    rule = duplicates or ("drop" if origin.has_clock else "keep")
    check_choice("duplicates", rule, ("keep", "drop"))
    refuse_foreign_folder(out_dir)
    with (
        atomic_folder(out_dir) as folder,
        tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=".stage-") as scratch,
        open_database(Path(scratch), memory_limit_gib) as connection,
    ):
        staged_log = _stage_log(connection, log, origin)
        staged_items = _stage_items(connection, staged_log, items)
        _check_known_items(connection, staged_log, staged_items)
        sorted_rows = SortedRows(drop_duplicates=rule == "drop")
        num_rows = write_parts(
            folder / "interactions",
            sorted_rows.stream(_sorted_batches(connection, staged_log, staged_items)),
            rows_per_part,
        )
        num_items = _write_items(connection, staged_log, staged_items, folder)
        used = scalar(connection, "SELECT count(DISTINCT item_id) FROM staged_log")
        report = ImportReport(
            importer=origin.importer,
            folder=out_dir,
            rows_read=staged_log.num_rows,
            rows=num_rows,
            users=sorted_rows.num_users,
            items=num_items,
            items_in_log=int(used),
            out_of_order_rows=sorted_rows.num_out_of_order,
            duplicate_rows=sorted_rows.num_duplicates,
            duplicates=rule,
            has_clock=origin.has_clock,
            counts=dict(origin.counts) | _untitled(connection, staged_items),
            note=origin.note,
        )
        _write_manifest(folder, report, [*staged_log.ignored, *staged_items.ignored])
    return report


def refuse_foreign_folder(out_dir: Path) -> None:
    """Raise where writing would replace something that is no canonical log.

    Raises:
        ValueError: naming the path.
    """
    is_empty = out_dir.is_dir() and not any(out_dir.iterdir())
    is_canonical = (out_dir / MANIFEST).is_file() and (
        out_dir / "interactions"
    ).is_dir()
    is_foreign = out_dir.exists() and not is_empty and not is_canonical
    if is_foreign:
        raise ValueError(
            f"{out_dir}: exists and is no canonical log; choose another output folder"
        )


def _stage_log(
    connection: duckdb.DuckDBPyConnection, log: Incoming, origin: Origin
) -> Staged:
    staged = stage(connection, log, INTERACTION_COLUMNS, "staged_log")
    rules = rules_of(INTERACTION_COLUMNS, staged.types, "staged_log")
    rules += log_rules(staged.types, has_clock=origin.has_clock)
    check_rows(connection, staged, rules)
    return staged


def _stage_items(
    connection: duckdb.DuckDBPyConnection, log: Staged, items: Incoming | None
) -> Staged:
    if items is None:
        items = Incoming(
            name=log.name,
            source="SELECT item_id, CAST(item_id AS VARCHAR) AS title FROM staged_log "
            "GROUP BY item_id ORDER BY item_id",
        )
    staged = stage(connection, items, ITEM_COLUMNS, "staged_items")
    check_rows(connection, staged, rules_of(ITEM_COLUMNS, staged.types, "staged_items"))
    row = one_row(
        connection,
        "SELECT min(second), count(*) FROM (SELECT min(file_row) AS first, "
        "list_sort(list(file_row))[2] AS second FROM staged_items GROUP BY item_id "
        "HAVING count(*) > 1)",
    )
    if row[1]:
        rule = Rule(
            column="item_id",
            is_bad="",
            problem="is in the catalogue already",
            mend="give every item one row",
        )
        raise ValueError(describe_row(connection, staged, rule, row[0], row[1]))
    return staged


def _item_ids(log: Staged, items: Staged) -> tuple[str, str]:
    """SQL of the item id in the log and in the catalogue, of one common type."""
    types = (log.types["item_id"], items.types["item_id"])
    if (types[0] == "VARCHAR") == (types[1] == "VARCHAR"):
        return cast_of(ITEM_ID, types[0]), cast_of(ITEM_ID, types[1])
    return "CAST(item_id AS VARCHAR)", "CAST(item_id AS VARCHAR)"


def _check_known_items(
    connection: duckdb.DuckDBPyConnection, log: Staged, items: Staged
) -> None:
    log_id, catalogue_id = _item_ids(log, items)
    row = one_row(
        connection,
        f"SELECT min(file_row), count(*) FROM "
        f"(SELECT {log_id} AS wanted, file_row FROM staged_log) "
        f"ANTI JOIN (SELECT {catalogue_id} AS known FROM staged_items) "
        "ON wanted = known",
    )
    if row[1]:
        rule = Rule(
            column="item_id",
            is_bad="",
            problem=f"is not in the catalogue {items.name}",
            mend="add the item there, or drop the rows",
        )
        raise ValueError(describe_row(connection, log, rule, row[0], row[1]))


def _sorted_batches(
    connection: duckdb.DuckDBPyConnection, log: Staged, items: Staged
) -> pa.RecordBatchReader:
    """The log cast and sorted, with ``file_row``; DuckDB spills, one batch is held."""
    item_id, _ = _item_ids(log, items)
    event = ["event"] if "event" in log.types else []
    order = ", ".join(["user_id", "timestamp", "item_id", *event, "file_row"])
    return _stream(
        connection,
        f"SELECT * REPLACE ({item_id} AS item_id) FROM "
        f"(SELECT {cast_list(log, INTERACTION_COLUMNS)}, file_row FROM staged_log) "
        f"ORDER BY {order}",
        ROWS_PER_GROUP,
    )


def _stream(
    connection: duckdb.DuckDBPyConnection, query: str, batch_rows: int
) -> pa.RecordBatchReader:
    """The result as batches, made while they are read."""
    reader: pa.RecordBatchReader | None = connection.sql(query).to_arrow_reader(
        batch_rows
    )
    assert reader is not None
    return reader


def _write_items(
    connection: duckdb.DuckDBPyConnection, log: Staged, items: Staged, folder: Path
) -> int:
    """Write the catalogue in file order; texts that are absent become empty."""
    _, item_id = _item_ids(log, items)
    columns = [f"{item_id} AS item_id", f"{_TITLE} AS title"]
    for name in ("description", "brand", "category"):
        text = f"coalesce(CAST({name} AS VARCHAR), '')" if name in items.types else "''"
        columns.append(f"{text} AS {name}")
    for column in ITEM_COLUMNS:
        if column.kind in ("number", "vector", "codes") and column.name in items.types:
            cast = cast_of(column, items.types[column.name])
            if column.kind == "vector":
                query = f"SELECT len({column.name}) FROM staged_items LIMIT 1"
                cast = f"CAST({cast} AS FLOAT[{scalar(connection, query)}])"
            columns.append(f"{cast} AS {quote(column.name)}")
    query = f"SELECT {', '.join(columns)} FROM staged_items"
    reader = _stream(connection, query, ROWS_PER_GROUP // 16)
    with parquet_writer(folder / ITEMS, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
    return items.num_rows


_HAS_TITLE = "trim(coalesce(CAST(title AS VARCHAR), '')) <> ''"
_TITLE = (
    f"CASE WHEN {_HAS_TITLE} THEN CAST(title AS VARCHAR) "
    "ELSE CAST(item_id AS VARCHAR) END"
)


def _untitled(connection: duckdb.DuckDBPyConnection, items: Staged) -> dict[str, int]:
    query = f"SELECT count(*) FROM {items.table} WHERE NOT ({_HAS_TITLE})"
    return {"items_without_title_named_by_id": int(scalar(connection, query))}


def _write_manifest(folder: Path, report: ImportReport, ignored: list[str]) -> None:
    facts = {name: getattr(report, name) for name in _REPORTED}
    facts["counts"] = dict(report.counts)
    facts["format_version"] = FORMAT_VERSION
    facts["ignored_columns"] = sorted(set(ignored))
    facts["files"] = file_facts(folder)
    write_json(folder / MANIFEST, facts)


def report_of(manifest: Mapping[str, Any], folder: Path) -> ImportReport:
    """The report of the import that wrote ``manifest``, for its copy in ``folder``."""
    return ImportReport(folder=folder, **{name: manifest[name] for name in _REPORTED})


_REPORTED = [part.name for part in fields(ImportReport) if part.name != "folder"]
