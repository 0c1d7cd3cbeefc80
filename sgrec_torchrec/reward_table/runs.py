"""Judged batches -> runs: one for each range of the users' hashes, on disk if many.

A record is uint32 [3 + 1 + A]: the user (8 bytes), the item's number, and the scores as
float32; so 16 bytes a pair, and 4 for each aspect. A run keeps the order of the input.
Prefixes (as_of, history hash) go to runs of their own, 24 bytes each time that they
differ from those of the row before: once a user where files are grouped by user.

All runs grow in chunks of one array, whose pages are touched once: memory that a
process takes fresh costs more than all that is done with it here.
"""

import mmap
from pathlib import Path
from typing import BinaryIO

import numba
import numpy as np
import numpy.typing as npt

from sgrec_torchrec.reward_table.hash_map import home_of, mix
from sgrec_torchrec.reward_table.ids import Int64Array, Uint32Array, Uint64Array
from sgrec_torchrec.reward_table.prefetch import prefetch

RECORD_HEAD = 3
"""Words of a record before its scores."""
PREFIX_WORDS = 6
"""User, as_of and history hash."""
WORD_BYTES = 4
CHUNK_LINES = 4096
WORDS_PER_LINE = 16
"""Of the processor's cache."""
ANY_NUMBER = range(2**32)
_NO_HASHES = np.zeros(0, np.uint64)


class UnexpectedItemError(ValueError):
    """An item lies outside the range that the files declare."""


def bytes_per_row(num_aspects: int, has_prefixes: bool) -> int:
    """Of runs, at most: where no row has the prefix of the row before."""
    words = RECORD_HEAD + 1 + num_aspects + PREFIX_WORDS * has_prefixes
    return WORD_BYTES * words


class Runs:
    """Records by bucket: in memory up to ``memory_bytes``, beyond that all on disk."""

    def __init__(
        self,
        folder: Path,
        num_buckets: int,
        num_aspects: int,
        *,
        num_rows: int,
        memory_bytes: int,
        has_prefixes: bool,
    ) -> None:
        width = RECORD_HEAD + 1 + num_aspects
        widths = [width, PREFIX_WORDS] if has_prefixes else [width]
        self._lines = [
            _Chunks(
                folder / name,
                num_buckets=num_buckets,
                width=words,
                num_lines=num_rows,
                memory_bytes=memory_bytes * words // sum(widths),
            )
            for name, words in zip(("run", "prefixes"), widths, strict=False)
        ]
        self._num_buckets = num_buckets

    def __enter__(self) -> "Runs":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._num_buckets

    @property
    def disk_bytes(self) -> int:
        """In files that are there now."""
        return sum(lines.disk_bytes for lines in self._lines)

    def add(
        self,
        users: Int64Array,
        hashes: Uint64Array | None,
        items: Int64Array | Uint32Array,
        scores: npt.NDArray[np.float32],
        allowed_items: range = ANY_NUMBER,
    ) -> None:
        """Append n rows to the runs of their users.

        Args:
            hashes: of the users; None: they are their ids' own.
            allowed_items: what ``items`` may be; records hold the place in it.

        Raises:
            UnexpectedItemError: for an item that is not allowed.
            OSError: on a full disk.
        """
        words = scores.view(np.uint32)
        self._lines[0].add(users, hashes, items, words, allowed_items)

    def add_prefixes(
        self,
        users: Int64Array,
        hashes: Uint64Array | None,
        as_of: Int64Array,
        history_hash: Uint64Array | None,
    ) -> None:
        """Append the prefixes of n rows to the runs of their users."""
        seen = np.zeros(len(users), np.int64)
        if history_hash is not None:
            seen = history_hash.view(np.int64)
        prefixes = np.stack([users, as_of, seen], axis=1)
        is_new = np.append(True, (prefixes[1:] != prefixes[:-1]).any(axis=1))
        words = prefixes[is_new].view(np.uint32)
        known = None if hashes is None else hashes[is_new]
        self._lines[1].add(users[is_new], known, words[:, 2], words[:, 3:], ANY_NUMBER)

    def close(self) -> None:
        """Close the files."""
        for lines in self._lines:
            lines.close()

    def finish(self) -> None:
        """No more rows come: the runs can be taken.

        Raises:
            OSError: on a full disk.
        """
        for lines in self._lines:
            lines.finish()

    def num_records(self, bucket: int) -> int:
        """Pairs of a bucket."""
        return int(self._lines[0].sizes[bucket])

    def take(self, bucket: int) -> tuple[Uint32Array, Int64Array]:
        """One bucket's records [n, 4 + A] and prefixes [m, 3]; both then go.

        They stand in memory that the next call takes for its own.
        """
        prefixes = np.zeros((0, 3), np.int64)
        if len(self._lines) > 1:
            taken = self._lines[1].take(bucket)
            prefixes = taken.reshape(-1).view(np.int64).reshape(-1, 3)
        return self._lines[0].take(bucket), prefixes


