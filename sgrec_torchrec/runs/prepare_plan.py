"""What preparing a log would take: stages by tasks, bytes, memory and CPU time.

Nothing is prepared. Bytes follow from the layouts of what stages write, tasks from how
they are cut, time and memory from what was measured on smaller logs (``plan_costs``):
what was not measured is None.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.evidence.builders import FORWARD, MAX_DISTANCE
from sgrec_torchrec.evidence.cross_fit import ROWS_PER_TASK
from sgrec_torchrec.evidence.gather import num_features
from sgrec_torchrec.evidence.texts import NEAREST_TEXTS
from sgrec_torchrec.files.room import GIB
from sgrec_torchrec.item_graph.pair_counts import MAX_PAIRS
from sgrec_torchrec.item_graph.pair_layout import Layout
from sgrec_torchrec.item_graph.pair_runs import WORD_BYTES, words_of_users
from sgrec_torchrec.logs.measure import codes_for
from sgrec_torchrec.logs.split_store import EVENTS_PER_GROUP
from sgrec_torchrec.runs import plan_costs as costs
from sgrec_torchrec.runs.plan_size import LogSize

EDGE_BYTES, TEXT_BYTES, PLACE_BYTES = 8, 12, 8
TASK_PAIR_BYTES, TASK_EVENT_BYTES = 24, 36
"""Of a task of the pairs: ``pair_counts`` says the first; a shard is held twice."""
MAIN_EVENT_BYTES = 50
"""Of the process that hands them out: 18 for the split, 32 to count occurrences."""
SPARSE = {"forward": FORWARD.max_distance, "backward": FORWARD.max_distance}
SPARSE["around"] = MAX_DISTANCE
"""Relation -> how far its pairs reach: it has no more edges than there are pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one stage takes; None where it was not measured."""

    name: str
    disk: float
    memory_gib: float | None
    cpu_s: float | None
    tasks: tuple[int, ...] = (1,)
    """One after the other so many at a time; (1,) is one process."""

    def wall_s(self, cores: int) -> float | None:
        """On so many cores; the smallest number of tasks at a time bounds them."""
        if self.cpu_s is None:
            return None
        return self.cpu_s / min(cores, *self.tasks)


def stages(config: RunConfig, size: LogSize) -> list[Stage]:
    """All stages of a run in their order.

    Raises:
        ValueError: where no such log could be prepared, and what to set.
    """
    layout = _layout(config, size)
    codes = config.tokens.num_codes or codes_for(config, size.items)
    most_pairs = 2 * layout.max_distance * size.events
    task_bytes = TASK_PAIR_BYTES * min(MAX_PAIRS, most_pairs)
    task_bytes += TASK_EVENT_BYTES * min(EVENTS_PER_GROUP, size.events)
    memory = {
        "import": costs.IMPORT_LIMIT_GIB + costs.LIBRARIES_GIB,
        "pairs": task_bytes / GIB + costs.LIBRARIES_GIB,
    }
    rows = {
        "evidence": min(config.evidence.max_rows, size.events),
        "teacher": min(config.evidence.max_taught, size.events),
    }
    folds = config.evidence.num_folds
    blocks = {name: math.ceil(count / ROWS_PER_TASK) for name, count in rows.items()}
    tasks = {
        "pairs": (
            math.ceil(size.events / EVENTS_PER_GROUP),
            math.ceil(most_pairs / MAX_PAIRS),
        ),
        # Relations without each fold, and those of the whole; then blocks of rows.
        "evidence": (folds + 1, blocks["evidence"]),
        "teacher": (folds, blocks["teacher"]),
    }
    found = []
    for name, disk in _disk(config, size, layout, codes).items():
        measured = costs.MEASURED[name]
        cpu_s = _cpu_s(measured, size, rows.get(name, 0))
        if name == "tokens":
            measured_codes = costs.MEASURED_CODES * costs.MEASURED_LEVELS
            cpu_s *= codes * config.tokens.num_levels / measured_codes
        is_known = name != "tokens" or config.tokens.source == "embedding"
        stage = Stage(
            name=name,
            disk=disk,
            memory_gib=memory.get(name, _memory_gib(measured, size)),
            cpu_s=cpu_s if is_known else None,
            tasks=tasks.get(name, (1,)),
        )
        found.append(stage)
    return found


def _layout(config: RunConfig, size: LogSize) -> Layout:
    return Layout(
        num_items=size.items,
        num_folds=config.evidence.num_folds,
        max_distance=max(MAX_DISTANCE, config.graph.max_distance),
    )


def _cpu_s(measured: costs.Measured, size: LogSize, rows: int) -> float:
    grows_s = measured.cpu_s - costs.ROW_CPU_S * measured.rows
    return grows_s * times_measured(measured, size) + costs.ROW_CPU_S * rows


def times_measured(measured: costs.Measured, size: LogSize) -> float:
    """How many of the logs that were measured this one is; the upper bound."""
    parts = ((size.events, measured.events), (size.items, measured.items))
    return max(count / one for count, one in parts if one)


def _memory_gib(measured: costs.Measured, size: LogSize) -> float | None:
    if measured.peaks is None:
        return None
    (fewer, low), (more, high) = measured.peaks
    events = times_measured(measured, size) * measured.events
    slope = (high - low) / (more - fewer)
    return max(costs.LIBRARIES_GIB, low + slope * (events - fewer))


def _disk(
    config: RunConfig, size: LogSize, layout: Layout, codes: int
) -> Mapping[str, float]:
    """Stage -> bytes that it leaves: at most, where it keeps the heaviest of edges."""
    evidence, num_items = config.evidence, size.items
    names = evidence.relation_names()
    folds = 2 * PLACE_BYTES * layout.num_folds * num_items
    reach = config.graph.max_distance if config.graph.text_weight == 0 else None
    graph = _edges(size, config.graph.max_neighbours, reach)
    relations = sum(
        _edges(size, evidence.max_neighbours, SPARSE.get(name)) for name in names
    )
    texts = min(evidence.max_neighbours, num_items)
    held_out = 4 * (1 + num_features(len(names))) * evidence.num_candidates
    rows = min(evidence.max_rows, size.events)
    starts = PLACE_BYTES * num_items
    split = size.events * costs.SPLIT_EVENT_BYTES + size.users * costs.SPLIT_USER_BYTES
    split += size.catalogue_bytes + num_items * costs.MAPPED_ITEM_BYTES
    found = {
        "import": size.log_bytes + size.catalogue_bytes,
        "split": split,
        "pairs": costs.PAIR_BYTES * _pairs(size, layout) + folds,
        "graph": EDGE_BYTES * graph + 2 * starts,
        "texts": TEXT_BYTES * num_items * (texts + min(NEAREST_TEXTS, num_items))
        + 2 * starts,
        "evidence": EDGE_BYTES * relations
        + (len(names) + 2) * starts
        + rows * (held_out + PLACE_BYTES),
    }
    if config.pretrain.teacher_weight != 0 and config.pretrain.teacher_samples != 0:
        taught = min(evidence.max_taught, size.events)
        found["teacher"] = taught * (PLACE_BYTES + 8 * evidence.taught_items)
    levels = config.tokens.num_levels
    width = config.tokens.behaviour_dim
    codebook = 4 * levels * codes * width
    found["tokens"] = num_items * (4 * levels + costs.TOKEN_ID_BYTES) + codebook
    return found


def _edges(size: LogSize, limit: int, reach: int | None) -> int:
    """At most: of each item, and of pairs that reach so far."""
    most = size.items * min(limit, size.items)
    return most if reach is None else min(most, 2 * reach * size.events)


def _pairs(size: LogSize, layout: Layout) -> float:
    """Where all users have as many events, and no two pairs are equal."""
    mean = min(math.ceil(size.events / size.users), np.iinfo(np.int32).max)
    per_user = int(words_of_users(np.array([mean], np.int32), layout.max_distance)[0])
    return per_user * size.events / mean


def while_counting(config: RunConfig, size: LogSize) -> tuple[float, float]:
    """Bytes on disk while pairs are counted; bytes of the log in the main process."""
    layout = _layout(config, size)
    main = MAIN_EVENT_BYTES * size.events
    main += 2 * PLACE_BYTES * layout.num_folds * size.items
    return WORD_BYTES * _pairs(size, layout), main


def while_asking(config: RunConfig, size: LogSize) -> float:
    """Bytes on disk of the relations without each fold, of what its rows ask about."""
    evidence = config.evidence
    rows = min(max(evidence.max_rows, evidence.max_taught), size.events)
    asked = min(
        size.items, math.ceil(rows / evidence.num_folds * evidence.score_history)
    )
    names = evidence.relation_names()
    edges = len(names) * asked * min(evidence.max_neighbours, size.items)
    starts = PLACE_BYTES * (len(names) + 2) * size.items
    return evidence.num_folds * (EDGE_BYTES * edges + starts)
