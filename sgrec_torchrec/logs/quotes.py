"""A stream of CSV -> the same bytes, once its quotes are known to be well-formed.

Readers of CSV forgive text behind a closing quote, each in its own way: a field
``"13" monitor"`` would lose a sign without a word, ``"a"b`` would be the item ``ab``.
"""

import io
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

FIELD, PLAIN, QUOTED, CLOSED = range(4)
"""At the start of a field, in one without quotes, in one with, behind its last one."""
QUOTE, LF, CR = ord('"'), ord("\n"), ord("\r")
SHOWN_BYTES = 30


class CheckedQuotes(io.RawIOBase):
    """A file of bytes, as Arrow reads one; time grows with the bytes, not memory."""

    def __init__(self, source: Any, path: Path, delimiter: str) -> None:
        self._source, self._path = source, path
        self._delimiter = ord(delimiter)
        self._state, self._num_lines = FIELD, 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes.

        Raises:
            ValueError: naming file, line and place, where text follows a closing quote.
        """
        data: bytes = self._source.read(size)
        state, num_lines, wrong = _scan(
            np.frombuffer(data, np.uint8), self._state, self._delimiter
        )
        self._state, self._num_lines = int(state), self._num_lines + int(num_lines)
        if wrong >= 0:
            shown = data[max(0, wrong - SHOWN_BYTES) : wrong + SHOWN_BYTES]
            text = shown.decode("utf-8", errors="replace")
            raise ValueError(
                f"{self._path}: line {self._num_lines + 1} has text behind a closing "
                f"quote, at the middle of {text!r}: double a quote inside of a quoted "
                "field"
            )
        return data

    def readable(self) -> bool:
        """It is read, and nothing else."""
        return True

    def close(self) -> None:
        """The source is done with."""
        self._source.close()
        super().close()


@numba.njit(cache=True)
def _scan(
    data: npt.NDArray[np.uint8], state: int, delimiter: int
) -> tuple[int, int, int]:
    """State and line feeds up to the end, or to the first fault; its place, or -1."""
    num_lines = 0
    for at in range(len(data)):
        byte = data[at]
        if state == QUOTED:
            if byte == QUOTE:
                state = CLOSED
        elif state == CLOSED and byte == QUOTE:
            state = QUOTED
        elif byte in (delimiter, LF, CR):
            state = FIELD
        elif state == CLOSED:
            return state, num_lines, at
        else:
            state = QUOTED if state == FIELD and byte == QUOTE else PLAIN
        if byte == LF:
            num_lines += 1
    return state, num_lines, -1
