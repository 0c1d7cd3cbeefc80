"""The records of one bucket -> rows: by user, sorted by item, duplicates resolved.

Letters: n records, U users of the bucket, P pairs that stay, A aspects.
"""

from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt

from sgrec_torchrec.reward_table.hash_map import Numbering, hash_ids
from sgrec_torchrec.reward_table.ids import Int64Array, Uint32Array, Uint64Array
from sgrec_torchrec.reward_table.lookup import MAX_CODE
from sgrec_torchrec.reward_table.prefetch import prefetch
from sgrec_torchrec.reward_table.runs import RECORD_HEAD

OnConflict = Literal["error", "last", "mean"]
POLICIES: tuple[OnConflict, ...] = ("error", "last", "mean")
ERROR, LAST, MEAN = range(3)
PREFETCH_AHEAD = 24
DIGIT_BITS = 11
DIGITS = 1 << DIGIT_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """U finished rows, by rising hash of the user."""

    users_U: Int64Array
    hashes_U: Uint64Array
    lengths_U: Int64Array
    items_P: Uint32Array
    codes_PS: npt.NDArray[np.uint16]
    """[P, 1 + A]: reward, then aspects."""
    prefixes_U2: Int64Array | None
    """as_of and history hash (its bits)."""


class ConflictError(ValueError):
    """Two rows of the input disagree; says of whom, the builder then finds the rows."""

    def __init__(self, user: int, item: int | None) -> None:
        super().__init__("conflict")
        self.user = user
        self.item = item


def rows_of(
    records: Uint32Array,
    prefixes: Int64Array | None,
    ranges: npt.NDArray[np.float64],
    on_conflict: OnConflict,
    hashes_of_users: Uint64Array | None,
) -> Rows:
    """Sort and encode one bucket. Memory: 24 bytes a record beside the records.

    Args:
        prefixes: int64 [m, 3] of (user, as_of, history hash), if the table has them.
        ranges: [1 + A, 2] of (low, high) for each score.
        hashes_of_users: by the users' numbers, where users are texts.

    Raises:
        ConflictError: for a pair with different scores under ``error``, or a user with
            different prefixes.
    """
    numbering = Numbering(is_text=False)
    users = np.ascontiguousarray(records[:, :2]).view(np.int64).reshape(-1)
    number_n = numbering.number(users)
    known = numbering.ids()
    assert isinstance(known, np.ndarray)
    hashes_K = hash_ids(known) if hashes_of_users is None else hashes_of_users[known]
    order_U = np.argsort(hashes_K, kind="stable")
    row_K = np.empty(len(order_U), np.int64)
    row_K[order_U] = np.arange(len(order_U))
    prefixes_U2 = None
    if prefixes is not None:
        prefixes_U2 = _one_prefix_each(numbering, prefixes)[order_U]
    packed, starts_U1 = _by_row(_by_item(records), number_n, row_K)
    words = records.reshape(-1).view(np.float32)
    items, codes, lengths_U, clash = _merge_rows(
        *(packed, starts_U1, words, records.shape[1]),
        *(ranges, POLICIES.index(on_conflict)),
    )
    if clash >= 0:
        raise ConflictError(int(users[clash]), int(records[clash, 2]))
    return Rows(
        users_U=known[order_U],
        hashes_U=hashes_K[order_U],
        lengths_U=lengths_U,
        items_P=items,
        codes_PS=codes,
        prefixes_U2=prefixes_U2,
    )


def _one_prefix_each(numbering: Numbering, prefixes: Int64Array) -> Int64Array:
    """(as_of, history hash) by the users' numbers; raises where a user has two."""
    users = np.ascontiguousarray(prefixes[:, 0])
    number = numbering.number(users)
    chosen = np.empty((len(numbering), 2), np.int64)
    chosen[number] = prefixes[:, 1:]
    bad = np.flatnonzero((chosen[number] != prefixes[:, 1:]).any(axis=1))
    if len(bad):
        raise ConflictError(int(users[bad[0]]), None)
    return chosen


