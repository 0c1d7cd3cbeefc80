"""A segment: raw arrays in a folder, written front to back, memory-mapped to be read.

All are little-endian, as the processors are that read them:

    user_slots    int64 [S, 4]   map: user -> row, its first place and number of places
    offsets       int64 [U + 1]  row u owns places offsets[u] : offsets[u + 1]
    rows          uint32 [1.5 P] of each row, its items, rising, then its rewards
    aspects       uint16 [P, A]  fixed point; only where there are aspects
    as_of         int64 [U]      events of the user's log that the judge saw; optional
    history_hash  uint64 [U]     of those events; optional
    is_replacing  uint8 [U]      1: drop what older segments say of the user; optional
    item_ids      int64 [N]      rising; or item_text and item_text_offsets
    item_slots    int64 [S, 2]   map: item -> its place among the ids; see below
    user_text, user_text_offsets of each row; only where users are texts

A row has an even number of places, the last one of an odd row being ``NO_ITEM``; n
places take n words of items and n / 2 words of rewards (uint16 fixed point over the
declared range), so that items and rewards of a user lie on the same page. Where the ids
of all items lie within 2^32 - 2 of each other, rows name an item by id - ``item_base``
and there is no map of items; else by its place among the item ids.

Letters: U users (rows, by rising hash of the user), N items, P places, A aspects.
"""

import contextlib
import hashlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.reward_table.ids import Ids, Int64Array, Texts
from sgrec_torchrec.reward_table.lookup import NO_ITEM, find, find_direct
from sgrec_torchrec.reward_table.manifest import (
    SEGMENTS,
    FileFacts,
    Manifest,
    SegmentFacts,
)
from sgrec_torchrec.reward_table.row_layout import unpack_rows

Array = npt.NDArray[Any]
HUGE_PAGE_BYTES = 1 << 21
"""Written at once and in its place, such a piece of a file is kept, and then mapped, as
one page, where the file system can: a lookup then waits for few address translations.
"""
MEND = "build the table again"
MADV_POPULATE_READ = 22
"""Linux 5.14; the mmap module of Python 3.11 has no name for it."""


