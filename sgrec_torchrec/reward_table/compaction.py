"""Several segments of a table -> one that answers the same.

Rows of all segments lie in the order of the users' hashes, so that equal ranges of
hashes are merged one after the other: the newest judgement of a pair stays, and none of
a user whose newer segment replaces it. Stored values are copied, never rounded again.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.reward_table.build_report import (
    BuildReport,
    report_of,
    told_of_full_disk,
)
from sgrec_torchrec.reward_table.hash_map import Numbering, hash_ids, sorted_ids
from sgrec_torchrec.reward_table.ids import (
    Ids,
    Int64Array,
    Texts,
    Uint32Array,
    part,
    take,
)
from sgrec_torchrec.reward_table.lookup import MAX_CODE
from sgrec_torchrec.reward_table.manifest import (
    Manifest,
    next_name,
    publish,
    read_manifest,
    writing,
)
from sgrec_torchrec.reward_table.row_writer import Origin, RowWriter, prefixes_of
from sgrec_torchrec.reward_table.rows import rows_of
from sgrec_torchrec.reward_table.runs import RECORD_HEAD
from sgrec_torchrec.reward_table.segment import (
    Pairs,
    Segment,
    SegmentFiles,
    open_segments,
    verify_segments,
)

PAIRS_PER_RANGE = 1 << 20


def compact(folder: Path | str) -> BuildReport:
    """Merge all segments into one, under the rule that lookups follow.

    Memory: 24 bytes for each user and 80 for each item of each segment, beside some
    128 bytes for each of ``PAIRS_PER_RANGE`` pairs (or those of the longest row). Disk:
    the merged segment stands beside the old ones until the manifest names it.

    Raises:
        FileNotFoundError: where there is no table, or a file of it is missing.
        ValueError: for a damaged manifest or file; all sums are compared first.
        BlockingIOError: where another process writes the table.
        OSError: on a full disk; the table is then as it was.
    """
    folder = Path(folder)
    start_s = time.perf_counter()
    with writing(folder, must_exist=True) as building, told_of_full_disk(folder):
        table = read_manifest(folder)
        num_rows = sum(segment.num_pairs for segment in table.segments)
        if len(table.segments) == 1:
            return report_of(table.segments[0], num_rows, 0, 0.0)
        segments = open_segments(folder, table)
        # what is merged gets new sums: damage would be sealed with it
        verify_segments(folder, table)
        with SegmentFiles(building) as files:
            merge = _Merge(table, segments)
            writer = RowWriter(files, table.columns, merge.kept_items())
            merge.write(writer)
            facts = writer.finish(next_name(folder), _origin(table))
        publish(folder, building, replace(table, segments=(facts,)), facts)
        return report_of(facts, num_rows, 0, time.perf_counter() - start_s)


def _origin(table: Manifest) -> Origin:
    """All versions and sources of the segments; costs add up."""
    judges, prompts = set[str](), set[str]()
    sources: dict[str, None] = {}
    cost: dict[str, float] = {}
    for segment in table.segments:
        judges.update(segment.judge_versions)
        prompts.update(segment.prompt_versions)
        sources.update(dict.fromkeys(segment.sources))
        for name, value in segment.token_cost.items():
            cost[name] = cost.get(name, 0.0) + value
    return Origin(
        judge_versions=tuple(sorted(judges)),
        prompt_versions=tuple(sorted(prompts)),
        sources=tuple(sources),
        token_cost=cost,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slab:
    """The pairs of some rows of one segment that no newer segment replaces."""

    segment: Segment
    low: int
    high: int
    """Rows low, ..., high - 1."""
    user_U: Int64Array
    """Number of each row's user within the range of hashes."""
    is_kept_P: npt.NDArray[np.bool_]
    pairs: Pairs
    item_P: Uint32Array
    """Number of each pair's item among those of all segments."""


