"""Rows of sparse matrices <-> folders of three files, by ranges of rows.

    starts.npy     int64 [N + 1], where each row starts
    columns.npy    int32
    values.npy     float64, or float32

Written by appending, read memory-mapped: a matrix need never be in memory whole.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from sgrec_torchrec.files.growing_array import GrowingArray, forget, mapped
from sgrec_torchrec.item_graph.row_order import FloatArray, Rows, arrays_of
from sgrec_torchrec.schema import Int32Array, Int64Array

BLOCK_ENTRIES = 1 << 22
FILES = ("starts.npy", "columns.npy", "values.npy")


class Csr(NamedTuple):
    """A sparse matrix of rows; its arrays may be mapped files."""

    starts_N1: Int64Array
    column_E: Int32Array
    value_E: FloatArray

    @classmethod
    def of(cls, matrix: sp.csr_matrix) -> "Csr":
        """The arrays of a matrix in memory."""
        return cls(*arrays_of(matrix.tocsr()))

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.starts_N1) - 1

    def rows(self, low: int, high: int) -> Rows:
        """Rows of [low, high), as views."""
        first, last = self.starts_N1[low], self.starts_N1[high]
        lengths = np.diff(self.starts_N1[low : high + 1])
        return lengths, self.column_E[first:last], self.value_E[first:last]

    def blocks(self, most: int = BLOCK_ENTRIES) -> Iterator[tuple[int, int, Rows]]:
        """Yield (low, high, rows) of all rows, of ``most`` entries or of one row."""
        low = 0
        while low < self.num_rows:
            limit = self.starts_N1[low] + most
            high = int(np.searchsorted(self.starts_N1, limit, side="right")) - 1
            high = max(high, low + 1)
            yield low, high, self.rows(low, high)
            forget(self.column_E, self.value_E)
            low = high

    def in_memory(self) -> "Csr":
        """The same, whose files may go."""
        starts, columns, values = self
        return Csr(np.array(starts), np.array(columns), np.array(values))

    def matrix(self, num_columns: int) -> sp.csr_matrix:
        """As scipy takes it; it may copy what is longer than 2^31."""
        return sp.csr_matrix(
            (self.value_E, self.column_E, self.starts_N1),
            shape=(self.num_rows, num_columns),
        )


class RowWriter:
    """Appends blocks of rows to a folder."""

    def __init__(
        self,
        folder: Path,
        kind: npt.DTypeLike = np.float64,
        names: Sequence[str] = FILES,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [folder / name for name in names]
        kinds = (np.int64, np.int32, kind)
        self._arrays = [
            GrowingArray(path, one)
            for path, one in zip(self._paths, kinds, strict=True)
        ]
        self._arrays[0].append(np.zeros(1, dtype=np.int64))

    def add(self, rows: Rows) -> None:
        """The next rows."""
        lengths, columns, values = rows
        starts, column_file, value_file = self._arrays
        starts.append(column_file.length + np.cumsum(lengths, dtype=np.int64))
        column_file.append(columns)
        value_file.append(values)

    def close(self) -> Csr:
        """All rows, mapped."""
        for array in self._arrays:
            array.close()
        return Csr(*(mapped(path) for path in self._paths))


def written_rows(
    folder: Path, blocks: Iterable[Rows], kind: npt.DTypeLike = np.float64
) -> Csr:
    """Blocks from top to bottom as files, mapped."""
    writer = RowWriter(folder, kind)
    for block in blocks:
        writer.add(block)
    return writer.close()
