"""Ids of a log are texts, a table may have integers: they meet, or are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sgrec_torchrec.a2po.aligner import check_rewards
from sgrec_torchrec.a2po.prompts import post_training_prompts
from sgrec_torchrec.a2po.reward import Group, TableReward, open_business, open_table
from sgrec_torchrec.config import AlignConfig, RunConfig
from sgrec_torchrec.reward_table import build_reward_table
from sgrec_torchrec.schema import SplitLog


@pytest.fixture
def split(make_log, user_ids) -> SplitLog:
    """Three users named by numbers with 5 events of a day each; items 0, 1, ..."""
    named = make_log(
        {
            name: [(first + day, 86_400 * day, float("nan")) for day in range(5)]
            for first, name in enumerate(user_ids(3))
        }
    )
    catalogue = replace(
        named.catalogue,
        item_ids=[name.removeprefix("i") for name in named.catalogue.item_ids],
    )
    return replace(named, user_ids=["40", "-41", "42"], catalogue=catalogue)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Prices of all items for the three users, ids as int64: item / 10 at user 40."""
    pairs = [(user, item) for user in (40, -41, 42) for item in range(10)]
    users, items = zip(*pairs, strict=True)
    rewards = pa.array([item / 10 for item in items], pa.float32())
    table = pa.table({"user_id": users, "item_id": items, "reward": rewards})
    pq.write_table(table, tmp_path / "prices.parquet")
    build_reward_table(tmp_path / "prices.parquet", tmp_path / "table")
    return tmp_path / "table"


def test_integers_of_a_log_and_of_a_table_meet(split: SplitLog, folder: Path) -> None:
    prompts = post_training_prompts(split, RunConfig(name="x"))
    settings = AlignConfig(business_table=str(folder))
    reward = open_business(split, prompts, settings)
    assert isinstance(reward, TableReward)
    group = Group(
        prompt_B=np.array([0, len(prompts) - 1]),
        item_BG=torch.tensor([[4, 1], [9, -1]]),
        target_B=torch.tensor([0, 0]),
    )
    expected = torch.tensor([[0.4, 0.1], [0.9, 0.0]])
    torch.testing.assert_close(reward(group), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("odd", ["u7", "007"])
def test_ids_that_cannot_meet_are_refused_when_the_table_is_opened(
    split: SplitLog, folder: Path, odd: str
) -> None:
    open_table(str(folder), split)
    other_user = replace(split, user_ids=["40", odd, "42"])
    with pytest.raises(ValueError, match=f"no table of this log: user_ids .*'{odd}'"):
        open_table(str(folder), other_user)
    items = [*split.catalogue.item_ids[:-1], odd]
    other_item = replace(split, catalogue=replace(split.catalogue, item_ids=items))
    prompts = post_training_prompts(split, RunConfig(name="x"))
    # Of no prompt: it would be met in a rollout, hours later.
    settings = AlignConfig(business_table=str(folder), missing_business=0.0)
    with pytest.raises(ValueError, match=f"no table of this log: item_ids .*'{odd}'"):
        open_business(other_item, prompts, settings)


def test_a_damaged_table_is_refused_before_any_training(
    split: SplitLog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AlignConfig(num_steps=1, business_table=str(folder))
    config = RunConfig(name="x", align=settings)
    check_rewards(split, config)
    (path,) = folder.glob("segments/*/rows.bin")
    damaged = bytearray(path.read_bytes())
    # The lowest bit of a reward: what is read is nearly right.
    damaged[-2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"rows.bin is damaged \(its SHA-256"):
        check_rewards(split, config)
    # Of the ranks of a host, one reads the files for all.
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_rewards(split, config)