@numba.njit(nogil=True, cache=True)
def _by_item(records):  # type: ignore[no-untyped-def]
    """item << 32 | record of every record, by item, in the order of the input.

    A radix sort from the lowest digit up, as far as the greatest item has digits.
    """
    packed = np.empty(len(records), np.uint64)
    greatest = np.uint32(0)
    for at in range(len(records)):
        item = records[at, 2]
        greatest = max(greatest, item)
        packed[at] = (np.uint64(item) << np.uint64(32)) | np.uint64(at)
    other = np.empty_like(packed)
    ends = np.empty(DIGITS, np.int64)
    mask = np.uint64(DIGITS - 1)
    shift = np.uint64(32)
    while greatest > 0:
        ends[:] = 0
        for at in range(len(packed)):
            ends[(packed[at] >> shift) & mask] += 1
        total = 0
        for digit in range(DIGITS):
            count = ends[digit]
            ends[digit] = total
            total += count
        for at in range(len(packed)):
            digit = (packed[at] >> shift) & mask
            other[ends[digit]] = packed[at]
            ends[digit] += 1
        packed, other = other, packed
        shift += np.uint64(DIGIT_BITS)
        greatest >>= np.uint32(DIGIT_BITS)
    return packed


@numba.njit(nogil=True, cache=True)
def _by_row(packed, number_n, row_K):  # type: ignore[no-untyped-def]
    """The same by row, the order within a row kept, and where the rows start."""
    starts = np.zeros(len(row_K) + 1, np.int64)
    for at in range(len(number_n)):
        starts[row_K[number_n[at]] + 1] += 1
    starts = np.cumsum(starts)
    ends = starts.copy()
    sorted_n = np.empty_like(packed)
    for at in range(len(packed)):
        row = row_K[number_n[packed[at] & np.uint64(0xFFFFFFFF)]]
        sorted_n[ends[row]] = packed[at]
        ends[row] += 1
    return sorted_n, starts


@numba.njit(nogil=True, cache=True)
def _merge_rows(packed, starts, words, width, ranges, policy):  # type: ignore[no-untyped-def]
    """Write one pair for each item of each row.

    ``words`` are the records as float32 end to end, ``width`` words each. Returns
    items, codes, the rows' lengths, and the record of a conflict or -1.
    """
    num_scores = width - RECORD_HEAD
    items = np.empty(len(packed), np.uint32)
    codes = np.empty((len(packed), num_scores), np.uint16)
    lengths = np.zeros(len(starts) - 1, np.int64)
    lows, highs = ranges[:, 0], ranges[:, 1]
    per_unit = MAX_CODE / (highs - lows)
    low_half = np.uint64(0xFFFFFFFF)
    count = 0
    for row in range(len(lengths)):
        begin, end = count, starts[row + 1]
        at = starts[row]
        while at < end:
            ahead = min(at + PREFETCH_AHEAD, len(packed) - 1)
            prefetch(words, np.int64(packed[ahead] & low_half) * width + RECORD_HEAD)
            item = packed[at] >> np.uint64(32)
            last = at
            while last + 1 < end and packed[last + 1] >> np.uint64(32) == item:
                last += 1
            newest = np.int64(packed[last] & low_half)
            for nth in range(num_scores):
                column = RECORD_HEAD + nth
                score = np.float64(words[newest * width + column])
                if last > at and policy != LAST:
                    total = 0.0
                    for same in range(at, last + 1):
                        place = np.int64(packed[same] & low_half)
                        other = np.float64(words[place * width + column])
                        if policy == ERROR and other != score:
                            return items[:0], codes[:0], lengths, newest
                        total += other
                    score = total / (last + 1 - at)
                code = np.rint((score - lows[nth]) * per_unit[nth])
                codes[count, nth] = np.uint16(min(max(code, 0.0), MAX_CODE))
            items[count] = np.uint32(item)
            count += 1
            at = last + 1
        lengths[row] = count - begin
    return items[:count], codes[:count], lengths, np.int64(-1)
