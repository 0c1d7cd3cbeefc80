"""train.py with ``align.num_steps``: pretrained, post-trained, evaluated, reported."""

import json
import shutil
from pathlib import Path

import pytest
from folder_state import folder_state

from sgrec_torchrec import cli
from sgrec_torchrec.a2po import align as loop
from sgrec_torchrec.files.tracking import read_metrics
from sgrec_torchrec.generator import pretrain as pretraining
from sgrec_torchrec.serving import Recommender
from sgrec_torchrec.serving.run_files import find_run

CHANGES = (
    "align.num_steps=12",
    "align.global_batch_size=16",
    "align.num_rollouts=8",
    "align.lr=1e-3",
    "align.valid_every_steps=6",
)


@pytest.fixture
def copied_runs(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs"


def test_command_post_trains_and_resumes_as_finished_or_under_no_other_settings(
    copied_runs: Path, planted_log, tiny_arguments, train_here, capsys
) -> None:
    argv = [*tiny_arguments(planted_log(), copied_runs, *CHANGES), "--resume"]
    run_dir = copied_runs / "tiny"
    train_here(argv)
    lines = read_metrics(run_dir / "aligned" / "metrics.jsonl")
    assert [line.step for line in lines if line.stage == "align"] == list(range(12))
    results = json.loads((run_dir / "evaluation" / "results.json").read_text())
    assert "align" in results["seconds"]
    train_here(argv)
    assert read_metrics(run_dir / "aligned" / "metrics.jsonl") == lines
    again = json.loads((run_dir / "evaluation" / "results.json").read_text())
    assert again["systems"] == results["systems"]
    before = folder_state(run_dir)
    with pytest.raises(SystemExit):
        train_here([*argv, "--set", "align.num_steps=14"])
    assert "align.num_steps = 12, this run has 14" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_here(tiny_arguments(planted_log(), copied_runs))
    assert "tiny holds a model of align." in capsys.readouterr().err
    assert folder_state(run_dir) == before


def test_a_run_opens_from_the_call_for_post_training_until_that_has_shipped(
    copied_runs: Path, planted_log, tiny_arguments, train_here, capsys, monkeypatch
) -> None:
    argv = [*tiny_arguments(planted_log(), copied_runs, *CHANGES), "--resume"]
    run_dir = copied_runs / "tiny"
    with monkeypatch.context() as patch:
        # As a kill at the last moment before the first weights are written.
        patch.setattr(loop, "_make_room", None)
        with pytest.raises(TypeError):
            train_here(argv)
    told = json.loads((run_dir / "config.json").read_text())
    assert told["align"]["num_steps"] == 12
    capsys.readouterr()
    assert find_run(run_dir).checkpoint.parent == run_dir / "best"
    said = capsys.readouterr().err
    assert said.startswith(f"{run_dir}: post-training has shipped nothing yet, so this")
    Recommender.load(run_dir).recommend([["i1"]], 3)
    monkeypatch.setattr("sys.argv", ["sgrec", "evaluate", str(run_dir)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert not (run_dir / "aligned").exists()
    train_here(argv)
    capsys.readouterr()
    assert find_run(run_dir).checkpoint.parent == run_dir / "aligned" / "best"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("setting", ["table", "business_table"])
def test_unknown_table_is_one_line_that_names_it(
    copied_runs: Path, planted_log, tiny_arguments, train_here, capsys, setting: str
) -> None:
    changes = (*CHANGES, f"align.{setting}=/nowhere/table")
    argv = [*tiny_arguments(planted_log(), copied_runs, *changes), "--resume"]
    with pytest.raises(SystemExit) as stopped:
        train_here(argv)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train.py: ")
    assert "/nowhere/table" in last


def test_a_run_begun_anew_and_killed_stands_for_its_first_weights(
    copied_runs: Path, planted_log, tiny_arguments, train_here, capsys, monkeypatch
) -> None:
    argv = tiny_arguments(planted_log(), copied_runs, *CHANGES)
    run_dir = copied_runs / "tiny"
    train_here([*argv, "--resume"])

    def killed(*arguments: object) -> None:
        validated(*arguments)
        raise KeyboardInterrupt

    validated = pretraining._validated
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "_validated", killed)
        with pytest.raises(KeyboardInterrupt):
            train_here(argv)
    capsys.readouterr()
    assert find_run(run_dir).checkpoint.parent == run_dir / "best"
    said = capsys.readouterr().err
    assert said.startswith(
        f"{run_dir}: post-training has shipped nothing made of these weights yet, so "
    )
    monkeypatch.setattr("sys.argv", ["sgrec", "evaluate", str(run_dir)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert said in capsys.readouterr().err
    train_here([*argv, "--resume"])
    capsys.readouterr()
    assert find_run(run_dir).checkpoint.parent == run_dir / "aligned" / "best"
    assert capsys.readouterr().err == ""
