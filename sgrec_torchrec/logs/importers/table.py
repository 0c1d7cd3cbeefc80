"""Any Parquet, CSV or JSON-lines file with a column mapping -> a canonical log."""

import csv
import gzip
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from sgrec_torchrec.logs.canonical_write import ImportReport, Origin, write_canonical
from sgrec_torchrec.logs.incoming import Incoming

_SUFFIXES = ".parquet, .csv, .tsv, .jsonl, .ndjson (the texts also with .gz)"


def import_table(
    log_path: Path,
    out_dir: Path,
    *,
    columns: Mapping[str, str] | None = None,
    items_path: Path | None = None,
    item_columns: Mapping[str, str] | None = None,
    has_clock: bool = True,
    duplicates: str | None = None,
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
        has_clock: False where ``timestamp`` is an ordinal, not a time.
        duplicates: keep or drop rows equal in user, item, timestamp and event; None:
            drop, or keep where the log has no clock.
        note: source and terms, kept in the manifest.
        memory_limit_gib: beyond it, sorting spills to disk beside ``out_dir``.

    The ids of a CSV file are strings ("007" is not 7). Times may be seconds, or text as
    2017-01-01 11:53:26 (UTC where it names no zone). Streams: memory does not grow with
    the log.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: naming file, column, first offending row and mend.
    """
    items = None
    if items_path is not None:
        items = _open(items_path, item_columns or {})
    origin = Origin(importer="table", note=note or str(log_path), has_clock=has_clock)
    return write_canonical(
        out_dir,
        _open(log_path, columns or {}),
        items,
        origin,
        duplicates=duplicates,
        memory_limit_gib=memory_limit_gib,
    )


def _open(path: Path, mapping: Mapping[str, str]) -> Incoming:
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found; check the path")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = ".parquet" if path.is_dir() else (suffixes[-1] if suffixes else "")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path}: is empty; give a file with data")
    text = _literal(str(path))
    if kind == ".parquet":
        source: str | pa.RecordBatchReader = _open_parquet(path)
    elif kind in (".csv", ".tsv"):
        source = _select_csv(path, text, "," if kind == ".csv" else "\t")
    elif kind in (".jsonl", ".ndjson"):
        source = (
            f"SELECT * FROM read_json({text}, format = 'newline_delimited', "
            "sample_size = -1)"
        )
    else:
        raise ValueError(f"{path}: unknown kind of file; give one of {_SUFFIXES}")
    return Incoming(name=str(path), source=source, mapping=mapping)


def _select_csv(path: Path, text: str, delimiter: str) -> str:
    """A SELECT of all columns as text.

    The header is read here and nothing is left to guess: DuckDB's sniffer would skip
    lines above a line with another number of fields.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(
            path, "rt", encoding="utf-8-sig", newline=""
        ) as file:
            header = next(csv.reader(file, delimiter=delimiter), [])
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); write it again as UTF-8 text"
        ) from error
    again = [name for name, count in Counter(header).items() if count > 1]
    if again:
        raise ValueError(f"{path}: column {again[0]!r} appears twice; rename one")
    columns = ", ".join(f"{_literal(name)}: 'VARCHAR'" for name in header)
    return (
        f"SELECT * FROM read_csv({text}, auto_detect = false, header = true, "
        f"delim = {_literal(delimiter)}, quote = '\"', escape = '\"', "
        f"columns = {{{columns}}})"
    )


def _literal(text: str) -> str:
    """A string for SQL."""
    return "'" + text.replace("'", "''") + "'"


def _open_parquet(path: Path) -> pa.RecordBatchReader:
    """Batches in file order; page checksums are verified where the pages have them."""
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    form = ds.ParquetFileFormat(default_fragment_scan_options=options)
    try:
        dataset = ds.dataset(path, format=form)
        return dataset.scanner(batch_size=1 << 16).to_reader()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: is no readable Parquet ({error}); copy it again from its source"
        ) from error
