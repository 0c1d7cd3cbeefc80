"""Ids (int64 or text) <-> dense numbers, by open addressing with linear probing.

A slot is a few int64 side by side, so that one cache line answers: the key (the id, or
the 64-bit hash of a text), its number + 1 (0: the slot is free), and what else its
owner keeps there. The home of a key grows with its hash, and slots are laid out in the
order of the hash: a map is written front to back, never at random, and its last slot is
free, so that no probe wraps.
"""

from typing import Any

import numba
import numpy as np

from sgrec_torchrec.hashing import splitmix64
from sgrec_torchrec.reward_table.ids import (
    Ids,
    Int64Array,
    Texts,
    Uint32Array,
    Uint64Array,
)

SLOTS_PER_KEY = 2
"""Load of a map: at most one half."""
MAX_KEYS = 2**31 - 1
_FIRST_SLOTS = 1 << 12


def hash_ids(ids: Ids) -> Uint64Array:
    """64-bit hashes [n]; of int64 ids it is a bijection, of texts collisions exist."""
    hashes: Uint64Array = (
        _hash_texts(ids.offsets, ids.data) if isinstance(ids, Texts) else _mix_all(ids)
    )
    return hashes


def keys_of(ids: Ids, hashes: Uint64Array) -> Int64Array:
    """What a slot holds as its key: the id, or the hash of a text. int64 [n]."""
    return hashes.view(np.int64) if isinstance(ids, Texts) else ids


def num_homes_for(num_keys: int) -> int:
    """Homes of a map of ``num_keys`` keys."""
    return SLOTS_PER_KEY * num_keys


def place_sorted(hashes: Uint64Array, num_homes: int, last: int) -> Int64Array:
    """Slots, all behind slot ``last``, of keys by rising hash. int64 [n]."""
    slots: Int64Array = _place_sorted(hashes, num_homes, last)
    return slots


def slots_of(ids: Ids) -> Int64Array:
    """A whole map, int64 [S, 2], from each id to its place in ``ids``."""
    hashes = hash_ids(ids)
    order = np.argsort(hashes, kind="stable")
    keys, hashes = keys_of(ids, hashes)[order], hashes[order]
    num_homes = num_homes_for(len(keys))
    places = place_sorted(hashes, num_homes, -1)
    num_slots = max(num_homes, int(places[-1]) + 1) + 1
    slots = np.zeros((num_slots, 2), np.int64)
    slots[places, 0] = keys
    slots[places, 1] = order + 1
    return slots


