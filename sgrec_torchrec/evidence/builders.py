"""The built-in item relations, each a function: events and texts -> sparse weights.

``RELATIONS`` (config/registry.py) names them; an installed package adds its own.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig, GraphConfig
from sgrec_torchrec.item_graph.covisitation import covisitation_edges, popularity
from sgrec_torchrec.item_graph.row_order import heaviest_product, keep_heaviest
from sgrec_torchrec.schema import Catalogue, Int32Array, Sequences

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
    ) -> None:
        self.sequences, self.end_U = sequences, end_U
        self.text, self.config = text, config
        self.catalogue = catalogue
        """None where the caller of ``build_relations`` gave none."""
        self.popularity_N = popularity(sequences, end_U)

    def covisits(self, form: GraphConfig) -> sp.csr_matrix:
        """Co-visits in one form, ``max_neighbours`` an item. Reads the log."""
        form = dataclasses.replace(form, max_neighbours=self.config.max_neighbours)
        edges: sp.csr_matrix = covisitation_edges(
            self.sequences, form, self.end_U, self.popularity_N
        )
        return edges

    @cached_property
    def forward(self) -> sp.csr_matrix:
        """Visits in the order of time."""
        return self.covisits(FORWARD)

    @cached_property
    def backward(self) -> sp.csr_matrix:
        """The same against it."""
        return self.covisits(BACKWARD)

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
        near = self.text.copy()
        near.data[near.data < NEAR_TEXT] = 0.0
        near = keep_heaviest(near, NEAREST_TEXTS)
        total_N = np.asarray(near.sum(axis=1)).ravel()
        scaled: sp.csr_matrix = (sp.diags_array(1.0 / (1.0 + total_N)) @ near).tocsr()
        return scaled


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
    return source.covisits(AROUND)


def text(source: RelationSource) -> sp.csr_matrix:
    """What i's text is like."""
    return source.text


def text_visits(source: RelationSource) -> sp.csr_matrix:
    """What i's nearest texts are visited with."""
    limit = source.config.max_neighbours
    return heaviest_product(source.near_texts, source.visits, limit)


def visits_text(source: RelationSource) -> sp.csr_matrix:
    """The nearest texts of what i is visited with."""
    limit = source.config.max_neighbours
    return heaviest_product(source.visits, source.near_texts, limit)
