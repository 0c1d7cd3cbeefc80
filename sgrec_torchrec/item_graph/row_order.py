"""The largest entries of each row of a sparse matrix.

``first_k`` orders them: one SIMD sort of packed (row, value) keys finds each row's
threshold in float32, which lets through a few more than asked; only those are then
ordered in full precision. Memory: 8 bytes an entry beside the matrix.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from sgrec_torchrec.item_graph.pair_kernels import cut_rows
from sgrec_torchrec.schema import Float64Array, Int32Array, Int64Array

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating]
Rows = tuple[Int64Array, Int32Array, FloatArray]
"""Entries of each row, columns and values."""


def rows_of(indptr: npt.NDArray[np.integer]) -> Int64Array:
    """Row number of each entry of a CSR matrix, int64 [nnz]."""
    return np.repeat(np.arange(len(indptr) - 1, dtype=np.int64), np.diff(indptr))


def place_in_row(row: Int64Array, num_rows: int) -> Int64Array:
    """Place 0, 1, ... of each entry within its row, where ``row`` never falls."""
    starts = np.searchsorted(row, np.arange(num_rows))
    return np.arange(len(row), dtype=np.int64) - starts[row]


def near_top(row: Int64Array, value: Float64Array, num_rows: int, k: int) -> BoolArray:
    """True for every entry that may be among the k largest of its row.

    Args:
        row: int64 [nnz], never falling.
        value: float64 [nnz], not negative. Rounded to float32 here: entries that tie
            with the k-th after rounding all pass, so the exact top k is a subset.
    """
    bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32)
    # Floats >= 0 order as their bits do; the complement puts large values first.
    key = (row.astype(np.uint64) << np.uint64(32)) | (~bits).astype(np.uint64)
    ordered = np.sort(key)
    count = np.bincount(row, minlength=num_rows)
    start = np.cumsum(count) - count
    last = start + np.minimum(count, k) - 1
    threshold = np.zeros(num_rows, dtype=np.uint64)
    threshold[count > 0] = ordered[last[count > 0]]
    return key <= threshold[row]


def keep_heaviest(matrix: sp.csr_matrix, k: int) -> sp.csr_matrix:
    """The k largest entries of each row; of equal ones, those of smaller columns.

    Columns come back sorted within each row, explicit zeros gone.

    Args:
        matrix: CSR with values >= 0.
    """
    matrix = matrix.tocsr()
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    if matrix.nnz == 0 or int(np.diff(matrix.indptr).max()) <= k:
        return matrix
    indptr = matrix.indptr.astype(np.int64)
    columns, values = matrix.indices.copy(), matrix.data.copy()
    kept = cut_rows(indptr, columns, values, k)
    return sp.csr_matrix((values[:kept], columns[:kept], indptr), shape=matrix.shape)


def arrays_of(matrix: sp.csr_matrix) -> tuple[Int64Array, Int32Array, Float64Array]:
    """Indptr, columns and values of a CSR matrix, as compiled loops take them."""
    indptr = matrix.indptr.astype(np.int64)
    return indptr, matrix.indices.astype(np.int32, copy=False), matrix.data


def spans(low: Int64Array, high: Int64Array) -> Int64Array:
    """All integers of [low_0, high_0), then of [low_1, high_1), and so on."""
    length = high - low
    end = np.cumsum(length)
    flat: Int64Array = np.arange(length.sum()) + np.repeat(low - (end - length), length)
    return flat


def matrix_of(rows: Rows, num_columns: int) -> sp.csr_matrix:
    """A block of rows as a matrix of its own."""
    lengths, columns, values = rows
    starts = np.append(0, np.cumsum(lengths, dtype=np.int64))
    return sp.csr_matrix((values, columns, starts), shape=(len(lengths), num_columns))


def rows_in(matrix: sp.csr_matrix) -> Rows:
    """The rows of a matrix."""
    starts, columns, values = arrays_of(matrix)
    return np.diff(starts), columns, values


def copied(rows: Rows) -> Rows:
    """Apart from what they are a view of, so that its memory can go."""
    lengths, columns, values = rows
    return lengths, columns.copy(), values.copy()


def only(rows: Rows, wanted: BoolArray) -> Rows:
    """These rows of a block; the others become empty."""
    lengths, columns, values = rows
    if wanted.all():
        return rows
    kept = np.repeat(wanted, lengths)
    return lengths * wanted, columns[kept], values[kept]


def pieces(rows: Rows, most: int) -> Iterator[tuple[int, int, Rows]]:
    """Yield (low, high, rows) of a block, ``most`` rows at a time."""
    lengths, columns, values = rows
    starts = np.append(0, np.cumsum(lengths, dtype=np.int64))
    for low in range(0, len(lengths), most):
        high = min(low + most, len(lengths))
        first, last = starts[low], starts[high]
        yield low, high, (lengths[low:high], columns[first:last], values[first:last])


def stacked(blocks: list[Rows], shape: tuple[int, int]) -> sp.csr_matrix:
    """Blocks of rows, top to bottom, as one float64 CSR matrix.

    Takes the list apart as it goes: the entries are never there twice.
    """
    lengths = np.concatenate([np.empty(0, np.int64), *(one[0] for one in blocks)])
    indptr = np.append(0, np.cumsum(lengths))
    column_E, value_E = np.empty(indptr[-1], np.int32), np.empty(indptr[-1])
    blocks.reverse()
    start = 0
    while blocks:
        _, columns, values = blocks.pop()
        stop = start + len(columns)
        column_E[start:stop], value_E[start:stop] = columns, values
        start = stop
    return sp.csr_matrix((value_E, column_E, indptr), shape=shape)


def first_k(
    row: Int64Array,
    column: Int64Array,
    score: Float64Array,
    tie_rank: npt.NDArray[np.integer],
    num_rows: int,
    k: int,
) -> Int32Array:
    """Columns of each row by falling score, then rising ``tie_rank``.

    Args:
        row: int64 [nnz] in any order; no (row, column) twice.
        tie_rank: [num_columns], a permutation.

    Returns:
        int32 [num_rows, k], -1 beyond a row's entries.
    """
    by_row = np.argsort(row, kind="stable")
    row, column, score = row[by_row], column[by_row], score[by_row]
    near = np.flatnonzero(near_top(row, score, num_rows, k))
    row, column, score = row[near], column[near], score[near]
    order = np.lexsort((tie_rank[column], -score, row))
    place = place_in_row(row[order], num_rows)
    kept = place < k
    top = np.full((num_rows, k), -1, dtype=np.int32)
    top[row[order][kept], place[kept]] = column[order][kept]
    return top