class RawFile:
    """An array that is written in pieces; its checksum is taken on the way."""

    def __init__(self, path: Path, dtype: str, columns: tuple[int, ...] = ()) -> None:
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._columns = columns
        self._sum = hashlib.sha256()
        self._page = memoryview(bytearray(HUGE_PAGE_BYTES))
        self._filled = 0
        self.num_bytes = 0

    def append(self, piece: Array) -> None:
        """Write more rows.

        Raises:
            OSError: on a full disk.
        """
        data = np.ascontiguousarray(piece, self._dtype).reshape(-1).view(np.uint8).data
        self._sum.update(data)
        self.num_bytes += data.nbytes
        while len(data):
            part = data[: HUGE_PAGE_BYTES - self._filled]
            self._page[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            data = data[len(part) :]
            if self._filled == HUGE_PAGE_BYTES:
                self._write_page()

    def _write_page(self) -> None:
        left, self._filled = self._page[: self._filled], 0
        while len(left):
            left = left[self._file.write(left) :]

    def close(self) -> FileFacts:
        """Finish on disk, where the whole file then is; returns its facts."""
        self._write_page()
        os.fsync(self._file.fileno())
        self._file.close()
        width = self._dtype.itemsize * int(np.prod(self._columns, dtype=np.int64))
        return FileFacts(
            dtype=self._dtype.str,
            shape=(self.num_bytes // width, *self._columns),
            num_bytes=self.num_bytes,
            sha256=self._sum.hexdigest(),
        )

    def discard(self) -> None:
        """Close without care for the content, which a full disk may refuse."""
        with contextlib.suppress(OSError):
            self._file.close()


class SegmentFiles:
    """The open files of a segment being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, RawFile] = {}
        self.facts: dict[str, FileFacts] = {}

    def __enter__(self) -> "SegmentFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.discard()

    def file(self, name: str, dtype: str, columns: tuple[int, ...] = ()) -> RawFile:
        """The file of this name, opened on first use."""
        if name not in self._open:
            path = file_path(self._folder, name)
            self._open[name] = RawFile(path, dtype, columns)
        return self._open[name]

    @property
    def num_bytes(self) -> int:
        """Written so far."""
        closed = sum(file.num_bytes for file in self.facts.values())
        return closed + sum(file.num_bytes for file in self._open.values())

    def close(self) -> None:
        """Finish all files; ``facts`` then describes them."""
        for name in list(self._open):
            self.facts[name] = self._open.pop(name).close()

    def write_ids(self, name: str, ids: Ids) -> None:
        """Ids by number, so that they can be given back."""
        if isinstance(ids, Texts):
            self.file(f"{name}_text", "uint8").append(ids.data)
            self.file(f"{name}_text_offsets", "int64").append(ids.offsets)
        else:
            self.file(f"{name}_ids", "int64").append(ids)


def file_path(folder: Path, name: str) -> Path:
    """The file of one array of the segment in ``folder``."""
    return folder / f"{name}.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A segment opened for reading: arrays over memory-mapped files, read-only."""

    facts: SegmentFacts
    user_slots: Int64Array
    offsets: Int64Array
    words: npt.NDArray[np.uint32]
    halves: npt.NDArray[np.uint16]
    """The bytes of ``words``."""
    aspects: npt.NDArray[np.uint16] | None
    as_of: Int64Array | None
    history_hash: npt.NDArray[np.uint64] | None
    is_replacing: npt.NDArray[np.uint8] | None
    item_slots: Int64Array | None
    item_ids: Ids
    user_texts: Texts | None
    maps: tuple[mmap.mmap, ...]

    def find_users(self, ids: Ids) -> tuple[Int64Array, Int64Array]:
        """Row and slot of each user, both -1 where the segment has none. int64 [n]."""
        homes, num_users = self.facts.user_homes, self.facts.num_users
        return find(ids, self.user_slots, homes, self.user_texts, num_users)

    def find_items(self, ids: Ids) -> Int64Array:
        """What the rows call each item, -1 for what they can not name. int64 [n]."""
        if self.facts.item_base is not None:
            assert isinstance(ids, np.ndarray)
            return find_direct(ids, self.facts.item_base, NO_ITEM)
        assert self.item_slots is not None
        stored = self.item_ids if isinstance(self.item_ids, Texts) else None
        homes, num_items = self.facts.item_homes, self.facts.num_items
        return find(ids, self.item_slots, homes, stored, num_items)[0]

    def has_items(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Whether any row names each item. bool [n]."""
        if isinstance(ids, Texts) or isinstance(self.item_ids, Texts):
            return self.find_items(ids) >= 0
        known = self.item_ids
        place_n = np.searchsorted(known, ids).clip(max=len(known) - 1)
        return np.asarray(known[place_n] == ids)

    def pairs(self, low: int, high: int) -> "Pairs":
        """The pairs of rows low, ..., high - 1, padding left out.

        Raises:
            ValueError: for rows or items that the segment does not have.
        """
        offsets = self.offsets[low : high + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        num_places = len(self.words) // 3 * 2
        is_within = offsets.min() >= 0 and offsets.max() <= num_places
        if not is_within or (np.diff(offsets) < 0).any() or (offsets % 2).any():
            raise ValueError(f"{self._damaged('offsets')}: row {low} and on")
        words = self.words[first // 2 * 3 : last // 2 * 3]
        item_P, code_P = unpack_rows(words, offsets - first)
        is_pair_P = item_P != NO_ITEM
        row_P = np.repeat(np.arange(high - low), np.diff(offsets))
        aspects = None
        if self.aspects is not None:
            aspects = self.aspects[first:last][is_pair_P]
        named_P = item_P[is_pair_P].astype(np.int64)
        if self.facts.item_base is not None:
            assert isinstance(self.item_ids, np.ndarray)
            named_P = np.searchsorted(self.item_ids, named_P + self.facts.item_base)
        if len(named_P) and int(named_P.max()) >= self.facts.num_items:
            raise ValueError(f"{self._damaged('rows')}: an item that is not there")
        return Pairs(
            row_P=row_P[is_pair_P],
            item_P=named_P,
            reward_P=code_P[is_pair_P],
            aspects_PA=aspects,
        )

    def user_ids(self) -> Ids:
        """User of every row. Memory grows with users: 8 bytes each, or the texts.

        Raises:
            ValueError: where the map has more or fewer.
        """
        if self.user_texts is not None:
            return self.user_texts
        ids: Int64Array = self.user_slots[self.user_slots[:, 1] > 0, 0]
        if len(ids) != self.facts.num_users:
            raise ValueError(f"{self._damaged('user_slots')}: {len(ids)} users")
        return ids

    def _damaged(self, name: str) -> str:
        return f"{name}.bin of segment {self.facts.name} is damaged, {MEND}"

    def prefault(self) -> None:
        """Map every page now; reads what the page cache lacks, in huge pages."""
        for mapped in self.maps:
            with contextlib.suppress(OSError):
                mapped.madvise(mmap.MADV_HUGEPAGE)
            mapped.madvise(MADV_POPULATE_READ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs of some rows as plain columns."""

    row_P: Int64Array
    """Counted from the first of the rows."""
    item_P: Int64Array
    """Place among the segment's item ids."""
    reward_P: npt.NDArray[np.uint16]
    aspects_PA: npt.NDArray[np.uint16] | None


def open_segment(folder: Path, facts: SegmentFacts) -> Segment:
    """Map a segment's files; reads none of their content.

    Raises:
        FileNotFoundError: naming a file that is missing.
        ValueError: naming a file whose size is not that of the manifest, or whose
            shape is not that of a segment.
    """
    maps: list[mmap.mmap] = []
    arrays = {
        name: _map(file_path(folder, name), file, maps)
        for name, file in facts.files.items()
    }
    _check_shapes(folder, facts)
    return Segment(
        facts=facts,
        user_slots=arrays["user_slots"],
        offsets=arrays["offsets"],
        words=arrays["rows"],
        halves=arrays["rows"].view(np.uint16),
        aspects=arrays.get("aspects"),
        as_of=arrays.get("as_of"),
        history_hash=arrays.get("history_hash"),
        is_replacing=arrays.get("is_replacing"),
        item_slots=arrays.get("item_slots"),
        item_ids=arrays["item_ids"] if "item_ids" in arrays else _texts(arrays, "item"),
        user_texts=_texts(arrays, "user") if "user_text" in arrays else None,
        maps=tuple(maps),
    )


def _check_shapes(folder: Path, facts: SegmentFacts) -> None:
    """The kernels bound an index by one array, and read others with it."""
    num_places = facts.files["rows"].shape[0] // 3 * 2
    lengths = {
        "offsets": facts.num_users + 1,
        "user_text_offsets": facts.num_users + 1,
        "as_of": facts.num_users,
        "history_hash": facts.num_users,
        "is_replacing": facts.num_users,
        "aspects": num_places,
        "item_ids": facts.num_items,
        "item_text_offsets": facts.num_items + 1,
    }
    homes = {"user_slots": facts.user_homes, "item_slots": facts.item_homes}
    for name, file in facts.files.items():
        length = file.shape[0]
        if length != lengths.get(name, length) or length < homes.get(name, 0):
            raise ValueError(
                f"{file_path(folder, name)} has {length} lines, which does not go with "
                f"the rest of its segment: {MEND}"
            )


def _texts(arrays: dict[str, Array], name: str) -> Texts:
    return Texts(offsets=arrays[f"{name}_text_offsets"], data=arrays[f"{name}_text"])


def _map(path: Path, facts: FileFacts, maps: list[mmap.mmap]) -> Array:
    with path.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes != facts.num_bytes:
            raise ValueError(
                f"{path} has {num_bytes} bytes, its manifest says {facts.num_bytes}: "
                f"it was cut short or overwritten; {MEND}"
            )
        if num_bytes == 0:
            return np.zeros(facts.shape, facts.dtype)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    maps.append(mapped)
    return np.frombuffer(mapped, facts.dtype).reshape(facts.shape)


def verify_segments(folder: Path, manifest: Manifest) -> None:
    """Read every byte of a table and compare the sums; some 1.2 GB a second.

    Raises:
        FileNotFoundError: naming a file that is missing.
        ValueError: naming the file that differs from what was written.
    """
    for facts in manifest.segments:
        for name, file in facts.files.items():
            path = file_path(folder / SEGMENTS / facts.name, name)
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: {MEND}")
            if sha256_file(path) != file.sha256:
                raise ValueError(
                    f"{path} is damaged (its SHA-256 is not that of the manifest): "
                    f"{MEND}"
                )


def open_segments(folder: Path, manifest: Manifest) -> tuple[Segment, ...]:
    """All segments of a table, the oldest first."""
    return tuple(
        open_segment(folder / SEGMENTS / facts.name, facts)
        for facts in manifest.segments
    )
