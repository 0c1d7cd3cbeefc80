"""Products whose rows are cut as they are made are the products, cut."""

import numpy as np
import pytest
import scipy.sparse as sp

from sgrec_torchrec.item_graph import heaviest
from sgrec_torchrec.item_graph.heaviest import heaviest_product


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
