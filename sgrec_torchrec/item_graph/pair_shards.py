"""Pairs counted by many processes or hosts: shards of users, then ranges of items.

    count_shard    a shard's events -> its sorted runs of pairs, and where each range of
                   items lies in them
    join_range     that range of all shards' runs -> the file of the range

Neither order nor number of shards changes a bit: counts add.

Scale: P shards and K ranges are P + K tasks; a range task reads its part of each shard,
so beside the pairs themselves P K pieces are read. A task holds what ``pair_counts``
says, and the events of a shard.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sgrec_torchrec.distributed.executor import Executor
from sgrec_torchrec.distributed.tasks import MEND, Task, read_part
from sgrec_torchrec.files.atomic import atomic_folder
from sgrec_torchrec.files.run_folder import MANIFEST, nth
from sgrec_torchrec.files.sealed_json import DamagedError
from sgrec_torchrec.hashing import fold_of
from sgrec_torchrec.item_graph.covisitation import fit_ends
from sgrec_torchrec.item_graph.pair_counts import (
    MAX_PAIRS,
    PAIRS,
    occurrences_of,
    ranges_of,
    write_rest,
)
from sgrec_torchrec.item_graph.pair_layout import Layout
from sgrec_torchrec.item_graph.pair_runs import (
    COUNTS,
    SCHEMA,
    WORDS,
    Run,
    cut_runs,
    write_joined,
    write_runs,
)
from sgrec_torchrec.logs.split_store import num_shards, read_shard
from sgrec_torchrec.schema import Sequences

JOINED = "joined.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """Which events are counted, and by which folds of the users."""

    fit_on: str
    max_distance: int
    num_folds: int
    seed: int
    """Deals users into folds."""

    def layout(self, num_items: int) -> Layout:
        """How its pairs become words."""
        return Layout(
            num_items=num_items,
            num_folds=self.num_folds,
            max_distance=self.max_distance,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CountShard(Task):
    """Inputs: the split's manifest."""

    number: int
    period: Period
    ranges: tuple[tuple[int, int], ...]
    max_pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRange(Task):
    """Inputs: the manifests of all shards."""

    number: int


def count_shards(
    sequences: Sequences,
    split_dir: Path,
    folder: Path,
    period: Period,
    executor: Executor,
    *,
    parts: Path,
    max_pairs: int = MAX_PAIRS,
) -> None:
    """Count the pairs of a prepared split: what ``count_pairs`` writes, to the bit.

    Args:
        sequences: of the split, for how often each item occurs.
        folder: is written whole or not at all.
        parts: a folder for the tasks' own; what is done there is not done again.
        max_pairs: bounds memory.
    """
    layout = period.layout(sequences.num_items)
    end_U = fit_ends(sequences, period.fit_on)
    fold_U = fold_of(period.seed, np.arange(sequences.num_users), period.num_folds)
    occurrences = occurrences_of(sequences, end_U, fold_U, layout)
    ranges = tuple(ranges_of(occurrences[0], layout, max_pairs))
    shards = executor.map(
        count_shard,
        [
            CountShard(
                out=parts / f"shard-{number:05d}",
                inputs=(split_dir / MANIFEST,),
                number=number,
                period=period,
                ranges=ranges,
                max_pairs=max_pairs,
            )
            for number in range(num_shards(split_dir))
        ],
        description="co-visits",
    )
    manifests = tuple(shard / MANIFEST for shard in shards)
    joined = executor.map(
        join_range,
        [
            JoinRange(
                out=parts / f"range-{number:05d}", inputs=manifests, number=number
            )
            for number in range(len(ranges))
        ],
        description="joining co-visits",
    )
    with atomic_folder(folder) as temporary:
        for number, part in enumerate(joined):
            (part / JOINED).rename(temporary / nth(PAIRS, number))
        write_rest(temporary, layout, ranges, occurrences)


def count_shard(task: CountShard, folder: Path) -> Mapping[str, object]:
    """Sorted runs of a shard's pairs."""
    (manifest,) = task.inputs
    sequences, first_user = read_shard(manifest.parent, task.number)
    layout = task.period.layout(sequences.num_items)
    users = first_user + np.arange(sequences.num_users)
    runs = write_runs(
        sequences,
        fit_ends(sequences, task.period.fit_on),
        fold_of(task.period.seed, users, task.period.num_folds),
        layout,
        folder,
        task.max_pairs,
    )
    cuts, sums, begin = [], [], 0
    places = cut_runs(runs, layout, task.ranges)
    for (words, count_W), at in zip(runs, places, strict=True):
        cuts.append((begin + at).tolist())
        spans = [slice(low, high) for low, high in pairwise(at.tolist())]
        sums.append([_sum((words[span], count_W[span])) for span in spans])
        begin += len(words)
    return {"cuts": cuts, "sums": sums}


def join_range(task: JoinRange, folder: Path) -> Mapping[str, object]:
    """One range of items, of all shards' runs."""
    runs = [
        run
        for manifest in task.inputs
        for run in _read_slices(manifest.parent, task.number)
    ]
    write_joined(runs, folder / JOINED)
    return {}


def _read_slices(shard: Path, number: int) -> list[Run]:
    """Of each of a shard's runs what one range of items has there.

    Raises:
        FileNotFoundError, DamagedError: naming the file.
    """
    facts: dict[str, Any] = read_part(shard, {"cuts": list, "sums": list})
    words_type, counts_type = (field.type.to_pandas_dtype() for field in SCHEMA)
    runs = []
    for cuts, sums in zip(facts["cuts"], facts["sums"], strict=True):
        low, size = cuts[number], cuts[number + 1] - cuts[number]
        run = (
            _read_slice(shard / WORDS, words_type, low, size),
            _read_slice(shard / COUNTS, counts_type, low, size),
        )
        if _sum(run) != sums[number]:
            raise DamagedError(f"{shard} is damaged (sha256 of a range): {MEND}")
        runs.append(run)
    return runs


def _read_slice(path: Path, kind: Any, low: int, size: int) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {MEND}")
    return np.fromfile(path, kind, size, offset=low * np.dtype(kind).itemsize)


def _sum(run: Run) -> str:
    whole = hashlib.sha256()
    for array in run:
        whole.update(np.ascontiguousarray(array).data)
    return whole.hexdigest()
