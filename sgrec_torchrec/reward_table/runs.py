"""Judged batches -> runs: one for each range of the users' hashes, on disk if many.

A record is uint32 [3 + 1 + A]: the user (8 bytes), the item's number, and the scores as
float32; so 16 bytes a pair, and 4 for each aspect. A run keeps the order of the input.
Prefixes (as_of, history hash) go to runs of their own, 24 bytes each time that they
differ from those of the row before: once a user where files are grouped by user.
"""

from pathlib import Path
from typing import BinaryIO

import numba
import numpy as np
import numpy.typing as npt

from sgrec_torchrec.reward_table.hash_map import home_of
from sgrec_torchrec.reward_table.ids import Int64Array, Uint32Array, Uint64Array

RECORD_HEAD = 3
"""Words of a record before its scores."""
PREFIX_WORDS = 6
"""User, as_of and history hash."""


class Runs:
    """Records by bucket: in memory up to ``memory_bytes``, beyond that all on disk."""

    def __init__(
        self, folder: Path, num_buckets: int, num_aspects: int, memory_bytes: int
    ) -> None:
        width = RECORD_HEAD + 1 + num_aspects
        self._records = _Pieces(folder / "run", num_buckets, width)
        self._prefixes = _Pieces(folder / "prefixes", num_buckets, PREFIX_WORDS)
        self._num_buckets = num_buckets
        self._memory_bytes = memory_bytes

    def __enter__(self) -> "Runs":
        return self

    def __exit__(self, *_: object) -> None:
        self._records.close()
        self._prefixes.close()

    def __len__(self) -> int:
        return self._num_buckets

    @property
    def disk_bytes(self) -> int:
        """In files that are there now."""
        return self._records.disk_bytes + self._prefixes.disk_bytes

    def add(
        self,
        users: Int64Array,
        hashes: Uint64Array,
        items: Uint32Array,
        scores: npt.NDArray[np.float32],
    ) -> None:
        """Append n rows to the runs of their users.

        Raises:
            OSError: on a full disk.
        """
        pairs = users.view(np.uint32).reshape(-1, 2)
        words = scores.view(np.uint32)
        self._records.add(*_scatter(pairs, hashes, items, words, len(self)))
        self._spill()

    def add_prefixes(
        self,
        users: Int64Array,
        hashes: Uint64Array,
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
        self._prefixes.add(
            *_scatter(
                *(words[:, :2], hashes[is_new], words[:, 2], words[:, 3:], len(self))
            )
        )
        self._spill()

    def _spill(self) -> None:
        kept = self._records.memory_bytes + self._prefixes.memory_bytes
        if kept > self._memory_bytes:
            self._records.spill()
            self._prefixes.spill()

    def finish(self) -> None:
        """No more rows come: the runs can be taken."""
        self._records.close()
        self._prefixes.close()

    def num_records(self, bucket: int) -> int:
        """Pairs of a bucket."""
        return self._records.sizes[bucket]

    def take(self, bucket: int) -> tuple[Uint32Array, Int64Array]:
        """One bucket's records [n, 4 + A] and prefixes [m, 3]; both then go."""
        prefixes = self._prefixes.take(bucket).reshape(-1).view(np.int64)
        return self._records.take(bucket), prefixes.reshape(-1, 3)


class _Pieces:
    """Lines of words by bucket, as lists of arrays or as one file each."""

    def __init__(self, path: Path, num_buckets: int, width: int) -> None:
        self._paths = [path.with_name(f"{path.name}-{n}") for n in range(num_buckets)]
        self._width = width
        self._kept: list[list[Uint32Array]] = [[] for _ in self._paths]
        self._files: list[BinaryIO] = []
        self.sizes = [0] * num_buckets
        """Lines of each bucket."""
        self.memory_bytes = 0
        self.disk_bytes = 0

    def add(self, lines: Uint32Array, starts: Int64Array) -> None:
        """Append lines that stand by bucket, each bucket from its start."""
        bounds = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        for bucket, (start, stop) in enumerate(bounds):
            self.sizes[bucket] += stop - start
            if self._files:
                self._write(bucket, lines[start:stop])
            else:
                self._kept[bucket].append(lines[start:stop])
        self.memory_bytes += 0 if self._files else lines.nbytes

    def spill(self) -> None:
        """Move to files what memory holds; all that comes goes there, too."""
        if self._files:
            return
        self._files = [path.open("wb", buffering=0) for path in self._paths]
        for bucket, pieces in enumerate(self._kept):
            for piece in pieces:
                self._write(bucket, piece)
            pieces.clear()
        self.memory_bytes = 0

    def _write(self, bucket: int, piece: Uint32Array) -> None:
        left = piece.reshape(-1).view(np.uint8).data
        self.disk_bytes += len(left)
        while len(left):
            left = left[self._files[bucket].write(left) :]

    def close(self) -> None:
        """Close the files; they can then be taken."""
        for file in self._files:
            file.close()

    def take(self, bucket: int) -> Uint32Array:
        """The lines of a bucket, [n, width]; their memory or file goes."""
        if not self._files:
            pieces, self._kept[bucket] = self._kept[bucket], []
            return np.concatenate([np.zeros((0, self._width), np.uint32), *pieces])
        lines = np.fromfile(self._paths[bucket], np.uint32).reshape(-1, self._width)
        self._paths[bucket].unlink()
        self.disk_bytes -= lines.nbytes
        return lines


@numba.njit(nogil=True, cache=True)
def _scatter(users, hashes, items, scores, num_buckets):  # type: ignore[no-untyped-def]
    """Records by bucket, in the order of the input, and where each bucket starts."""
    starts = np.zeros(num_buckets + 1, np.int64)
    for at in range(len(hashes)):
        starts[home_of(hashes[at], num_buckets) + 1] += 1
    starts = np.cumsum(starts)
    ends = starts.copy()
    num_scores = scores.shape[1]
    records = np.empty((len(hashes), 3 + num_scores), np.uint32)
    for at in range(len(hashes)):
        bucket = home_of(hashes[at], num_buckets)
        place = ends[bucket]
        ends[bucket] += 1
        records[place, 0] = users[at, 0]
        records[place, 1] = users[at, 1]
        records[place, 2] = items[at]
        for nth in range(num_scores):
            records[place, 3 + nth] = scores[at, nth]
    return records, starts
