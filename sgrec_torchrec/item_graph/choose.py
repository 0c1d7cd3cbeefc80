"""A graph's form, chosen on the valid rows: turns a GraphConfig into a complete one.

Where ``text_weight`` is None the search goes through ``GRID`` field by field, then
through the text weight once more; it keeps a value only if NDCG@10 on the valid rows
rises, with the graph fitted on the train period alone. Nothing of the test rows is
read. With ``text_weight`` set by hand nothing is searched, so any other form can be
had too.

Scores are linear in the graph, so a candidate costs one sparse sum over at most
``MAX_ROWS`` rows: visits and text are scored once per form and decay. The log is
counted once for each column exponent and backward weight tried, and the text
multiplied once for each form. On 1e9 events choose on a sample of users and set the
result by hand.
"""

import dataclasses

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.item_graph.covisitation import (
    covisitation_edges,
    fit_ends,
    popularity,
)
from sgrec_torchrec.item_graph.graph import histories, history_weights
from sgrec_torchrec.item_graph.row_order import rows_of
from sgrec_torchrec.item_graph.text import text_edges
from sgrec_torchrec.schema import EvalRows, Int32Array, Int64Array, SplitLog

TEXT_WEIGHTS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0)
GRID: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("text_weight", TEXT_WEIGHTS),
    ("decay", (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)),
    ("column_exponent", (0.0, 0.15, 0.3)),
    ("backward_weight", (0.3, 0.5, 1.0)),
    ("binary_text", (False, True)),
    ("text_floor", (0.0, 0.2)),
    ("text_weight", TEXT_WEIGHTS),
)
MAX_ROWS = 5_000
REPEAT_SHARE = 0.01


def choose_graph(
    split: SplitLog,
    config: GraphConfig,
    *,
    filter_seen: bool | None = None,
    grid: tuple[tuple[str, tuple[float, ...]], ...] = GRID,
) -> GraphConfig:
    """Fill ``text_weight``, and tune the other fields of ``grid``, on the valid rows.

    Deterministic: of equal candidates the first one tried stays. Ranks do not
    communicate, and every rank comes to the same choice.

    Args:
        config: returned as it is where ``text_weight`` is set.
        filter_seen: whether items of the history are left out. None: they are if
            fewer than 1 % of the valid targets stand in their own history.

    Raises:
        ValueError: if there are no valid rows to choose by.
    """
    if config.text_weight is not None:
        return config
    if not len(split.valid):
        raise ValueError(
            "graph.text_weight is None but the log has no valid rows to choose it by: "
            "set graph.text_weight"
        )
    rows = _some_rows(split.valid)
    if filter_seen is None:
        filter_seen = repeat_share(split, rows) < REPEAT_SHARE
    trial = _Trial(split, rows, filter_seen)
    best = dataclasses.replace(config, text_weight=0.0)
    best_ndcg = trial.ndcg_at_10(best)
    for name, values in grid:
        start = best
        for value in values:
            candidate = dataclasses.replace(start, **{name: value})  # type: ignore[arg-type]
            if candidate == start or _says_the_same(candidate, name):
                continue
            ndcg = trial.ndcg_at_10(candidate)
            if ndcg > best_ndcg:
                best, best_ndcg = candidate, ndcg
    return best


def repeat_share(split: SplitLog, rows: EvalRows) -> float:
    """Share of the rows whose target stands in its own history already."""
    indptr, items_H = histories(split.sequences, rows)
    row = rows_of(indptr)
    repeated = np.unique(row[items_H == rows.target_E[row]])
    return len(repeated) / len(rows)


def target_ranks(
    scores: sp.csr_matrix, target_E: Int32Array, popularity_N: Int64Array
) -> Int64Array:
    """Place of each row's target among all items, from 1; 0 where its score is 0.

    Args:
        scores: float64 CSR [E, N], columns sorted, absent means 0.
    """
    tie_rank = np.argsort(np.argsort(-popularity_N, kind="stable"))
    row = rows_of(scores.indptr)
    own_E = np.asarray(scores[np.arange(len(target_E)), target_E]).ravel()
    ahead = scores.data > own_E[row]
    tied = scores.data == own_E[row]
    ahead |= tied & (tie_rank[scores.indices] < tie_rank[target_E][row])
    rank_E = 1 + np.bincount(row[ahead], minlength=len(target_E))
    return np.where(own_E > 0, rank_E, 0)


