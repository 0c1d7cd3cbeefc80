"""Products whose rows are cut as they are made are the products, cut."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from sgrec_torchrec.item_graph import heaviest, product_kernels
from sgrec_torchrec.item_graph.heaviest import heaviest_product
from sgrec_torchrec.item_graph.row_order import arrays_of


@pytest.mark.parametrize("block", [1, 4, 5, 100])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_product_equals_the_dense_one_cut_row_by_row(monkeypatch, block, k) -> None:
    generator = np.random.default_rng(3)
    # Small whole numbers: sums are exact, and many of them tie.
    left = generator.integers(0, 3, (13, 8)) * (generator.random((13, 8)) < 0.5)
    right = generator.integers(0, 3, (8, 11)) * (generator.random((8, 11)) < 0.5)
    left[4] = 0
    expected = (left @ right).astype(np.float64)
    for row in range(13):
        order = sorted(range(11), key=lambda c: (-expected[row, c], c))
        expected[row, order[k:]] = 0
    monkeypatch.setattr(heaviest, "BLOCK_ENTRIES", block * k)
    factors = (sp.csr_matrix(one.astype(np.float64)) for one in (left, right))
    found = heaviest_product(*factors, k)
    assert isinstance(found, sp.csr_matrix)
    assert found.shape == (13, 11)
    assert (np.diff(found.indptr) <= k).all()
    assert found.data.all()
    np.testing.assert_array_equal(found.toarray(), expected)


@pytest.mark.parametrize("stripe", [1, 3, 7, 64])
@pytest.mark.parametrize("room", [2, 3, 50])
@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_stripes_and_room_change_no_bit(stripe: int, room: int, k: int) -> None:
    """The compiled code, interpreted: its constants are frozen where it is compiled."""
    generator = np.random.default_rng(stripe + k)
    left, right = (
        sp.random_array(shape, density=0.4, format="csr", rng=generator)
        for shape in ((9, 12), (12, 40))
    )
    # A few values, so that many totals tie.
    left.data, right.data = (np.ceil(3 * one.data) for one in (left, right))
    expected = heaviest_product(sp.csr_matrix(left), sp.csr_matrix(right), k)
    found = interpreted(stripe, room, left, right, k)
    for one, other in zip(found, arrays_of(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def interpreted(
    stripe: int, room: int, left: sp.csr_array, right: sp.csr_array, k: int
) -> tuple[np.ndarray, ...]:
    """What ``multiply`` writes, whatever a row's number of products."""
    source = Path(product_kernels.__file__).read_text().replace("@numba.njit", "#")
    scope: dict[str, object] = {}
    exec(compile(source, "kernels", "exec"), scope)
    scope |= {"STRIPE": stripe, "ROOM": room, "STEP_PRODUCTS": -1}
    size = left.shape[0]
    edges = (
        np.zeros(size + 1, np.int64),
        np.empty(size * k, np.int32),
        np.empty(size * k),
    )
    kept = scope["multiply"](
        (left.indptr, left.indices, left.data),
        (right.indptr, right.indices, right.data),
        (0, size),
        np.ones(size, dtype=np.bool_),
        0.0,
        True,
        k,
        (np.zeros(right.shape[1]), np.empty(right.shape[1], np.int32)),
        edges,
    )
    return edges[0], edges[1][:kept], edges[2][:kept]


def test_columns_in_no_order_are_put_in_order(monkeypatch) -> None:
    monkeypatch.setattr(product_kernels, "STEP_PRODUCTS", -1)
    right = sp.csr_matrix(np.arange(1.0, 13.0).reshape(3, 4))
    mixed = sp.csr_matrix(
        (right.data[::-1].copy(), right.indices[::-1].copy(), right.indptr),
        shape=(3, 4),
    )
    left = sp.csr_matrix(np.eye(3))
    found = heaviest_product(left, mixed, 4).toarray()
    np.testing.assert_array_equal(found, mixed.toarray())


def test_product_of_empty_factors_is_empty() -> None:
    found = heaviest_product(sp.csr_matrix((5, 3)), sp.csr_matrix((3, 4)), 2)
    assert found.shape == (5, 4)
    assert found.nnz == 0


def test_rows_that_nobody_asks_for_stay_empty() -> None:
    square = sp.csr_matrix(np.arange(1.0, 17.0).reshape(4, 4))
    wanted_N = np.array([True, False, False, True])
    found = heaviest_product(square, square, 2, wanted_N=wanted_N).toarray()
    whole = heaviest_product(square, square, 2).toarray()
    np.testing.assert_array_equal(found[wanted_N], whole[wanted_N])
    assert not found[~wanted_N].any()


def test_small_entries_and_the_diagonal_can_be_left_out() -> None:
    square = sp.csr_matrix(np.array([[3.0, 1.0], [1.0, 2.0]]))
    # Its square is [[10, 5], [5, 5]].
    found = heaviest_product(square, square, 2, floor=6.0).toarray()
    np.testing.assert_array_equal(found, [[10, 0], [0, 0]])
    found = heaviest_product(square, square, 1, with_self=False).toarray()
    np.testing.assert_array_equal(found, [[0, 5], [5, 0]])


def test_a_floor_that_is_no_number_leaves_nothing() -> None:
    square = sp.csr_matrix(np.ones((4, 4)))
    assert heaviest_product(square, square, 2, floor=float("nan")).nnz == 0


def test_products_that_vanish_reach_nothing() -> None:
    tiny = sp.csr_matrix(np.array([[1e-200, 1e-200, 1.0]]))
    right = sp.csr_matrix(np.array([[1e-200, 0.0], [1e-200, 0.0], [0.0, 2.0]]))
    found = heaviest_product(tiny, right, 2)
    np.testing.assert_array_equal(found.toarray(), [[0, 2]])
    assert found.nnz == 1
