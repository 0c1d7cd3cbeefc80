"""Arrays that are appended to, part by part -> the .npy files ``np.save`` would write.

What is written here, or read by parts, need never be in memory whole.
"""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class GrowingArray:
    """One file of one dimension; whole once it is closed."""

    def __init__(self, path: Path, kind: npt.DTypeLike) -> None:
        self.dtype = np.dtype(kind)
        self.length = 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, part: Array) -> None:
        """Add to the end; entries are cast to the kind of the file."""
        cast = np.ascontiguousarray(part, dtype=self.dtype)
        if len(cast):
            self._file.write(cast.data)
            self.length += len(cast)

    def close(self) -> None:
        """Write how long it has become."""
        if not self._file.closed:
            self._file.seek(0)
            self._write_header()
            self._file.close()

    def _write_header(self) -> None:
        # numpy leaves room for any length, so that the header never grows.
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (self.length,),
            },
        )


def mapped(path: Path) -> Array:
    """The array of a .npy file, memory-mapped and read-only."""
    found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def forget(*arrays: Array) -> None:
    """Let go of the pages of mapped files that were read; they are read again if asked.

    Arrays that are no such files stay as they are.
    """
    for array in arrays:
        under: object = array
        while isinstance(under, np.ndarray) and under.base is not None:
            under = under.base
        if isinstance(under, mmap.mmap) and not array.flags.writeable:
            under.madvise(mmap.MADV_DONTNEED)


def file_of(array: Array) -> Path | None:
    """The .npy file that the whole array is mapped from; None for any other."""
    if not isinstance(array, np.memmap) or array.flags.writeable:
        return None
    path = Path(str(array.filename))
    is_whole = path.is_file() and path.stat().st_size == array.offset + array.nbytes
    return path if path.suffix == ".npy" and is_whole else None
