"""The item graph: sparse item-to-item weights, their file, and scores of histories.

A[i, j] = C[i, j] / (1 + pop_i)^a / (1 + pop_j)^b + beta S[i, j]^2, the formula of
ANCHORS.md, from co-visits C, popularity pop and text similarity S. A history h, newest
first h_0, h_1, ..., scores item j by sum over d of decay^d A[h_d, j].

Scale: N items hold at most N max_neighbours edges of 8 bytes each. At 1e8 items take
max_neighbours 50 (40 GB); ``load`` maps the files into memory, and a batch of
histories touches only the rows of the items that it holds. ``build_graph`` appends rows
by ranges of items; the text's lie in files meanwhile, 12 bytes an edge.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.distributed.main_rank import verifies_files
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.files.array_folder import read_arrays, write_arrays
from sgrec_torchrec.files.growing_array import Array, forget
from sgrec_torchrec.files.run_folder import GRAPH_MANIFEST
from sgrec_torchrec.item_graph.covisitation import covisit_blocks, fit_ends
from sgrec_torchrec.item_graph.pair_counts import PairCounts, counted
from sgrec_torchrec.item_graph.row_files import (
    BLOCK_ENTRIES,
    Csr,
    RowWriter,
    written_rows,
)
from sgrec_torchrec.item_graph.row_order import (
    BoolArray,
    first_k,
    keep_heaviest,
    matrix_of,
    pieces,
    rows_in,
    rows_of,
    spans,
)
from sgrec_torchrec.item_graph.text import text_blocks
from sgrec_torchrec.schema import (
    EvalRows,
    Float32Array,
    Int32Array,
    Int64Array,
    Sequences,
    SplitLog,
)

FORMAT_VERSION = 2
BATCH_ROWS = 512
ARRAYS = ("indptr_N1", "neighbours_E", "weights_E", "popularity_N")
EDGE_FILES = tuple(f"{name}.npy" for name in ARRAYS[:3])
ARRAY_TYPES = ("int64", "int32", "float32", "int64")


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemGraph:
    """Edges of item i: entries ``indptr_N1[i] : indptr_N1[i + 1]``, by rising item.

    Here E counts edges, and H events of histories laid end to end.
    """

    indptr_N1: Int64Array
    neighbours_E: Int32Array
    weights_E: Float32Array
    """All > 0."""
    popularity_N: Int64Array
    """Events of each item in the period the graph was fitted on: breaks ties."""
    decay: float
    score_history: int

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.indptr_N1) - 1

    def validate(self) -> None:
        """Check shapes, ranges and order once, where a graph enters the process.

        Raises:
            ValueError: naming the array and the first entry that breaks the contract.
        """
        for name, kind in zip(ARRAYS, ARRAY_TYPES, strict=True):
            if getattr(self, name).dtype != kind:
                raise ValueError(f"{name} is {getattr(self, name).dtype}, not {kind}")
        if self.indptr_N1[0] != 0 or (np.diff(self.indptr_N1) < 0).any():
            raise ValueError("indptr_N1: must start at 0 and never fall")
        sizes = (len(self.neighbours_E), len(self.weights_E))
        if sizes != (self.indptr_N1[-1],) * 2:
            raise ValueError(
                f"indptr_N1 ends at {self.indptr_N1[-1]}; neighbours_E and weights_E "
                f"have {sizes} entries"
            )
        if len(self.popularity_N) != self.num_items:
            raise ValueError(
                f"popularity_N has {len(self.popularity_N)} items, "
                f"indptr_N1 {self.num_items}"
            )
        for low, part in self._parts(self.neighbours_E):
            bad = (part < 0) | (part >= self.num_items)
            _refuse(bad, low, "neighbours_E", f"is outside [0, {self.num_items})")
        for low, part in self._parts(self.weights_E):
            _refuse(~(part > 0), low, "weights_E", "is not > 0")
        for low, part in self._parts(self.neighbours_E):
            falls = part[1:] <= part[:-1]
            # The first of each row may.
            ends = [low + 1, low + len(part)]
            first, last = np.searchsorted(self.indptr_N1, ends)
            falls[self.indptr_N1[first:last] - low - 1] = False
            said = "is not smaller than the next one of its row"
            _refuse(falls, low, "neighbours_E", said)

    def _parts(self, edges: Array) -> Iterator[tuple[int, Array]]:
        """Yield (first, part): parts overlap by an edge; pages that were read go."""
        for low in range(0, len(edges), BLOCK_ENTRIES):
            yield low, edges[low : low + BLOCK_ENTRIES + 1]
            forget(edges)

    def save(self, folder: Path, made_from: Mapping[str, object] | None = None) -> None:
        """Write four .npy files and ``graph.json`` with their SHA-256, all or none.

        Args:
            made_from: settings to keep beside them, for the reader's eyes.
        """
        facts = {
            "format_version": FORMAT_VERSION,
            "decay": self.decay,
            "score_history": self.score_history,
            "made_from": dict(made_from or {}),
        }
        arrays = {name: getattr(self, name) for name in ARRAYS}
        write_arrays(folder / GRAPH_MANIFEST, arrays, facts)

    @classmethod
    def load(cls, folder: Path) -> "ItemGraph":
        """Read what ``save`` wrote; the arrays are memory-mapped, read-only.

        They are read, to be verified, by one process of a host (``verifies_files``).

        Raises:
            FileNotFoundError: naming the file that is missing.
            ValueError: naming the file that is damaged or of another format.
        """
        arrays, facts = read_arrays(
            folder / GRAPH_MANIFEST,
            ARRAYS,
            {"decay": (float, int), "score_history": int},
            format_version=FORMAT_VERSION,
            what="the item graph",
            verify=verifies_files(),
        )
        graph = cls(
            **arrays,
            decay=facts["decay"],
            score_history=facts["score_history"],
        )
        if verifies_files():
            graph.validate()
        return graph

    def edges_from(self, items: Int32Array) -> sp.csr_matrix:
        """Rows of A for the given items, float32 CSR [len(items), N]."""
        low, high = self.indptr_N1[items], self.indptr_N1[items.astype(np.int64) + 1]
        indptr = np.concatenate([[0], np.cumsum(high - low)])
        edge = spans(low, high)
        return sp.csr_matrix(
            (self.weights_E[edge], self.neighbours_E[edge], indptr),
            shape=(len(items), self.num_items),
        )

    def score(self, indptr: Int64Array, items_H: Int32Array) -> sp.csr_matrix:
        """Scores of every item that a history reaches.

        Args:
            indptr: int64 [B + 1]; history b is ``items_H[indptr[b] : indptr[b + 1]]``,
                oldest first. Its newest ``score_history`` events take part.

        Returns:
            float64 CSR [B, N], columns sorted; absent means 0.
        """
        known, code = np.unique(items_H, return_inverse=True)
        weights = history_weights(
            indptr,
            code,
            decay=self.decay,
            score_history=self.score_history,
            num_items=len(known),
        )
        scores: sp.csr_matrix = (weights @ self.edges_from(known)).tocsr()
        scores.eliminate_zeros()
        scores.sort_indices()
        return scores

    def top_items(
        self, sequences: Sequences, rows: EvalRows, k: int, filter_seen: bool
    ) -> Int32Array:
        """The k best items of each row over the full catalogue.

        Equal scores (the zero of an unreached item included) rank by falling
        popularity, then rising item. Ranks do not communicate.

        Args:
            filter_seen: leave out the items of the row's own history.

        Returns:
            int32 [len(rows), k], best first; -1 where the catalogue has no more items.

        Raises:
            ValueError: if the log has another number of items than the graph.
        """
        if sequences.num_items != self.num_items:
            raise ValueError(
                f"the log has {sequences.num_items} items, the graph "
                f"{self.num_items}: build the graph from this log"
            )
        by_popularity = np.argsort(-self.popularity_N, kind="stable")
        top_EK = np.full((len(rows), k), -1, dtype=np.int32)
        for start in progress(
            range(0, len(rows), BATCH_ROWS), description="graph scores", unit="batch"
        ):
            batch = rows.take(np.arange(start, min(start + BATCH_ROWS, len(rows))))
            indptr, items_H = histories(sequences, batch)
            scores = self.score(indptr, items_H)
            seen = (indptr, items_H) if filter_seen else None
            top_EK[start : start + len(batch)] = _rank(scores, seen, by_popularity, k)
        return top_EK


def build_graph(
    split: SplitLog,
    config: GraphConfig,
    fit_on: str,
    out_dir: Path | None = None,
    *,
    counts: PairCounts | None = None,
) -> ItemGraph:
    """Fit the graph on the train period, or on train and valid together.

    Args:
        fit_on: "train" or "train+valid".
        out_dir: where to save it, if anywhere.
        counts: of the same period, where they are there; counted else.

    Raises:
        ValueError: where ``config.text_weight`` is None or ``fit_on`` unknown.
    """
    if config.text_weight is None:
        raise ValueError(
            "graph.text_weight is None: set it, or let choose_graph choose it"
        )
    end_U, reach = fit_ends(split.sequences, fit_on), config.max_distance
    around = None
    if out_dir is not None:
        around = out_dir.parent
        around.mkdir(parents=True, exist_ok=True)
    with (
        counted(split.sequences, end_U, max_distance=reach, given=counts) as known,
        tempfile.TemporaryDirectory(prefix="graph-", dir=around) as work,
    ):
        edges = _written(split, config, known, Path(work))
        if out_dir is None:
            edges = edges.in_memory()
        graph = _graph_of(edges, known.popularity(), config)
        if out_dir is not None:
            made_from = {"fit_on": fit_on, **dataclasses.asdict(config)}
            graph.save(out_dir, made_from)
    return graph


def _written(
    split: SplitLog, config: GraphConfig, counts: PairCounts, work: Path
) -> Csr:
    """Co-visits and text added up and cut, by ranges of items, as files."""
    num_items, limit = split.sequences.num_items, config.max_neighbours
    text, text_weight = None, config.text_weight or 0.0
    if text_weight > 0:
        blocks = text_blocks(split.catalogue, config, place=work)
        text = written_rows(work / "text", blocks)
    writer = RowWriter(work / "sums", np.float32, EDGE_FILES)
    for first, _, (visits,) in covisit_blocks(counts, [config]):
        for low, high, rows in pieces(visits, max(1, BLOCK_ENTRIES // limit)):
            edges = matrix_of(rows, num_items)
            if text is not None:
                near = text.rows(first + low, first + high)
                edges = edges + text_weight * matrix_of(near, num_items)
                forget(*text)
            writer.add(rows_in(_heaviest(edges, limit)))
    return writer.close()


def _heaviest(edges: sp.csr_matrix, limit: int) -> sp.csr_matrix:
    return keep_heaviest(edges.astype(np.float32).tocsr(), limit)


def graph_of(
    edges: sp.csr_matrix, popularity_N: Int64Array, config: GraphConfig
) -> ItemGraph:
    """Keep the heaviest ``max_neighbours`` a row and make the record of them."""
    kept = _heaviest(edges, config.max_neighbours)
    return _graph_of(Csr.of(kept), popularity_N, config)


def _graph_of(edges: Csr, popularity_N: Int64Array, config: GraphConfig) -> ItemGraph:
    return ItemGraph(
        indptr_N1=edges.starts_N1,
        neighbours_E=edges.column_E,
        weights_E=edges.value_E.astype(np.float32, copy=False),
        popularity_N=popularity_N,
        decay=config.decay,
        score_history=config.score_history,
    )


def history_weights(
    indptr: Int64Array,
    items_H: npt.NDArray[np.integer],
    *,
    decay: float,
    score_history: int,
    num_items: int,
) -> sp.csr_matrix:
    """decay^d for the event at distance d from a history's end, d < score_history.

    Args:
        indptr, items_H: histories, oldest first, as ``histories`` returns them.

    Returns:
        float64 CSR [B, num_items]; an item that occurs twice has the sum.
    """
    row = rows_of(indptr)
    distance = indptr[1:][row] - 1 - np.arange(len(items_H))
    recent = np.flatnonzero(distance < score_history)
    return sp.csr_matrix(
        (np.power(float(decay), distance[recent]), (row[recent], items_H[recent])),
        shape=(len(indptr) - 1, num_items),
    )


def histories(sequences: Sequences, rows: EvalRows) -> tuple[Int64Array, Int32Array]:
    """Histories, oldest first, as CSR: indptr int64 [E + 1], items int32 [H]."""
    first = sequences.offsets_U1[rows.user_E]
    low, high = first + rows.history_start_E, first + rows.history_end_E
    indptr = np.concatenate([[0], np.cumsum(high - low)]).astype(np.int64)
    return indptr, sequences.items_R[spans(low, high)]


def _rank(
    scores: sp.csr_matrix,
    seen: tuple[Int64Array, Int32Array] | None,
    by_popularity: Int64Array,
    k: int,
) -> Int32Array:
    """Order each row's scored items, then unreached ones by popularity: [B, k]."""
    num_rows, num_items = scores.shape
    no_key = np.empty(0, dtype=np.int64)
    seen_key = no_key
    if seen is not None:
        seen_key = np.unique(rows_of(seen[0]) * num_items + seen[1])
    key = rows_of(scores.indptr) * num_items + scores.indices
    kept = ~_contains(seen_key, key)
    key, score = key[kept], scores.data[kept]
    count = np.bincount(key // num_items, minlength=num_rows)
    short = np.flatnonzero(count < k)
    if len(short):
        # So many popular items always hold k that are neither scored nor seen.
        seen_count = np.bincount(seen_key // num_items, minlength=num_rows)
        num_popular = k + int((count + seen_count)[short].max())
        more = (short[:, None] * num_items + by_popularity[:num_popular]).ravel()
        more = more[~_contains(key, more) & ~_contains(seen_key, more)]
        key = np.concatenate([key, more])
        score = np.concatenate([score, np.zeros(len(more))])
    tie_rank = np.empty(num_items, dtype=np.int64)
    tie_rank[by_popularity] = np.arange(num_items)
    row, column = np.divmod(key, num_items)
    return first_k(row, column, score, tie_rank, num_rows, k)


def _contains(ordered: Int64Array, values: Int64Array) -> BoolArray:
    """Which of ``values`` stand in the rising array ``ordered``."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    found: BoolArray = ordered[place] == values
    return found


def _refuse(bad: BoolArray, low: int, name: str, complaint: str) -> None:
    first = np.flatnonzero(bad)
    if len(first):
        raise ValueError(f"{name}[{low + first[0]}] {complaint}")
