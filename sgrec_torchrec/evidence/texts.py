"""Texts of items -> what is like each item, and the few nearest that stand in for it.

The one part of the relations that no event changes: made once, read by every fold.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig, GraphConfig
from sgrec_torchrec.item_graph.row_files import Csr, RowWriter
from sgrec_torchrec.item_graph.row_order import (
    Rows,
    keep_heaviest,
    matrix_of,
    rows_in,
)
from sgrec_torchrec.item_graph.text import text_blocks
from sgrec_torchrec.schema import Catalogue

NEAR_TEXT = 0.04
"""Squared similarity from which a text stands in for another one."""
NEAREST_TEXTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Two sparse matrices [N, N] of items by items, float64; maybe empty."""

    edges: Csr
    """Squared similarity."""
    near: Csr
    """Rows of the nearest texts; they sum to s / (1 + s): little text, little said.

    s is the sum of the similarities.
    """

    @classmethod
    def of(cls, edges: sp.csr_matrix) -> "Texts":
        """What is in memory already."""
        near = matrix_of(near_rows(rows_in(edges), edges.shape[1]), edges.shape[1])
        return cls(edges=Csr.of(edges), near=Csr.of(near))


def text_relation(
    catalogue: Catalogue, config: EvidenceConfig, folder: Path | None = None
) -> Texts:
    """What ``catalogue`` says of every item.

    Args:
        folder: where the rows are written, and mapped from. None: they are in memory.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="texts-") as place:
            made = text_relation(catalogue, config, Path(place))
            return Texts(edges=made.edges.in_memory(), near=made.near.in_memory())
    edges, near = RowWriter(folder / "edges"), RowWriter(folder / "near")
    form = GraphConfig(max_neighbours=config.max_neighbours)
    for rows in text_blocks(catalogue, form, place=folder):
        edges.add(rows)
        near.add(near_rows(rows, len(catalogue)))
    return Texts(edges=edges.close(), near=near.close())


def near_rows(rows: Rows, num_items: int) -> Rows:
    """Rows of squared similarity -> those of ``Texts.near``."""
    lengths, columns, values = rows
    is_near = values >= NEAR_TEXT
    row = np.repeat(np.arange(len(lengths)), lengths)[is_near]
    lengths = np.bincount(row, minlength=len(lengths))
    block = matrix_of((lengths, columns[is_near], values[is_near]), num_items)
    near = keep_heaviest(block, NEAREST_TEXTS)
    total_N = np.asarray(near.sum(axis=1)).ravel()
    near.data = near.data / np.repeat(1.0 + total_N, np.diff(near.indptr))
    return rows_in(near)
