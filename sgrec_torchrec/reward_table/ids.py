"""Columns of ids: int64, or strings as one buffer that compiled code can read."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int64Array = npt.NDArray[np.int64]
Uint32Array = npt.NDArray[np.uint32]
Uint64Array = npt.NDArray[np.uint64]
Uint8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """n strings end to end: string i is UTF-8 ``data[offsets[i] : offsets[i + 1]]``."""

    offsets: Int64Array
    data: Uint8Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> "Texts":
        """The given strings, in the given order."""
        return texts_from_arrow(self.to_arrow().take(pa.array(rows)))

    def part(self, low: int, high: int) -> "Texts":
        """Strings low, ..., high - 1; the bytes are not copied."""
        offsets = self.offsets[low : high + 1]
        data = self.data[offsets[0] : offsets[-1]]
        return Texts(offsets=offsets - offsets[0], data=data)

    def to_arrow(self) -> Any:
        """The same as a large_string array, without a copy."""
        buffers: Any = [None, pa.py_buffer(self.offsets.data)]
        buffers.append(pa.py_buffer(self.data.data))
        return pa.Array.from_buffers(pa.large_string(), len(self), buffers)


Ids = Int64Array | Texts
"""A column of ids."""


def texts_from_arrow(column: Any) -> Texts:
    """Strings (plain, large or dictionary-encoded; no nulls) as ``Texts``."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    column = pc.cast(column, pa.large_string())
    if len(column) == 0:
        return Texts(offsets=np.zeros(1, np.int64), data=np.zeros(0, np.uint8))
    _, offset_buffer, data_buffer = column.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)
    offsets = offsets[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8)
    return Texts(offsets=offsets - offsets[0], data=data[offsets[0] : offsets[-1]])


def take(ids: Ids, rows: npt.NDArray[np.integer[Any]]) -> Ids:
    """The given ids, in the given order."""
    return ids.take(rows) if isinstance(ids, Texts) else ids[rows]


def part(ids: Ids, low: int, high: int) -> Ids:
    """Ids low, ..., high - 1."""
    return ids.part(low, high) if isinstance(ids, Texts) else ids[low:high]


def one(ids: Ids | range, number: int) -> int | str:
    """One id as a Python value."""
    if isinstance(ids, Texts):
        low, high = ids.offsets[number : number + 2]
        return ids.data[low:high].tobytes().decode("utf-8")
    return int(ids[number])
