"""The systems that a generator must beat, each behind the same three arguments.

All are item graphs: popularity is the graph without edges (every score ties at zero,
and ties rank by popularity, then item index), co-visitation the graph without text,
item-kNN the cosines of items over users, own history every item's edge to itself.
Formulas and figures: ANCHORS.md, repeated in ``item_graph.graph``.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.evaluation.ranking import metric_values, target_ranks
from sgrec_torchrec.item_graph.covisitation import fit_ends
from sgrec_torchrec.item_graph.covisitation import popularity as count_events
from sgrec_torchrec.item_graph.graph import ItemGraph, build_graph, graph_of
from sgrec_torchrec.item_graph.heaviest import heaviest_product
from sgrec_torchrec.schema import EvalRows, Int32Array, Sequences, SplitLog

NEIGHBOURS = (20, 100, 500)
"""Sizes that item-kNN chooses from."""
MAX_CHOICE_ROWS = 3_000
OWN_HISTORY = "own history"
ALMOST_FREQUENCY = 0.99999
"""Decay an event: counts decide, and age between equal ones."""


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


def own_history(fitted: Fitted, rows: EvalRows, k: int) -> Int32Array:
    """What the user had most often, of those the newest; then popular items.

    P-TopFreq of Li et al., "A Next Basket Recommendation Reality Check", TOIS 2023.
    Strong wherever items are bought again, empty where seen items are left out.
    """
    itself = GraphConfig(
        text_weight=0.0, decay=ALMOST_FREQUENCY, score_history=10_000, max_neighbours=1
    )
    graph = graph_of(
        sp.csr_matrix(sp.eye_array(fitted.graph.num_items)),
        fitted.graph.popularity_N,
        itself,
    )
    return _top(graph, fitted, rows, k)


def item_knn(fitted: Fitted, rows: EvalRows, k: int) -> Int32Array:
    """Cosine of items over the users who had them, summed over the history.

    Sarwar et al., WWW 2001, on sets of users. How many neighbours an item keeps is
    chosen by NDCG@10 on the valid rows, with cosines of the train period.
    """
    split = fitted.split
    num_neighbours = NEIGHBOURS[0]
    if len(split.valid):
        valid = split.valid
        some = np.linspace(0, len(valid) - 1, min(len(valid), MAX_CHOICE_ROWS))
        asked = valid.take(some.astype(np.int64))
        cosines = _cosines(split.sequences, "train")
        graphs = [_knn(cosines, size, "train", split) for size in NEIGHBOURS]
        ndcg = [_ndcg_at_10(_top(one, fitted, asked, 10), asked) for one in graphs]
        num_neighbours = NEIGHBOURS[int(np.argmax(ndcg))]
    cosines = _cosines(split.sequences, fitted.fit_on)
    graph = _knn(cosines, num_neighbours, fitted.fit_on, split)
    return _top(graph, fitted, rows, k)


BASELINES: dict[str, Baseline] = {
    "popularity": popularity,
    OWN_HISTORY: own_history,
    "item-kNN": item_knn,
    "co-visitation": covisitation,
    "item graph": item_graph,
}


def _top(graph: ItemGraph, fitted: Fitted, rows: EvalRows, k: int) -> Int32Array:
    return graph.top_items(fitted.split.sequences, rows, k, fitted.filter_seen)


def _cosines(sequences: Sequences, fit_on: str) -> sp.csr_matrix:
    """Cosines of the most similar items, of those with ``max(NEIGHBOURS)`` each."""
    user_R, row_R = sequences.events_until(fit_ends(sequences, fit_on))
    had_NU = sp.csr_matrix(
        (np.ones(len(row_R)), (sequences.items_R[row_R], user_R)),
        shape=(sequences.num_items, sequences.num_users),
    )
    had_NU.data[:] = 1.0
    num_users_N = np.diff(had_NU.indptr)
    scale = sp.diags_array(1.0 / np.sqrt(np.maximum(num_users_N, 1)))
    unit = sp.csr_matrix(scale @ had_NU)
    # One more than asked: the item itself leaves its own row.
    near = heaviest_product(unit, sp.csr_matrix(unit.T), max(NEIGHBOURS) + 1).tocoo()
    other = near.row != near.col
    return sp.csr_matrix(
        (near.data[other], (near.row[other], near.col[other])), shape=near.shape
    )


def _knn(cosines: sp.csr_matrix, size: int, fit_on: str, split: SplitLog) -> ItemGraph:
    whole_history = GraphConfig(
        text_weight=0.0, decay=1.0, score_history=10_000, max_neighbours=size
    )
    end_U = fit_ends(split.sequences, fit_on)
    return graph_of(cosines, count_events(split.sequences, end_U), whole_history)


def _ndcg_at_10(items_EK: Int32Array, rows: EvalRows) -> float:
    rank_E = target_ranks(items_EK, rows.target_E)
    return float(metric_values(rank_E, (10,))[:, 1].mean())
