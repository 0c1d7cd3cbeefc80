"""Finished rows, by rising hash of the user -> the files of a segment.

What build and compaction share. Letters: U users, N items, P pairs, A aspects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from sgrec_torchrec.reward_table.hash_map import (
    MAX_KEYS,
    keys_of,
    num_homes_for,
    place_sorted,
    slots_of,
)
from sgrec_torchrec.reward_table.ids import (
    Ids,
    Int64Array,
    Texts,
    Uint32Array,
    Uint64Array,
)
from sgrec_torchrec.reward_table.judged_files import Columns
from sgrec_torchrec.reward_table.lookup import NO_ITEM, WORDS_PER_SLOT
from sgrec_torchrec.reward_table.manifest import SegmentFacts
from sgrec_torchrec.reward_table.row_layout import pack_rows, pad_aspects
from sgrec_torchrec.reward_table.segment import Segment, SegmentFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the pairs of a segment come from."""

    judge_versions: tuple[str, ...] = ()
    prompt_versions: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    token_cost: dict[str, float] = field(default_factory=dict)


class RowWriter:
    """Writes rows as they come; memory grows with users (24 bytes) and items (4)."""

    def __init__(
        self,
        files: SegmentFiles,
        columns: Columns,
        item_ids: Ids | range,
        older: Sequence[Segment] = (),
    ) -> None:
        """Prepare for rows.

        Args:
            item_ids: of the items by their numbers, int64 ids rising; each is named by
                a pair that will come. Or a range of int64 ids, of which some are.
            older: segments that this one is appended to, the newest first.
        """
        self._files = files
        self._columns = columns
        self._older = older
        self.item_ids = item_ids
        """By their numbers."""
        self._names_N, self._item_base = _names(item_ids)
        self._num_pairs = 0
        self._num_places = 0
        self._places: list[Int64Array] = []
        self._keys: list[Int64Array] = []
        self._hashes: list[Uint64Array] = []
        self._num_text_bytes = 0
        self._pairs_per_user = (np.iinfo(np.int64).max, 0)
        self._pairs_N = np.zeros(len(item_ids), np.uint32)
        self._num_new_users = 0
        self._num_replaced_users = 0
        files.file("offsets", "int64").append(np.zeros(1, np.int64))

    def add(
        self,
        users: Ids,
        hashes_U: Uint64Array,
        lengths_U: Int64Array,
        items_P: Uint32Array,
        codes_PS: npt.NDArray[np.uint16],
        prefixes_U2: Int64Array | None,
    ) -> None:
        """Write U rows whose hashes rise, and lie above all that came before.

        Args:
            items_P: numbers of items, rising within a row.
            codes_PS: [P, 1 + A], reward, then aspects, as fixed point.
            prefixes_U2: as_of and history hash, where the table has them.
        """
        if not len(users):
            return
        self._keys.append(keys_of(users, hashes_U))
        self._hashes.append(hashes_U)
        self._num_pairs += len(items_P)
        fewest, most = self._pairs_per_user
        self._pairs_per_user = (
            min(fewest, int(lengths_U.min())),
            max(most, int(lengths_U.max())),
        )
        _count(items_P, self._pairs_N)
        names_P = items_P if self._names_N is None else self._names_N[items_P]
        words, places_U = pack_rows(names_P, codes_PS[:, 0], lengths_U)
        self._files.file("rows", "uint32").append(words)
        ends_U = self._num_places + np.cumsum(places_U)
        self._num_places = int(ends_U[-1])
        self._places.append(places_U)
        self._files.file("offsets", "int64").append(ends_U)
        if codes_PS.shape[1] > 1:
            padded = pad_aspects(codes_PS[:, 1:], lengths_U)
            width = (codes_PS.shape[1] - 1,)
            self._files.file("aspects", "uint16", width).append(padded)
        if prefixes_U2 is not None:
            self._files.file("as_of", "int64").append(prefixes_U2[:, 0])
            if self._columns.has_history_hash:
                hashes = np.ascontiguousarray(prefixes_U2[:, 1]).view(np.uint64)
                self._files.file("history_hash", "uint64").append(hashes)
        if isinstance(users, Texts):
            self._add_texts(users)
        self._compare_with_older(users, prefixes_U2)

    def _add_texts(self, users: Texts) -> None:
        offsets = self._files.file("user_text_offsets", "int64")
        if not self._num_text_bytes and len(self._keys) == 1:
            offsets.append(np.zeros(1, np.int64))
        offsets.append(self._num_text_bytes + users.offsets[1:])
        self._files.file("user_text", "uint8").append(users.data)
        self._num_text_bytes += len(users.data)

    def _compare_with_older(self, users: Ids, prefixes_U2: Int64Array | None) -> None:
        """Note which users are new, and which were judged at another prefix before."""
        is_replacing_U = np.zeros(len(users), np.uint8)
        is_new_U = np.ones(len(users), np.bool_)
        for segment in self._older:
            row_U, _ = segment.find_users(users)
            is_here_U = (row_U >= 0) & is_new_U
            is_new_U &= row_U < 0
            if prefixes_U2 is not None:
                before = prefixes_of(segment, row_U[is_here_U])
                differs = (before != prefixes_U2[is_here_U]).any(axis=1)
                is_replacing_U[is_here_U] = differs
        self._num_new_users += int(is_new_U.sum())
        self._num_replaced_users += int(is_replacing_U.sum())
        if self._older and prefixes_U2 is not None:
            self._files.file("is_replacing", "uint8").append(is_replacing_U)

    def finish(self, name: str, origin: Origin) -> SegmentFacts:
        """Write both maps and the items' ids; all files are then whole on disk."""
        num_users = sum(map(len, self._keys))
        if num_users > MAX_KEYS:
            raise ValueError(f"{num_users} users: a table holds {MAX_KEYS}; build two")
        user_homes = self._write_user_slots()
        item_ids = self.item_ids
        if isinstance(item_ids, range):
            used = np.flatnonzero(self._pairs_N)
            item_ids, self._pairs_N = used + item_ids.start, self._pairs_N[used]
        if self._item_base is None:
            self._files.file("item_slots", "int64", (2,)).append(slots_of(item_ids))
        self._files.write_ids("item", item_ids)
        is_new_N = np.ones(len(item_ids), np.bool_)
        for segment in self._older:
            is_new_N &= ~segment.has_items(item_ids)
        self._files.close()
        return SegmentFacts(
            name=name,
            files=self._files.facts,
            num_pairs=self._num_pairs,
            num_users=num_users,
            num_items=len(item_ids),
            user_homes=user_homes,
            item_homes=num_homes_for(len(item_ids)),
            item_base=self._item_base,
            pairs_per_user=self._pairs_per_user,
            pairs_per_item=(int(self._pairs_N.min()), int(self._pairs_N.max())),
            num_new_users=self._num_new_users,
            num_new_items=int(is_new_N.sum()),
            num_replaced_users=self._num_replaced_users,
            judge_versions=origin.judge_versions,
            prompt_versions=origin.prompt_versions,
            sources=origin.sources,
            token_cost=origin.token_cost,
        )

    def _write_user_slots(self) -> int:
        """The users' map, front to back; returns how many of its slots are homes."""
        file = self._files.file("user_slots", "int64", (WORDS_PER_SLOT,))
        num_homes = num_homes_for(sum(map(len, self._keys)))
        last, row, place = -1, 0, 0
        for keys, hashes, places_U in zip(
            self._keys, self._hashes, self._places, strict=True
        ):
            slots = place_sorted(hashes, num_homes, last)
            piece = np.zeros((int(slots[-1]) - last, WORDS_PER_SLOT), np.int64)
            ends_U = place + np.cumsum(places_U)
            columns = (
                *(keys, np.arange(row + 1, row + len(keys) + 1)),
                *(ends_U - places_U, places_U),
            )
            piece[slots - last - 1] = np.stack(columns, axis=1)
            file.append(piece)
            last, row, place = int(slots[-1]), row + len(keys), int(ends_U[-1])
        rest = max(num_homes, last + 1) - last
        file.append(np.zeros((rest, WORDS_PER_SLOT), np.int64))
        return num_homes


def _names(item_ids: Ids | range) -> tuple[Uint32Array | None, int | None]:
    """What rows call each item (None: its number), and the base if that is by id."""
    if isinstance(item_ids, range):
        return None, item_ids.start
    if isinstance(item_ids, Texts):
        return None, None
    base = int(item_ids[0])
    if int(item_ids[-1]) - base >= NO_ITEM:
        return None, None
    return (item_ids - base).astype(np.uint32), base


def prefixes_of(segment: Segment, rows: Int64Array) -> Int64Array:
    """(as_of, history hash or 0) of rows that have one. int64 [n, 2]."""
    assert segment.as_of is not None
    prefixes = np.zeros((len(rows), 2), np.int64)
    prefixes[:, 0] = segment.as_of[rows]
    if segment.history_hash is not None:
        prefixes[:, 1] = segment.history_hash[rows].view(np.int64)
    return prefixes


@numba.njit(nogil=True, cache=True)
def _count(items: Any, counts: Any) -> None:
    for at in range(len(items)):
        counts[items[at]] += np.uint32(1)
