"""All arms on the planted log: same start, same mask, every arm tested and written."""

import itertools
import json
import shutil
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sgrec_torchrec import benchmark_a2po as module
from sgrec_torchrec.a2po.reward import Group
from sgrec_torchrec.benchmark_a2po import ARMS, GRPO, PRETRAINED, benchmark_a2po
from sgrec_torchrec.config import RUNS, RunConfig
from sgrec_torchrec.logs.judged_users import history_hash
from sgrec_torchrec.logs.prompts import eligible_prompts
from sgrec_torchrec.logs.split import load_split
from sgrec_torchrec.reward_table import build_reward_table

STEPS = 3


def judged_everything(run: Path, folder: Path) -> Path:
    """A table with a made-up opinion of every item, for every user that is asked."""
    split = load_split(run / "split")
    ids, rows = split.catalogue.item_ids, []
    prompts = eligible_prompts(split, 0, 50)
    for user, as_of in zip(prompts.user_E, prompts.history_end_E, strict=True):
        first = int(split.sequences.offsets_U1[user])
        items = split.sequences.items_R[first : first + int(as_of)].tolist()
        user_id = split.user_ids[user]
        facts = {
            "user_id": user_id,
            "as_of": int(as_of),
            "history_hash": history_hash([ids[item] for item in items]),
        }
        rows += [
            facts
            | {
                "item_id": item,
                "reward": zlib.crc32(f"{user_id} {item}".encode()) % 97 / 97,
            }
            for item in ids
        ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "judged.parquet")
    build_reward_table(folder / "judged.parquet", folder / "table")
    return folder / "table"


@pytest.fixture
def base(finished_run: Path, tmp_path: Path, monkeypatch) -> RunConfig:
    """The settings of the finished run under a name of ours, weights in place."""
    runs = tmp_path / "runs"
    shutil.copytree(finished_run.parent, runs, symlinks=True)
    config = RunConfig.read(finished_run / "config.json")
    monkeypatch.setitem(RUNS, "planted", config)
    (runs / "benchmark" / "planted").mkdir(parents=True)
    return config


def test_all_arms_start_from_one_model_and_are_tested(
    base: RunConfig, world_of_one, tmp_path: Path, capsys
) -> None:
    out_dir = tmp_path / "runs"
    table = judged_everything(out_dir / base.name, tmp_path)
    rows = benchmark_a2po(
        "planted",
        num_seeds=1,
        table=table,
        json_path=tmp_path / "rows.json",
        assignments=[f"out_dir={out_dir}", f"align.num_steps={STEPS}"],
    )
    assert {row["arm"] for row in rows} == set(ARMS)
    whole = json.loads((tmp_path / "rows.json").read_text())
    tested = {(one["arm"], one["against"]) for one in whole["comparisons"]}
    others = [arm for arm in ARMS if arm != PRETRAINED]
    assert tested == {
        (arm, against)
        for arm, against in itertools.product(others, (PRETRAINED, GRPO))
        if arm != against
    }
    metrics = {
        path.parent.parent.name: [
            json.loads(line)["values"] for line in path.read_text().splitlines()
        ]
        for path in out_dir.glob("benchmark/planted/*/aligned/metrics.jsonl")
    }
    assert len(metrics) == len(others)
    starts = {lines[0]["pretrained NDCG@10"] for lines in metrics.values()}
    assert len(starts) == 1
    # The first step's groups are of the same policy, so the same ones are judged.
    first = [lines[1] for lines in metrics.values()]
    assert len({one["judged_share"] for one in first}) == 1
    assert first[0]["judged_share"] > 0
    assert "a2po, shuffled judge" in capsys.readouterr().out


def test_a_shuffled_judge_keeps_the_rewards_of_a_group() -> None:
    reward_BG = torch.arange(12.0).reshape(2, 6)
    judged_BG = torch.tensor([[True] * 6, [True, False] * 3])
    shuffled = module._Shuffled(lambda group: (reward_BG, judged_BG), seed=0)
    group = Group(
        prompt_B=torch.tensor([3, 8]).numpy(),
        item_BG=torch.zeros(2, 6, dtype=torch.int64),
        target_B=torch.zeros(2, dtype=torch.int64),
    )
    mixed_BG, mask_BG = shuffled(group)
    assert torch.equal(mask_BG, judged_BG)
    assert not torch.equal(mixed_BG, reward_BG)
    assert sorted(mixed_BG[0].tolist()) == reward_BG[0].tolist()
    assert torch.equal(mixed_BG[1, 1::2], reward_BG[1, 1::2])
    assert sorted(mixed_BG[1, ::2].tolist()) == reward_BG[1, ::2].tolist()
    again, _ = shuffled(group)
    assert torch.equal(again, mixed_BG)


def test_an_unknown_log_is_named() -> None:
    with pytest.raises(ValueError, match="unknown log 'nothing': choose one of"):
        benchmark_a2po(
            "nothing", num_seeds=1, table=None, json_path=None, assignments=[]
        )
