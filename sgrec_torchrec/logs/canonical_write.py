"""Incoming tables -> a canonical log folder: checked, sorted, duplicates counted.

Everything runs out of core in DuckDB: disk grows with rows, memory has a set limit.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from sgrec_torchrec.config import check_choice
from sgrec_torchrec.files.atomic import atomic_folder
from sgrec_torchrec.files.run_folder import ITEMS, MANIFEST
from sgrec_torchrec.files.sealed_json import write_sealed
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
    cast_of,
    quote,
)
from sgrec_torchrec.logs.faults import write_dropped
from sgrec_torchrec.logs.import_report import (
    DROPPED_ITEMS,
    DROPPED_LOG,
    REPORTED,
    ImportReport,
    Origin,
    time_warnings,
)
from sgrec_torchrec.logs.incoming import (
    Incoming,
    cast_list,
    open_database,
    scalar,
)
from sgrec_torchrec.logs.sorted_rows import SortedRows
from sgrec_torchrec.logs.stage_tables import StagedTables, item_ids, stage_tables


def write_canonical(
    out_dir: Path,
    log: Incoming,
    items: Incoming | None,
    origin: Origin,
    *,
    duplicates: str | None = None,
    bad_rows: str = "refuse",
    memory_limit_gib: float = 2.0,
    rows_per_part: int = ROWS_PER_PART,
) -> ImportReport:
    """Check two incoming tables and write them as one canonical folder.

    The folder appears whole under ``out_dir`` (replacing an older canonical log there)
    or not at all. Without ``items`` the catalogue is made from the log, with the id as
    title. Disk beside ``out_dir`` grows with about twice the log; memory is bounded by
    ``memory_limit_gib`` and one batch of ``ROWS_PER_GROUP`` rows.

    Args:
        duplicates: keep, drop (of rows equal in all columns the first in the file
            stays) or error; None: drop, or keep where the log has no clock.
        bad_rows: refuse, or drop: they are written with their reasons beside the log.

    Raises:
        ValueError: a line for each kind of fault, naming file, column, first rows and
            mend; see ``columns``.
        FileNotFoundError: for an output folder that cannot be written.
    """
    rule = duplicates or ("drop" if origin.has_clock else "keep")
    check_choice("duplicates", rule, ("keep", "drop", "error"))
    check_choice("bad_rows", bad_rows, ("refuse", "drop"))
    refuse_foreign_folder(out_dir)
    with (
        atomic_folder(out_dir) as folder,
        tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=".stage-") as scratch,
        open_database(Path(scratch), memory_limit_gib) as connection,
    ):
        tables = stage_tables(
            connection,
            log,
            items,
            has_clock=origin.has_clock,
            bad_rows=bad_rows,
            hint=origin.hint,
        )
        sorted_rows = SortedRows(
            drop_duplicates=rule == "drop", value_counts=origin.value_counts
        )
        batches = _sorted_batches(connection, tables, sorted_rows.keys)
        write_parts(folder / "interactions", sorted_rows.stream(batches), rows_per_part)
        if rule == "error" and sorted_rows.num_duplicates:
            raise ValueError(
                f"{log.name}: {sorted_rows.num_duplicates:,} rows are equal to another "
                "one in all columns; --duplicates drop or keep says what to do"
            )
        _write_items(connection, tables, folder)
        _write_dropped(connection, tables, folder)
        report = _report(connection, tables, origin, sorted_rows, rule, out_dir)
        _write_manifest(folder, report, [*tables.log.ignored, *tables.items.ignored])
    return report


def _report(
    connection: duckdb.DuckDBPyConnection,
    tables: StagedTables,
    origin: Origin,
    sorted_rows: SortedRows,
    rule: str,
    out_dir: Path,
) -> ImportReport:
    first, last = sorted_rows.times
    warnings = [f"{tables.log.name}: {note}" for note in tables.log.notes]
    if tables.has_catalogue:
        warnings += [f"{tables.items.name}: {note}" for note in tables.items.notes]
    if origin.has_clock:
        warnings += time_warnings(first, last)
    return ImportReport(
        importer=origin.importer,
        folder=out_dir,
        rows_read=tables.log.num_rows,
        rows=sorted_rows.num_kept,
        users=sorted_rows.num_users,
        items=int(scalar(connection, "SELECT count(*) FROM staged_items")),
        items_in_log=_items_in_log(connection),
        out_of_order_rows=sorted_rows.num_out_of_order,
        duplicate_rows=sorted_rows.num_duplicates,
        duplicates=rule,
        has_clock=origin.has_clock,
        counts=dict(origin.counts) | _untitled(connection, tables),
        note=origin.note,
        dropped_rows=tables.dropped_rows,
        dropped_items=tables.dropped_items,
        first_timestamp=first,
        last_timestamp=last,
        warnings=tuple(warnings),
    )


def _items_in_log(connection: duckdb.DuckDBPyConnection) -> int:
    return int(scalar(connection, "SELECT count(DISTINCT item_id) FROM staged_log"))


def _write_dropped(
    connection: duckdb.DuckDBPyConnection, tables: StagedTables, folder: Path
) -> None:
    if tables.dropped_rows:
        write_dropped(connection, tables.log, folder / DROPPED_LOG)
    if tables.dropped_items:
        write_dropped(connection, tables.items, folder / DROPPED_ITEMS)


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


def _sorted_batches(
    connection: duckdb.DuckDBPyConnection, tables: StagedTables, keys: Sequence[str]
) -> pa.RecordBatchReader:
    """The log cast and sorted, with ``file_row``; DuckDB spills, one batch is held."""
    log = tables.log
    item_id, _ = item_ids(log, tables.items)
    order = ", ".join([*(key for key in keys if key in log.types), "file_row"])
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
    connection: duckdb.DuckDBPyConnection, tables: StagedTables, folder: Path
) -> None:
    """Write the catalogue in file order; texts that are absent become empty."""
    items = tables.items
    _, item_id = item_ids(tables.log, items)
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


_HAS_TITLE = "trim(coalesce(CAST(title AS VARCHAR), '')) <> ''"
_TITLE = (
    f"CASE WHEN {_HAS_TITLE} THEN CAST(title AS VARCHAR) "
    "ELSE CAST(item_id AS VARCHAR) END"
)


def _untitled(
    connection: duckdb.DuckDBPyConnection, tables: StagedTables
) -> dict[str, int]:
    """Items that have no title of their own: all, where nobody gave a catalogue."""
    where = f"WHERE NOT ({_HAS_TITLE})" if tables.has_catalogue else ""
    query = f"SELECT count(*) FROM {tables.items.table} {where}"
    return {"items_without_title_named_by_id": int(scalar(connection, query))}


def _write_manifest(folder: Path, report: ImportReport, ignored: list[str]) -> None:
    facts = {part.name: getattr(report, part.name) for part in REPORTED}
    facts["counts"] = dict(report.counts)
    facts["format_version"] = FORMAT_VERSION
    facts["ignored_columns"] = sorted(set(ignored))
    facts["files"] = file_facts(folder)
    write_sealed(folder / MANIFEST, facts)