class _Merge:
    """Merges range by range, twice: for the items that stay, then for the pairs."""

    def __init__(self, table: Manifest, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self._columns = table.columns
        self._ranges = np.array([[0.0, MAX_CODE]] * (1 + len(table.columns.aspects)))
        all_items = Numbering(is_text=table.columns.item_is_text)
        numbers = [all_items.number(segment.item_ids) for segment in segments]
        self._all_ids, place = sorted_ids(all_items)
        self._items = [place[number_N] for number_N in numbers]
        self._new_N = np.zeros(len(all_items), np.uint32)
        self._users = [segment.user_ids() for segment in segments]
        num_pairs = sum(segment.facts.num_pairs for segment in segments)
        self._num_ranges = -(-num_pairs // PAIRS_PER_RANGE)
        self._bounds = [_bounds(ids, self._num_ranges) for ids in self._users]

    def kept_items(self) -> Ids:
        """The items of pairs that stay; ``write`` numbers them in this order."""
        is_used_N = np.zeros(len(self._new_N), np.bool_)
        for _, slabs in self._slabs("merge: items"):
            for slab in slabs:
                is_used_N[slab.item_P[slab.is_kept_P]] = True
        used = np.flatnonzero(is_used_N)
        self._new_N[used] = np.arange(len(used))
        return take(self._all_ids, used)

    def write(self, writer: RowWriter) -> None:
        """Merge all ranges, the newest judgement of each pair winning."""
        for numbering, slabs in self._slabs("merge: pairs"):
            ids = numbering.ids()
            key_K = np.arange(len(numbering)) if isinstance(ids, Texts) else ids
            records = np.concatenate([self._records(slab, key_K) for slab in slabs])
            prefixes = self._prefixes(slabs, key_K) if self._columns.has_as_of else None
            hashes = numbering.hashes() if isinstance(ids, Texts) else None
            # "last" is "newest": the slabs stand in the order of the segments
            rows = rows_of(records, prefixes, self._ranges, "last", hashes)
            kept = take(ids, rows.users_U) if isinstance(ids, Texts) else rows.users_U
            writer.add(
                kept,
                hashes_U=rows.hashes_U,
                lengths_U=rows.lengths_U,
                items_P=rows.items_P,
                codes_PS=rows.codes_PS,
                prefixes_U2=rows.prefixes_U2,
            )

    def _slabs(self, description: str) -> Iterator[tuple[Numbering, list[_Slab]]]:
        """Each range that has users: their numbers, and its rows by segment."""
        from sgrec_torchrec.distributed.progress import progress

        for nth in progress(range(self._num_ranges), description=description):
            numbering = Numbering(is_text=self._columns.user_is_text)
            spans = [(int(one[nth]), int(one[nth + 1])) for one in self._bounds]
            numbers = [
                numbering.number(part(ids, low, high)).astype(np.int64)
                for ids, (low, high) in zip(self._users, spans, strict=True)
            ]
            if not len(numbering):
                continue
            oldest_kept = np.zeros(len(numbering), np.int64)
            for at, segment in enumerate(self._segments):
                if segment.is_replacing is not None:
                    low, high = spans[at]
                    is_first_U = segment.is_replacing[low:high] > 0
                    oldest_kept[numbers[at][is_first_U]] = at
            yield (
                numbering,
                [
                    self._slab(at, low, high, numbers[at], oldest_kept)
                    for at, (low, high) in enumerate(spans)
                ],
            )

    def _slab(
        self, at: int, low: int, high: int, user_U: Int64Array, oldest_kept: Int64Array
    ) -> _Slab:
        pairs = self._segments[at].pairs(low, high)
        return _Slab(
            segment=self._segments[at],
            low=low,
            high=high,
            user_U=user_U,
            is_kept_P=(oldest_kept[user_U] <= at)[pairs.row_P],
            pairs=pairs,
            item_P=self._items[at][pairs.item_P],
        )

    def _records(self, slab: _Slab, key_K: Int64Array) -> Uint32Array:
        """Pairs that stay as records of a run, with stored codes as scores."""
        kept, pairs = slab.is_kept_P, slab.pairs
        users = key_K[slab.user_U][pairs.row_P[kept]]
        records = np.empty((len(users), RECORD_HEAD + len(self._ranges)), np.uint32)
        records[:, :2] = users.view(np.uint32).reshape(-1, 2)
        records[:, 2] = self._new_N[slab.item_P[kept]]
        scores = records[:, RECORD_HEAD:].view(np.float32)
        scores[:, 0] = pairs.reward_P[kept]
        if pairs.aspects_PA is not None:
            scores[:, 1:] = pairs.aspects_PA[kept]
        return records

    def _prefixes(self, slabs: Sequence[_Slab], key_K: Int64Array) -> Int64Array:
        """(user, as_of, history hash) of each user, from the newest segment."""
        prefixes_K3 = np.zeros((len(key_K), 3), np.int64)
        prefixes_K3[:, 0] = key_K
        for slab in slabs:
            rows_U = np.arange(slab.low, slab.high)
            prefixes_K3[slab.user_U, 1:] = prefixes_of(slab.segment, rows_U)
        return prefixes_K3


def _bounds(users: Ids, num_ranges: int) -> Int64Array:
    """Row at which each of the ranges of hashes begins, and the end. [ranges + 1]."""
    upper = hash_ids(users) >> np.uint64(32)
    range_U = (upper * np.uint64(num_ranges)) >> np.uint64(32)
    return np.searchsorted(range_U, np.arange(num_ranges + 1, dtype=np.uint64))
