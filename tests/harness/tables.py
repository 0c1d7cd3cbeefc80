"""Small logs as files, and what becomes of them: for tests of imports."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.importers.table import import_table

NOON_S = 1_704_110_400
"""2024-01-01 12:00:00 UTC."""
NAMES = ("user_id", "item_id", "timestamp")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def rows_of(out: Path) -> list[tuple[Any, ...]]:
    table = pa.Table.from_batches(read_canonical(out).interactions())
    return list(zip(*table.to_pydict().values(), strict=True))


def imported(path: Path, tmp_path: Path, **options: Any) -> list[tuple[Any, ...]]:
    import_table(path, tmp_path / "out", **options)
    return rows_of(tmp_path / "out")


def refused(path: Path, tmp_path: Path, message: str, **options: Any) -> str:
    with pytest.raises(ValueError, match=message) as caught:
        import_table(path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


LOG = "user_id,item_id,timestamp\nu,a,1704110400\n"


def json_lines(path: Path, *rows: dict[str, Any]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def event(**more: Any) -> dict[str, Any]:
    return {"user_id": "u", "item_id": "a", "timestamp": NOON_S} | more