class _Chunks:
    """Lines of words by bucket, in chunks of one array, or moved to a file each."""

    def __init__(
        self,
        path: Path,
        num_buckets: int,
        width: int,
        num_lines: int,
        memory_bytes: int,
    ) -> None:
        """Make room for ``num_lines``, if ``memory_bytes`` hold them."""
        self._paths = [path.with_name(f"{path.name}-{n}") for n in range(num_buckets)]
        room = memory_bytes // (WORD_BYTES * width)
        length = min(max(room // (2 * num_buckets), 1), CHUNK_LINES)
        # a chunk more for each bucket: its last one is not full
        needed = -(-num_lines // length) + num_buckets
        num_chunks = max(min(needed, room // length), num_buckets)
        # no huge pages, as numpy would ask for: they take longer to get than they save
        memory = mmap.mmap(-1, num_chunks * length * width * WORD_BYTES)
        words = np.frombuffer(memory, np.uint32)
        self._chunks = words.reshape(num_chunks, length, width)
        self._owner_C = np.zeros(num_chunks, np.int64)
        self._num_used = np.zeros(1, np.int64)
        self._free_B2 = np.zeros((num_buckets, 2), np.uint64)
        """Words of the chunks that each bucket may fill next: from, up to."""
        self._buffer = np.empty((0, width), np.uint32)
        self._files: list[BinaryIO] = []
        self.sizes = np.zeros(num_buckets, np.int64)
        """Lines of each bucket; whole after ``finish``."""
        self.disk_bytes = 0

    def add(
        self,
        users: Int64Array,
        hashes: Uint64Array | None,
        numbers: Int64Array | Uint32Array,
        words: Uint32Array,
        allowed: range,
    ) -> None:
        """Append lines of (user, place of the number in ``allowed``, words)."""
        known = _NO_HASHES if hashes is None else hashes
        at = 0
        while True:
            at, is_allowed = _append(
                at=at,
                users=users,
                hashes=known,
                numbers=numbers,
                words=words,
                lowest=allowed.start,
                span=len(allowed),
                memory=self._chunks.reshape(-1),
                owner_C=self._owner_C,
                num_used=self._num_used,
                free_B2=self._free_B2,
            )
            if not is_allowed:
                raise UnexpectedItemError
            if at == len(users):
                return
            self._spill()

    def finish(self) -> None:
        """No more lines come: those on disk leave the memory, and all can be taken."""
        if self._files:
            self._spill()
            self.close()
            self._chunks = self._chunks[:0]
            return
        self._index()

    def close(self) -> None:
        """Close the files; they can then be taken."""
        for file in self._files:
            file.close()

    def take(self, bucket: int) -> Uint32Array:
        """The lines of a bucket, [n, width]; their file goes."""
        lines = self._room_for(int(self.sizes[bucket]))
        if not self._files:
            self._gather(bucket, lines)
            return lines
        with self._paths[bucket].open("rb", buffering=0) as file:
            left = lines.reshape(-1).view(np.uint8).data
            while len(left):
                left = left[file.readinto(left) :]
        self._paths[bucket].unlink()
        self.disk_bytes -= lines.nbytes
        return lines

    def _spill(self) -> None:
        """Move the lines in memory to the files; the chunks are then free."""
        if not self._files:
            self._files = [path.open("wb", buffering=0) for path in self._paths]
        self._index()
        for bucket, file in enumerate(self._files):
            lines = self._room_for(int(self._kept_B[bucket]))
            self._gather(bucket, lines)
            left = lines.reshape(-1).view(np.uint8).data
            self.disk_bytes += len(left)
            while len(left):
                left = left[file.write(left) :]
        self._num_used[0] = 0
        self._free_B2[:] = 0

    def _index(self) -> None:
        """Find the chunks of each bucket, and count its lines in memory."""
        owners = self._owner_C[: self._num_used[0]]
        self._by_bucket_C = np.argsort(owners, kind="stable")
        counts_B = np.bincount(owners, minlength=len(self._paths))
        self._first_B1 = np.append(0, np.cumsum(counts_B))
        free_B = (self._free_B2[:, 1] - self._free_B2[:, 0]).astype(np.int64)
        _, length, width = self._chunks.shape
        self._kept_B = counts_B * length - free_B // width
        self.sizes += self._kept_B

    def _gather(self, bucket: int, lines: Uint32Array) -> None:
        own = self._by_bucket_C[self._first_B1[bucket] : self._first_B1[bucket + 1]]
        _copy_chunks(self._chunks, own, lines)

    def _room_for(self, num_lines: int) -> Uint32Array:
        """Uninitialised lines, the same memory each time as far as it reaches."""
        if num_lines > len(self._buffer):
            shape = (num_lines + num_lines // 8, self._buffer.shape[1])
            self._buffer = np.empty(shape, np.uint32)
        return self._buffer[:num_lines]


@numba.njit(nogil=True, cache=True)
def _append(  # type: ignore[no-untyped-def]
    at, users, hashes, numbers, words, lowest, span, memory, owner_C, num_used, free_B2
):
    """Append rows from ``at`` on.

    ``memory`` are the chunks end to end. Returns the first row that found no free
    chunk, or the number of rows; and whether all numbers were allowed. Places are
    unsigned: the compiler then leaves out what serves negative ones.
    """
    num_buckets, num_words = len(free_B2), np.uint64(words.shape[1])
    head, one = np.uint64(RECORD_HEAD), np.uint64(1)
    chunk_words = np.uint64(len(memory) // len(owner_C))
    # hashes first: the compiler computes eight of them at a time
    bucket_n = np.empty(len(users), np.uint16)
    for row in range(at, len(users)):
        h = hashes[row] if len(hashes) else mix(users[row])
        bucket_n[row] = home_of(h, num_buckets)
    for row in range(at, len(users)):
        # wraps where the difference does not fit: it is then beyond any span
        number = np.uint64(numbers[row]) - np.uint64(lowest)
        if number >= np.uint64(span):
            return row, False
        bucket = bucket_n[row]
        place = free_B2[bucket, 0]
        if place == free_B2[bucket, 1]:
            if num_used[0] == len(owner_C):
                return row, True
            place = np.uint64(num_used[0]) * chunk_words
            free_B2[bucket, 1] = place + chunk_words
            owner_C[num_used[0]] = bucket
            num_used[0] += 1
        free_B2[bucket, 0] = place + head + num_words
        user = np.uint64(users[row])
        memory[place] = np.uint32(user & np.uint64(0xFFFFFFFF))
        memory[place + one] = np.uint32(user >> np.uint64(32))
        memory[place + one + one] = np.uint32(number)
        for nth in range(num_words):
            memory[place + head + nth] = words[row, nth]
        # too many places are written in turns for the processor to foresee them
        prefetch(memory, np.int64(place) + 2 * WORDS_PER_LINE)
    return len(users), True


@numba.njit(nogil=True, cache=True)
def _copy_chunks(chunks, own, lines):  # type: ignore[no-untyped-def]
    """Chunks end to end; all but the last one are full."""
    length = chunks.shape[1]
    for nth in range(len(own)):
        first = nth * length
        stop = min(first + length, len(lines))
        lines[first:stop] = chunks[own[nth], : stop - first]
