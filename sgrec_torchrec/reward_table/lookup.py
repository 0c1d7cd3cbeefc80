"""Batches of pairs -> places and rewards: the compiled kernels of every lookup.

A pair of a table larger than the cache costs some misses of cache and of address
translation, each a hundred nanoseconds or more if waited for. So keys go in blocks, and
each block in passes: a pass only computes addresses and prefetches what the next one
reads, so that a block's misses overlap. Neighbouring keys of one user share its row.

Compiled code checks no index, so every number that is read from a file is bounded
before it is used as one: a damaged file gives wrong answers, which its sums tell, and
never a read outside of its arrays.

Letters: N keys, S slots of W words, U users (rows), P places, A aspects.
"""

import numba
import numpy as np
import numpy.typing as npt

from sgrec_torchrec.reward_table.hash_map import (
    MAX_KEYS,
    hash_text,
    home_of,
    is_same_text,
    mix,
)
from sgrec_torchrec.reward_table.ids import Ids, Int64Array, Texts
from sgrec_torchrec.reward_table.prefetch import prefetch

BLOCK = 256
WORDS_PER_LINE = 16
WORDS_PER_SLOT = 4
SHORT_ROW = 8 * WORDS_PER_LINE
"""Rows up to this length are fetched and compared whole; longer ones halved first."""
NO_ITEM = 0xFFFFFFFF
"""Fills rows of an odd number of pairs; no item has this number."""
MAX_CODE = 65535
MISSING = np.float32(np.nan)


def find(
    ids: Ids,
    slots: Int64Array,
    num_homes: int,
    stored: Texts | None,
    num_numbers: int = MAX_KEYS,
) -> tuple[Int64Array, Int64Array]:
    """Number and slot of each id, both -1 for one that the map does not hold.

    Args:
        slots: int64 [S, W], see ``hash_map``.
        num_homes: how many of the S slots are homes, at most S.
        stored: of a map of texts, the text behind each number: equal hashes are told
            apart by comparing the texts themselves.
        num_numbers: of the ids in the map; a number beyond is damage, and not found.
    """
    numbers_N = np.empty(len(ids), np.int64)
    slots_N = np.empty(len(ids), np.int64)
    flat, width = slots.reshape(-1), slots.shape[1]
    if isinstance(ids, Texts):
        assert stored is not None
        # by position: numba takes keywords apart slowly
        _find_texts(
            ids.offsets,
            ids.data,
            flat,
            width,
            num_homes,
            stored.offsets,
            stored.data,
            numbers_N,
            slots_N,
        )
    else:
        _find_numbers(
            ids, flat, width, num_homes, np.uint64(num_numbers), numbers_N, slots_N
        )
    return numbers_N, slots_N


def find_direct(ids: Int64Array, base: int, span: int) -> Int64Array:
    """id - base where that lies in [0, span), else -1. int64 [N]."""
    numbers_N = np.empty(len(ids), np.int64)
    _find_direct(ids, np.int64(base), np.uint64(span), numbers_N)
    return numbers_N


def decode(
    codes: npt.NDArray[np.uint16], low: float, high: float
) -> npt.NDArray[np.float32]:
    """Fixed point -> float32 in [low, high]; the same arithmetic as in ``search``."""
    t = codes.astype(np.float64) / MAX_CODE
    decoded: npt.NDArray[np.float32] = (low * (1.0 - t) + high * t).astype(np.float32)
    return decoded


@numba.njit(nogil=True, cache=True)
def _find_direct(ids, base, span, numbers_N):  # type: ignore[no-untyped-def]
    for at in range(len(ids)):
        # wraps where the difference does not fit: it is then beyond any span
        number = np.uint64(ids[at]) - np.uint64(base)
        numbers_N[at] = np.int64(number) if number < span else -1


@numba.njit(nogil=True, cache=True)
def _find_numbers(  # type: ignore[no-untyped-def]
    ids, slots, width, num_homes, num_numbers, numbers_N, slots_N
):
    homes = np.empty(BLOCK, np.int64)
    last = len(slots) // width - 1
    for start in range(0, len(ids), BLOCK):
        stop = min(start + BLOCK, len(ids))
        for at in range(start, stop):
            if at > start and ids[at] == ids[at - 1]:
                continue
            home = home_of(mix(ids[at]), num_homes)
            homes[at - start] = home
            prefetch(slots, home * width)
        for at in range(start, stop):
            if at > start and ids[at] == ids[at - 1]:
                numbers_N[at] = numbers_N[at - 1]
                slots_N[at] = slots_N[at - 1]
                continue
            slot = homes[at - start]
            while (
                slots[slot * width + 1] != 0
                and slots[slot * width] != ids[at]
                and slot < last
            ):
                slot += 1
            # of a free slot -1, which is beyond any bound
            number = slots[slot * width + 1] - 1
            is_here = np.uint64(number) < num_numbers and slots[slot * width] == ids[at]
            numbers_N[at] = number if is_here else -1
            slots_N[at] = slot if is_here else -1


