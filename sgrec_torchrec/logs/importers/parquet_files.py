"""A Parquet file, or a folder of them -> Arrow batches of one schema, in order of name.

No file decides for the others: a folder has every column that any of its files has, and
a column whose types cannot be one is refused with both files. Folders named
``key=value`` below the given one are a column, as Hive and Spark write them; those
above it, or of a single file, are only names. Memory: one batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

BATCH_ROWS = 1 << 16
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A file with rows, and what its folders say."""

    path: Path
    schema: pa.Schema
    partition: dict[str, str | None]


def open_parquet(path: Path) -> tuple[pa.RecordBatchReader, dict[str, str]]:
    """Batches in file order; page checksums are verified where the pages have them.

    Returns:
        The batches, and of each column that some files lack, which do: what is null
        there was never written.

    Raises:
        ValueError: naming the file that is no readable Parquet, or the two files whose
            column differs.
    """
    files = [path]
    if path.is_dir():
        names = sorted(path.rglob("*"))
        files = [file for file in names if file.is_file() and not _is_hidden(file)]
        foreign = [file for file in files if file.suffix.lower() != ".parquet"]
        if foreign:
            raise ValueError(
                f"{path}: a folder is read as Parquet files, and {foreign[0].name} is "
                "none; name a single file, or leave nothing but .parquet in the folder"
            )
        if not files:
            raise ValueError(f"{path}: holds no .parquet file; check the path")
    read = [_read_schema(file, path) for file in files]
    # A part without rows has whatever types its writer guessed.
    parts = [part for part, num_rows in read if num_rows] or [read[0][0]]
    schema = _union(parts)
    batches = pa.RecordBatchReader.from_batches(schema, _batches(parts, schema))
    return batches, _lacking(parts, schema, path)


def _is_hidden(file: Path) -> bool:
    return file.name.startswith((".", "_"))


def _read_schema(file: Path, root: Path) -> tuple[_Part, int]:
    try:
        with pq.ParquetFile(file) as opened:
            schema, num_rows = opened.schema_arrow, opened.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_damaged(file, error)) from error
    partition: dict[str, str | None] = {}
    for folder in file.relative_to(root).parts[:-1] if file != root else ():
        key, equals, value = folder.partition("=")
        if equals and key not in schema.names:
            partition[key] = None if value == HIVE_NULL else unquote(value)
    return _Part(path=file, schema=schema, partition=partition), num_rows


def _union(parts: list[_Part]) -> pa.Schema:
    """Every column of any part, with one type."""
    types: dict[str, tuple[pa.DataType, Path]] = {}
    for part in parts:
        fields = [(one.name, _plain(one.type)) for one in part.schema]
        fields += [(name, pa.string()) for name in part.partition]
        for name, arrived in fields:
            if name not in types:
                types[name] = (arrived, part.path)
                continue
            known, first = types[name]
            common = _common(known, arrived)
            if common is None:
                raise ValueError(
                    f"{part.path}, column {name!r}: is {arrived}, and {known} in "
                    f"{first}; give the column one type and unit in all files"
                )
            types[name] = (common, first)
    return pa.schema([(name, known) for name, (known, _) in types.items()])


def _lacking(parts: list[_Part], schema: pa.Schema, root: Path) -> dict[str, str]:
    """Column -> "a.parquet (and 2 more files) has no such column, b.parquet has"."""
    told = {}
    for column in schema.names:
        lacks: list[Path] = []
        has: list[Path] = []
        for part in parts:
            is_there = column in part.schema.names or column in part.partition
            (has if is_there else lacks).append(part.path)
        if lacks:
            first, other = (one[0].relative_to(root) for one in (lacks, has))
            more = f" (and {len(lacks) - 1} more files)" if lacks[1:] else ""
            told[column] = f"{first}{more} has no such column, {other} has"
    return told


def _plain(arrived: pa.DataType) -> pa.DataType:
    """Without what only says how a column is stored."""
    if isinstance(arrived, pa.DictionaryType):
        return _plain(arrived.value_type)
    if pa.types.is_large_string(arrived) or pa.types.is_string_view(arrived):
        return pa.string()
    return arrived


def _common(known: pa.DataType, arrived: pa.DataType) -> pa.DataType | None:
    """One type for both; None where values would change their meaning."""
    if known == arrived or pa.types.is_null(arrived):
        return known
    if pa.types.is_null(known):
        return arrived
    both = (known, arrived)
    if all(map(pa.types.is_integer, both)):
        # No sign and 64 bits beside a sign: both fit in a decimal alone.
        return pa.decimal128(20) if pa.uint64() in both else pa.int64()
    if all(map(pa.types.is_floating, both)):
        return pa.float64()
    if isinstance(known, pa.ListType) and isinstance(arrived, pa.ListType):
        inner = _common(known.value_type, arrived.value_type)
        return None if inner is None else pa.list_(inner)
    if isinstance(known, pa.TimestampType) and isinstance(arrived, pa.TimestampType):
        zones = {one.tz is None for one in (known, arrived)}
        if len(zones) == 1:
            return pa.timestamp("us", tz=None if known.tz is None else "UTC")
    return None


def _batches(parts: list[_Part], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    form = ds.ParquetFileFormat(default_fragment_scan_options=options)
    for part in parts:
        try:
            # Without partitioning: what the folders say is added below.
            dataset = ds.dataset([str(part.path)], format=form, partitioning=None)
            for batch in dataset.scanner(batch_size=BATCH_ROWS).to_reader():
                yield _conformed(batch, part, schema)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(_damaged(part.path, error)) from error


def _conformed(batch: pa.RecordBatch, part: _Part, schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for one in schema:
        if one.name in batch.schema.names:
            columns.append(batch.column(one.name).cast(one.type, safe=False))
        else:
            value = pa.scalar(part.partition.get(one.name), pa.string())
            filled = pa.repeat(value, batch.num_rows)
            columns.append(filled.cast(one.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _damaged(file: Path, error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"{file}: is no readable Parquet ({said}); copy it again from its source"
