"""The exchange folder as records, the lists' figures, and writes whole or absent."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """The folder's content. ``valid`` and ``test``: columns row, history, target."""

    fit: pd.DataFrame
    valid: pd.DataFrame | None
    test: pd.DataFrame
    num_items: int
    filter_seen: bool
    max_history: int
    k: int


def read_exchange(folder: Path) -> Exchange:
    """Read the folder.

    Raises:
        FileNotFoundError: naming the file that is missing.
        ValueError: naming the file, and the column or setting that it lacks.
    """
    path = folder / "settings.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: export the log first")
    settings = json.loads(path.read_text(encoding="utf-8"))
    names = ("num_items", "filter_seen", "max_history", "k")
    missing = [name for name in names if name not in settings]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    asked_columns = ("row", "history", "target")
    has_valid = (folder / "valid.parquet").is_file()
    return Exchange(
        fit=read_table(folder / "fit.parquet", ("user", "item", "position")),
        valid=read_table(folder / "valid.parquet", asked_columns)
        if has_valid
        else None,
        test=read_table(folder / "test.parquet", asked_columns),
        **{name: settings[name] for name in names},
    )


def read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """The named columns.

    Raises:
        FileNotFoundError, ValueError: as for ``read_exchange``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: export the log first")
    missing = sorted(set(columns) - set(pq.read_schema(path).names))
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
    return pq.read_table(path, columns=list(columns)).to_pandas()


def evenly_spaced(rows: pd.DataFrame, max_rows: int) -> pd.DataFrame:
    """At most ``max_rows`` of the rows, evenly spaced from the first to the last."""
    if len(rows) <= max_rows:
        return rows
    return rows.iloc[np.linspace(0, len(rows) - 1, max_rows).astype(np.int64)]


def places(lists: list[Int64Array], rows: pd.DataFrame) -> npt.NDArray[np.float64]:
    """0-based place of each row's target in its list; inf where it is not there."""
    place = np.full(len(lists), np.inf)
    targets = rows["target"]
    for row, (items, target) in enumerate(zip(lists, targets, strict=True)):
        where = np.flatnonzero(items == target)
        if len(where):
            place[row] = where[0]
    return place


def ndcg(lists: list[Int64Array], rows: pd.DataFrame, k: int) -> float:
    """Mean of 1 / log2(place + 2) over the rows whose target is among the first k."""
    place = places(lists, rows)
    return float(np.where(place < k, 1 / np.log2(place + 2), 0).mean())


def hit_rate(lists: list[Int64Array], rows: pd.DataFrame, k: int) -> float:
    """Share of the rows whose target is among the first k."""
    return float((places(lists, rows) < k).mean())


def write_lists(path: Path, rows: pd.DataFrame, lists: list[Int64Array]) -> None:
    """Columns row int64 and items list<int64>, best first."""
    table = pa.table(
        {
            "row": pa.array(rows["row"].to_numpy(), pa.int64()),
            "items": pa.array(lists, pa.list_(pa.int64())),
        }
    )
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as sorted, indented JSON; NaN is refused."""
    with whole_file(path) as temporary:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` on success, and goes on error."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