@numba.njit(nogil=True, cache=True)
def _find_texts(  # type: ignore[no-untyped-def]
    offsets, data, slots, width, num_homes, kept_offsets, kept, numbers_N, slots_N
):
    hashes = np.empty(BLOCK, np.uint64)
    last, num_kept = len(slots) // width - 1, np.uint64(len(kept_offsets) - 1)
    for start in range(0, len(numbers_N), BLOCK):
        stop = min(start + BLOCK, len(numbers_N))
        for at in range(start, stop):
            h = hash_text(data, offsets[at], offsets[at + 1])
            hashes[at - start] = h
            prefetch(slots, home_of(h, num_homes) * width)
        for at in range(start, stop):
            key = np.int64(hashes[at - start])
            slot = home_of(hashes[at - start], num_homes)
            numbers_N[at] = -1
            slots_N[at] = -1
            while slots[slot * width + 1] != 0:
                number = slots[slot * width + 1] - 1
                if slots[slot * width] == key and np.uint64(number) < num_kept:
                    low, high = kept_offsets[number], kept_offsets[number + 1]
                    is_within = 0 <= low <= high <= len(kept)
                    if is_within and is_same_text(
                        data=data,
                        low=offsets[at],
                        high=offsets[at + 1],
                        stored=kept,
                        stored_low=low,
                        stored_high=high,
                    ):
                        numbers_N[at] = number
                        slots_N[at] = slot
                        break
                if slot == last:
                    break
                slot += 1


