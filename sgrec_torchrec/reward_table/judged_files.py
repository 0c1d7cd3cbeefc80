"""Parquet files of judged pairs -> checked batches, read as a stream.

Every check that fails names the file, the column, the first offending row and the mend.
Rows are counted from 0 in each file.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgrec_torchrec.files.listed_sums import check_listed
from sgrec_torchrec.files.run_folder import MANIFEST, PARTS, USERS
from sgrec_torchrec.reward_table.ids import (
    Ids,
    Int64Array,
    Uint64Array,
    texts_from_arrow,
)
from sgrec_torchrec.schema import Float32Array

BATCH_ROWS = 1 << 17
"""Columns of a batch stay in the processor's cache from one step to the next."""
READ_BYTES = 1 << 20
ASPECT_PREFIX = "aspect_"
ASPECTS_KEY = b"aspects"
"""Schema metadata: JSON list of further columns that hold aspect scores."""
VERSIONS = ("judge_version", "prompt_version")

_INTEGERS = (pa.int64(), pa.int32(), pa.int16(), pa.int8(), pa.uint32(), pa.uint16())
_TEXTS = (pa.string(), pa.large_string(), pa.string_view())


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What the files of a table hold beside reward: the same in every segment."""

    user_is_text: bool
    item_is_text: bool
    aspects: tuple[str, ...]
    """Column names, in the order of the first file."""
    has_as_of: bool
    has_history_hash: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedBatch:
    """n checked rows of one file, beginning at its row ``first_row``."""

    path: Path
    first_row: int
    users: Ids
    items: Ids
    scores: npt.NDArray[np.float32]
    """[n, 1 + A]: reward, then aspects."""
    as_of: Int64Array | None
    history_hash: Uint64Array | None
    versions: dict[str, set[str]]

    def __len__(self) -> int:
        return len(self.scores)


def list_files(parquet: Path | str | Sequence[Path | str]) -> list[Path]:
    """The files meant: one, several, or all *.parquet of folders, sorted by name.

    Raises:
        FileNotFoundError: for a path that is missing, or a folder without such files.
        ValueError: for a folder with parts of a judge's beside other files.
    """
    several = [parquet] if isinstance(parquet, str | Path) else list(parquet)
    files: list[Path] = []
    for path in map(Path, several):
        found = _in_folder(path) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(f"{path}: holds no *.parquet; name another folder")
        files += found
    if not files:
        raise FileNotFoundError("no Parquet file named; give a file or a folder")
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: name a Parquet file or folder")
    return files


def _in_folder(folder: Path) -> list[Path]:
    """Its parts, where it has such: a judged folder tells more beside them."""
    parts, files = sorted(folder.glob(PARTS)), sorted(folder.rglob("*.parquet"))
    if parts and (foreign := set(files) - {*parts, folder / USERS}):
        both = f"{parts[0].name} and {min(foreign).name}"
        raise ValueError(f"{folder} holds {both}: name the files that are meant")
    return parts or files


def read_columns(files: Sequence[Path]) -> tuple[Columns, int, range | None]:
    """The columns of the files, which must agree, and the number of rows of all.

    Also the range of the item ids, where they are integers and the files tell it.

    Raises:
        ValueError: naming file and column, for a missing column, a wrong type, a file
            unlike the first one, or its judge's sum, or unreadable, or no rows at all.
    """
    first: Columns | None = None
    num_rows = 0
    item_ranges: list[range | None] = []
    check_listed(files, f"judge again, or remove {MANIFEST} to take it as it is")
    for path in files:
        with _open(path) as file:
            columns = _columns_of(path, file.schema_arrow)
            num_rows += file.metadata.num_rows
            item_ranges += _item_ranges(file.metadata)
        first = first or columns
        check_same_columns(columns, first, str(path), f"the first file {files[0]}")
    assert first is not None
    if num_rows == 0:
        raise ValueError(f"{files[0]}: has no rows; give a file with data")
    known = [one for one in item_ranges if one is not None]
    if len(known) < len(item_ranges):
        return first, num_rows, None
    lowest, stop = min(one.start for one in known), max(one.stop for one in known)
    return first, num_rows, range(lowest, stop)


def _item_ranges(metadata: pq.FileMetaData) -> Iterator[range | None]:
    """Lowest id to highest id + 1 of each group of rows; None where not told."""
    for nth in range(metadata.num_row_groups):
        group = metadata.row_group(nth)
        columns = map(group.column, range(group.num_columns))
        (items,) = (one for one in columns if one.path_in_schema == "item_id")
        told = items.statistics
        lowest, highest = (told.min, told.max) if told is not None else (None, None)
        if isinstance(lowest, int) and isinstance(highest, int):
            yield range(lowest, highest + 1)
        else:
            yield None


def check_same_columns(
    columns: Columns, wanted: Columns, here: str, there: str
) -> None:
    """Raise unless both have the same ids, aspects and as_of columns.

    Raises:
        ValueError: naming ``here``, what differs, and ``there``.
    """
    ours, theirs = _words(columns), _words(wanted)
    for name in ours:
        if ours[name] != theirs[name]:
            raise ValueError(
                f"{here}: {name} {ours[name]}, but {theirs[name]} in {there}; give "
                "both the same columns and types"
            )


def _words(columns: Columns) -> dict[str, str]:
    return {
        "user_id": "holds strings" if columns.user_is_text else "holds integers",
        "item_id": "holds strings" if columns.item_is_text else "holds integers",
        "aspects": f"are {', '.join(columns.aspects) or 'none'}",
        "as_of": "is given" if columns.has_as_of else "is not given",
        "history_hash": "is given" if columns.has_history_hash else "is not given",
    }


def read_batches(
    files: Sequence[Path],
    columns: Columns,
    *,
    reward_range: tuple[float, float],
    aspect_range: tuple[float, float],
) -> Iterator[JudgedBatch]:
    """All rows in file order, at most ``BATCH_ROWS`` at a time.

    Raises:
        ValueError: naming file, column, row and mend, for a null, a NaN or infinite
            score, one outside its range, a negative as_of, or a file that is cut
            short or damaged.
    """
    names = ["user_id", "item_id", "reward", *columns.aspects]
    names += ["as_of"] * columns.has_as_of
    names += ["history_hash"] * columns.has_history_hash
    for path in files:
        first_row = 0
        with _open(path) as file:
            present = [name for name in VERSIONS if name in file.schema_arrow.names]
            batches = file.iter_batches(
                BATCH_ROWS, columns=[*names, *present], use_threads=False
            )
            while (batch := _next(batches, path)) is not None:
                if len(batch):
                    checker = _Checker(path, first_row, batch)
                    yield checker.checked(columns, reward_range, aspect_range, present)
                first_row += len(batch)


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        versions = [name for name in VERSIONS if name in file.schema_arrow.names]
        file.close()
        return pq.ParquetFile(
            path,
            page_checksum_verification=True,
            read_dictionary=versions,
            buffer_size=READ_BYTES,
        )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_unreadable(path, error)) from error


def _next(batches: Iterator[pa.RecordBatch], path: Path) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"{path}: cannot be read ({str(error).splitlines()[0]}); the file is cut short "
        "or damaged: write or copy it again"
    )


def _columns_of(path: Path, schema: pa.Schema) -> Columns:
    types = {field.name: field.type for field in schema}
    for name in ("user_id", "item_id", "reward"):
        if name not in types:
            raise ValueError(
                f"{path}: no column {name!r} in {', '.join(map(repr, types))}; rename "
                "the right one"
            )
    aspects = _aspects_of(path, schema)
    for name in ("reward", *aspects):
        _check_type(path, name, types[name], (pa.float32(), pa.float64()), "float32/64")
    if "as_of" in types:
        _check_type(path, "as_of", types["as_of"], _INTEGERS, "int64")
    if "history_hash" in types:
        hash_types = (pa.uint64(), pa.int64())
        _check_type(path, "history_hash", types["history_hash"], hash_types, "uint64")
        if "as_of" not in types:
            raise ValueError(
                f"{path}: column 'history_hash' without 'as_of'; add the number of "
                "events that the judge saw as 'as_of'"
            )
    for name in VERSIONS:
        if name in types:
            _check_text(path, name, types[name])
    return Columns(
        user_is_text=_is_text_id(path, "user_id", types["user_id"]),
        item_is_text=_is_text_id(path, "item_id", types["item_id"]),
        aspects=aspects,
        has_as_of="as_of" in types,
        has_history_hash="history_hash" in types,
    )


def _aspects_of(path: Path, schema: pa.Schema) -> tuple[str, ...]:
    listed: list[str] = []
    if ASPECTS_KEY in (schema.metadata or {}):
        try:
            listed = list(map(str, json.loads(schema.metadata[ASPECTS_KEY])))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}: schema metadata 'aspects' is no JSON list of column names"
            ) from error
    for name in listed:
        if name not in schema.names:
            raise ValueError(
                f"{path}: schema metadata 'aspects' lists {name!r}, which is no "
                "column; add it, or take it off the list"
            )
    return tuple(
        name
        for name in schema.names
        if name in listed or name.startswith(ASPECT_PREFIX)
    )


def _check_type(
    path: Path, name: str, arrived: pa.DataType, allowed: Sequence[object], wanted: str
) -> None:
    if arrived not in allowed:
        raise ValueError(
            f"{path}, column {name!r}, row 0 and all others: type {arrived} is not "
            f"{wanted}; cast the column"
        )


def _check_text(path: Path, name: str, arrived: pa.DataType) -> None:
    plain = arrived.value_type if pa.types.is_dictionary(arrived) else arrived
    _check_type(path, name, plain, _TEXTS, "string")


def _is_text_id(path: Path, name: str, arrived: pa.DataType) -> bool:
    plain = arrived.value_type if pa.types.is_dictionary(arrived) else arrived
    allowed = (*_INTEGERS, *_TEXTS)
    _check_type(path, name, plain, allowed, "int64 or string")
    return bool(plain in _TEXTS)


class _Checker:
    """Checks and converts one batch; ``first_row`` makes row numbers of the file."""

    def __init__(self, path: Path, first_row: int, batch: pa.RecordBatch) -> None:
        self._path = path
        self._first_row = first_row
        self._batch = batch

    def checked(
        self,
        columns: Columns,
        reward_range: tuple[float, float],
        aspect_range: tuple[float, float],
        present: list[str],
    ) -> JudgedBatch:
        """The whole batch, or the error of its first bad row, column by column."""
        scores = self._scores("reward", reward_range).reshape(-1, 1)
        if columns.aspects:
            aspects = [self._scores(name, aspect_range) for name in columns.aspects]
            scores = np.column_stack([scores, *aspects])
        return JudgedBatch(
            path=self._path,
            first_row=self._first_row,
            users=self._ids("user_id", is_text=columns.user_is_text),
            items=self._ids("item_id", is_text=columns.item_is_text),
            scores=scores,
            as_of=self._as_of() if columns.has_as_of else None,
            history_hash=self._history_hash() if columns.has_history_hash else None,
            versions={
                name: set(map(str, pc.unique(self._column(name)).to_pylist()))
                for name in present
            },
        )

    def _column(self, name: str) -> Any:
        column = self._batch.column(name)
        if column.null_count:
            self._fail(name, column.is_null().to_numpy(zero_copy_only=False), "null")
        return column

    def _ids(self, name: str, *, is_text: bool) -> Ids:
        column = self._column(name)
        if is_text:
            return texts_from_arrow(column)
        plain = column.to_numpy(zero_copy_only=False)
        ids: Int64Array = plain.astype(np.int64, copy=False)
        return ids

    def _scores(self, name: str, allowed: tuple[float, float]) -> Float32Array:
        low, high = np.float32(allowed[0]), np.float32(allowed[1])
        raw = self._column(name).to_numpy()
        scores: Float32Array = raw.astype(np.float32, copy=False)
        # one reduction each: NaN and infinity fail the comparisons too
        if not (scores.min() >= low and scores.max() <= high):
            self._fail(name, ~np.isfinite(raw), "is NaN or infinite")
            is_within = (scores >= low) & (scores <= high)
            declared = f"[{allowed[0]:g}, {allowed[1]:g}]"
            self._fail(name, ~is_within, f"is outside the declared range {declared}")
        return scores

    def _as_of(self) -> Int64Array:
        column = self._column("as_of").to_numpy()
        as_of: Int64Array = column.astype(np.int64, copy=False)
        if as_of.min() < 0:
            self._fail("as_of", as_of < 0, "is negative")
        return as_of

    def _history_hash(self) -> Uint64Array:
        column = self._column("history_hash").to_numpy()
        return np.ascontiguousarray(column).view(np.uint64)

    def _fail(self, name: str, is_bad: npt.NDArray[np.bool_], problem: str) -> None:
        """Raise for the first row that is bad, if any."""
        bad = np.flatnonzero(is_bad)
        if not len(bad):
            return
        value = self._batch.column(name)[int(bad[0])].as_py()
        shown = "null is not allowed" if value is None else f"{value!r} {problem}"
        more = f" (and {len(bad) - 1} more rows of this batch)" if len(bad) > 1 else ""
        mend = _MENDS.get(problem, "mend the value, declare another range, or drop it")
        raise ValueError(
            f"{self._path}, column {name!r}, row {self._first_row + int(bad[0])}: "
            f"{shown}{more}; {mend}"
        )


_MENDS = {
    "null": "fill it in, or drop the row",
    "is NaN or infinite": "drop the row: a pair that is absent counts as not judged",
    "is negative": "give the number of events that the judge saw",
}
