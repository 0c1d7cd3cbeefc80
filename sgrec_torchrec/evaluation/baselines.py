"""The systems that a generator must beat, each behind the same three arguments.

All three are item graphs: popularity is the graph without edges (every score ties at
zero, and ties rank by popularity, then item index), co-visitation the graph without
text. Formulas and figures: ANCHORS.md, repeated in ``item_graph.graph``.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.item_graph.graph import ItemGraph, build_graph
from sgrec_torchrec.schema import EvalRows, Int32Array, SplitLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What the baselines know: a log, the period to learn from, the graph of it."""

    split: SplitLog
    graph: ItemGraph
    """Fitted on ``fit_on``."""
    config: GraphConfig
    """Its ``text_weight`` does not matter: co-visitation has none."""
    fit_on: str
    filter_seen: bool
    """Leave out the items of a row's own history."""


Baseline = Callable[[Fitted, EvalRows, int], Int32Array]
"""(fitted, rows, k) -> int32 [E, k] items, best first, -1 beyond the catalogue."""


def popularity(fitted: Fitted, rows: EvalRows, k: int) -> Int32Array:
    """The items with most events in the fitted period, the same for every row."""
    empty = dataclasses.replace(
        fitted.graph,
        indptr_N1=np.zeros(fitted.graph.num_items + 1, dtype=np.int64),
        neighbours_E=np.empty(0, dtype=np.int32),
        weights_E=np.empty(0, dtype=np.float32),
    )
    return _top(empty, fitted, rows, k)


def covisitation(fitted: Fitted, rows: EvalRows, k: int) -> Int32Array:
    """What is bought or seen near the items of the history."""
    config = dataclasses.replace(fitted.config, text_weight=0.0)
    graph = build_graph(fitted.split, config, fitted.fit_on)
    return _top(graph, fitted, rows, k)


def item_graph(fitted: Fitted, rows: EvalRows, k: int) -> Int32Array:
    """Co-visits and text together."""
    return _top(fitted.graph, fitted, rows, k)


BASELINES: dict[str, Baseline] = {
    "popularity": popularity,
    "co-visitation": covisitation,
    "item graph": item_graph,
}


def _top(graph: ItemGraph, fitted: Fitted, rows: EvalRows, k: int) -> Int32Array:
    return graph.top_items(fitted.split.sequences, rows, k, fitted.filter_seen)