class Numbering:
    """Numbers ids 0, 1, ... by first appearance.

    Memory grows with distinct ids: at most 144 bytes each while the map is replaced by
    one of twice its size, and the bytes of a text.
    """

    def __init__(self, *, is_text: bool) -> None:
        self._is_text = is_text
        self._num_known = 0
        self._num_homes = _FIRST_SLOTS
        self._slots = np.zeros((_FIRST_SLOTS + 64, 2), np.int64)
        self._keys = np.zeros(_FIRST_SLOTS // 2, np.int64)
        self._offsets = np.zeros(_FIRST_SLOTS // 2 + 1, np.int64)
        self._data = np.zeros(1 << 16 if is_text else 0, np.uint8)

    def __len__(self) -> int:
        return self._num_known

    def ids(self) -> Ids:
        """The ids in the order of their numbers."""
        if not self._is_text:
            return self._keys[: self._num_known]
        offsets = self._offsets[: self._num_known + 1]
        return Texts(offsets=offsets, data=self._data[: offsets[-1]])

    def hashes(self) -> Uint64Array:
        """The hash of each id, in the order of their numbers."""
        keys = self._keys[: self._num_known]
        return keys.view(np.uint64) if self._is_text else hash_ids(keys)

    def number(self, ids: Ids) -> Uint32Array:
        """The number of each id, new ones added. uint32 [n].

        Raises:
            ValueError: for more than ``MAX_KEYS`` distinct ids.
        """
        numbers = np.empty(len(ids), np.uint32)
        done = 0
        while True:
            if isinstance(ids, Texts):
                done, self._num_known = _number_texts(
                    offsets=ids.offsets,
                    data=ids.data,
                    done=done,
                    numbers=numbers,
                    slots=self._slots.reshape(-1),
                    num_homes=self._num_homes,
                    keys=self._keys,
                    kept_offsets=self._offsets,
                    kept=self._data,
                    num_known=self._num_known,
                )
            else:
                done, self._num_known = _number_numbers(
                    ids=ids,
                    done=done,
                    numbers=numbers,
                    slots=self._slots.reshape(-1),
                    num_homes=self._num_homes,
                    keys=self._keys,
                    num_known=self._num_known,
                )
            if done == len(ids):
                return numbers
            self._grow(ids, done)

    def _grow(self, ids: Ids, done: int) -> None:
        if self._num_known >= MAX_KEYS:
            raise ValueError(f"more than {MAX_KEYS} distinct ids: build several tables")
        if isinstance(ids, Texts):
            length = int(ids.offsets[done + 1] - ids.offsets[done])
            free = len(self._data) - int(self._offsets[self._num_known])
            if length > free:
                self._data = _extended(self._data, len(self._data) + length)
                return
        self._num_homes *= 2
        self._keys = _extended(self._keys, len(self._keys))
        self._offsets = _extended(self._offsets, len(self._offsets) - 1)
        tail = 64
        while True:
            self._slots = np.zeros((self._num_homes + tail, 2), np.int64)
            known = self._keys[: self._num_known]
            flat = self._slots.reshape(-1)
            if _refill(known, self._is_text, flat, self._num_homes):
                return
            tail *= 4


def sorted_ids(numbering: Numbering) -> tuple[Ids, Uint32Array]:
    """The ids, int64 ones sorted, and the place there of each number. uint32 [n]."""
    ids = numbering.ids()
    places = np.arange(len(numbering), dtype=np.uint32)
    if isinstance(ids, Texts):
        return ids, places
    order = np.argsort(ids)
    new_places = np.empty_like(places)
    new_places[order] = places
    return ids[order], new_places


def _extended(array: Any, by: int) -> Any:
    """A copy with ``by`` zeros more."""
    longer = np.zeros(len(array) + by, array.dtype)
    longer[: len(array)] = array
    return longer


_splitmix64: Any = numba.njit(nogil=True, cache=True)(splitmix64)


@numba.njit(nogil=True, cache=True)
def mix(number):  # type: ignore[no-untyped-def]
    """A bijection of 64 bits whose every output bit hangs on every input bit."""
    return _splitmix64(np.uint64(number))


@numba.njit(nogil=True, cache=True)
def hash_text(data, low, high):  # type: ignore[no-untyped-def]
    """Hash of bytes [low, high): words of 8 bytes mixed one into the next."""
    h = mix(high - low)
    word, filled = np.uint64(0), np.uint64(0)
    for at in range(low, high):
        word |= np.uint64(data[at]) << filled
        filled += np.uint64(8)
        if filled == np.uint64(64):
            h = mix(h ^ word)
            word, filled = np.uint64(0), np.uint64(0)
    return mix(h ^ word)


@numba.njit(nogil=True, cache=True)
def home_of(h, num_homes):  # type: ignore[no-untyped-def]
    """A place in [0, num_homes) that never falls as the hash grows."""
    return np.int64(((h >> np.uint64(32)) * np.uint64(num_homes)) >> np.uint64(32))


@numba.njit(nogil=True, cache=True)
def _scattered_home(h, num_homes):  # type: ignore[no-untyped-def]
    """A place that hangs on other bits than ``home_of``.

    The ids of one bucket of a build agree in the upper bits of their hashes.
    """
    low = h & np.uint64(0xFFFFFFFF)
    return np.int64((low * np.uint64(num_homes)) >> np.uint64(32))


@numba.njit(nogil=True, cache=True)
def is_same_text(data, low, high, stored, stored_low, stored_high):  # type: ignore[no-untyped-def]
    """Whether bytes [low, high) of data are [stored_low, stored_high) of stored."""
    if high - low != stored_high - stored_low:
        return False
    at = 0
    while at < high - low and data[low + at] == stored[stored_low + at]:
        at += 1
    return at == high - low


@numba.njit(nogil=True, cache=True)
def _mix_all(ids):  # type: ignore[no-untyped-def]
    hashes = np.empty(len(ids), np.uint64)
    for at in range(len(ids)):
        hashes[at] = mix(ids[at])
    return hashes


@numba.njit(nogil=True, cache=True)
def _hash_texts(offsets, data):  # type: ignore[no-untyped-def]
    hashes = np.empty(len(offsets) - 1, np.uint64)
    for at in range(len(hashes)):
        hashes[at] = hash_text(data, offsets[at], offsets[at + 1])
    return hashes


@numba.njit(nogil=True, cache=True)
def _place_sorted(hashes, num_homes, last):  # type: ignore[no-untyped-def]
    places = np.empty(len(hashes), np.int64)
    for at in range(len(hashes)):
        last = max(last + 1, home_of(hashes[at], num_homes))
        places[at] = last
    return places


@numba.njit(nogil=True, cache=True)
def _number_numbers(ids, done, numbers, slots, num_homes, keys, num_known):  # type: ignore[no-untyped-def]
    """Number ids from ``done`` on; stops early where the map must grow."""
    # hashes first: the compiler computes eight of them at a time. Places are unsigned:
    # it then leaves out what serves negative ones
    home_n = np.empty(len(ids), np.uint32)
    for at in range(done, len(ids)):
        home_n[at] = _scattered_home(mix(ids[at]), num_homes)
    one, last = np.uint64(1), np.uint64(len(slots) // 2 - 1)
    for at in range(done, len(ids)):
        slot = np.uint64(home_n[at])
        while True:
            number = slots[slot + slot + one]
            if number == 0 or slots[slot + slot] == ids[at]:
                break
            slot += one
        if number == 0:
            if num_known == len(keys) or slot == last:
                return at, num_known
            keys[num_known] = ids[at]
            num_known += 1
            number = num_known
            slots[slot + slot] = ids[at]
            slots[slot + slot + one] = number
        numbers[at] = number - 1
    return len(ids), num_known


@numba.njit(nogil=True, cache=True)
def _number_texts(  # type: ignore[no-untyped-def]
    offsets, data, done, numbers, slots, num_homes, keys, kept_offsets, kept, num_known
):
    """As ``_number_numbers``; the texts themselves are kept end to end."""
    num_slots = len(slots) // 2
    for at in range(done, len(numbers)):
        low, high = offsets[at], offsets[at + 1]
        h = hash_text(data, low, high)
        slot = _scattered_home(h, num_homes)
        while slots[2 * slot + 1] != 0:
            known = slots[2 * slot + 1] - 1
            if slots[2 * slot] == np.int64(h) and is_same_text(
                data, low, high, kept, kept_offsets[known], kept_offsets[known + 1]
            ):
                break
            slot += 1
        if slots[2 * slot + 1] == 0:
            end = kept_offsets[num_known] + high - low
            is_full = num_known == len(keys) or end > len(kept)
            if is_full or slot == num_slots - 1:
                return at, num_known
            kept[kept_offsets[num_known] : end] = data[low:high]
            keys[num_known] = np.int64(h)
            num_known += 1
            kept_offsets[num_known] = end
            slots[2 * slot] = np.int64(h)
            slots[2 * slot + 1] = num_known
        numbers[at] = slots[2 * slot + 1] - 1
    return len(numbers), num_known


@numba.njit(nogil=True, cache=True)
def _refill(keys, is_text, slots, num_homes):  # type: ignore[no-untyped-def]
    """Put the known keys into empty slots; False where the tail is too short."""
    num_slots = len(slots) // 2
    for known in range(len(keys)):
        h = np.uint64(keys[known]) if is_text else mix(keys[known])
        slot = _scattered_home(h, num_homes)
        while slots[2 * slot + 1] != 0:
            slot += 1
        if slot == num_slots - 1:
            return False
        slots[2 * slot] = keys[known]
        slots[2 * slot + 1] = known + 1
    return True
