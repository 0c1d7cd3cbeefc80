"""A graph's form, chosen on the valid rows: turns a GraphConfig into a complete one.

Where ``text_weight`` is None the search goes through ``GRID`` field by field, then
through the text weight once more; it keeps a value only if NDCG@10 on the valid rows
rises, with the graph fitted on the train period alone. Nothing of the test rows is
read. With ``text_weight`` set by hand nothing is searched, so any other form can be
had too.

Scores are linear in the graph: candidates that differ in decay or text weight alone are
asked in one walk over the edges of at most ``MAX_ROWS`` histories. The log's pairs
are counted once and weighed once for each column exponent and backward weight tried;
the text is multiplied once for each form, for the items of these rows' histories.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.item_graph.covisitation import covisitation_edges, fit_ends
from sgrec_torchrec.item_graph.graph import histories
from sgrec_torchrec.item_graph.pair_counts import PairCounts, counted
from sgrec_torchrec.item_graph.rank_kernels import rank_targets
from sgrec_torchrec.item_graph.row_order import arrays_of, rows_of
from sgrec_torchrec.item_graph.text import text_edges
from sgrec_torchrec.schema import EvalRows, Int32Array, Int64Array, SplitLog

TEXT_WEIGHTS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0)
Grid = tuple[tuple[str, tuple[float, ...]], ...]
GRID: Grid = (
    ("text_weight", TEXT_WEIGHTS),
    ("decay", (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)),
    ("column_exponent", (0.0, 0.15, 0.3)),
    ("backward_weight", (0.3, 0.5, 1.0)),
    ("binary_text", (False, True)),
    ("text_floor", (0.0, 0.2)),
    ("text_weight", TEXT_WEIGHTS),
)
MAX_ROWS = 5_000
TOP = np.arange(1, 11)
REPEAT_SHARE = 0.01


def choose_graph(
    split: SplitLog,
    config: GraphConfig,
    *,
    filter_seen: bool | None = None,
    grid: Grid = GRID,
    counts: PairCounts | None = None,
) -> GraphConfig:
    """Fill ``text_weight``, and tune the other fields of ``grid``, on the valid rows.

    Deterministic: of equal candidates the first one tried stays. Ranks do not
    communicate, and every rank comes to the same choice.

    Args:
        config: returned as it is where ``text_weight`` is set.
        filter_seen: whether items of the history are left out. None: they are if
            fewer than 1 % of the valid targets stand in their own history.
        counts: of the train period, where they are there; counted else.

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
    end_U, reach = fit_ends(split.sequences, "train"), config.max_distance
    with counted(split.sequences, end_U, max_distance=reach, given=counts) as known:
        return _search(_Trial(split, rows, filter_seen, known), config, grid)


def _search(trial: "_Trial", config: GraphConfig, grid: Grid) -> GraphConfig:
    """Field by field, what raises NDCG@10 of the form before."""
    best = dataclasses.replace(config, text_weight=0.0)
    (best_ndcg,) = trial.ndcg_at_10([best])
    for name, values in grid:
        tried = [dataclasses.replace(best, **{name: value}) for value in values]  # type: ignore[arg-type]
        start = best
        tried = [one for one in tried if one != start and not _says_the_same(one, name)]
        for candidate, ndcg in zip(tried, trial.ndcg_at_10(tried), strict=True):
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
    history: tuple[Int64Array, Int32Array],
    target_E: Int32Array,
    popularity_N: Int64Array,
    edges: tuple[sp.csr_matrix, sp.csr_matrix],
    *,
    decays: Sequence[float],
    text_weights: Sequence[float],
    score_history: int,
    filter_seen: bool,
) -> Int64Array:
    """Place of each row's target among all items, from 1; 0 where its score is 0.

    Holds 17 D + 4 bytes an item.

    Args:
        history: as ``histories`` returns it.
        edges: visits and text, whose rows are those of the histories' items at least.
        decays, text_weights: D and W forms, all asked with each other.

    Returns:
        int64 [E, D, W].
    """
    num_items = len(popularity_N)
    by_popularity = np.argsort(-popularity_N, kind="stable")
    tie_rank_N = np.empty(num_items, dtype=np.int64)
    tie_rank_N[by_popularity] = np.arange(num_items)
    rank_EDW = np.zeros((len(target_E), len(decays), len(text_weights)), np.int64)
    rank_targets(
        history,
        target_E,
        (arrays_of(edges[0]), arrays_of(edges[1])),
        (np.array(decays), np.array(text_weights), score_history),
        filter_seen,
        tie_rank_N,
        (
            np.zeros((num_items, 2, len(decays))),
            np.zeros(num_items, dtype=np.bool_),
            np.empty(num_items + 1, dtype=np.int32),
        ),
        rank_EDW,
    )
    return rank_EDW


