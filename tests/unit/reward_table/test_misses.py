"""Missing pairs are counted, kept within a bound and written as candidates."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sgrec_torchrec.reward_table import MissLog, misses


def test_misses_are_counted_and_written(tmp_path: Path) -> None:
    log = MissLog()
    assert (log.rate, len(log)) == (0.0, 0)
    log.add([1, 1, 2], [5, 6, 5], [False, True, False])
    log.add([1, 3], [5, 5], [False, True])
    assert (log.num_asked, log.num_missing, len(log)) == (5, 3, 2)
    assert log.rate == 0.6
    assert log.write(tmp_path / "new" / "misses.parquet") == 2
    written = pq.read_table(tmp_path / "new" / "misses.parquet").to_pydict()
    assert written == {
        "user_id": [1, 2],
        "item_id": [5, 5],
        "source": ["miss", "miss"],
        "count": [2, 1],
    }


@pytest.mark.parametrize("name", [int, str])
def test_counts_are_those_of_a_counter(tmp_path, monkeypatch, name) -> None:
    monkeypatch.setattr(misses, "FOLD_AT_ROWS", 50)
    noise = np.random.default_rng(0)
    log, wanted = MissLog(max_pairs=200), Counter()
    for _ in range(20):
        users, items = noise.integers(0, 10, (2, 30))
        found = noise.random(30) < 0.5
        asked = [[name(one) for one in side.tolist()] for side in (users, items)]
        log.add(*asked, found)
        for user, item, is_there in zip(*asked, found, strict=True):
            wanted[user, item] += not is_there
    log.write(tmp_path / "misses.parquet")
    got = pq.read_table(tmp_path / "misses.parquet").to_pydict()
    keys = zip(got["user_id"], got["item_id"], strict=True)
    assert dict(zip(keys, got["count"], strict=True)) == +wanted
    assert got["count"] == sorted(got["count"], reverse=True)
    assert log.num_dropped == 0


def test_the_bound_drops_the_rarest(monkeypatch) -> None:
    monkeypatch.setattr(misses, "FOLD_AT_ROWS", 1)
    log = MissLog(max_pairs=2)
    log.add([1, 1, 2, 2, 3], [1, 1, 2, 2, 3], [False] * 5)
    assert len(log) == 2
    assert (log.num_missing, log.num_dropped) == (5, 1)
    with pytest.raises(ValueError, match="max_pairs 0: give at least 1"):
        MissLog(max_pairs=0)


def test_tensors_are_taken() -> None:
    log = MissLog()
    log.add(torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([True, False]))
    assert len(log) == 1


def test_wrong_lengths_and_nothing_to_write_are_errors(tmp_path: Path) -> None:
    log = MissLog()
    with pytest.raises(ValueError, match="2 user_ids, 1 item_ids, 1 found: give what"):
        log.add([1, 2], [1], [True])
    with pytest.raises(ValueError, match="no pair was missing, so there is none"):
        log.write(tmp_path / "misses.parquet")
    assert list(tmp_path.iterdir()) == []
