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

Scale: at most 6 N max_neighbours edges of 8 bytes. 1e8 items with max_neighbours 50
take 240 GB, memory-mapped; a batch of histories touches only the rows of its items.
Co-visits are counted out of core (``item_graph.covisitation``); recent popularity
holds 24 bytes an event. Text products grow with the distinct texts: see
``item_graph.text`` for what to do beyond 1e7 of them.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig, GraphConfig
from sgrec_torchrec.item_graph.covisitation import covisitation_edges, popularity
from sgrec_torchrec.item_graph.row_order import heaviest_product, keep_heaviest
from sgrec_torchrec.item_graph.text import text_edges
from sgrec_torchrec.schema import (
    Catalogue,
    Float32Array,
    Int32Array,
    Int64Array,
    Sequences,
)

RELATIONS = ("forward", "backward", "around", "text", "text-visits", "visits-text")
FORWARD = GraphConfig(backward_weight=0.0)
BACKWARD = GraphConfig(forward_weight=0.0, backward_weight=1.0)
AROUND = GraphConfig(
    max_distance=20, distance_exponent=0.0, backward_weight=1.0, column_exponent=0.5
)
BACKWARD_SHARE = 0.3
"""Weight of backward beside forward visits, where texts smooth them."""
NEAR_TEXT = 0.04
"""Squared similarity from which a text stands in for another one."""
NEAREST_TEXTS = 20
RECENT_SHARE = 0.2
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
) -> Relations:
    """All relations of the first ``end_U[u]`` events of each user.

    Deterministic; ranks do not communicate. The log is read three times (more where
    ``covisitation`` needs passes).
    """
    popularity_N = popularity(sequences, end_U)
    forward, backward, around = (
        covisitation_edges(
            sequences,
            dataclasses.replace(form, max_neighbours=config.max_neighbours),
            end_U,
            popularity_N,
        )
        for form in (FORWARD, BACKWARD, AROUND)
    )
    visits = (forward + BACKWARD_SHARE * backward).tocsr()
    near = _near_texts(text)
    stacked = sp.vstack(
        [
            *(forward, backward, around, text),
            heaviest_product(near, visits, config.max_neighbours),
            heaviest_product(visits, near, config.max_neighbours),
        ],
        format="csr",
    )
    return Relations(
        indptr_R1=stacked.indptr.astype(np.int64),
        neighbours_E=stacked.indices.astype(np.int32),
        weights_E=stacked.data.astype(np.float32),
        popularity_N=popularity_N,
        recent_N=recent_popularity(sequences, end_U),
    )


def recent_popularity(sequences: Sequences, end_U: Int32Array) -> Int64Array:
    """Events of each item among the newest 20 % of those learned from, int64 [N]."""
    _, known_R = sequences.events_until(end_U)
    times = sequences.timestamps_R[known_R]
    if not len(times):
        return np.zeros(sequences.num_items, dtype=np.int64)
    oldest = np.quantile(times, 1.0 - RECENT_SHARE)
    recent = sequences.items_R[known_R[times >= oldest]]
    return np.bincount(recent, minlength=sequences.num_items)


def _near_texts(text: sp.csr_matrix) -> sp.csr_matrix:
    """Rows of the nearest texts, which sum to s / (1 + s): little text says little."""
    near = text.copy()
    near.data[near.data < NEAR_TEXT] = 0.0
    near = keep_heaviest(near, NEAREST_TEXTS)
    total_N = np.asarray(near.sum(axis=1)).ravel()
    scaled: sp.csr_matrix = (sp.diags_array(1.0 / (1.0 + total_N)) @ near).tocsr()
    return scaled