@numba.njit(nogil=True, cache=True)
def search(  # type: ignore[no-untyped-def]
    slots_N, wanted_N, user_slots, words, halves, reward_range, is_open_N, answers
):
    """Look up the pairs that are still open; those found are closed.

    Args:
        slots_N: int64 slot of each key's user, or -1.
        wanted_N: int64 item of each key as the rows name it, or -1.
        user_slots: flat int64, four to a slot: key, row + 1, first place, places.
        words: uint32, the rows (see ``segment``): items, then rewards in pairs. Of a
            row that does not lie within them nothing is found.
        halves: the same bytes as uint16.
        reward_range: (low, high) of the rewards' fixed point.
        is_open_N: bool, changed in place.
        answers: (rewards_N float32, found_N bool, places_N int64), written where found.
    """
    low, high = np.float64(reward_range[0]), np.float64(reward_range[1])
    rewards_N, found_N, places_N = answers
    narrowed = np.empty((BLOCK, 2), np.int64)
    num_places = np.uint64(len(words) // 3 * 2)
    for start in range(0, len(slots_N), BLOCK):
        stop = min(start + BLOCK, len(slots_N))
        if _fetch_rows(slots_N[start:stop], user_slots, words, num_places):
            _narrow(
                slots_N, wanted_N, start, stop, user_slots, words, num_places, narrowed
            )
        at = start
        while at < stop:
            slot, end = slots_N[at], at + 1
            while end < stop and slots_N[end] == slot:
                end += 1
            first, count, place = _row_of(slot, user_slots, num_places)
            window = words[first : first + count]
            codes = halves[2 * (first + count) : 2 * (first + count) + count]
            for key in range(at, end):
                if wanted_N[key] < 0 or not is_open_N[key]:
                    continue
                skipped = 0
                if count > SHORT_ROW:
                    low_word, length = narrowed[key - start]
                    skipped = low_word - first
                    window = words[low_word : low_word + length]
                wanted = np.uint32(wanted_N[key])
                below = _num_below(window, wanted)
                if below == len(window) or window[below] != wanted:
                    continue
                t = np.float64(codes[skipped + below]) / MAX_CODE
                rewards_N[key] = np.float32(low * (1.0 - t) + high * t)
                found_N[key] = True
                is_open_N[key] = False
                places_N[key] = place + skipped + below
            at = end


@numba.njit(nogil=True, cache=True)
def _row_of(slot, user_slots, num_places):  # type: ignore[no-untyped-def]
    """First word, number of places and first place of a row.

    No places for slot -1, and for a row that does not lie within ``num_places``.
    """
    if slot < 0:
        return np.int64(0), np.int64(0), np.int64(0)
    place = user_slots[WORDS_PER_SLOT * slot + 2]
    count = user_slots[WORDS_PER_SLOT * slot + 3]
    # unsigned: what is negative is beyond the bound, too
    first_of, size = np.uint64(place), np.uint64(count)
    if first_of > num_places or size > num_places - first_of:
        return np.int64(0), np.int64(0), np.int64(0)
    return place // 2 * 3, count, place


@numba.njit(nogil=True, cache=True)
def _fetch_rows(slots_n, user_slots, words, num_places):  # type: ignore[no-untyped-def]
    """Prefetch the rows of a block; returns whether one is too long to compare."""
    is_long = False
    before = np.int64(-1)
    for slot in slots_n:
        if slot == before or slot < 0:
            continue
        before = slot
        first, count, _ = _row_of(slot, user_slots, num_places)
        if count > SHORT_ROW:
            is_long = True
            prefetch(words, first + count // 2)
            continue
        # the rewards behind the items, too
        stop = first + count // 2 * 3
        for word in range(first, stop, WORDS_PER_LINE):
            prefetch(words, word)
        prefetch(words, stop - 1)
    return is_long


@numba.njit(nogil=True, cache=True)
def _narrow(  # type: ignore[no-untyped-def]
    slots_N, wanted_N, start, stop, user_slots, words, num_places, narrowed
):
    """Halve long rows to the SHORT_ROW words that can hold each key's item.

    One step of all searches at a time, so that their misses overlap. Writes the first
    word and the length of what is left.
    """
    is_long = True
    for nth in range(stop - start):
        first, count, _ = _row_of(slots_N[start + nth], user_slots, num_places)
        narrowed[nth, 0], narrowed[nth, 1] = first, count
    while is_long:
        is_long = False
        for nth in range(stop - start):
            length = narrowed[nth, 1]
            if length <= SHORT_ROW:
                continue
            half = length // 2
            if words[narrowed[nth, 0] + half] <= wanted_N[start + nth]:
                narrowed[nth, 0] += half
                length -= half
            else:
                length = half
            narrowed[nth, 1] = length
            if length > SHORT_ROW:
                is_long = True
                prefetch(words, narrowed[nth, 0] + length // 2)
                continue
            for word in range(
                narrowed[nth, 0], narrowed[nth, 0] + length, WORDS_PER_LINE
            ):
                prefetch(words, word)


@numba.njit(nogil=True, cache=True)
def _num_below(window, wanted):  # type: ignore[no-untyped-def]
    """How many items of a short row are less than ``wanted``.

    All of them are compared, sixteen at a time: a binary search of a hundred items
    takes longer, since half of its branches are mispredicted.
    """
    count = np.uint32(0)
    for at in range(len(window)):
        count += np.uint32(window[at] < wanted)
    return np.int64(count)


@numba.njit(nogil=True, cache=True)
def close_replaced(rows_N, is_replacing_U, is_open_N):  # type: ignore[no-untyped-def]
    """Close the keys of users whose older segments this segment replaces."""
    for at in range(len(rows_N)):
        if is_open_N[at] and rows_N[at] >= 0 and is_replacing_U[rows_N[at]]:
            is_open_N[at] = False


@numba.njit(nogil=True, cache=True)
def gather_aspects(places_N, aspects_PA, aspect_range, out_NA):  # type: ignore[no-untyped-def]
    """Aspects of the places that are >= 0: uint16 fixed point -> float32."""
    low, high = np.float64(aspect_range[0]), np.float64(aspect_range[1])
    for start in range(0, len(places_N), BLOCK):
        stop = min(start + BLOCK, len(places_N))
        for at in range(start, stop):
            if places_N[at] >= 0:
                prefetch(aspects_PA[places_N[at]], 0)
        for at in range(start, stop):
            if places_N[at] < 0:
                continue
            for aspect in range(aspects_PA.shape[1]):
                t = np.float64(aspects_PA[places_N[at], aspect]) / MAX_CODE
                out_NA[at, aspect] = np.float32(low * (1.0 - t) + high * t)
