"""Rows written block by block are the matrix, and come back by ranges."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from sgrec_torchrec.item_graph.row_files import Csr, written_rows
from sgrec_torchrec.item_graph.row_order import matrix_of, only, pieces, rows_in


@pytest.fixture
def matrix() -> sp.csr_matrix:
    """11 rows, the third and the last empty."""
    generator = np.random.default_rng(5)
    dense = generator.random((11, 7)) * (generator.random((11, 7)) < 0.4)
    dense[[2, 10]] = 0
    return sp.csr_matrix(dense)


@pytest.mark.parametrize("most", [1, 4, 20])
def test_rows_come_back_by_blocks(
    matrix: sp.csr_matrix, tmp_path: Path, most: int
) -> None:
    blocks = (rows for _, _, rows in pieces(rows_in(matrix), most))
    written = written_rows(tmp_path, blocks)
    assert written.num_rows == 11
    np.testing.assert_array_equal(written.matrix(7).toarray(), matrix.toarray())
    kept = written.in_memory()
    found = []
    for low, high, rows in written.blocks(most):
        assert high - low == 1 or rows[0].sum() <= most
        assert low == len(found)
        found.extend(matrix_of(rows, 7).toarray())
    np.testing.assert_array_equal(found, matrix.toarray())
    np.testing.assert_array_equal(kept.matrix(7).toarray(), matrix.toarray())


def test_rows_of_no_items_are_no_blocks(tmp_path: Path) -> None:
    written = written_rows(tmp_path, [])
    assert list(written.blocks()) == []
    assert written.matrix(0).shape == (0, 0)


def test_values_are_kept_in_the_kind_asked_for(
    matrix: sp.csr_matrix, tmp_path: Path
) -> None:
    written = written_rows(tmp_path, [rows_in(matrix)], np.float32)
    assert written.value_E.dtype == np.float32
    np.testing.assert_array_equal(written.value_E, matrix.data.astype(np.float32))


def test_rows_that_nobody_asks_for_become_empty(matrix: sp.csr_matrix) -> None:
    wanted = np.arange(11) % 3 == 0
    found = matrix_of(only(rows_in(matrix), wanted), 7).toarray()
    np.testing.assert_array_equal(found[wanted], matrix.toarray()[wanted])
    assert not found[~wanted].any()


def test_a_range_of_rows_is_a_view(matrix: sp.csr_matrix) -> None:
    rows = Csr.of(matrix).rows(3, 6)
    np.testing.assert_array_equal(matrix_of(rows, 7).toarray(), matrix.toarray()[3:6])
    assert np.shares_memory(rows[2], matrix.data)
