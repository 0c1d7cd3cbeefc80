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
with the distinct texts (``item_graph.text``). Edges are made by ranges of items and
appended to files (``evidence.by_range``): beside a range, memory holds 12 bytes an item
for scratch, 16 for each kind of popularity, and what of the visits (12 bytes an edge,
mapped) a product reads. A relation of a package is a whole matrix in memory.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.config.registry import RELATIONS
from sgrec_torchrec.evidence.builders import (
    MAX_DISTANCE,
    Learned,
    RelationBuilder,
    RelationSource,
)
from sgrec_torchrec.evidence.by_range import RangedRelations
from sgrec_torchrec.evidence.texts import Texts
from sgrec_torchrec.files.growing_array import forget
from sgrec_torchrec.item_graph.pair_counts import PairCounts, counted
from sgrec_torchrec.item_graph.row_files import BLOCK_ENTRIES, Csr, RowWriter
from sgrec_torchrec.item_graph.row_order import BoolArray, Rows, rows_in
from sgrec_torchrec.schema import (
    Catalogue,
    Float32Array,
    Int32Array,
    Int64Array,
    Sequences,
)

EDGE_FILES = ("indptr_R1.npy", "neighbours_E.npy", "weights_E.npy")
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

    def in_memory(self) -> "Relations":
        """The same, whose files may go."""
        arrays = {one.name: np.array(getattr(self, one.name)) for one in fields(self)}
        return Relations(**arrays)

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
        for low in range(0, len(self.neighbours_E), BLOCK_ENTRIES):
            neighbours = self.neighbours_E[low : low + BLOCK_ENTRIES]
            weights = self.weights_E[low : low + BLOCK_ENTRIES]
            bad = (neighbours < 0) | (neighbours >= self.num_items)
            if bad.any():
                raise ValueError(
                    f"neighbours_E[{low + np.flatnonzero(bad)[0]}] is outside "
                    f"[0, {self.num_items})"
                )
            if not (weights > 0).all() or not np.isfinite(weights).all():
                raise ValueError("weights_E: must be finite and > 0")
            forget(self.neighbours_E, self.weights_E)


RELATION_ARRAYS = tuple(field.name for field in fields(Relations))


def build_relations(
    sequences: Sequences,
    end_U: Int32Array,
    text: Texts | sp.csr_matrix,
    config: EvidenceConfig,
    catalogue: Catalogue | None = None,
    *,
    counts: PairCounts | None = None,
    without: int | None = None,
    wanted_N: BoolArray | None = None,
    folder: Path | None = None,
) -> Relations:
    """``config``'s relations of the first ``end_U[u]`` events of each user of a log.

    A run's come from tasks (``cross_fit``), by the same ``write_relations``.
    Deterministic; ranks do not communicate. The log is read once, or not at all where
    its pairs are counted already.

    Args:
        catalogue: for relations of packages; the built-in ones take the text alone.
        counts: of the same events, and of those of the fold that is left out.
        without: that fold; ``end_U`` is 0 for its users.
        wanted_N: bool, items whose rows are asked for; the others stay empty.
            None: all.
        folder: where the edges are written, and mapped from: beside it temporary files
            of about their size come and go. None: they are in memory in the end.

    Raises:
        ValueError: naming the relation whose weights no relation may have.
        ImportError: for a relation of a package that cannot be loaded.
    """
    assert without is None or counts is not None, "folds are counted before"
    texts = text if isinstance(text, Texts) else Texts.of(text)
    around = None if folder is None else folder.parent
    with (
        counted(sequences, end_U, max_distance=MAX_DISTANCE, given=counts) as known,
        tempfile.TemporaryDirectory(prefix="relations-", dir=around) as work,
    ):
        source = RelationSource(
            lambda: Learned(sequences, end_U, catalogue),
            texts,
            config,
            counts=known,
            without=without,
            wanted_N=wanted_N,
        )
        made = write_relations(source, folder or Path(work) / "made", Path(work))
        return made if folder is not None else made.in_memory()


def write_relations(source: RelationSource, folder: Path, work: Path) -> Relations:
    """All relations of a source, into files of ``folder`` that are mapped.

    Args:
        work: a folder for what is written on the way; the caller's to remove.

    Raises:
        ValueError, ImportError: as ``build_relations``.
    """
    edges = _written(source, folder, work)
    return Relations(
        indptr_R1=edges.starts_N1,
        neighbours_E=edges.column_E,
        weights_E=edges.value_E.astype(np.float32, copy=False),
        popularity_N=source.popularity_N,
        recent_N=source.counts.recent(source.without),
    )


def _written(source: RelationSource, folder: Path, work: Path) -> Csr:
    """All relations one after another, of the rows that are wanted."""
    ranges = RangedRelations(source, work)
    writer = RowWriter(folder, np.float32, EDGE_FILES)
    for name in source.config.relation_names():
        build: RelationBuilder = RELATIONS.load(name)
        blocks = ranges.blocks(build)
        if blocks is None:
            blocks = _whole(name, build(source), source)
        low = 0
        for rows in blocks:
            _check(name, rows, source.config.max_neighbours)
            high = low + len(rows[0])
            writer.add(source.wanted(rows, low, high))
            low = high
    return writer.close()


def _whole(name: str, made: Any, source: RelationSource) -> Iterator[Rows]:
    """The rows of what the builder of a package made."""
    count = source.num_items
    shape = getattr(made, "shape", type(made).__name__)
    is_sparse: bool = sp.issparse(made)
    if not is_sparse or shape != (count, count):
        raise ValueError(
            f"item relation {name!r} gave {shape}: it must give a sparse matrix of "
            f"{count} items by {count}"
        )
    yield rows_in(made.tocsr())


def _check(name: str, rows: Rows, limit: int) -> None:
    """Hold rows to what ``RelationBuilder`` promises."""
    lengths, _, weights = rows
    most = int(lengths.max(initial=0))
    if most > limit:
        raise ValueError(
            f"item relation {name!r} gave an item {most} neighbours: keep at most "
            f"evidence.max_neighbours = {limit}, as row_order.keep_heaviest does"
        )
    if not (weights > 0).all() or not np.isfinite(weights).all():
        raise ValueError(f"item relation {name!r}: weights must be finite and > 0")
