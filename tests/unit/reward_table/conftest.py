"""Judged pairs as small Parquet files."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

WritePairs = Callable[..., Path]


@pytest.fixture(scope="package", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and a file waits for the disk longer than it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def write_pairs(tmp_path: Path) -> WritePairs:
    """write_pairs(rows, **more_columns) -> a new file of (user, item, reward) rows."""
    numbers = itertools.count()

    def write(
        rows: Sequence[tuple[Any, Any, Any]],
        reward_type: pa.DataType | None = None,
        **columns: Any,
    ) -> Path:
        path = tmp_path / f"judged-{next(numbers)}.parquet"
        users, items, rewards = zip(*rows, strict=True) if rows else ([], [], [])
        table = {
            "user_id": pa.array(users),
            "item_id": pa.array(items),
            "reward": pa.array(rewards, reward_type or pa.float32()),
            **columns,
        }
        pq.write_table(pa.table(table), path)
        return path

    return write
