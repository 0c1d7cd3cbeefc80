"""The built-in relations, by ranges of items: a relation is never in memory whole.

First what many rows read is written to files: co-visits in three forms, of the items
that are asked for, and the visits that texts smooth, of all. Then each relation comes
some rows at a time: copied from there, or multiplied.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from sgrec_torchrec.evidence import builders
from sgrec_torchrec.evidence.builders import (
    AROUND,
    BACKWARD,
    BACKWARD_SHARE,
    FORWARD,
    MAX_DISTANCE,
    RelationBuilder,
    RelationSource,
)
from sgrec_torchrec.files.growing_array import forget
from sgrec_torchrec.item_graph.covisitation import covisit_blocks
from sgrec_torchrec.item_graph.heaviest import product_blocks
from sgrec_torchrec.item_graph.row_files import Csr, RowWriter
from sgrec_torchrec.item_graph.row_order import (
    Rows,
    matrix_of,
    pieces,
    rows_in,
)

PIECE_ROWS = 1 << 14
FORMS = {"forward": FORWARD, "backward": BACKWARD, "around": AROUND}
VISITS = "visits"


class RangedRelations:
    """The built-in relations of a source; files go into a folder of the caller."""

    def __init__(self, source: RelationSource, folder: Path) -> None:
        self.source, self.folder = source, folder

    def blocks(self, build: RelationBuilder) -> Iterator[Rows] | None:
        """The rows of a relation, from the first item to the last.

        Returns:
            None where ``build`` is of a package, which knows nothing of ranges.
        """
        for whole, by_range in BY_RANGE:
            if whole is build:
                return by_range(self)
        return None

    @cached_property
    def _covisits(self) -> dict[str, Csr]:
        """Each form, and visits in both orders."""
        source = self.source
        kinds = dict.fromkeys(FORMS, np.float32) | {VISITS: np.float64}
        writers = {
            name: RowWriter(self.folder / name, kind) for name, kind in kinds.items()
        }
        forms = [source.form(form) for form in FORMS.values()]
        with source.reaching(MAX_DISTANCE) as (counts, without):
            num_items = counts.layout.num_items
            for low, high, found in covisit_blocks(counts, forms, without=without):
                for name, rows in zip(FORMS, found, strict=True):
                    writers[name].add(source.wanted(rows, low, high))
                for rows in smoothed_visits(found[0], found[1], num_items):
                    writers[VISITS].add(rows)
        return {name: writer.close() for name, writer in writers.items()}

    def _form(self, name: str) -> Iterator[Rows]:
        for _, _, rows in self._covisits[name].blocks():
            yield rows

    def text(self) -> Iterator[Rows]:
        """As ``builders.text``."""
        for _, _, rows in self.source.texts.edges.blocks():
            yield rows

    def text_visits(self) -> Iterator[Rows]:
        """As ``builders.text_visits``."""
        return self._product(self.source.texts.near, self._covisits[VISITS])

    def visits_text(self) -> Iterator[Rows]:
        """As ``builders.visits_text``."""
        return self._product(self._covisits[VISITS], self.source.texts.near)

    def _product(self, left: Csr, right: Csr) -> Iterator[Rows]:
        yield from product_blocks(
            left,
            right,
            self.source.config.max_neighbours,
            num_columns=self.source.num_items,
            wanted_N=self.source.wanted_N,
        )
        forget(*left, *right)


def smoothed_visits(forward: Rows, backward: Rows, num_items: int) -> Iterator[Rows]:
    """The rows of ``RelationSource.visits`` from those of a range in either order."""
    both = zip(pieces(forward, PIECE_ROWS), pieces(backward, PIECE_ROWS), strict=True)
    for (_, _, forth), (_, _, back) in both:
        visits = matrix_of(forth, num_items) + BACKWARD_SHARE * matrix_of(
            back, num_items
        )
        yield rows_in(visits.tocsr())


BY_RANGE: tuple[
    tuple[RelationBuilder, Callable[[RangedRelations], Iterator[Rows]]], ...
] = (
    (builders.forward, lambda ranges: ranges._form("forward")),
    (builders.backward, lambda ranges: ranges._form("backward")),
    (builders.around, lambda ranges: ranges._form("around")),
    (builders.text, RangedRelations.text),
    (builders.text_visits, RangedRelations.text_visits),
    (builders.visits_text, RangedRelations.visits_text),
)
"""The builders that take a whole matrix, and the same by ranges."""
