"""What a benchmark reads again of its arms is under a seal; older files have none."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sgrec_torchrec.config import RUNS, RunConfig
from sgrec_torchrec.experiments import fusions
from sgrec_torchrec.experiments.arm_report import write_report
from sgrec_torchrec.files.sealed_json import write_sealed

NO_RANKS: Any = None


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    config = dataclasses.replace(RUNS["smoke"], out_dir=str(tmp_path))
    config.run_dir.mkdir()
    return config


def flipped(path: Path, at: bytes) -> None:
    """The lowest bit of the first byte of ``at`` is another."""
    data = path.read_bytes()
    place = data.index(at)
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def test_a_flipped_bit_of_an_arm_is_named(config: RunConfig) -> None:
    path = config.run_dir / "arm.json"
    write_sealed(path, {"best_step": 4, "systems": {"network": {"NDCG@10": 0.25}}})
    flipped(path, b"4")
    with pytest.raises(ValueError, match=r"arm\.json is damaged .*the arm is measured"):
        write_report([("a2po", config)], ["a2po"], [], {}, None)


@pytest.fixture
def weight(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a run that chose .25."""
    monkeypatch.setattr(fusions, "made_of", lambda *_: "weights")
    chosen = type("Chosen", (), {"prior_weight": 0.25})
    with monkeypatch.context() as patch:
        patch.setattr(fusions, "run", lambda *_, **__: chosen)
        assert fusions._prior_weight(config, NO_RANKS) == 0.25
    monkeypatch.setattr(fusions, "run", None)
    return config.run_dir / "pretrained.json"


def test_a_flipped_bit_of_the_chosen_weight_is_named(
    config: RunConfig, weight: Path
) -> None:
    assert fusions._prior_weight(config, NO_RANKS) == 0.25
    flipped(weight, b"5")
    with pytest.raises(ValueError, match=r"pretrained\.json is damaged .*evaluated ag"):
        fusions._prior_weight(config, NO_RANKS)


def test_a_weight_that_an_older_version_chose_is_taken(
    config: RunConfig, weight: Path
) -> None:
    chosen = json.loads(weight.read_text())
    del chosen["checksum"]
    weight.write_text(json.dumps(chosen))
    assert fusions._prior_weight(config, NO_RANKS) == 0.25
