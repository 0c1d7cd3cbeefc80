"""The largest entries of each row are exact and ties fall as documented."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_torchrec.item_graph import row_order
from sgrec_torchrec.item_graph.row_order import (
    first_k,
    heaviest_product,
    keep_heaviest,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([2, 1000]))
def test_both_agree_with_a_sort_of_each_row(seed: int, k: int, levels: int) -> None:
    generator = np.random.default_rng(seed)
    # Steps of 1e-12 vanish in float32, so that the exact second pass has to decide.
    dense = generator.integers(0, levels, size=(6, 11)) * (1 + 1e-12)
    dense = np.where(generator.random((6, 11)) < 0.4, 0.0, dense + (dense > 0))
    dense += (dense > 0) * generator.integers(0, 3, size=(6, 11)) * 1e-12
    matrix = sp.csr_matrix(dense)
    tie_rank = generator.permutation(11)
    expected_kept = np.zeros_like(dense)
    expected_first = np.full((6, k), -1)
    for row in range(6):
        columns = np.flatnonzero(dense[row])
        heaviest = sorted(columns, key=lambda c: (-dense[row, c], c))[:k]
        expected_kept[row, heaviest] = dense[row, heaviest]
        first = sorted(columns, key=lambda c: (-dense[row, c], tie_rank[c]))[:k]
        expected_first[row, : len(first)] = first
    row, column = matrix.nonzero()
    found = first_k(row.astype(np.int64), column, matrix.data, tie_rank, 6, k)
    np.testing.assert_array_equal(found, expected_first)
    kept = keep_heaviest(matrix, k)
    np.testing.assert_array_equal(kept.toarray(), expected_kept)
    assert kept.has_sorted_indices


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
    monkeypatch.setattr(row_order, "PRODUCT_ROWS", block)
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
