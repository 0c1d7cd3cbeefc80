"""Sparse products, each row cut to its largest entries as it is made.

The whole product is never held: rows come by blocks, and factors may be mapped files.
Work grows with the products that are added, about 3 ns each; memory with the entries of
a block, and 12 bytes a column for scratch.
"""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.item_graph import product_kernels as kernels
from sgrec_torchrec.item_graph.row_files import Csr
from sgrec_torchrec.item_graph.row_order import BoolArray, Rows, copied, stacked

BLOCK_ENTRIES = 1 << 22


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
        wanted_N, floor, with_self, description: as ``product_blocks``.

    Returns:
        float64 CSR; columns sorted, all entries > 0. Of equal entries those of smaller
        columns stay.
    """
    shape = (left.shape[0], right.shape[1])
    if not right.has_sorted_indices:
        right = right.sorted_indices()
    blocks = product_blocks(
        Csr.of(left),
        Csr.of(right),
        k,
        num_columns=shape[1],
        wanted_N=wanted_N,
        floor=floor,
        with_self=with_self,
        description=description,
    )
    return stacked([copied(rows) for rows in blocks], shape)


def product_blocks(
    left: Csr,
    right: Csr,
    k: int,
    *,
    num_columns: int,
    wanted_N: BoolArray | None = None,
    floor: float = 0.0,
    with_self: bool = True,
    description: str = "products",
) -> Iterator[Rows]:
    """The same, some rows at a time from the first to the last.

    Args:
        right: columns rise in each row.
        wanted_N: bool, rows that are asked for; the others stay empty. None: all.
        floor: entries under it are left out.
        with_self: whether entries on the diagonal stay.
        description: of the progress bar.
    """
    step = max(1, BLOCK_ENTRIES // k)
    for low in progress(
        range(0, left.num_rows, step), description=description, unit="block"
    ):
        yield product_rows(
            left,
            right,
            (low, min(low + step, left.num_rows)),
            k,
            num_columns=num_columns,
            wanted_N=wanted_N,
            floor=floor,
            with_self=with_self,
        )


def product_rows(
    left: Csr,
    right: Csr,
    span: tuple[int, int],
    k: int,
    *,
    num_columns: int,
    wanted_N: BoolArray | None = None,
    floor: float = 0.0,
    with_self: bool = True,
) -> Rows:
    """Rows of ``left @ right`` from ``span[0]`` up to ``span[1]``, cut.

    Args:
        right, wanted_N, floor, with_self: as ``product_blocks``.
    """
    low, high = span
    wanted = np.ones(left.num_rows, dtype=np.bool_) if wanted_N is None else wanted_N
    room = min(k, num_columns) * int(np.count_nonzero(wanted[low:high]))
    indptr = np.zeros(high - low + 1, dtype=np.int64)
    column_E, value_E = np.empty(room, np.int32), np.empty(room)
    kept = kernels.multiply(
        _plain(left),
        _plain(right),
        span,
        wanted,
        floor,
        with_self,
        k,
        (np.zeros(num_columns), np.empty(num_columns, dtype=np.int32)),
        (indptr, column_E, value_E),
    )
    return np.diff(indptr), column_E[:kept], value_E[:kept]


def _plain(rows: Csr) -> tuple[np.ndarray, ...]:
    """Read-only, mapped or not: compiled loops are made for one kind alone."""
    views = [np.asarray(array).view() for array in rows]
    for view in views:
        view.flags.writeable = False
    return tuple(views)
