"""Several sparse item-to-item weights of one log, and how often each item occurs.

    forward         j follows i within 5 events, 1 / distance, damped by (1 + pop_i)^.5
    backward        the same against the order of time
    around          both ways within 20 events, whatever the distance, damped by
                    ((1 + pop_i) (1 + pop_j))^.5: a cosine
    text            squared TF-IDF cosine of title and brand
    text-visits     visits of i's nearest texts: reaches far from items without events
    visits-text     nearest texts of what i is visited with: reaches such items

The item graph (``item_graph.graph``) adds two of these up with one weight; here they
stay apart, so that a scorer can weigh them by history and candidate.

``RELATIONS`` maps these names to their builders; installed packages add to it, and
``evidence.relations`` says which ones a run uses.

Scale: at most R N max_neighbours edges of 8 bytes for R relations. 1e8 items with the
six and max_neighbours 50 take 240 GB, memory-mapped; a batch of histories touches only
the rows of its items.
Co-visits are counted out of core, once (``item_graph.pair_counts``). Text products grow
with the distinct texts (``item_graph.text``).
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig, GraphConfig
from sgrec_torchrec.config.registry import RELATIONS
from sgrec_torchrec.evidence.builders import (
    MAX_DISTANCE,
    RelationBuilder,
    RelationSource,
)
from sgrec_torchrec.item_graph.pair_counts import PairCounts, counted
from sgrec_torchrec.item_graph.row_order import BoolArray
from sgrec_torchrec.item_graph.text import text_edges
from sgrec_torchrec.schema import (
    Catalogue,
    Float32Array,
    Int32Array,
    Int64Array,
    Sequences,
)

ARRAY_TYPES = {
    "indptr_R1": "int64",
    "neighbours_E": "int32",
    "weights_E": "float32",
    "popularity_N": "int64",
    "recent_N": "int64",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Relations:
    """R relations of N items as one CSR of R * N rows: row r * N + i is i's by r."""

    indptr_R1: Int64Array
    """[R * N + 1]"""
    neighbours_E: Int32Array
    weights_E: Float32Array
    """All > 0."""
    popularity_N: Int64Array
    """Events of each item in the period that was learned from."""
    recent_N: Int64Array
    """The same among the newest 20 % of these events."""

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.popularity_N)

    @property
    def num_relations(self) -> int:
        """R."""
        return (len(self.indptr_R1) - 1) // self.num_items

    def validate(self) -> None:
        """Check shapes and ranges once, where relations enter the process.

        Raises:
            ValueError: naming the array and what is wrong with it.
        """
        starts = self.indptr_R1
        for name, kind in ARRAY_TYPES.items():
            if getattr(self, name).dtype != kind:
                raise ValueError(f"{name} is {getattr(self, name).dtype}, not {kind}")
        if len(self.recent_N) != self.num_items:
            raise ValueError(
                f"recent_N has {len(self.recent_N)} items, popularity_N "
                f"{self.num_items}"
            )
        if not len(starts) or starts[0] != 0 or (np.diff(starts) < 0).any():
            raise ValueError("indptr_R1: must start at 0 and never fall")
        if (len(starts) - 1) % max(1, self.num_items):
            raise ValueError(
                f"indptr_R1 has {len(starts) - 1} rows, no multiple of the "
                f"{self.num_items} items of popularity_N"
            )
        if not len(self.neighbours_E) == len(self.weights_E) == starts[-1]:
            raise ValueError(
                f"indptr_R1 ends at {starts[-1]}; neighbours_E has "
                f"{len(self.neighbours_E)} entries, weights_E {len(self.weights_E)}"
            )
        bad = (self.neighbours_E < 0) | (self.neighbours_E >= self.num_items)
        if bad.any():
            raise ValueError(
                f"neighbours_E[{np.flatnonzero(bad)[0]}] is outside "
                f"[0, {self.num_items})"
            )
        if not (self.weights_E > 0).all() or not np.isfinite(self.weights_E).all():
            raise ValueError("weights_E: must be finite and > 0")


def text_relation(catalogue: Catalogue, config: EvidenceConfig) -> sp.csr_matrix:
    """The one relation that no event changes: float64 CSR [N, N], maybe empty."""
    form = GraphConfig(max_neighbours=config.max_neighbours)
    return text_edges(catalogue, form)


def build_relations(
    sequences: Sequences,
    end_U: Int32Array,
    text: sp.csr_matrix,
    config: EvidenceConfig,
    catalogue: Catalogue | None = None,
    *,
    counts: PairCounts | None = None,
    without: int | None = None,
    wanted_N: BoolArray | None = None,
) -> Relations:
    """``config``'s relations of the first ``end_U[u]`` events of each user.

    Deterministic; ranks do not communicate. The log is read once, or not at all where
    its pairs are counted already.

    Args:
        catalogue: for relations of packages; the built-in ones take the text alone.
        counts: of the same events, and of those of the fold that is left out.
        without: that fold; ``end_U`` is 0 for its users.
        wanted_N: bool, items whose rows are asked for; the others stay empty.
            None: all.

    Raises:
        ValueError: naming the relation whose weights no relation may have.
        ImportError: for a relation of a package that cannot be loaded.
    """
    assert without is None or counts is not None, "folds are counted before"
    with counted(sequences, end_U, max_distance=MAX_DISTANCE, given=counts) as known:
        source = RelationSource(
            sequences,
            end_U,
            text,
            config,
            catalogue,
            counts=known,
            without=without,
            wanted_N=wanted_N,
        )
        parts = [_built(name, source) for name in config.relation_names()]
        return _stacked(parts, source)


def _stacked(parts: list[sp.csr_matrix], source: RelationSource) -> Relations:
    """One CSR of all relations, of the rows that are wanted."""
    lengths, kept_E = [], []
    for part in parts:
        length_N = np.diff(part.indptr)
        wanted_N = source.wanted_N
        if wanted_N is None:
            wanted_N = np.ones(len(length_N), dtype=np.bool_)
        lengths.append(length_N * wanted_N)
        kept_E.append(np.repeat(wanted_N, length_N))
    taken = list(zip(parts, kept_E, strict=True))
    return Relations(
        indptr_R1=np.append(0, np.cumsum(np.concatenate(lengths), dtype=np.int64)),
        neighbours_E=np.concatenate(
            [part.indices[kept].astype(np.int32) for part, kept in taken]
        ),
        weights_E=np.concatenate(
            [part.data[kept].astype(np.float32) for part, kept in taken]
        ),
        popularity_N=source.popularity_N,
        recent_N=source.counts.recent(source.without),
    )


def _built(name: str, source: RelationSource) -> sp.csr_matrix:
    """One relation, held to what ``RelationBuilder`` promises."""
    build: RelationBuilder = RELATIONS.load(name)
    made = build(source)
    count, limit = source.sequences.num_items, source.config.max_neighbours
    if not sp.issparse(made) or made.shape != (count, count):
        shape = getattr(made, "shape", type(made).__name__)
        raise ValueError(
            f"item relation {name!r} gave {shape}: it must give a sparse matrix of "
            f"{count} items by {count}"
        )
    made = made.tocsr()
    most = int(np.diff(made.indptr).max(initial=0))
    if most > limit:
        raise ValueError(
            f"item relation {name!r} gave an item {most} neighbours: keep at most "
            f"evidence.max_neighbours = {limit}, as row_order.keep_heaviest does"
        )
    if not (made.data > 0).all() or not np.isfinite(made.data).all():
        raise ValueError(f"item relation {name!r}: weights must be finite and > 0")
    return made
