"""Item graph -> behaviour embeddings: a truncated spectral factorisation.

Shape letters: N items, E edges, D width, d width of the search space (D + spare).
"""

from typing import Protocol

import numpy as np
import scipy.sparse

from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.schema import Float32Array, Int32Array, Int64Array

SPARE_DIM = 16
"""Directions searched beyond those wanted: sharpens the last ones."""
NUM_POWER_ITERATIONS = 8


class SparseGraph(Protocol):
    """Weighted item-to-item edges in CSR form, such as ``item_graph.graph.ItemGraph``.

    Item i's neighbours are ``neighbours_E[indptr_N1[i] : indptr_N1[i + 1]]``.
    """

    @property
    def indptr_N1(self) -> Int64Array:
        """int64 [N + 1]: where each item's edges begin."""

    @property
    def neighbours_E(self) -> Int32Array:
        """int32 [E]: the item at the far end."""

    @property
    def weights_E(self) -> Float32Array:
        """float32 [E], at least 0."""


def behaviour_embedding(graph: SparseGraph, dim: int, seed: int) -> Float32Array:
    """Factorise the symmetrised, PPMI-weighted graph; L2-normalise the rows.

    W = A + A^T; PPMI(i, j) = max(0, ln(W_ij sum(W) / (W_i. W_.j))) (Levy and Goldberg
    2014, "Neural word embedding as implicit matrix factorization", eq. 11 with shift
    0 and their symmetric U sqrt(S)); eigenvectors by randomised block power iteration
    (Halko, Martinsson and Tropp 2011, algorithm 4.4).

    Args:
        graph: CSR edges; weights are at least 0. Self-edges are ignored.
        dim: D. Where N < D the spare columns are zero.
        seed: of the random start.

    Returns:
        [N, D] float32, rows of norm 1; an item without any neighbour has a zero row, so
        that beside text it is placed by text alone. The largest entry of every
        column is positive: equal input, equal output.
        Time grows with E d + N d^2 per iteration, memory with 2 E + 2 N d: 1e8 items
        with 100 edges each take 80 GB for edges and 64 GB for the block.
    """
    weight = _ppmi(graph)
    num_items = weight.shape[0]
    width = min(num_items, dim + SPARE_DIM)
    start = np.random.default_rng(seed).standard_normal((num_items, width))
    block_Nd = np.linalg.qr(start.astype(np.float32))[0]
    steps = range(NUM_POWER_ITERATIONS)
    for _ in progress(steps, description="behaviour embedding", unit="step"):
        block_Nd = np.linalg.qr(weight @ block_Nd)[0]
    image_Nd = weight @ block_Nd
    value_d, vector_dd = np.linalg.eigh((block_Nd.T @ image_Nd).astype(np.float64))
    best = np.argsort(-np.abs(value_d), kind="stable")[:dim]
    scale = np.sqrt(np.abs(value_d[best]))
    found_ND = block_Nd @ (vector_dd[:, best] * scale).astype(np.float32)
    embedding_ND = np.zeros((num_items, dim), dtype=np.float32)
    embedding_ND[:, : found_ND.shape[1]] = _fix_signs(found_ND)
    embedding_ND[np.diff(weight.indptr) == 0] = 0.0
    return unit_rows(embedding_ND)


def unit_rows(rows_ND: Float32Array) -> Float32Array:
    """Rows scaled to norm 1; rows of (nearly) zero stay zero. float32."""
    norm_N1 = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    scaled_ND = rows_ND / np.where(norm_N1 > 1e-12, norm_N1, np.inf)
    return scaled_ND.astype(np.float32, copy=False)


def _ppmi(graph: SparseGraph) -> scipy.sparse.csr_array:
    num_items = len(graph.indptr_N1) - 1
    edges = scipy.sparse.csr_array(
        (graph.weights_E, graph.neighbours_E, graph.indptr_N1),
        shape=(num_items, num_items),
    )
    weight = scipy.sparse.coo_array(edges + edges.T)
    kept = (weight.row != weight.col) & (weight.data > 0)
    row, col, data = weight.row[kept], weight.col[kept], weight.data[kept]
    degree_N = np.bincount(row, data.astype(np.float64), minlength=num_items)
    lift = np.log(data * degree_N.sum() / (degree_N[row] * degree_N[col]))
    kept = lift > 0
    return scipy.sparse.csr_array(
        (lift[kept].astype(np.float32), (row[kept], col[kept])),
        shape=(num_items, num_items),
    )


def _fix_signs(rows_ND: Float32Array) -> Float32Array:
    """Columns whose largest entry in size is positive: a factor's sign is free."""
    largest = np.abs(rows_ND).argmax(axis=0)
    signs = np.sign(rows_ND[largest, np.arange(rows_ND.shape[1])])
    return rows_ND * np.where(signs == 0, 1, signs).astype(np.float32)
