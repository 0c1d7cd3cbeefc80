"""Weights go with the data that they were trained on, not with others of equal size."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sgrec_torchrec.distributed.checkpoint import read_extra
from sgrec_torchrec.distributed.checkpoint_files import read_manifest
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.files.stage_keys import NAMED_BY, stage_keys
from sgrec_torchrec.serving.run_files import read_run

pytestmark = pytest.mark.long

OTHER = ("pretrain.num_epochs=1", "evaluation.max_rows=40")


@pytest.fixture(scope="module")
def other_runs(
    planted_log, tiny_arguments, train_here, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run on a log of as many items."""
    out_dir = tmp_path_factory.mktemp("other") / "runs"
    train_here(tiny_arguments(planted_log(199), out_dir, *OTHER))
    return out_dir


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs" / "tiny"


def newest(run: Path) -> Path:
    return max((run / "best").iterdir())


def test_every_stage_is_named_and_other_data_has_other_keys(
    run: Path, other_runs: Path
) -> None:
    ours, others = stage_keys(run), stage_keys(other_runs / "tiny")
    assert ours.keys() == others.keys() == NAMED_BY.keys()
    assert read_manifest(newest(run)).trained_on == ours
    assert all(ours[name] != others[name] for name in ours)


@pytest.mark.parametrize("stage", list(NAMED_BY))
def test_data_of_another_run_is_refused_by_name(
    run: Path, other_runs: Path, stage: str
) -> None:
    read_run(run)
    (run / stage).unlink()
    (run / stage).symlink_to((other_runs / "tiny" / stage).resolve())
    with pytest.raises(ValueError, match=rf"not trained on {run / stage}: .*, restore"):
        read_run(run)


@pytest.mark.parametrize("stage", ["tokens", "teacher"])
def test_training_does_not_go_on_with_them_either(
    planted_log,
    tiny_arguments,
    train_here: Callable[[list[str]], None],
    run: Path,
    other_runs: Path,
    capsys: pytest.CaptureFixture,
    stage: str,
) -> None:
    place = (run / stage).resolve()
    shutil.rmtree(place)
    shutil.copytree((other_runs / "tiny" / stage).resolve(), place)
    with pytest.raises(SystemExit) as stopped:
        train_here([*tiny_arguments(planted_log(), run.parent), "--resume"])
    assert stopped.value.code == 2
    assert f"was not trained on {run / stage}: " in capsys.readouterr().err


def test_weights_of_another_run_are_refused(run: Path, other_runs: Path) -> None:
    shutil.rmtree(run / "best")
    shutil.copytree(other_runs / "tiny" / "best", run / "best")
    with pytest.raises(ValueError, match=r"was saved with log\.path = .*planted-199"):
        read_run(run)


def test_an_older_checkpoint_names_no_data_and_opens(
    run: Path, other_runs: Path
) -> None:
    checkpoint = newest(run)
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["trained_on"]
    write_sealed(path, manifest)
    (run / "scorer").unlink()
    (run / "scorer").symlink_to((other_runs / "tiny" / "scorer").resolve())
    read_run(run)
    assert read_extra(checkpoint)["step"] == read_manifest(checkpoint).step
