"""The built-in item relations, each a function: events and texts -> sparse weights.

``RELATIONS`` (config/registry.py) names them; an installed package adds its own. These
make whole matrices, as a package may; ``by_range`` makes the same rows by ranges.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig, GraphConfig
from sgrec_torchrec.evidence.texts import Texts
from sgrec_torchrec.item_graph.covisitation import covisitation_edges
from sgrec_torchrec.item_graph.heaviest import heaviest_product
from sgrec_torchrec.item_graph.pair_counts import PairCounts, counted
from sgrec_torchrec.item_graph.row_order import BoolArray, Rows, only
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


class Learned(NamedTuple):
    """What relations may be made from."""

    sequences: Sequences
    end_U: Int32Array
    catalogue: Catalogue | None


class RelationSource:
    """What a relation is built from; parts that several need are made once.

    Only the first ``end_U[u]`` events of user u may be read: the others are what the
    relation is asked about.
    """

    def __init__(
        self,
        learned: Callable[[], Learned],
        texts: Texts,
        config: EvidenceConfig,
        *,
        counts: PairCounts,
        without: int | None = None,
        wanted_N: BoolArray | None = None,
    ) -> None:
        self._learned = learned
        self.texts, self.config = texts, config
        self.counts, self.without = counts, without
        """Pairs of the events that may be read, but for this fold's."""
        self.wanted_N = wanted_N
        """Bool: items whose rows are asked for; others may be left empty. None: all."""
        self.popularity_N = counts.popularity(without)

    @cached_property
    def learned(self) -> Learned:
        """Read where it is asked for: the built-in relations take the counts alone."""
        return self._learned()

    @property
    def sequences(self) -> Sequences:
        """All events; see ``end_U``."""
        return self.learned.sequences

    @property
    def end_U(self) -> Int32Array:
        """How many events of each user may be read, int32 [U]."""
        return self.learned.end_U

    @property
    def catalogue(self) -> Catalogue | None:
        """None where the caller of ``build_relations`` gave none."""
        return self.learned.catalogue

    @property
    def num_items(self) -> int:
        """N."""
        return self.counts.layout.num_items

    def wanted(self, rows: Rows, low: int, high: int) -> Rows:
        """Rows of the items of [low, high), those that nobody asks for emptied."""
        return rows if self.wanted_N is None else only(rows, self.wanted_N[low:high])

    def form(self, form: GraphConfig) -> GraphConfig:
        """The same with as many neighbours as a relation may have."""
        return dataclasses.replace(form, max_neighbours=self.config.max_neighbours)

    @contextmanager
    def reaching(self, distance: int) -> Iterator[tuple[PairCounts, int | None]]:
        """Yield counted pairs up to so far apart, and the fold to leave out of them."""
        if distance <= self.counts.layout.max_distance:
            yield self.counts, self.without
            return
        with counted(self.sequences, self.end_U, max_distance=distance) as farther:
            yield farther, None

    def covisits(self, form: GraphConfig) -> sp.csr_matrix:
        """Co-visits in one form, ``max_neighbours`` an item."""
        (edges,) = self._covisits(form)
        return edges

    def _covisits(self, *forms: GraphConfig) -> list[sp.csr_matrix]:
        cut = [self.form(form) for form in forms]
        reach = max(form.max_distance for form in forms)
        with self.reaching(reach) as (counts, without):
            return covisitation_edges(counts, cut, without=without)

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
    def text(self) -> sp.csr_matrix:
        """Squared similarity of texts, ``max_neighbours`` an item."""
        return self.texts.edges.matrix(self.num_items)

    @cached_property
    def near_texts(self) -> sp.csr_matrix:
        """The nearest texts, as ``Texts.near``."""
        return self.texts.near.matrix(self.num_items)


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