class _Trial:
    """The valid rows, asked by forms of the graph; edges are made once per form."""

    def __init__(
        self, split: SplitLog, rows: EvalRows, filter_seen: bool, counts: PairCounts
    ) -> None:
        self.split = split
        self.rows = rows
        self.filter_seen = filter_seen
        self.counts = counts
        self.history = histories(split.sequences, rows)
        self.is_asked_N = np.zeros(split.sequences.num_items, dtype=np.bool_)
        self.is_asked_N[self.history[1]] = True
        self.edges: dict[tuple[object, ...], sp.csr_matrix] = {}

    def ndcg_at_10(self, configs: Sequence[GraphConfig]) -> list[float]:
        """Mean over the rows of 1 / log2(1 + rank), 0 beyond rank 10.

        A target that the graph does not reach counts as missed: the form is chosen
        for what the graph says, not for how popularity breaks its ties. Forms that
        differ in nothing but decay and text weight are asked together.
        """
        found: dict[GraphConfig, float] = {}
        for same in _alike(configs):
            decays = sorted({one.decay for one in same})
            weights = sorted({float(one.text_weight or 0.0) for one in same})
            rank_EDW = target_ranks(
                self.history,
                self.rows.target_E,
                self.counts.popularity(),
                self._edges(same[0], with_text=any(weights)),
                decays=decays,
                text_weights=weights,
                score_history=same[0].score_history,
                filter_seen=self.filter_seen,
            )
            # Of whole numbers: equal forms have equal sums, asked with whichever.
            at_rank = np.stack(
                [(rank_EDW == rank).sum(axis=0) for rank in TOP], axis=-1
            )
            gain = (at_rank / np.log2(1.0 + TOP)).sum(axis=-1) / len(rank_EDW)
            for one in same:
                place = weights.index(float(one.text_weight or 0.0))
                found[one] = float(gain[decays.index(one.decay), place])
        return [found[one] for one in configs]

    def _edges(
        self, config: GraphConfig, *, with_text: bool
    ) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Visits and text in this form, of the items of these rows' histories."""
        visits, text = (_form(kind, config) for kind in ("visits", "text"))
        if visits not in self.edges:
            (self.edges[visits],) = covisitation_edges(
                self.counts, [config], wanted_N=self.is_asked_N
            )
        num_items = self.split.sequences.num_items
        if not with_text:
            return self.edges[visits], sp.csr_matrix((num_items, num_items))
        if text not in self.edges:
            self.edges[text] = text_edges(
                self.split.catalogue, config, wanted_N=self.is_asked_N
            )
        return self.edges[visits], self.edges[text]


def _alike(configs: Sequence[GraphConfig]) -> list[list[GraphConfig]]:
    """Groups that differ in nothing but decay and text weight."""
    groups: dict[GraphConfig, list[GraphConfig]] = {}
    for one in configs:
        plain = dataclasses.replace(one, decay=0.0, text_weight=0.0)
        groups.setdefault(plain, []).append(one)
    return list(groups.values())


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
