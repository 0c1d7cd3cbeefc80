"""Columns of texts <-> an Arrow file that is memory-mapped, read text by text.

No column becomes a Python list as a whole. Processes of a host share the pages.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute

# Any: Arrow's types are generic in some stub packages and absent in others.
pc: Any = pyarrow.compute

PIECE = 1 << 14
"""Texts that an iteration turns into Python objects at once."""


class TextColumn(Sequence[str]):
    """Texts in Arrow, read one by one; Arrow's functions take them without a copy.

    Equal to any sequence of the same texts. One text costs some 2 us; who needs many
    asks Arrow: ``pa.array(column, pa.large_string())``.
    """

    __slots__ = ("_arrow",)

    def __init__(self, arrow: Any) -> None:
        """Take an array or a chunked one of what casts to strings, without nulls."""
        self._arrow = one_piece(arrow.cast(pa.large_string()))

    def __len__(self) -> int:
        return len(self._arrow)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        found = self._arrow[place]
        return found.to_pylist() if isinstance(place, slice) else found.as_py()  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), PIECE):
            yield from self[start : start + PIECE]

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and bool(pc.index(self._arrow, text).as_py() >= 0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        if len(self) != len(other):
            return False
        return all(own == text for own, text in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"TextColumn({self[:3]}, {len(self)} in all)"

    def index(self, text: str, start: int = 0, stop: int | None = None) -> int:
        """The first place of a text, at Arrow's speed.

        Raises:
            ValueError: where no place from ``start`` up to ``stop`` has it.
        """
        first, end, _ = slice(start, stop).indices(len(self))
        place = pc.index(self._arrow, text, start=first, end=end).as_py()
        if place < 0:
            raise ValueError(f"{text!r} is not among {len(self)} texts")
        return int(place)

    def take(self, places: Iterable[int]) -> list[str]:
        """The texts at these places, in their order."""
        asked = pa.array(places, pa.int64())
        return list(self._arrow.take(asked).to_pylist())

    def __arrow_array__(self, type: Any = None) -> Any:  # noqa: A002
        """What ``pa.array`` takes: the texts themselves, not a copy."""
        return self._arrow if type is None else self._arrow.cast(type)


def taken(texts: Sequence[str], places: Iterable[int]) -> list[str]:
    """The texts at these places, in order; at once where they are a ``TextColumn``."""
    if isinstance(texts, TextColumn):
        return texts.take(places)
    return [texts[place] for place in places]


def places_of(texts: Sequence[str], wanted: Iterable[str]) -> dict[str, int]:
    """Where wanted texts stand among all; one that stands nowhere is left out.

    Of a text that is there twice the last place. Memory grows with the wanted.
    """
    asked: Any = pa.array(sorted(set(wanted)), pa.large_string())
    found: Any = pc.index_in(pa.array(texts, pa.large_string()), value_set=asked)
    places = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    names = asked.take(found.drop_null()).to_pylist()
    return dict(zip(names, places.tolist(), strict=True))


def write_columns(path: Path, columns: Mapping[str, Any]) -> None:
    """Write Arrow arrays of one length as a file that ``map_columns`` opens."""
    table: Any = pa.table(dict(columns))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        # One batch: then each column is in one piece where it is mapped.
        out.write_table(table.combine_chunks(), max_chunksize=max(1, table.num_rows))


def map_columns(path: Path) -> dict[str, Any]:
    """Arrow arrays over the file's pages, by name; nothing of their data is read.

    Raises:
        ValueError: naming the file that is none of ``write_columns``.
    """
    try:
        with pa.memory_map(str(path)) as file:
            table: Any = pa.ipc.open_file(file).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    return {name: one_piece(table[name]) for name in table.column_names}


def one_piece(column: Any) -> Any:
    """An array of a chunked one, without a copy where it has a single chunk."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
