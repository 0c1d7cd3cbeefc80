"""Judged batches -> runs on disk: one file for each range of the users' hashes.

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


class Runs:
    """Open run files, one a bucket. Memory: two copies of a batch."""

    def __init__(self, folder: Path, num_buckets: int, num_aspects: int) -> None:
        self._paths = [folder / f"run-{nth}" for nth in range(num_buckets)]
        self._prefix_paths = [folder / f"prefixes-{nth}" for nth in range(num_buckets)]
        self._width = RECORD_HEAD + 1 + num_aspects
        self._files: list[BinaryIO] = []
        self._prefix_files: list[BinaryIO] = []
        self.num_bytes = 0
        """Of the files that are there."""

    def __enter__(self) -> "Runs":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._paths)

    def close(self) -> None:
        """Close the files; they can then be taken."""
        for file in (*self._files, *self._prefix_files):
            file.close()

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
        if not self._files:
            self._files = [path.open("wb", buffering=0) for path in self._paths]
        records, starts = _scatter(
            *(users.view(np.uint32).reshape(-1, 2), hashes, items),
            *(scores.view(np.uint32), len(self)),
        )
        self.num_bytes += _write(self._files, records, starts)

    def add_prefixes(
        self,
        users: Int64Array,
        hashes: Uint64Array,
        as_of: Int64Array,
        history_hash: Uint64Array | None,
    ) -> None:
        """Append the prefixes of n rows to the runs of their users."""
        if not self._prefix_files:
            self._prefix_files = [path.open("wb") for path in self._prefix_paths]
        seen = np.zeros(len(users), np.int64)
        if history_hash is not None:
            seen = history_hash.view(np.int64)
        prefixes = np.stack([users, as_of, seen], axis=1)
        is_new = np.append(True, (prefixes[1:] != prefixes[:-1]).any(axis=1))
        few, hashes = prefixes[is_new], hashes[is_new]
        words = few.view(np.uint32)
        records, starts = _scatter(
            words[:, :2], hashes, words[:, 2], words[:, 3:], len(self)
        )
        self.num_bytes += _write(self._prefix_files, records, starts)

    def num_records(self, bucket: int) -> int:
        """Pairs of a bucket that was not taken yet."""
        return self._paths[bucket].stat().st_size // (4 * self._width)

    def take(self, bucket: int) -> tuple[Uint32Array, Int64Array | None]:
        """One bucket's records [n, 4 + A] and prefixes [m, 3]; their files go."""
        records = np.fromfile(self._paths[bucket], np.uint32).reshape(-1, self._width)
        self._paths[bucket].unlink()
        self.num_bytes -= records.nbytes
        if not self._prefix_files:
            return records, None
        prefixes = np.fromfile(self._prefix_paths[bucket], np.int64).reshape(-1, 3)
        self._prefix_paths[bucket].unlink()
        self.num_bytes -= prefixes.nbytes
        return records, prefixes


def _write(files: list[BinaryIO], records: Uint32Array, starts: Int64Array) -> int:
    for file, start, stop in zip(files, starts[:-1], starts[1:], strict=True):
        left = records[start:stop].reshape(-1).view(np.uint8).data
        while len(left):
            left = left[file.write(left) :]
    return records.nbytes


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
