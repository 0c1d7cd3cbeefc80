"""Compiled loops of sparse products whose rows are cut as they are made."""

import numba
import numpy as np

STRIPE = 1 << 14
"""Columns whose totals stay in the second cache."""
STEP_PRODUCTS = 8
"""A step (a factor's part in a stripe) pays for itself from so many on average."""
ROOM = 4
"""Times ``limit``: what is kept of a row before it is cut again."""
LAST = np.iinfo(np.int32).max


@numba.njit(nogil=True, cache=True)
def multiply(left, right, span, wanted_N, floor, with_self, limit, scratch, edges):  # type: ignore[no-untyped-def]
    """Rows of the product of two CSR matrices >= 0, each cut to its heaviest.

    Args:
        left, right: indptr, columns and values of each; columns of ``right`` rise.
        span: first row, and the one after the last.
        wanted_N: bool, rows to fill; the others stay empty.
        floor: entries under it are left out, as are those of 0.
        with_self: whether entries on the diagonal stay.
        limit: entries of a row; of equal ones, those of smaller columns stay.
        scratch: float64 [columns] of zeros, left as zeros; int32 [columns].
        edges: indptr int64 [rows + 1], columns int32, values float64, to be filled;
            with room for ``limit`` entries a row.

    Returns:
        Entries written.
    """
    left_indptr, left_column, left_value = left
    indptr, column_E, value_E = edges
    room = min(ROOM * limit, len(scratch[0]))
    best = np.empty(room, dtype=np.int32), np.empty(room)
    cursor = np.empty(_longest(left_indptr), dtype=np.int64)
    written = 0
    for row in range(span[0], span[1]):
        size = 0
        if wanted_N[row]:
            start, stop = left_indptr[row], left_indptr[row + 1]
            size = _row(
                (left_column[start:stop], left_value[start:stop]),
                right,
                cursor,
                (-1 if with_self else row, floor, limit),
                scratch,
                best,
            )
        for place in _by_column(best[0][:size]):
            column_E[written], value_E[written] = best[0][place], best[1][place]
            written += 1
        indptr[row - span[0] + 1] = written
    return written


@numba.njit(nogil=True, cache=True)
def _row(factors, right, cursor, rules, scratch, best):  # type: ignore[no-untyped-def]
    """One row, cut: fills ``best`` and returns how many there are.

    Args:
        factors: columns and values of the row on the left.
        cursor: room for a place a factor.
        rules: the column to leave out, ``floor`` and ``limit``.
    """
    middles, shares = factors
    total_N, reached = scratch
    limit, num_columns = rules[2], len(total_N)
    num_products = 0
    for nth in range(len(middles)):
        cursor[nth] = right[0][middles[nth]]
        num_products += right[0][middles[nth] + 1] - cursor[nth]
    num_steps = len(middles) * (num_columns // STRIPE + 1)
    # Many products: their totals stay in the cache, a stripe of columns at a time.
    stripe = STRIPE if num_products > STEP_PRODUCTS * num_steps else num_columns
    size, state = 0, (-1.0, np.int32(0))
    for first in range(0, num_columns, max(1, stripe)):
        span = first, min(first + stripe, num_columns)
        count = _add(middles, shares, right, cursor, span, total_N, reached)
        size, state = _take(total_N, reached[:count], first, rules, best, size, state)
    if size > limit:
        _cut(best[0][:size], best[1][:size], limit)
        size = limit
    return size


@numba.njit(nogil=True, cache=True)
def _longest(indptr):  # type: ignore[no-untyped-def]
    """Entries of the longest row."""
    most = 0
    for row in range(len(indptr) - 1):
        most = max(most, indptr[row + 1] - indptr[row])
    return most


@numba.njit(nogil=True, cache=True)
def _add(middles, shares, right, cursor, span, total_N, reached):  # type: ignore[no-untyped-def]
    """Add up a row's products in a stripe of columns; returns how many are reached.

    Args:
        cursor: where in ``right`` each factor's columns of the stripe begin; moved on.
        span: the stripe's first column, and the one after its last.
        total_N: of these columns, from the first.
    """
    indptr, right_column, right_value = right
    low, high = span
    count = 0
    for nth in range(len(middles)):
        share = shares[nth]
        at, stop = cursor[nth], indptr[middles[nth] + 1]
        while at < stop and right_column[at] < high:
            part = share * right_value[at]
            place = right_column[at] - low
            # A part that is 0 would let the column be reached twice.
            if part > 0.0 and total_N[place] == 0.0:
                reached[count] = place
                count += 1
            total_N[place] += part
            at += 1
        cursor[nth] = at
    return count


@numba.njit(nogil=True, cache=True)
def _take(total_N, reached, first, rules, best, size, state):  # type: ignore[no-untyped-def]
    """Move a stripe's heaviest totals to ``best``; all totals become 0.

    Where ``best`` is full it is cut: from there on what is lighter than the last that
    stayed is passed by.

    Args:
        first: column of the stripe's first total.
        best, size: columns and values, and how many there are; the size is returned.
        state: as ``_cut`` returned it last; returned too.
    """
    without, floor, limit = rules
    column_E, value_E = best
    threshold, last = state
    for place in reached:
        value = total_N[place]
        total_N[place] = 0.0
        column = np.int32(first + place)
        if value < threshold or (value == threshold and column > last):
            continue
        if column == without or not value >= floor:
            continue
        if size == len(column_E):
            threshold, last = _cut(column_E, value_E, limit)
            size = limit
            if value < threshold or (value == threshold and column > last):
                continue
        column_E[size], value_E[size] = column, value
        size += 1
    return size, (threshold, last)


@numba.njit(nogil=True, cache=True)
def _cut(column_E, value_E, limit):  # type: ignore[no-untyped-def]
    """Put the ``limit`` heaviest first, in their order.

    Returns:
        The lightest value that stays, and the largest column that may come with it.
    """
    size = len(value_E)
    threshold = np.partition(value_E, size - limit)[size - limit]
    num_above, num_tied = 0, 0
    for at in range(size):
        num_above += value_E[at] > threshold
        num_tied += value_E[at] == threshold
    last = np.int32(LAST)
    if num_above + num_tied > limit:
        tied = column_E[value_E == threshold]
        room = limit - num_above
        last = np.partition(tied, room - 1)[room - 1]
    kept = 0
    for at in range(size):
        value, column = value_E[at], column_E[at]
        # Written in any case: what stays is as random as a coin.
        column_E[kept], value_E[kept] = column, value
        kept += (value > threshold) | ((value == threshold) & (column <= last))
    return threshold, last


@numba.njit(nogil=True, cache=True)
def _by_column(column_E):  # type: ignore[no-untyped-def]
    """Places of columns, none of which is there twice, by rising column."""
    size = len(column_E)
    key = np.empty(size, dtype=np.int64)
    is_rising = True
    for at in range(size):
        key[at] = (np.int64(column_E[at]) << 32) | at
        is_rising = is_rising and (at == 0 or key[at] > key[at - 1])
    if not is_rising:
        key.sort()
    return key & 0xFFFFFFFF
