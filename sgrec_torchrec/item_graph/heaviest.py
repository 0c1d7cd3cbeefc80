"""Sparse products, each row cut to its largest entries as it is made.

The whole product is never held. Work grows with the products that are added, about 3 ns
each; memory with ``k`` entries a row, and 12 bytes a column for scratch.
"""

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.item_graph import product_kernels as kernels
from sgrec_torchrec.item_graph.row_order import BoolArray, Rows, arrays_of, stacked

BLOCK_ENTRIES = 1 << 24


def heaviest_product(
    left: sp.csr_matrix,
    right: sp.csr_matrix,
    k: int,
    *,
    wanted_N: BoolArray | None = None,
    floor: float = 0.0,
    with_self: bool = True,
    description: str = "products",
) -> sp.csr_matrix:
    """``left @ right``, each row cut to its k largest entries at once.

    Args:
        left, right: CSR with values >= 0.
        wanted_N: bool, rows that are asked for; the others stay empty. None: all.
        floor: entries under it are left out.
        with_self: whether entries on the diagonal stay.
        description: of the progress bar.

    Returns:
        float64 CSR; columns sorted, all entries > 0. Of equal entries those of smaller
        columns stay.
    """
    left, right = left.tocsr(), right.tocsr()
    shape = (left.shape[0], right.shape[1])
    wanted = np.ones(shape[0], dtype=np.bool_) if wanted_N is None else wanted_N
    factors = arrays_of(left), arrays_of(right)
    scratch = (np.zeros(shape[1]), np.empty(shape[1], dtype=np.int32))
    rows = max(1, BLOCK_ENTRIES // k)
    blocks: list[Rows] = []
    for low in progress(
        range(0, shape[0], rows), description=description, unit="block"
    ):
        high = min(low + rows, shape[0])
        room = min(k, shape[1]) * int(np.count_nonzero(wanted[low:high]))
        indptr = np.zeros(high - low + 1, dtype=np.int64)
        column_E, value_E = np.empty(room, np.int32), np.empty(room)
        kept = kernels.multiply(
            factors[0],
            factors[1],
            (low, high),
            wanted,
            floor,
            with_self,
            k,
            scratch,
            (indptr, column_E, value_E),
        )
        blocks.append((np.diff(indptr), column_E[:kept].copy(), value_E[:kept].copy()))
    return stacked(blocks, shape)
