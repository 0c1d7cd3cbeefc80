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
    number_n = numbering.number(_users_of(records))
    known = numbering.ids()
    assert isinstance(known, np.ndarray)
    hashes_K = hash_ids(known) if hashes_of_users is None else hashes_of_users[known]
    order_U = np.argsort(hashes_K, kind="stable")
    row_K = np.empty(len(order_U), np.uint32)
    row_K[order_U] = np.arange(len(order_U))
    prefixes_U2 = None
    if prefixes is not None:
        prefixes_U2 = _one_prefix_each(numbering, prefixes)[order_U]
    packed, starts_U1 = _sorted_pairs(records, number_n, row_K)
    # a lone score travels with its item; several are looked up by their record
    is_alone = records.shape[1] == RECORD_HEAD + 1
    words = (packed if is_alone else records.reshape(-1)).view(np.float32)
    items, codes, lengths_U, clash = _merge_rows(
        packed=packed,
        starts=starts_U1,
        words=words,
        width=records.shape[1],
        is_alone=is_alone,
        ranges=ranges,
        policy=POLICIES.index(on_conflict),
    )
    if clash >= 0:
        user = known[order_U[np.searchsorted(starts_U1, clash, side="right") - 1]]
        raise ConflictError(int(user), int(packed[clash] >> np.uint64(32)))
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
def _users_of(records):  # type: ignore[no-untyped-def]
    """The user of each record. int64 [n]."""
    users = np.empty(len(records), np.int64)
    for at in range(len(records)):
        upper = np.uint64(records[at, 1]) << np.uint64(32)
        users[at] = np.int64(upper | np.uint64(records[at, 0]))
    return users


@numba.njit(nogil=True, cache=True)
def _sorted_pairs(records, number_n, row_K):  # type: ignore[no-untyped-def]
    """Pairs by row, then item, in the order of the input; and where the rows start.

    A pair is uint64, item << 32 | its score's bits if it has one score, else the place
    of its record. A radix sort from the lowest digit of the item up, as far as the
    greatest item has digits; the row is the last digit.
    """
    is_alone = records.shape[1] == RECORD_HEAD + 1
    packed = np.empty(len(records), np.uint64)
    row_n = np.empty(len(records), np.uint32)
    starts = np.zeros(len(row_K) + 1, np.int64)
    greatest = np.uint32(0)
    for at in range(len(records)):
        item = records[at, 2]
        greatest = max(greatest, item)
        below = records[at, RECORD_HEAD] if is_alone else np.uint32(at)
        packed[at] = (np.uint64(item) << np.uint64(32)) | np.uint64(below)
        row_n[at] = row_K[number_n[at]]
        starts[row_n[at] + 1] += 1
    starts = np.cumsum(starts)
    num_bits = np.uint64(0)
    while greatest >> num_bits > 0:
        num_bits += np.uint64(1)
    num_passes = (num_bits + np.uint64(DIGIT_BITS - 1)) // np.uint64(DIGIT_BITS)
    other, other_row_n = np.empty_like(packed), np.empty_like(row_n)
    shift = np.uint64(32)
    for left in range(num_passes, 0, -1):
        # equal digits: few counters serve better than many
        width = (np.uint64(32) + num_bits - shift + np.uint64(left - 1)) // np.uint64(
            left
        )
        ends = np.zeros(np.int64(1) << np.int64(width), np.int64)
        mask = np.uint64(len(ends) - 1)
        for at in range(len(packed)):
            ends[np.int64((packed[at] >> shift) & mask)] += 1
        total = 0
        for nth in range(len(ends)):
            count = ends[nth]
            ends[nth] = total
            total += count
        for at in range(len(packed)):
            digit = np.int64((packed[at] >> shift) & mask)
            place = ends[digit]
            ends[digit] = place + 1
            other[place] = packed[at]
            other_row_n[place] = row_n[at]
        packed, other = other, packed
        row_n, other_row_n = other_row_n, row_n
        shift += width
    ends = starts.copy()
    for at in range(len(packed)):
        place = ends[row_n[at]]
        ends[row_n[at]] = place + 1
        other[place] = packed[at]
    return other, starts


