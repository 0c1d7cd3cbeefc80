"""A run's seed decides where its training starts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.config.arguments import parse_run
from sgrec_torchrec.distributed.launch import Ranks, process_group
from sgrec_torchrec.files.tracking import Tracker
from sgrec_torchrec.generator.trainee import build_trainee
from sgrec_torchrec.logs.sampling import NO_SOFT_TARGETS
from sgrec_torchrec.runs.prepare import prepare_log
from sgrec_torchrec.runs.stage_links import StageLinks
from sgrec_torchrec.schema import ItemTokens


@pytest.fixture(scope="module")
def config(
    planted_log, tiny_arguments, tmp_path_factory: pytest.TempPathFactory
) -> RunConfig:
    return parse_run(tiny_arguments(planted_log(20), tmp_path_factory.mktemp("runs")))[
        0
    ]


def start_weights(config: RunConfig, ranks: Ranks) -> dict[str, Tensor]:
    """Of a run that has not trained yet: what is drawn, not what starts as 0 or 1."""
    links = StageLinks(run_dir=config.run_dir)
    split, config = prepare_log(config, links)
    items = np.arange(split.sequences.num_items, dtype=np.int32)
    tokens = ItemTokens(codes_NL=np.stack([items // 16, items % 16], 1), num_codes=16)
    nothing = Tracker(Path(config.out_dir), enabled=False)
    trainee = build_trainee(split, NO_SOFT_TARGETS, tokens, config, ranks, nothing)
    weights = {
        name: torch.cat([part.tensor for part in value.local_shards()])
        if hasattr(value, "local_shards")
        else value
        for name, value in trainee.dmp.state_dict().items()
    }
    return {
        name: value.clone()
        for name, value in weights.items()
        if value.is_floating_point() and value.unique().numel() > 1
    }


def test_every_drawn_weight_follows_from_the_runs_seed(
    config: RunConfig, world_of_one
) -> None:
    with process_group(device="cpu") as ranks:
        one, same = (start_weights(replace(config, seed=1), ranks) for _ in range(2))
        other = start_weights(replace(config, seed=2), ranks)
    assert any("tower" in name for name in one)
    assert any("tower" not in name for name in one)
    assert one.keys() == same.keys() == other.keys()
    for name, value in one.items():
        assert value.equal(same[name]), name
        assert not value.equal(other[name]), name
