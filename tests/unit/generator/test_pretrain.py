"""Pretraining learns, stops early, and goes on exactly where it was interrupted."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.config.arguments import parse_run
from sgrec_torchrec.distributed import keeper
from sgrec_torchrec.distributed.checkpoint import load_unsharded, read_extra
from sgrec_torchrec.evaluation.generate import Ranker
from sgrec_torchrec.files.tracking import MetricLine, Tracker, read_metrics
from sgrec_torchrec.generator import pretrain as loop
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.generator.pretrain import PretrainState, pretrain, restore_best
from sgrec_torchrec.item_tokens.build import load_tokens
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.logs.split import load_split
from sgrec_torchrec.schema import StepOutput

CLOCKS = {"step_s", "tokens_per_s"}
STEPS_PER_EPOCH = 13
LAST_STEP = 52


class InterruptedRunError(Exception):
    """What the test raises in place of a crash."""


def untimed(lines: list[MetricLine]) -> list[tuple[int, str, dict[str, float]]]:
    """All that must repeat to the last bit."""
    return [
        (
            line.step,
            line.stage,
            {k: v for k, v in line.values.items() if k not in CLOCKS},
        )
        for line in lines
    ]


def step_names(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def shipped_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    config = RunConfig.read(run_dir / "config.json")
    tokens = load_tokens(run_dir / "tokens")
    plain = Generator(
        config=config.generator,
        trie=PrefixTrie.build(tokens.codes_NL, tokens.num_codes),
        num_event_types=load_split(run_dir / "split").sequences.num_event_types,
    )
    (newest,) = (run_dir / "best").iterdir()
    load_unsharded(newest, plain)
    return plain.state_dict()


def sigterm_after(num_steps: int, patch: pytest.MonkeyPatch) -> None:
    """This process is told to end while it trains on so many steps and one more."""
    add = loop._Window.add

    def spy(window, output: StepOutput, learning_rate: float) -> None:
        add(window, output, learning_rate)
        if window.first_step + len(window) == num_steps:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(loop._Window, "add", spy)


def sigterm_in_validation(patch: pytest.MonkeyPatch) -> None:
    """This process is told to end while it ranks the first batch of valid rows."""
    search, searched = Ranker._search, []

    def spy(ranker: Ranker, *rest: Any) -> Any:
        assert not searched, "ranked on after the word to end"
        searched.append(os.kill(os.getpid(), signal.SIGTERM))
        return search(ranker, *rest)

    patch.setattr(Ranker, "_search", spy)


@pytest.mark.parametrize(
    ("tell", "earliest", "latest"),
    [
        # What the pipeline had taken already is trained on.
        (partial(sigterm_after, 31), 31, 34),
        # The validation of step 26 comes first when it goes on.
        (sigterm_in_validation, 26, 26),
    ],
)
def test_sigterm_keeps_the_last_step_and_the_resumed_run_is_the_same_to_the_bit(
    tell: Callable[[pytest.MonkeyPatch], None],
    earliest: int,
    latest: int,
    finished_run: Path,
    prepared_runs: Path,
    planted_log,
    tiny_arguments,
    train_here,
    capsys,
) -> None:
    argv = tiny_arguments(planted_log(), prepared_runs, name="told")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        tell(patch)
        with pytest.raises(SystemExit) as stopped:
            train_here(argv)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    run_dir = prepared_runs / "told"
    first, kept = step_names(run_dir / "checkpoints")
    assert first == 20
    assert earliest <= kept <= latest
    assert f"the state after step {kept} is kept" in capsys.readouterr().out
    train_here([*argv, "--resume"])
    lines = [read_metrics(run / "metrics.jsonl") for run in (finished_run, run_dir)]
    expected, got = (
        [(one.step, one.values.get("loss"), one.values.get("NDCG@10")) for one in run]
        for run in lines
    )
    assert got == expected
    weights, same = shipped_weights(finished_run), shipped_weights(run_dir)
    assert all(torch.equal(weights[name], same[name]) for name in weights)


@pytest.fixture(scope="module")
def resumed_run(
    finished_run: Path, planted_log, tiny_arguments, train_here, tmp_path_factory
) -> Path:
    """The same run, broken off after step 26 and resumed from the state after 20."""
    runs = tmp_path_factory.mktemp("resumed")
    shutil.copytree(finished_run.with_name("prepared"), runs / "prepared")
    argv = tiny_arguments(planted_log(), runs, name="broken")

    def crash(*_: object) -> PretrainState:
        raise InterruptedRunError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_note_validation", crash)
        with pytest.raises(InterruptedRunError):
            train_here(argv)
    run_dir = runs / "broken"
    assert step_names(run_dir / "checkpoints") == [20]
    logged = [line.step for line in read_metrics(run_dir / "metrics.jsonl")]
    assert logged == list(range(26))
    starts: list[int] = []
    run_segment = loop._run_segment

    def spy(trainee, pipeline, told, start: int, *rest: int) -> int:
        starts.append(start)
        return run_segment(trainee, pipeline, told, start, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_run_segment", spy)
        train_here([*argv, "--resume"])
    assert starts == [20, 26, 40]
    return run_dir


def test_loss_falls_and_ndcg_rises_far_above_popularity(finished_run: Path) -> None:
    lines = read_metrics(finished_run / "metrics.jsonl")
    losses = [line.values["loss"] for line in lines if line.stage == "pretrain"]
    ndcg = [line.values["NDCG@10"] for line in lines if line.stage == "valid"]
    assert len(losses) == LAST_STEP
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    results = json.loads((finished_run / "evaluation" / "results.json").read_text())
    ours, alone, popularity, *_ = (
        system["metrics"]["NDCG@10"] for system in results["systems"]
    )
    assert [s["system"] for s in results["systems"]][2] == "popularity"
    assert min(ours, alone) > 3 * popularity
    assert ndcg[-1] > ndcg[0] > popularity


def test_every_step_is_logged_once_with_its_learning_rate(finished_run: Path) -> None:
    lines = read_metrics(finished_run / "metrics.jsonl")
    steps = [line for line in lines if line.stage == "pretrain"]
    assert [line.step for line in steps] == list(range(LAST_STEP))
    rates = [line.values["learning_rate"] for line in steps]
    assert max(rates) == rates[5] == 2e-3  # after 5 steps of warm-up
    assert rates[0] < rates[1]
    assert rates[-1] < 0.1 * rates[5]
    for line in steps:
        levels = line.values["loss_level_0"] + line.values["loss_level_1"]
        assert line.values["loss"] == pytest.approx(levels, rel=1e-5)


def test_resumed_curve_equals_the_uninterrupted_one(
    finished_run: Path, resumed_run: Path
) -> None:
    expected = untimed(read_metrics(finished_run / "metrics.jsonl"))
    assert untimed(read_metrics(resumed_run / "metrics.jsonl")) == expected


def test_resumed_run_ships_the_same_bits(finished_run: Path, resumed_run: Path) -> None:
    expected, got = shipped_weights(finished_run), shipped_weights(resumed_run)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    figures = [
        json.loads((run / "evaluation" / "results.json").read_text())["systems"]
        for run in (finished_run, resumed_run)
    ]
    assert figures[0] == figures[1]


def test_checkpoints_stand_at_their_steps_and_the_best_one_alone(
    finished_run: Path,
) -> None:
    assert step_names(finished_run / "checkpoints") == [20, 40, 52]
    (best,) = (finished_run / "best").iterdir()
    state = PretrainState(**read_extra(best))
    lines = read_metrics(finished_run / "metrics.jsonl")
    ndcg = {
        line.step + 1: line.values["NDCG@10"] for line in lines if line.stage == "valid"
    }
    assert state.best_step == state.step == max(ndcg, key=lambda step: ndcg[step])
    assert state.best_ndcg == ndcg[state.step]
    assert best.name == f"step-{state.step:012d}"


def test_checkpoint_of_other_settings_is_refused_by_the_name_of_the_field(
    finished_run: Path,
    prepared_runs: Path,
    planted_log,
    tiny_arguments,
    train_here,
    capsys,
) -> None:
    argv = tiny_arguments(
        planted_log(), prepared_runs, "generator.dropout=0.5", name="other"
    )
    run_dir = prepared_runs / "other"
    run_dir.mkdir()
    (run_dir / "checkpoints").symlink_to(finished_run / "checkpoints")
    with pytest.raises(SystemExit) as stopped:
        train_here([*argv, "--resume"])
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "generator.dropout = 0.2, this run has 0.5" in last


# What follows drives the loop with a model that only counts.


class CountingStream:
    steps_per_epoch = 3

    @staticmethod
    def batches(epoch: int, first_step: int) -> Iterator[tuple[int, int]]:
        return ((epoch, step) for step in range(first_step, 3))


def test_segment_reads_its_own_steps_across_epochs() -> None:
    found = list(loop._batches(CountingStream, 2, 8))
    assert found == [(0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    assert list(loop._batches(CountingStream, 3, 3)) == []


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """make(**pretrain settings) -> (trainee, steps run, (folder, step) saved)."""
    segments: list[tuple[int, int]] = []
    saved: list[tuple[str, int]] = []

    def run_segment(trainee, pipeline, told, start: int, end: int, total: int) -> int:
        segments.append((start, end))
        return end

    def save(folder: Path, step: int, *_: object, **__: object) -> None:
        saved.append((folder.name, step))

    monkeypatch.setattr(loop, "_run_segment", run_segment)
    monkeypatch.setattr(keeper, "save_checkpoint", save)
    monkeypatch.setattr(loop, "restore_best", lambda _: saved.append(("restored", 0)))
    monkeypatch.setattr(loop, "TrainPipelineSparseDist", lambda *_, **__: None)

    def make(**settings: int | None) -> SimpleNamespace:
        config, _ = parse_run(["--name", "counted", "--set", f"out_dir={tmp_path}"])
        config = replace(config, pretrain=replace(config.pretrain, **settings))
        run_dir = config.run_dir
        trainee = SimpleNamespace(
            dmp=None,
            optimizer=None,
            stream=CountingStream,
            config=config,
            tracker=Tracker(run_dir, enabled=False),
            device=torch.device("cpu"),
            checkpoints=run_dir / "checkpoints",
            best=run_dir / "best",
        )
        return SimpleNamespace(trainee=trainee, segments=segments, saved=saved)

    return make


def test_training_stops_when_validation_does_not_get_better(counting) -> None:
    made = counting(num_epochs=10, valid_every_epochs=1, patience=2)
    scores = iter([0.1, 0.3, 0.3, 0.2, 0.9])
    state = pretrain(made.trainee, lambda: next(scores), resume=False)
    # Steps 3, 6 (best), 9 (equal is no better), 12 (stop).
    assert state == PretrainState(
        step=12, best_step=6, best_ndcg=0.3, stale_validations=2
    )
    assert made.saved == [
        ("best", 3),
        ("best", 6),
        ("checkpoints", 12),
        ("restored", 0),
    ]


def test_refit_stops_on_the_schedule_of_the_whole_run(counting) -> None:
    made = counting(num_epochs=10, stop_after_epochs=2, checkpoint_every_steps=4)
    state = pretrain(made.trainee, None, resume=False)
    assert made.segments == [(0, 4), (4, 6)]
    assert state.step == 6
    assert made.saved == [("checkpoints", 4), ("checkpoints", 6), ("best", 6)]


def test_a_run_that_stops_before_its_first_validation_ships_its_last_step(
    counting,
) -> None:
    made = counting(num_epochs=10, stop_after_epochs=1, valid_every_epochs=2)
    state = pretrain(made.trainee, lambda: pytest.fail("validated"), resume=False)
    assert (state.step, state.best_step, state.best_ndcg) == (3, 3, -1.0)
    assert made.saved == [("checkpoints", 3), ("best", 3)]


def test_an_unresolved_number_of_epochs_is_an_error(counting) -> None:
    made = counting(num_epochs=None)
    with pytest.raises(ValueError, match=r"pretrain\.num_epochs is None"):
        pretrain(made.trainee, None, resume=False)
    assert made.segments == []


def test_resume_without_a_checkpoint_starts_fresh(counting) -> None:
    made = counting(num_epochs=1)
    pretrain(made.trainee, None, resume=True)
    assert made.segments == [(0, 3)]


def test_a_finished_run_resumes_as_finished(
    finished_run: Path, planted_log, tiny_arguments, train_here, tmp_path: Path
) -> None:
    out_dir = tmp_path / "runs"
    shutil.copytree(finished_run.parent, out_dir, symlinks=True)
    before = read_metrics(finished_run / "metrics.jsonl")
    train_here([*tiny_arguments(planted_log(), out_dir), "--resume"])
    assert read_metrics(out_dir / finished_run.name / "metrics.jsonl") == before


def test_a_fresh_start_removes_what_an_older_run_left(counting) -> None:
    made = counting(num_epochs=1)
    for folder in (made.trainee.checkpoints, made.trainee.best):
        (folder / "step-000000000900").mkdir(parents=True)
    pretrain(made.trainee, None, resume=False)
    assert not made.trainee.checkpoints.exists()
    assert not made.trainee.best.exists()


def test_nothing_trained_yet_is_said_so(counting) -> None:
    # The real one: the fixture's does not read.
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: train the run"):
        restore_best(counting().trainee)
