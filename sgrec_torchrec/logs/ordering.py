"""Canonical log -> dense, ordered columns: what a protocol then cuts.

Dense ids: user u is the u-th of the log's sorted user ids, item n is row n of
``items.parquet`` (so items appended there keep all earlier indices).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from sgrec_torchrec.files.text_column import TextColumn
from sgrec_torchrec.hashing import BASKET, hash64
from sgrec_torchrec.logs.canonical import CanonicalLog
from sgrec_torchrec.schema import (
    Float32Array,
    Int16Array,
    Int32Array,
    Int64Array,
)

# Any: Arrow's types are generic in some stub packages and absent in others.
pc: Any = pyarrow.compute

BLOCK_ROWS = 16_000_000
SPLITS = ("train", "valid", "test")
MAX_EVENT_TYPES = 32_767


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedRows:
    """The log by user, then time, then a seeded shuffle inside each basket.

    ``basket_start_R[r]`` is the first row of row r's basket (the rows that share its
    user and timestamp). ``events_R`` is -1 and ``values_R`` NaN where the log has none;
    ``splits_R`` counts in ``SPLITS`` and is None without that column.
    """

    user_ids: TextColumn
    offsets_U1: Int64Array
    items_R: Int32Array
    timestamps_R: Int64Array
    events_R: Int16Array
    values_R: Float32Array
    splits_R: npt.NDArray[np.int8] | None
    basket_start_R: Int64Array
    event_types: list[str]
    num_items: int


def read_ordered(log: CanonicalLog, *, seed: int) -> OrderedRows:
    """Read a canonical log into memory; about 60 bytes a row while it sorts baskets.

    The folder is sorted by user and time already, so rows stream through in blocks
    and only the order inside baskets is new: by hash64(seed, BASKET, user, timestamp,
    item, copy), where copy tells equal rows apart.

    Raises:
        ValueError: for an item that is not in the catalogue, a ``split`` that is none
            of ``SPLITS``, an empty or unsorted log, or too many event types.
    """
    item_ids = log.items(["item_id"])["item_id"].combine_chunks()
    if item_ids.null_count or len(pc.unique(item_ids)) < len(item_ids):
        raise ValueError(
            f"{log.items_path}: item_id holds nulls or duplicates; import the log again"
        )
    columns = _Columns(log.folder, item_ids)
    for block in _blocks(log):
        columns.add(block)
    rows = columns.finish()
    order_R = _basket_order(rows, seed)
    return OrderedRows(
        user_ids=rows.user_ids,
        offsets_U1=rows.offsets_U1,
        items_R=rows.items_R[order_R],
        timestamps_R=rows.timestamps_R,
        events_R=rows.events_R[order_R],
        values_R=rows.values_R[order_R],
        splits_R=None if rows.splits_R is None else rows.splits_R[order_R],
        basket_start_R=rows.basket_start_R,
        event_types=rows.event_types,
        num_items=rows.num_items,
    )


def _blocks(log: CanonicalLog) -> Iterator[pa.Table]:
    """The log in tables of about BLOCK_ROWS rows, each column in one piece."""
    batches: list[pa.RecordBatch] = []
    num_rows = 0
    for batch in log.interactions():
        batches.append(batch)
        num_rows += batch.num_rows
        if num_rows >= BLOCK_ROWS:
            yield pa.Table.from_batches(batches).combine_chunks()
            batches, num_rows = [], 0
    if num_rows:
        yield pa.Table.from_batches(batches).combine_chunks()


class _Columns:
    """Collects blocks of the log as numpy columns."""

    def __init__(self, folder: Path, item_ids: Any) -> None:
        self.folder = folder
        self.item_ids = item_ids
        self.event_types: list[str] = []
        self.run_users: list[Any] = []
        self.run_starts: list[Int64Array] = []
        self.parts: dict[str, list[npt.NDArray[Any]]] = {
            name: [] for name in ("item", "timestamp", "event", "value", "split")
        }
        self.num_rows = 0

    def add(self, block: Any) -> None:
        """Append a block that follows the earlier ones."""
        self._add_users(_single(block["user_id"]))
        items = self._lookup("item_id", block, self.item_ids, "is not in items.parquet")
        self.parts["item"].append(items.astype(np.int32))
        self.parts["timestamp"].append(_single(block["timestamp"]).to_numpy())
        names = block.column_names
        if "event" in names:
            self.parts["event"].append(self._events(_single(block["event"])))
        if "value" in names:
            values = pc.fill_null(_single(block["value"]).cast(pa.float32()), np.nan)
            self.parts["value"].append(values.to_numpy(zero_copy_only=False))
        if "split" in names:
            choices = pa.array(SPLITS)
            splits = self._lookup("split", block, choices, f"is none of {SPLITS}")
            self.parts["split"].append(splits.astype(np.int8))
        self.num_rows += block.num_rows

    def _add_users(self, user_ids: Any) -> None:
        runs = pc.run_end_encode(user_ids)
        ends = runs.run_ends.to_numpy().astype(np.int64)
        starts = np.concatenate([[0], ends[:-1]]) + self.num_rows
        users = runs.values
        if self.run_users and self.run_users[-1][-1] == users[0]:
            starts, users = starts[1:], users.slice(1)
        if len(users):
            self.run_starts.append(starts)
            self.run_users.append(users)

    def _lookup(
        self, column: str, block: Any, choices: Any, complaint: str
    ) -> npt.NDArray[np.int32]:
        values = _single(block[column])
        if values.type != choices.type:
            values, choices = values.cast(pa.string()), choices.cast(pa.string())
        found = pc.index_in(values, value_set=choices)
        if found.null_count:
            row = int(np.flatnonzero(found.is_null().to_numpy(False))[0])
            raise ValueError(
                f"{self.folder}/interactions: row {self.num_rows + row}: {column} = "
                f"{values[row].as_py()!r} {complaint}; add or mend it and import again"
            )
        return np.asarray(found.to_numpy())

    def _events(self, events: Any) -> Int16Array:
        known = set(self.event_types)
        seen = pc.unique(events).drop_null().cast(pa.string()).to_pylist()
        self.event_types += [name for name in seen if name not in known]
        if len(self.event_types) > MAX_EVENT_TYPES:
            raise ValueError(
                f"{self.folder}/interactions: event has over {MAX_EVENT_TYPES} "
                "different values; it must be a kind of event, not an id"
            )
        choices = pa.array(self.event_types, pa.string())
        found = pc.index_in(events.cast(pa.string()), value_set=choices)
        if events.null_count:
            found = pc.if_else(events.is_valid(), found, -1)
        return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.int16)

    def finish(self) -> OrderedRows:
        """The columns in the log's own order; frees what was collected."""
        if not self.num_rows:
            raise ValueError(
                f"{self.folder}/interactions: the log is empty; import one with rows"
            )
        users: Any = pa.chunked_array(self.run_users)
        if len(pc.unique(users)) < len(users):
            raise ValueError(
                f"{self.folder}/interactions: rows of one user are not together; "
                "import the log again, which sorts it"
            )
        starts = np.concatenate(self.run_starts)
        offsets_U1 = np.append(starts, self.num_rows)
        timestamps_R = self._take("timestamp", np.int64, 0)
        events_R, event_types = self._sorted_events()
        return OrderedRows(
            user_ids=TextColumn(users),
            offsets_U1=offsets_U1,
            items_R=self._take("item", np.int32, 0),
            timestamps_R=timestamps_R,
            events_R=events_R,
            values_R=self._take("value", np.float32, np.nan),
            splits_R=self._take("split", np.int8, 0) if self.parts["split"] else None,
            basket_start_R=self._basket_starts(offsets_U1, timestamps_R),
            event_types=event_types,
            num_items=len(self.item_ids),
        )

    def _take(self, name: str, dtype: type, absent: float) -> npt.NDArray[Any]:
        parts = self.parts.pop(name)
        if not parts:
            return np.full(self.num_rows, absent, dtype=dtype)
        return np.concatenate(parts).astype(dtype, copy=False)

    def _sorted_events(self) -> tuple[Int16Array, list[str]]:
        """Event indices renumbered in the order of the types' names."""
        raw_R = self._take("event", np.int16, -1)
        names = sorted(self.event_types)
        index = {name: number for number, name in enumerate(names)}
        renumber = np.array([*(index[name] for name in self.event_types), -1], np.int16)
        return renumber[raw_R], names

    def _basket_starts(self, offsets_U1: Int64Array, times_R: Int64Array) -> Int64Array:
        is_first_R = np.append(True, times_R[1:] != times_R[:-1])
        is_first_R[offsets_U1[:-1]] = True
        falls = np.flatnonzero(times_R[1:] < times_R[:-1]) + 1
        falls = falls[~np.isin(falls, offsets_U1)]
        if len(falls):
            raise ValueError(
                f"{self.folder}/interactions: row {falls[0]}: timestamp falls within "
                "a user; import the log again, which sorts it"
            )
        rows_R = np.arange(self.num_rows, dtype=np.int64)
        return np.maximum.accumulate(np.where(is_first_R, rows_R, 0))


def _single(column: Any) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _basket_order(rows: OrderedRows, seed: int) -> Int64Array:
    """Row order that shuffles each basket; only baskets of 2 or more are sorted."""
    start_R = rows.basket_start_R
    order_R = np.arange(len(start_R), dtype=np.int64)
    same_as_next = start_R[1:] == start_R[:-1]
    shared = np.flatnonzero(
        np.append(same_as_next, False) | np.append(False, same_as_next)
    )
    items = rows.items_R[shared]
    baskets = start_R[shared]
    is_copy = np.append(
        False, (items[1:] == items[:-1]) & (baskets[1:] == baskets[:-1])
    )[: len(shared)]
    place = np.arange(len(shared))
    copies = place - np.maximum.accumulate(np.where(is_copy, 0, place))
    users = np.searchsorted(rows.offsets_U1, shared, side="right") - 1
    noise = hash64(seed, BASKET, users, rows.timestamps_R[shared], items, copies)
    order_R[shared] = shared[np.lexsort((noise, baskets))]
    return order_R
