"""Any Parquet, CSV or JSON-lines file with a column mapping -> a canonical log."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from sgrec_torchrec.logs.canonical_write import write_canonical
from sgrec_torchrec.logs.import_report import ImportReport, Origin
from sgrec_torchrec.logs.importers.parquet_files import open_parquet
from sgrec_torchrec.logs.incoming import Incoming
from sgrec_torchrec.logs.text_lines import (
    BrokenRows,
    JsonLines,
    open_delimited,
    open_json_lines,
)

_SUFFIXES = ".parquet, .csv, .tsv, .jsonl, .ndjson (the texts also with .gz)"


def import_table(
    log_path: Path,
    out_dir: Path,
    *,
    columns: Mapping[str, str] | None = None,
    items_path: Path | None = None,
    item_columns: Mapping[str, str] | None = None,
    delimiter: str | None = None,
    has_clock: bool = True,
    duplicates: str | None = None,
    bad_rows: str = "refuse",
    note: str = "",
    memory_limit_gib: float = 2.0,
) -> ImportReport:
    """Import a log and, if there is one, a catalogue.

    Args:
        log_path: a file, or a folder of Parquet files (read in order of name).
        out_dir: where the canonical folder appears.
        columns: canonical name -> name in the log, as {"user_id": "uid"}; names that
            are canonical already need no entry.
        items_path: the catalogue; None: the items of the log, titled by their ids.
        item_columns: canonical name -> name in the catalogue.
        delimiter: of CSV files; None: a comma, or a tab in .tsv.
        has_clock: False where ``timestamp`` is an ordinal, not a time.
        duplicates: keep, drop or error for rows equal in all columns; None: drop, or
            keep where the log has no clock.
        bad_rows: refuse, or drop: they are written with their reasons beside the log.
        note: source and terms, kept in the manifest.
        memory_limit_gib: beyond it, sorting spills to disk beside ``out_dir``.

    The ids of a CSV file are strings ("007" is not 7). Times may be seconds, or text as
    2017-01-01 11:53:26 (UTC where it names no zone). Streams: memory does not grow with
    the log.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: a line for each kind of fault, naming file, column, first rows and
            mend.
    """
    if items_path is None and item_columns:
        raise ValueError(
            f"item columns {', '.join(item_columns)} are named and no catalogue is: "
            "give it by --items, or leave --item-column out"
        )
    items = None
    if items_path is not None:
        items = _open(items_path, item_columns or {}, delimiter)
    return write_canonical(
        out_dir,
        _open(log_path, columns or {}, delimiter),
        items,
        _origin(note or str(log_path), has_clock),
        duplicates=duplicates,
        bad_rows=bad_rows,
        memory_limit_gib=memory_limit_gib,
    )


def _origin(note: str, has_clock: bool) -> Origin:
    hint = " (--bad-rows drop leaves such rows out)"
    return Origin(importer="table", note=note, has_clock=has_clock, hint=hint)


def check_table(log_path: Path, **options: Any) -> ImportReport:
    """What ``import_table`` would do, with the same options and errors; writes nothing.

    The log is written and removed again in the folder for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="sgrec-check-") as scratch:
        report = import_table(log_path, Path(scratch) / "log", **options)
    return dataclasses.replace(report, folder=Path("nowhere: only checked"))


def _open(path: Path, mapping: Mapping[str, str], delimiter: str | None) -> Incoming:
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found; check the path")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = ".parquet" if path.is_dir() else (suffixes[-1] if suffixes else "")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path}: is empty; give a file with data")
    broken = BrokenRows()
    source: pa.RecordBatchReader | JsonLines
    lacking: dict[str, str] = {}
    if kind == ".parquet":
        source, lacking = open_parquet(path)
    elif kind in (".csv", ".tsv"):
        mark = delimiter or ("," if kind == ".csv" else "\t")
        source = open_delimited(path, mark, broken)
    elif kind in (".jsonl", ".ndjson"):
        source = open_json_lines(path)
    else:
        raise ValueError(f"{path}: unknown kind of file; give one of {_SUFFIXES}")
    return Incoming(
        name=str(path), source=source, mapping=mapping, broken=broken, lacking=lacking
    )
