"""A judged folder -> its pairs, histories and manifest: what both pages read.

The run's page streams a few pairs (``first_pairs``), the judge's page asks DuckDB over
all of them (``database``). What may be wrong with a file is looked for and said here,
once for both.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgrec_torchrec.files.listed_sums import check_listed
from sgrec_torchrec.files.run_folder import MANIFEST, PARTS, USERS
from sgrec_torchrec.files.sealed_json import without_seal

ASPECT, WEIGHT, EVIDENCE = "aspect_", "weight_", "evidence_"
"""How the columns of an aspect begin; its name follows."""
REWARD = "reward"
PAIR_COLUMNS = {
    **dict.fromkeys(("user_id", "item_id", "source"), "string"),
    "as_of": "integer",
    **dict.fromkeys(("judge_version", "prompt_version"), "string"),
}
USER_COLUMNS = {
    "user_id": "string",
    "as_of": "integer",
    "request_timestamp": "integer",
    "history": "list",
    "next_item_id": "string",
}
OTHER_KINDS = {
    **dict.fromkeys((ASPECT, WEIGHT, REWARD), "float"),
    EVIDENCE: "string",
}
"""How a column's name begins -> what it must hold, where it is there."""
BATCH_ROWS = 4096
MEMORY_LIMIT_MIB = 1024
JsonRow = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedFolder:
    """What the judge wrote; its files are read when they are asked for."""

    path: Path
    parts: list[Path]
    """One or more, in the order in which they were judged."""

    @property
    def users(self) -> Path:
        """What was shown of each user."""
        return self.path / USERS

    @contextmanager
    def reading(self, *more: type[Exception]) -> Iterator[None]:
        """Errors of the Parquet files become one that names folder and mend.

        Args:
            more: errors of the caller, that a file without a column ends in.

        Raises:
            ValueError: instead of them.
        """
        known: tuple[type[Exception], ...] = (OSError, pa.ArrowException, duckdb.Error)
        try:
            yield
        except known + more as error:
            raise ValueError(
                f"{self.path}: its Parquet files cannot be read "
                f"({type(error).__name__}: {error}); judge again"
            ) from error

    def first_pairs(self, most: int) -> Iterator[JsonRow]:
        """The first pairs, in the order in which they were judged; within ``reading``.

        Checksums of all pages that are read are verified.
        """
        left = most
        for path in self.parts:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(batch_size=BATCH_ROWS):
                    rows = batch.slice(0, left).to_pylist()
                    left -= len(rows)
                    yield from rows
                    if left <= 0:
                        return

    def histories(self, user_ids: Sequence[str], newest: int) -> dict[str, list[str]]:
        """Newest items of each user's history, oldest first; within ``reading``.

        Nothing where there is no file of users.
        """
        if not self.users.is_file():
            return {}
        table = pq.read_table(
            self.users,
            columns=["user_id", "history"],
            filters=pc.field("user_id").isin(pa.array(user_ids, pa.string())),
            page_checksum_verification=True,
        )
        return {
            str(row["user_id"]): [str(item) for item in row["history"][-newest:]]
            for row in table.to_pylist()
        }

    @contextmanager
    def database(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """DuckDB with the views ``raw`` of all pairs and ``users``; within ``reading``.

        It streams Parquet, and spills beyond its memory limit.
        """
        parts = [str(path) for path in self.parts]
        with tempfile.TemporaryDirectory() as spill, duckdb.connect() as connection:
            connection.execute(f"SET memory_limit = '{MEMORY_LIMIT_MIB}MiB'")
            connection.execute("SET temp_directory = $1", [spill])
            connection.execute("SET preserve_insertion_order = false")
            connection.read_parquet(parts, union_by_name=True).create_view("raw")
            connection.read_parquet(str(self.users)).create_view("users")
            yield connection

    def check_columns(self) -> set[str]:
        """All column names of the parts, once every file's schema has been checked.

        Raises:
            FileNotFoundError: where there is no file of users.
            ValueError: naming a file that is not whole, or a column that it lacks or
                that holds something else.
        """
        if not self.users.is_file():
            raise FileNotFoundError(
                f"{self.users}: not there, so no history is known; judge again"
            )
        _column_names(self.users, USER_COLUMNS)
        names: set[str] = set()
        for part in self.parts:
            found = _column_names(part, PAIR_COLUMNS)
            if not any(name.startswith(ASPECT) for name in found):
                raise ValueError(f"{part}: no column {ASPECT}<name>; judge again")
            names |= found
        return names

    def manifest(self) -> JsonRow | None:
        """What the judge told of its work; None where it is absent.

        Raises:
            ValueError: where it is no JSON object.
        """
        path = self.path / MANIFEST
        if not path.is_file():
            return None
        mend = "mend it, or remove it to leave its facts out"
        try:
            found = without_seal(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(
                f"{path}: not JSON ({error}), so it cannot be read; {mend}"
            ) from error
        if not isinstance(found, dict):
            raise ValueError(f"{path}: JSON, but no object; {mend}")
        return found


def find_judged(path: Path) -> JudgedFolder | None:
    """The folder, or None where nothing has been judged.

    Raises:
        ValueError: naming a file that is not as the judge wrote it.
    """
    parts = sorted(path.glob(PARTS))
    if not parts:
        return None
    found = JudgedFolder(path=path, parts=parts)
    # First, since it says more of a manifest that cannot be read.
    found.manifest()
    check_listed([*parts, found.users], "judge again")
    return found


def open_judged(path: Path) -> JudgedFolder:
    """The folder, where something must have been judged.

    Raises:
        FileNotFoundError: where nothing has.
    """
    found = find_judged(path)
    if found is None:
        raise FileNotFoundError(f"{path}: no {PARTS}; judge candidates first")
    return found


def _column_names(path: Path, required: Mapping[str, str]) -> set[str]:
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: no whole Parquet file ({error}); remove it and judge again"
        ) from error
    for name in required:
        if name not in schema.names:
            raise ValueError(
                f"{path}: no column {name}; it has {', '.join(schema.names)}; judge "
                "again with this version"
            )
    for field in schema:
        others = (k for at, k in OTHER_KINDS.items() if field.name.startswith(at))
        kind = required.get(field.name) or next(others, None)
        if kind and not _holds(field.type, kind):
            raise ValueError(
                f"{path}: column {field.name} holds {field.type}, not {kind}; judge "
                "again with this version"
            )
    return set(schema.names)


def _holds(data_type: pa.DataType, kind: str) -> bool:
    types = pa.types
    checks = {
        "string": (types.is_string, types.is_large_string, types.is_dictionary),
        "integer": (types.is_integer,),
        "float": (types.is_floating,),
        "list": (types.is_list, types.is_large_list),
    }
    # A column without any value may have been written without a type.
    return any(check(data_type) for check in (*checks[kind], types.is_null))