class _Trial:
    """Scores of the valid rows by each addend of the graph, made once per form."""

    def __init__(self, split: SplitLog, rows: EvalRows, filter_seen: bool) -> None:
        self.split = split
        self.rows = rows
        self.end_U = fit_ends(split.sequences, "train")
        self.popularity_N = popularity(split.sequences, self.end_U)
        self.history = histories(split.sequences, rows)
        num_items = split.sequences.num_items
        seen_key = rows_of(self.history[0]) * num_items + self.history[1]
        self.seen_key = np.unique(seen_key) if filter_seen else seen_key[:0]
        self.edges: dict[tuple[object, ...], sp.csr_matrix] = {}
        self.newest: dict[str, tuple[tuple[object, ...], sp.csr_matrix]] = {}

    def ndcg_at_10(self, config: GraphConfig) -> float:
        """Mean over the rows of 1 / log2(1 + rank), 0 beyond rank 10.

        A target that the graph does not reach counts as missed: the form is chosen
        for what the graph says, not for how popularity breaks its ties.
        """
        scores = self._scores("visits", config)
        if config.text_weight:
            scores = scores + config.text_weight * self._scores("text", config)
        rank_E = target_ranks(scores.tocsr(), self.rows.target_E, self.popularity_N)
        hit = rank_E[(rank_E > 0) & (rank_E <= 10)]
        return float((1.0 / np.log2(1.0 + hit)).sum() / len(rank_E))

    def _scores(self, kind: str, config: GraphConfig) -> sp.csr_matrix:
        """Scores by one addend, the newest kept: only beta changes most of the time."""
        form = _form(kind, config)
        key = (*form, config.decay)
        if kind not in self.newest or self.newest[kind][0] != key:
            indptr, items_H = self.history
            weights = history_weights(
                indptr,
                items_H,
                decay=config.decay,
                score_history=config.score_history,
                num_items=self.split.sequences.num_items,
            )
            edges = self._edges(kind, form, config)
            self.newest[kind] = (key, self._unseen(weights @ edges))
        return self.newest[kind][1]

    def _edges(
        self, kind: str, form: tuple[object, ...], config: GraphConfig
    ) -> sp.csr_matrix:
        if form not in self.edges and kind == "visits":
            self.edges[form] = covisitation_edges(
                self.split.sequences, config, self.end_U, self.popularity_N
            )
        elif form not in self.edges:
            self.edges[form] = text_edges(self.split.catalogue, config)
        return self.edges[form]

    def _unseen(self, scores: sp.csr_matrix) -> sp.csr_matrix:
        """The scores, without the items to be left out."""
        scores = scores.tocsr()
        key = rows_of(scores.indptr) * scores.shape[1] + scores.indices
        scores.data[np.isin(key, self.seen_key)] = 0.0
        scores.eliminate_zeros()
        scores.sort_indices()
        return scores


def _form(kind: str, config: GraphConfig) -> tuple[object, ...]:
    """The settings that the edges of one addend depend on."""
    if kind == "visits":
        return (kind, config.column_exponent, config.backward_weight)
    return (kind, config.binary_text, config.text_floor)


def _says_the_same(config: GraphConfig, name: str) -> bool:
    """True where the text has no weight, so that its form cannot matter."""
    return not config.text_weight and name in ("binary_text", "text_floor")


def _some_rows(rows: EvalRows) -> EvalRows:
    """All rows, or MAX_ROWS of them at equal steps."""
    if len(rows) <= MAX_ROWS:
        return rows
    return rows.take(np.linspace(0, len(rows) - 1, MAX_ROWS).astype(np.int64))
