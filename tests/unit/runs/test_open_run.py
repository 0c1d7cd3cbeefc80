"""A trained run is opened by all who need one, and refused by all of them alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sgrec_torchrec import cli
from sgrec_torchrec.candidates.draw import write_candidates
from sgrec_torchrec.config import RUNS, CandidatesConfig, RunConfig
from sgrec_torchrec.distributed.launch import process_group
from sgrec_torchrec.experiments import fusions
from sgrec_torchrec.experiments.arms import PRETRAINED
from sgrec_torchrec.experiments.fusions import benchmark_a2po
from sgrec_torchrec.runs import open_run as module

Opener = Callable[[Path], None]


def draw(run_dir: Path) -> None:
    """``sgrec candidates``, of few users."""
    with process_group(device="cpu") as ranks:
        write_candidates(run_dir, CandidatesConfig(max_users=2), ranks)


@pytest.fixture
def run_dir(finished_run: Path, tmp_path: Path, world_of_one: None) -> Path:
    """A copy of the finished run, to be changed."""
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs" / finished_run.name


every_opener = pytest.mark.parametrize(
    "opener", [draw, cli.evaluate], ids=["candidates", "evaluate"]
)


def untrained(run_dir: Path) -> None:
    for name in ("best", "checkpoints"):
        shutil.rmtree(run_dir / name)


def damage(run_dir: Path) -> str:
    """Flip a bit of the shipped weights; returns the name of their file."""
    path = max(run_dir.glob("best/*/*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return path.name


def test_candidates_tell_the_step_whose_weights_drew_them(run_dir: Path) -> None:
    draw(run_dir)
    made = json.loads((run_dir / "candidates" / "manifest.json").read_text())
    (best,) = (run_dir / "best").iterdir()
    assert made["checkpoint_step"] == int(best.name.removeprefix("step-")) > 0


@every_opener
def test_a_folder_that_is_no_run_is_named(tmp_path: Path, opener: Opener) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing: is this"):
        opener(tmp_path)
    assert list(tmp_path.iterdir()) == []


@every_opener
def test_a_run_that_is_not_trained_is_named(run_dir: Path, opener: Opener) -> None:
    untrained(run_dir)
    with pytest.raises(FileNotFoundError, match="best holds no checkpoint: train the"):
        opener(run_dir)


def test_nothing_is_prepared_to_draw_from_a_run_that_is_not_trained(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained(run_dir)
    monkeypatch.setattr(module, "prepare_log", None)
    with pytest.raises(FileNotFoundError, match="best holds no checkpoint: train the"):
        draw(run_dir)


@every_opener
def test_a_damaged_weight_is_named(run_dir: Path, opener: Opener) -> None:
    name = damage(run_dir)
    with pytest.raises(ValueError, match=f"{name} differs from its sha256"):
        opener(run_dir)


def test_arms_do_not_start_from_damaged_weights(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.read(run_dir / "config.json")
    monkeypatch.setitem(RUNS, "planted", config)

    def arms() -> None:
        benchmark_a2po(
            "planted",
            num_seeds=1,
            table=None,
            json_path=None,
            assignments=[f"out_dir={run_dir.parent}"],
            arms=[PRETRAINED],
        )

    arms()
    name = damage(run_dir.parent / "benchmark" / "planted" / "train-0")
    monkeypatch.setattr(fusions, "run", None)
    with pytest.raises(ValueError, match=f"{name} differs from its sha256"):
        arms()
