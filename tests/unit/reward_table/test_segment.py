"""Arrays in files: pieces of any size, written in huge pages."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from sgrec_torchrec.reward_table import segment
from sgrec_torchrec.reward_table.segment import RawFile


@pytest.mark.parametrize("page", [8, 56, 4096])
def test_pieces_stand_end_to_end(tmp_path: Path, monkeypatch, page: int) -> None:
    """Whether they fill part of a page, a page, or several."""
    monkeypatch.setattr(segment, "HUGE_PAGE_BYTES", page)
    file = RawFile(tmp_path / "array.bin", "int64")
    numbers = np.arange(100)
    for start, stop in ((0, 3), (3, 3), (3, 10), (10, 71), (71, 100)):
        file.append(numbers[start:stop])
    facts = file.close()
    written = (tmp_path / "array.bin").read_bytes()
    assert written == numbers.astype("<i8").tobytes()
    assert (facts.shape, facts.num_bytes) == ((100,), 800)
    assert facts.sha256 == hashlib.sha256(written).hexdigest()
