"""Candidate files -> the same files for each part of the users, read in one pass.

    asked-00000/users.parquet        rows of the part's users, in order
    asked-00000/candidates.parquet   their pairs that are not judged yet, in order

A user's part follows from the id alone. Memory: ``HELD_ROWS`` a part, whatever the
size; pairs that are judged already are left out by DuckDB, which spills to disk.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sgrec_torchrec.files.run_folder import CANDIDATE_PAIRS, USERS, nth
from sgrec_torchrec.judge.journal import other_history
from sgrec_torchrec.judge.judge_requests import MEND
from sgrec_torchrec.logs.judged_users import id_hashes
from sgrec_torchrec.schema import Int64Array

ASKED = "asked-*"
MAX_PARTS = 500
"""A file of each is open at a time; systems give a process 1,024."""
HELD_ROWS = 4_096


def num_parts(users: Path, users_per_part: int) -> int:
    """Parts of about so many users, larger ones where ``MAX_PARTS`` do not suffice."""
    count = pq.read_metadata(users).num_rows
    return min(MAX_PARTS, max(1, -(-count // users_per_part)))


def cut_candidates(
    users: Path, pairs: Path, judged: Sequence[Path], into: Path, count: int
) -> list[Path]:
    """Write the parts; returns the folders of those that have a pair to judge.

    Args:
        judged: parts of a judged folder, whose pairs are left out.

    Raises:
        ValueError: naming the file that cannot be read, or the user who was judged at
            another history.
    """
    places = [into / nth(ASKED, part) for part in range(count)]
    for place in places:
        place.mkdir(parents=True)
    try:
        _deal(_batches(users), [place / USERS for place in places])
        with duckdb.connect(config={"temp_directory": str(into / "spill")}) as engine:
            if judged:
                _check_histories(engine, users, judged)
            left = _left(engine, pairs, judged) if judged else _batches(pairs)
            rows_P = _deal(left, [place / CANDIDATE_PAIRS for place in places])
    except (pa.ArrowException, duckdb.Error, OSError) as error:
        raise ValueError(f"{users} or {pairs}: cannot be read ({error}): {MEND}") from (
            error
        )
    return [place for place, rows in zip(places, rows_P, strict=True) if rows]


def _batches(path: Path) -> pa.RecordBatchReader:
    file = pq.ParquetFile(path, page_checksum_verification=True)
    return pa.RecordBatchReader.from_batches(file.schema_arrow, file.iter_batches())


def _left(
    engine: duckdb.DuckDBPyConnection, pairs: Path, judged: Sequence[Path]
) -> pa.RecordBatchReader:
    """Pairs in the order of their file, without those that are judged."""
    found: pa.RecordBatchReader | None = engine.execute(
        "SELECT asked.* EXCLUDE file_row_number "
        "FROM read_parquet($pairs, file_row_number = true) asked ANTI JOIN "
        "read_parquet($judged) done ON done.item_id = asked.item_id::VARCHAR "
        "AND done.user_id = asked.user_id::VARCHAR ORDER BY file_row_number",
        {"pairs": str(pairs), "judged": [str(path) for path in judged]},
    ).to_arrow_reader()
    assert found is not None
    return found


def _check_histories(
    engine: duckdb.DuckDBPyConnection, users: Path, judged: Sequence[Path]
) -> None:
    """Raise where a user was judged at another history."""
    other = engine.execute(
        "SELECT asked.user_id FROM read_parquet($users) asked SEMI JOIN "
        "read_parquet($judged) done ON done.user_id = asked.user_id::VARCHAR "
        "AND done.history_hash <> asked.history_hash LIMIT 1",
        {"users": str(users), "judged": [str(path) for path in judged]},
    ).fetchone()
    if other is not None:
        raise other_history(judged[0].parent, other[0])


def _deal(batches: pa.RecordBatchReader, paths: Sequence[Path]) -> Int64Array:
    """Each row to its user's file, in order; int64 [P] rows of each."""
    held: list[list[pa.RecordBatch]] = [[] for _ in paths]
    held_P = np.zeros(len(paths), dtype=np.int64)
    rows_P = np.zeros(len(paths), dtype=np.int64)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(pq.ParquetWriter(path, batches.schema))
            for path in paths
        ]

        def write(part: int) -> None:
            table = pa.Table.from_batches(held[part], batches.schema)
            writers[part].write_table(table)
            held[part], held_P[part] = [], 0

        for batch in batches:
            for part, rows in _parts_of(batch, len(paths)):
                held[part].append(rows)
                held_P[part] += rows.num_rows
                rows_P[part] += rows.num_rows
                if held_P[part] >= HELD_ROWS:
                    write(part)
        for part in np.flatnonzero(held_P).tolist():
            write(part)
    return rows_P


def _parts_of(
    batch: pa.RecordBatch, count: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    ids: Any = batch["user_id"].cast(pa.string()).fill_null("").dictionary_encode()
    part_B = (id_hashes(ids.dictionary.to_pylist()) % count)[ids.indices.to_numpy()]
    for part in np.unique(part_B):
        yield int(part), batch.filter(pa.array(part_B == part))
