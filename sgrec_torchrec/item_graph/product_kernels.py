"""Compiled loops of sparse products whose rows are cut as they are made."""

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def multiply(left, right, span, wanted_N, floor, with_self, limit, scratch, edges):  # type: ignore[no-untyped-def]
    """Rows of the product of two CSR matrices >= 0, each cut to its heaviest.

    Args:
        left, right: indptr, columns and values of each.
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
    right_indptr, right_column, right_value = right
    total_N, reached = scratch
    indptr, column_E, value_E = edges
    written = 0
    for row in range(span[0], span[1]):
        count = 0
        if wanted_N[row]:
            for at in range(left_indptr[row], left_indptr[row + 1]):
                middle, share = left_column[at], left_value[at]
                for other in range(right_indptr[middle], right_indptr[middle + 1]):
                    part = share * right_value[other]
                    column = right_column[other]
                    # A part that is 0 would let the column be reached twice.
                    if part > 0.0 and total_N[column] == 0.0:
                        reached[count] = column
                        count += 1
                    total_N[column] += part
        without = -1 if with_self else row
        size = _take(
            total_N, reached[:count], without, floor, column_E[written:], limit
        )
        for at in range(written, written + size):
            value_E[at] = total_N[column_E[at]]
        for at in range(count):
            total_N[reached[at]] = 0.0
        written += size
        indptr[row - span[0] + 1] = written
    return written


@numba.njit(nogil=True, cache=True)
def _take(total_N, reached, without, floor, column_E, limit):  # type: ignore[no-untyped-def]
    """Write the columns of the heaviest totals, rising; returns how many."""
    value_E = np.empty(len(reached))
    size = 0
    for column in reached:
        if column != without and total_N[column] >= floor:
            value_E[size] = total_N[column]
            size += 1
    threshold = -1.0
    if size > limit:
        threshold = np.partition(value_E[:size], size - limit)[size - limit]
    kept, num_tied = 0, 0
    tied = np.empty(len(reached) if threshold >= 0.0 else 0, dtype=np.int32)
    for column in reached:
        value = total_N[column]
        if column == without or not value >= floor:
            continue
        if value > threshold:
            column_E[kept] = column
            kept += 1
        elif value == threshold:
            tied[num_tied] = column
            num_tied += 1
    if num_tied:
        room = min(limit - kept, num_tied)
        # Thousands may tie: those of one common word.
        smallest = np.partition(tied[:num_tied], room - 1)[:room]
        column_E[kept : kept + room] = smallest
        kept += room
    column_E[:kept] = np.sort(column_E[:kept])
    return kept
