"""The built-in item relations, each a function: events and texts -> sparse weights.

``RELATIONS`` (config/registry.py) names them; an installed package adds its own.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig, GraphConfig
from sgrec_torchrec.item_graph.covisitation import covisitation_edges
from sgrec_torchrec.item_graph.heaviest import heaviest_product
from sgrec_torchrec.item_graph.pair_counts import PairCounts, counted
from sgrec_torchrec.item_graph.row_order import BoolArray, keep_heaviest
from sgrec_torchrec.schema import Catalogue, Int32Array, Sequences

FORWARD = GraphConfig(backward_weight=0.0)
BACKWARD = GraphConfig(forward_weight=0.0, backward_weight=1.0)
AROUND = GraphConfig(
    max_distance=20, distance_exponent=0.0, backward_weight=1.0, column_exponent=0.5
)
MAX_DISTANCE = AROUND.max_distance
"""Of pairs that the built-in relations ask for."""
BACKWARD_SHARE = 0.3
"""Weight of backward beside forward visits, where texts smooth them."""
NEAR_TEXT = 0.04
"""Squared similarity from which a text stands in for another one."""
NEAREST_TEXTS = 20


class RelationSource:
    """What a relation is built from; parts that several need are made once.

    Only the first ``end_U[u]`` events of user u may be read: the others are what the
    relation is asked about.
    """

    def __init__(
        self,
        sequences: Sequences,
        end_U: Int32Array,
        text: sp.csr_matrix,
        config: EvidenceConfig,
        catalogue: Catalogue | None = None,
        *,
        counts: PairCounts,
        without: int | None = None,
        wanted_N: BoolArray | None = None,
    ) -> None:
        self.sequences, self.end_U = sequences, end_U
        self.text, self.config = text, config
        self.catalogue = catalogue
        """None where the caller of ``build_relations`` gave none."""
        self.counts, self.without = counts, without
        """Pairs of the events that may be read, but for this fold's."""
        self.wanted_N = wanted_N
        """Bool: items whose rows are asked for; others may be left empty. None: all."""
        self.popularity_N = counts.popularity(without)

    def covisits(self, form: GraphConfig) -> sp.csr_matrix:
        """Co-visits in one form, ``max_neighbours`` an item."""
        (edges,) = self._covisits(form)
        return edges

    def _covisits(self, *forms: GraphConfig) -> list[sp.csr_matrix]:
        limit = self.config.max_neighbours
        cut = [dataclasses.replace(form, max_neighbours=limit) for form in forms]
        reach = max(form.max_distance for form in forms)
        if reach <= self.counts.layout.max_distance:
            return covisitation_edges(self.counts, cut, without=self.without)
        with counted(self.sequences, self.end_U, max_distance=reach) as farther:
            return covisitation_edges(farther, cut)

    @cached_property
    def _built_in(self) -> list[sp.csr_matrix]:
        """All three read the counts once."""
        return self._covisits(FORWARD, BACKWARD, AROUND)

    @property
    def forward(self) -> sp.csr_matrix:
        """Visits in the order of time."""
        return self._built_in[0]

    @property
    def backward(self) -> sp.csr_matrix:
        """The same against it."""
        return self._built_in[1]

    @property
    def around(self) -> sp.csr_matrix:
        """Visits within 20 events, both ways."""
        return self._built_in[2]

    @cached_property
    def visits(self) -> sp.csr_matrix:
        """Both, as texts smooth them."""
        both: sp.csr_matrix = (self.forward + BACKWARD_SHARE * self.backward).tocsr()
        return both

    @cached_property
    def near_texts(self) -> sp.csr_matrix:
        """Rows of the nearest texts; they sum to s / (1 + s): little text, little said.

        s is the sum of the similarities.
        """
        text = self.text
        is_near = text.data >= NEAR_TEXT
        indptr = np.append(0, np.cumsum(is_near))[text.indptr]
        near = keep_heaviest(
            sp.csr_matrix(
                (text.data[is_near], text.indices[is_near], indptr), shape=text.shape
            ),
            NEAREST_TEXTS,
        )
        total_N = np.asarray(near.sum(axis=1)).ravel()
        near.data = near.data / np.repeat(1.0 + total_N, np.diff(near.indptr))
        return near


RelationBuilder = Callable[[RelationSource], sp.csr_matrix]
"""-> CSR [N, N], weights finite and > 0, at most ``max_neighbours`` in a row."""


def forward(source: RelationSource) -> sp.csr_matrix:
    """What follows i within 5 events, by distance."""
    return source.forward


def backward(source: RelationSource) -> sp.csr_matrix:
    """What goes before i, likewise."""
    return source.backward


def around(source: RelationSource) -> sp.csr_matrix:
    """What is within 20 events of i, whatever the distance."""
    return source.around


def text(source: RelationSource) -> sp.csr_matrix:
    """What i's text is like."""
    return source.text


def text_visits(source: RelationSource) -> sp.csr_matrix:
    """What i's nearest texts are visited with."""
    limit, wanted_N = source.config.max_neighbours, source.wanted_N
    return heaviest_product(source.near_texts, source.visits, limit, wanted_N=wanted_N)


def visits_text(source: RelationSource) -> sp.csr_matrix:
    """The nearest texts of what i is visited with."""
    limit, wanted_N = source.config.max_neighbours, source.wanted_N
    return heaviest_product(source.visits, source.near_texts, limit, wanted_N=wanted_N)
