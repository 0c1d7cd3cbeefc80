"""The states of users who may come back: least recently used go first.

A kept state is bytes in pages of its own, and a few objects of Python. Its tensors
would lie where a pass allocated them, among arrays a hundred times as large that are
soon freed, whose memory the allocator then can not use again: a process would hold
several times what the states take.
"""

import math
import mmap
import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sgrec_torchrec.serving.encoder import UserState

ENTRY_BYTES = 3_072
"""What an entry costs beside its pages: key, objects, links."""
ALIGNED_BYTES = 64
SPARE_SHARE = 1.25
"""A new state takes the pages of a dropped one where they are up to so much larger: the
system takes ten times as long to give pages as they take to be written."""
Array = npt.NDArray[Any]
HISTORY_ARRAYS = ("items_H", "timestamps_H", "events_H", "values_H")
NO_FLOATS = torch.zeros(0)
NOTHING = np.zeros(0)
"""Both stand for what lies in the pages."""


@dataclass(frozen=True, slots=True)
class _Entry:
    pages: mmap.mmap
    address: int
    """Of the pages, where the keys and values begin."""
    kinds: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
    """Shape and type of each array, in the order of ``_arrays``."""
    rest: UserState
    """All but the arrays."""

    @property
    def num_bytes(self) -> int:
        return len(self.pages) + ENTRY_BYTES


class StateCache:
    """Bounded by bytes. Threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> UserState | None:
        """The state, which then counts as used; None where there is none."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
        return _state_of(entry)

    def put(self, key: Hashable, state: UserState) -> None:
        """Keep a copy of a state; one that alone is beyond the bound is not kept."""
        num_bytes = num_bytes_of(state)
        with self._lock:
            known = self._entries.pop(key, None)
            if known is not None and known.address == state.past.data_ptr():
                self._entries[key] = replace(known, rest=_without_arrays(state))
                return
            if known is not None:
                self.num_bytes -= known.num_bytes
            if num_bytes > self.max_bytes:
                return
            del known
            spare = self._make_room(num_bytes)
        # Not under the lock: it takes a part of a millisecond.
        entry = _entry_of(state, spare)
        with self._lock:
            self._drop(key)
            self._entries[key] = entry
            self.num_bytes += entry.num_bytes
            self._make_room(0)

    def _make_room(self, num_bytes: int) -> mmap.mmap | None:
        """Drop the oldest; returns pages that nobody reads any more and that fit."""
        spare = None
        while self._entries and self.num_bytes + num_bytes > self.max_bytes:
            _, entry = self._entries.popitem(last=False)
            self.num_bytes -= entry.num_bytes
            pages = entry.pages
            del entry
            # Here and in the call: no array lies in them.
            is_free = sys.getrefcount(pages) == 2
            wanted = num_bytes - ENTRY_BYTES
            if is_free and wanted <= len(pages) <= SPARE_SHARE * wanted:
                spare = pages
        return spare

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._entries.clear()
            self.num_bytes = 0

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_bytes -= entry.num_bytes


def num_bytes_of(state: UserState) -> int:
    """What keeping a state takes."""
    return _paged(_layout(_arrays(state))[-1]) + ENTRY_BYTES


def _arrays(state: UserState) -> list[Array]:
    found: list[Array] = [state.past.numpy(), state.hidden_D.numpy()]
    return [*found, *state.history.arrays(), *(state.candidates or ())]


def _layout(arrays: list[Array]) -> list[int]:
    """The byte at which each begins, and the end of all."""
    offsets = [0]
    for array in arrays:
        size = -(-array.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES
        offsets.append(offsets[-1] + size)
    return offsets


def _paged(num_bytes: int) -> int:
    return max(1, math.ceil(num_bytes / mmap.PAGESIZE)) * mmap.PAGESIZE


def _entry_of(state: UserState, spare: mmap.mmap | None) -> _Entry:
    arrays = _arrays(state)
    offsets = _layout(arrays)
    # Private: pages side by side are one mapping to the system, which bounds their
    # number. They go back to it with the last array that lies in them.
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    pages = spare or mmap.mmap(-1, _paged(offsets[-1]), flags=kind)
    for array, offset in zip(arrays, offsets, strict=False):
        np.ndarray(array.shape, array.dtype, pages, offset)[...] = array
    return _Entry(
        pages=pages,
        address=np.frombuffer(pages, np.uint8).ctypes.data,
        kinds=tuple((array.shape, array.dtype) for array in arrays),
        rest=_without_arrays(state),
    )


def _without_arrays(state: UserState) -> UserState:
    history: dict[str, Any] = dict.fromkeys(HISTORY_ARRAYS, NOTHING)
    return replace(
        state,
        past=NO_FLOATS,
        hidden_D=NO_FLOATS,
        history=replace(state.history, **history),
        candidates=None,
    )


def _state_of(entry: _Entry) -> UserState:
    """The state; its arrays lie in the pages and keep them."""
    arrays, offset = [], 0
    for shape, dtype in entry.kinds:
        arrays.append(np.ndarray(shape, dtype, entry.pages, offset))
        offset = _layout([arrays[-1]])[-1] + offset
    past, hidden_D, *others = arrays
    columns: dict[str, Any] = dict(zip(HISTORY_ARRAYS, others, strict=False))
    candidates = others[len(HISTORY_ARRAYS) :]
    return replace(
        entry.rest,
        past=torch.from_numpy(past),
        hidden_D=torch.from_numpy(hidden_D),
        history=replace(entry.rest.history, **columns),
        candidates=(candidates[0], candidates[1]) if candidates else None,
    )
