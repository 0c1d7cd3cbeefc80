"""What a caller says of a user -> checked columns of events.

Letters: H events of one user, oldest first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgrec_torchrec.schema import Float32Array, Int16Array, Int32Array, Int64Array
from sgrec_torchrec.serving.catalogue import SHOWN_IDS, ItemId, ServedCatalogue, shown

MAX_EVENTS = 100_000
"""Newest events that are looked at; the older ones are not even checked."""
MAX_SECONDS = 100_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One user's events, oldest first. Lists beside ``item_ids`` are equally long."""

    item_ids: Sequence[ItemId]
    timestamps: Sequence[int] | None = None
    """Seconds, never falling; equal ones are one basket. None: nothing is known of the
    gaps, and every event is a basket of its own."""
    values: Sequence[float | None] | None = None
    """What an event was worth, None where unknown. Unused if the log had no values."""
    events: Sequence[str | None] | None = None
    """Names of event types, None where unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownHistory:
    """A checked history. Equal histories have equal arrays."""

    items_H: Int32Array
    timestamps_H: Int64Array
    """Ordinals where the caller gave none."""
    events_H: Int16Array
    """-1 where unknown."""
    values_H: Float32Array
    """NaN where unknown."""
    has_times: bool
    num_given: int
    """Events that the caller gave."""
    unknown: tuple[str, ...] = ()
    """The first items that the catalogue does not have, as an answer may print them."""
    num_unknown: int = 0
    """Events of such items, which were left out as if they had not been given."""
    made_by: object = None
    """The model's ``Parts.name``, whose numbers of items and events these are."""

    def __len__(self) -> int:
        return len(self.items_H)

    @property
    def num_cut(self) -> int:
        """The oldest events, which were not looked at."""
        return self.num_given - len(self) - self.num_unknown

    def arrays(self) -> tuple[Int32Array, Int64Array, Int16Array, Float32Array]:
        """Items, timestamps, events and values."""
        return self.items_H, self.timestamps_H, self.events_H, self.values_H

    def newest(
        self, max_events: int
    ) -> tuple[Int32Array, Int64Array, Int16Array, Float32Array]:
        """``arrays`` of the newest events."""
        first = max(0, len(self) - max_events)
        items_H, timestamps_H, events_H, values_H = self.arrays()
        return items_H[first:], timestamps_H[first:], events_H[first:], values_H[first:]

    def starts_with(self, other: "KnownHistory") -> bool:
        """Whether ``other`` is the beginning of this history, or all of it."""
        size = len(other)
        if size > len(self) or self.has_times != other.has_times:
            return False
        if self.num_cut != other.num_cut:
            return False
        return (
            np.array_equal(self.items_H[:size], other.items_H)
            and np.array_equal(self.timestamps_H[:size], other.timestamps_H)
            and np.array_equal(self.events_H[:size], other.events_H)
            and np.array_equal(self.values_H[:size], other.values_H, equal_nan=True)
        )


def check_history(
    history: History | Sequence[ItemId],
    catalogue: ServedCatalogue,
    event_types: Sequence[str],
    where: str,
    made_by: object = None,
    *,
    strict: bool = True,
) -> KnownHistory:
    """The newest ``MAX_EVENTS`` events of a history as columns.

    Args:
        history: item ids alone, or with what else is known of the events.
        catalogue: knows the items.
        event_types: their names; an event's number is its place among them.
        where: how errors call the history, as "history 3".
        made_by: names the model whose catalogue and event types these are.
        strict: refuse an item that the catalogue does not have; else its event is left
            out and counted.

    Raises:
        ValueError: naming the entry and what to change.
    """
    if not isinstance(history, History):
        history = History(item_ids=history)
    num_given = _length(history.item_ids, f"{where}: item_ids")
    newest = slice(max(0, num_given - MAX_EVENTS), num_given)
    columns = _columns(history, newest, where)
    item_ids = history.item_ids[newest]
    find = catalogue.indices if strict else catalogue.find
    items_H = find(item_ids, f"{where}: item")
    size = len(items_H)
    times_H = _times(columns.get("timestamps"), size, where)
    events_H = _events(columns.get("events"), size, event_types, where)
    values_H = _values(columns.get("values"), size, where)
    is_known_H = items_H >= 0
    unknown = np.flatnonzero(~is_known_H)
    has_times = "timestamps" in columns
    num_known = size - len(unknown)
    return KnownHistory(
        items_H=items_H[is_known_H].astype(np.int32),
        # Ordinals count what is left: the rest is as if it had not been given.
        timestamps_H=times_H[is_known_H] if has_times else times_H[:num_known],
        events_H=events_H[is_known_H],
        values_H=values_H[is_known_H],
        has_times=has_times,
        num_given=num_given,
        unknown=tuple(shown(item_ids[place]) for place in unknown[:SHOWN_IDS]),
        num_unknown=len(unknown),
        made_by=made_by,
    )


def _columns(history: History, newest: slice, where: str) -> dict[str, Sequence[Any]]:
    """The newest entries of what was given beside the items."""
    columns = {}
    for name in ("timestamps", "values", "events"):
        column = getattr(history, name)
        if column is None:
            continue
        length = _length(column, f"{where}: {name}")
        if length != newest.stop:
            raise ValueError(
                f"{where}: {name} has {length} entries, item_ids {newest.stop}: give "
                "one for each item"
            )
        columns[name] = column[newest]
    return columns


def _length(column: object, what: str) -> int:
    if isinstance(column, str | bytes) or not isinstance(column, Sequence | np.ndarray):
        raise ValueError(
            f"{what} is of type {type(column).__name__}: give a list, as ['a', 'b']"
        )
    return len(column)


def _times(column: Sequence[int] | None, size: int, where: str) -> Int64Array:
    if column is None:
        return np.arange(size, dtype=np.int64)
    times_H = np.zeros(size, dtype=np.int64)
    for place, value in enumerate(column):
        is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_whole or not 0 <= value < MAX_SECONDS:
            raise ValueError(
                f"{where}: timestamps[{place}] = {shown(value)}: give whole seconds in "
                f"[0, {MAX_SECONDS})"
            )
        times_H[place] = value
    falling = np.flatnonzero(np.diff(times_H) < 0)
    if len(falling):
        raise ValueError(
            f"{where}: timestamps[{falling[0] + 1}] is before timestamps[{falling[0]}]:"
            " give the events oldest first"
        )
    return times_H


def _events(
    column: Sequence[str | None] | None,
    size: int,
    event_types: Sequence[str],
    where: str,
) -> Int16Array:
    events_H = np.full(size, -1, dtype=np.int16)
    numbers: dict[object, int] = {
        name: number for number, name in enumerate(event_types)
    }
    for place, value in enumerate(() if column is None else column):
        if value is None:
            continue
        if not isinstance(value, str) or value not in numbers:
            raise ValueError(
                f"{where}: events[{place}] = {shown(value)}: known are "
                f"{', '.join(event_types) or 'none'}; give None otherwise"
            )
        events_H[place] = numbers[value]
    return events_H


def _values(
    column: Sequence[float | None] | None, size: int, where: str
) -> Float32Array:
    values_H = np.full(size, np.nan, dtype=np.float32)
    limit = float(np.finfo(np.float32).max)
    for place, value in enumerate(() if column is None else column):
        if value is None:
            continue
        is_number = isinstance(value, int | float | np.integer | np.floating)
        if not is_number or isinstance(value, bool) or not abs(value) <= limit:
            raise ValueError(
                f"{where}: values[{place}] = {shown(value)}: give a finite number, or "
                "None where there is none"
            )
        values_H[place] = value
    return values_H
