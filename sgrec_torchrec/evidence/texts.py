"""Texts of items -> what is like each item, and the few nearest that stand in for it.

The one part of the relations that no event changes: made once, read by every fold.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig, GraphConfig
from sgrec_torchrec.files.array_folder import Array, read_arrays, write_arrays
from sgrec_torchrec.files.atomic import working_folder
from sgrec_torchrec.files.run_folder import TEXTS
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
MANIFEST = "texts.json"
FORMAT_VERSION = 1
MATRICES = ("edges", "near")


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Two sparse matrices [N, N] of items by items, float64; maybe empty."""

    edges: Csr
    """Squared similarity."""
    near: Csr
    """Rows of the nearest texts; they sum to s / (1 + s): little text, little said.

    s is the sum of the similarities.
    """

    folder: Path | None = None
    """Where it is mapped from."""

    @property
    def manifest(self) -> Path:
        """Of its folder; names the sums of all else there."""
        assert self.folder is not None, "these texts are in memory alone"
        return self.folder / MANIFEST

    def save(self, folder: Path) -> None:
        """Write it, all or none."""
        facts = {"format_version": FORMAT_VERSION}
        write_arrays(folder / MANIFEST, self._arrays(), facts)

    @classmethod
    def load(cls, folder: Path, *, verify: bool = True) -> "Texts":
        """Map what ``save`` wrote.

        Args:
            verify: as ``read_arrays``; see there for errors.
        """
        names = [f"{one}_{part}" for one in MATRICES for part in Csr._fields]
        arrays, _ = read_arrays(
            folder / MANIFEST,
            names,
            {},
            format_version=FORMAT_VERSION,
            what="the texts' likeness",
            verify=verify,
        )
        edges, near = (
            Csr(*(arrays[f"{one}_{part}"] for part in Csr._fields)) for one in MATRICES
        )
        return cls(edges=edges, near=near, folder=folder)

    def in_memory(self) -> "Texts":
        """The same, whose files may go."""
        return Texts(edges=self.edges.in_memory(), near=self.near.in_memory())

    def _arrays(self) -> dict[str, Array]:
        return {
            f"{one}_{part}": getattr(getattr(self, one), part)
            for one in MATRICES
            for part in Csr._fields
        }

    @classmethod
    def of(cls, edges: sp.csr_matrix) -> "Texts":
        """What is in memory already."""
        near = matrix_of(near_rows(rows_in(edges), edges.shape[1]), edges.shape[1])
        return cls(edges=Csr.of(edges), near=Csr.of(near))


def text_relation(catalogue: Catalogue, config: EvidenceConfig) -> Texts:
    """What ``catalogue`` says of every item, in memory."""
    with tempfile.TemporaryDirectory(prefix="texts-") as place:
        folder = Path(place) / TEXTS
        write_texts(catalogue, config, folder)
        return Texts.load(folder).in_memory()


def write_texts(catalogue: Catalogue, config: EvidenceConfig, folder: Path) -> None:
    """What ``catalogue`` says of every item, as files; whole or not at all."""
    with working_folder(folder) as place:
        edges, near = (RowWriter(place / name) for name in MATRICES)
        form = GraphConfig(max_neighbours=config.max_neighbours)
        for rows in text_blocks(catalogue, form, place=place):
            edges.add(rows)
            near.add(near_rows(rows, len(catalogue)))
        Texts(edges=edges.close(), near=near.close()).save(folder)


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
