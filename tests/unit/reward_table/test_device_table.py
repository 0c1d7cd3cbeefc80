"""The tensor form gives the kernel's answers, bit for bit."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sgrec_torchrec.reward_table import (
    RewardTable,
    append_segment,
    build_reward_table,
)

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                not torch.cuda.is_available(), reason="needs one CUDA device"
            ),
        ],
    ),
]


@pytest.fixture
def table(tmp_path: Path) -> RewardTable:
    """Two segments; some users of the second replace what the first says of them."""
    noise = np.random.default_rng(0)
    for nth in range(2):
        pairs = np.unique(noise.integers(0, 60, (3000, 2)), axis=0) * 2**40 - 7
        columns = {
            "user_id": pairs[:, 0],
            "item_id": pairs[:, 1],
            "reward": noise.random(len(pairs)),
            "aspect_a": noise.random(len(pairs)),
            "as_of": np.where(pairs[:, 0] % 3 == 0, nth, 5),
            "history_hash": pairs[:, 0].astype(np.uint64),
        }
        if nth:
            columns = {name: column[::9] for name, column in columns.items()}
            columns["user_id"] = columns["user_id"] + 2**41
            columns["history_hash"] = columns["user_id"].astype(np.uint64)
            columns["as_of"] = np.where(columns["user_id"] % 3 == 0, nth, 5)
        pq.write_table(pa.table(columns), tmp_path / "judged.parquet")
        if nth:
            append_segment(tmp_path / "table", tmp_path / "judged.parquet")
        else:
            build_reward_table(
                tmp_path / "judged.parquet", tmp_path / "table", reward_range=(-1, 2)
            )
    return RewardTable.open(tmp_path / "table")


@pytest.mark.parametrize("device", DEVICES)
def test_device_and_kernel_agree(table: RewardTable, device: str) -> None:
    assert sum(one.num_replaced_users for one in table.manifest.segments) > 5
    noise = np.random.default_rng(1)
    users, items = torch.from_numpy(noise.integers(-1, 65, (2, 5000)) * 2**40 - 7)
    there = table.to(device)
    wanted = table.lookup(users, items, aspects=True)
    got = there.lookup(users.to(device), items.to(device), aspects=True)
    assert wanted[1].float().mean() > 0.2
    for one, other in zip(got, wanted, strict=True):
        assert one.device.type == device
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=0, equal_nan=True)
    got = there.as_of(users.to(device))
    for one, other in zip(got, table.as_of(users), strict=True):
        assert torch.equal(one.cpu(), other)
    assert len(there.lookup(users[:0].to(device), items[:0].to(device))[0]) == 0


def test_wrong_questions_are_named(table, write_pairs, tmp_path: Path) -> None:
    there = table.to("cpu")
    one = torch.tensor([1])
    with pytest.raises(ValueError, match="user_ids: give an int64 tensor"):
        there.lookup(one.float(), one)
    with pytest.raises(ValueError, match="item_ids: give an int64 tensor"):
        there.lookup(one, one[None])
    with pytest.raises(ValueError, match="user_ids: give an int64 tensor"):
        there.as_of(one.float())
    with pytest.raises(ValueError, match="1 user_ids, 2 item_ids"):
        there.lookup(one, torch.tensor([1, 2]))
    build_reward_table(write_pairs([(1, 1, 0.5)]), tmp_path / "plain")
    plain = RewardTable.open(tmp_path / "plain").to("cpu")
    assert plain.lookup(one, one)[1].item()
    with pytest.raises(ValueError, match="has no aspects"):
        plain.lookup(one, one, aspects=True)
    with pytest.raises(ValueError, match="has no as_of"):
        plain.as_of(one)
    build_reward_table(write_pairs([("a", 1, 0.5)]), tmp_path / "text")
    with pytest.raises(ValueError, match="ids are strings, which no device holds"):
        RewardTable.open(tmp_path / "text").to("cpu")
