"""The largest entries of each row are exact and ties fall as documented."""

import numpy as np
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_torchrec.item_graph.row_order import first_k, keep_heaviest


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