@numba.njit(nogil=True, cache=True)
def _merge_rows(packed, starts, words, width, is_alone, ranges, policy):  # type: ignore[no-untyped-def]
    """Write one pair for each item of each row.

    ``words`` are float32: those of ``packed``, or the records end to end, ``width``
    words each. Returns items, codes, the rows' lengths, and the pair of a conflict or
    -1.
    """
    num_scores = width - RECORD_HEAD
    items = np.empty(len(packed), np.uint32)
    codes = np.empty((len(packed), num_scores), np.uint16)
    lengths = starts[1:] - starts[:-1]
    lows, highs = ranges[:, 0], ranges[:, 1]
    per_unit = MAX_CODE / (highs - lows)
    if not _has_duplicates(packed, starts):
        for nth in range(num_scores):
            _encode_all(packed, words, width, is_alone, nth, lows, per_unit, codes)
        for at in range(len(packed)):
            items[at] = np.uint32(packed[at] >> np.uint64(32))
        return items, codes, lengths, np.int64(-1)
    count = 0
    for row in range(len(lengths)):
        begin, end = count, starts[row + 1]
        at = starts[row]
        while at < end:
            item = packed[at] >> np.uint64(32)
            last = at
            while last + 1 < end and packed[last + 1] >> np.uint64(32) == item:
                last += 1
            newest = _first_score(packed, last, width, is_alone)
            for nth in range(num_scores):
                score = np.float64(words[newest + nth])
                if last > at and policy != LAST:
                    total = 0.0
                    for same in range(at, last + 1):
                        place = _first_score(packed, same, width, is_alone)
                        other = np.float64(words[place + nth])
                        if policy == ERROR and other != score:
                            return items[:0], codes[:0], lengths, np.int64(last)
                        total += other
                    score = total / (last + 1 - at)
                codes[count, nth] = _encoded(score, lows[nth], per_unit[nth])
            items[count] = np.uint32(item)
            count += 1
            at = last + 1
        lengths[row] = count - begin
    return items[:count], codes[:count], lengths, np.int64(-1)


@numba.njit(nogil=True, cache=True)
def _has_duplicates(packed, starts):  # type: ignore[no-untyped-def]
    """Whether a row has two pairs of one item."""
    count = 0
    for row in range(len(starts) - 1):
        for at in range(starts[row] + 1, starts[row + 1]):
            count += packed[at] >> np.uint64(32) == packed[at - 1] >> np.uint64(32)
    return count > 0


@numba.njit(nogil=True, cache=True)
def _encode_all(packed, words, width, is_alone, nth, lows, per_unit, codes):  # type: ignore[no-untyped-def]
    """The nth score of every pair as fixed point, without a branch."""
    low, factor = lows[nth], per_unit[nth]
    if is_alone:
        for at in range(np.uint64(len(packed))):
            codes[at, nth] = _encoded(np.float64(words[at + at]), low, factor)
        return
    for at in range(len(packed)):
        ahead = min(at + PREFETCH_AHEAD, len(packed) - 1)
        prefetch(words, _first_score(packed, ahead, width, is_alone))
        place = _first_score(packed, at, width, is_alone) + nth
        codes[at, nth] = _encoded(np.float64(words[place]), low, factor)


@numba.njit(nogil=True, cache=True)
def _encoded(score, low, factor):  # type: ignore[no-untyped-def]
    code = np.rint((score - low) * factor)
    return np.uint16(min(max(code, 0.0), MAX_CODE))


@numba.njit(nogil=True, cache=True)
def _first_score(packed, at, width, is_alone):  # type: ignore[no-untyped-def]
    """Where the scores of a pair begin among the words."""
    if is_alone:
        # the lower half of a little-endian number
        return np.int64(2 * at)
    return np.int64(packed[at] & np.uint64(0xFFFFFFFF)) * width + RECORD_HEAD
