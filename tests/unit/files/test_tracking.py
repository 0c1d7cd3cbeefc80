"""The tracker writes each value once, survives crashes, and can go back to a step."""

import json
import logging
import math
import sys
from pathlib import Path

import pytest
import torch

from sgrec_torchrec.files.tracking import MetricLine, Tracker, read_metrics


def write_steps(run_dir: Path, first: int, last: int, loss: float) -> None:
    with Tracker(run_dir, enabled=True) as tracker:
        tracker.resume(first)
        for step in range(first, last):
            tracker.log(step, {"loss": loss}, "pretrain")


def losses(run_dir: Path) -> list[tuple[int, float]]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [(line.step, line.values["loss"]) for line in lines]


def test_log_writes_one_json_line_a_call(tmp_path: Path) -> None:
    with Tracker(tmp_path, enabled=True) as tracker:
        tracker.log(0, {"loss": 2.5, "learning_rate": 0.001}, "pretrain")
        tracker.log(0, {"NDCG@10": 0.05}, "valid")
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(first)
    assert record.pop("time_s") > 1.5e9
    assert record == {
        "step": 0,
        "stage": "pretrain",
        "values": {"loss": 2.5, "learning_rate": 0.001},
    }
    assert json.loads(second)["stage"] == "valid"


def test_each_line_is_on_disk_before_the_next_is_logged(tmp_path: Path) -> None:
    with Tracker(tmp_path, enabled=True) as tracker:
        tracker.log(3, {"loss": 1.0}, "pretrain")
        assert losses(tmp_path) == [(3, 1.0)]


def test_a_disabled_tracker_writes_nothing(tmp_path: Path) -> None:
    with Tracker(tmp_path / "run", enabled=False) as tracker:
        tracker.resume(0)
        tracker.log(0, {"loss": 1.0}, "pretrain")
    assert not (tmp_path / "run").exists()


def test_values_that_are_not_finite_stay_valid_json_and_come_back(
    tmp_path: Path,
) -> None:
    values = {"nan": math.nan, "high": math.inf, "low": -math.inf, "loss": 1.0}
    with Tracker(tmp_path, enabled=True) as tracker:
        tracker.log(0, values, "pretrain")
    text = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(text, parse_constant=pytest.fail)
    assert record["values"] == {"nan": None, "high": None, "low": None, "loss": 1.0}
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(line.values["nan"])
    assert line.values["high"] == math.inf
    assert line.values["low"] == -math.inf


def test_tensors_of_one_element_are_values(tmp_path: Path) -> None:
    with Tracker(tmp_path, enabled=True) as tracker:
        tracker.log(0, {"loss": torch.tensor(0.25)}, "pretrain")  # type: ignore[dict-item]
    assert losses(tmp_path) == [(0, 0.25)]


def test_resume_drops_lines_at_and_after_the_step(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 6, loss=1.0)
    write_steps(tmp_path, 4, 8, loss=2.0)
    expected = [(step, 1.0) for step in range(4)]
    assert losses(tmp_path) == expected + [(step, 2.0) for step in range(4, 8)]


def test_resume_at_zero_starts_afresh(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 3, loss=1.0)
    write_steps(tmp_path, 0, 2, loss=2.0)
    assert losses(tmp_path) == [(0, 2.0), (1, 2.0)]


def test_without_resume_lines_are_appended(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 2, loss=1.0)
    with Tracker(tmp_path, enabled=True) as tracker:
        tracker.log(2, {"loss": 3.0}, "test")
    assert losses(tmp_path) == [(0, 1.0), (1, 1.0), (2, 3.0)]


@pytest.mark.parametrize("tail", ['{"step": 2, "sta', "x" * 200_000])
def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path: Path, tail: str) -> None:
    write_steps(tmp_path, 0, 2, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    assert losses(tmp_path) == [(0, 1.0), (1, 1.0)]
    with Tracker(tmp_path, enabled=True) as tracker:
        tracker.log(2, {"loss": 3.0}, "pretrain")
    assert losses(tmp_path) == [(0, 1.0), (1, 1.0), (2, 3.0)]


def test_a_long_file_keeps_all_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Tracker(tmp_path, enabled=True) as tracker:
        tracker.log(0, {"x" * 200_000: 1.0}, "pretrain")
    whole = path.read_text()
    path.write_text(whole + '{"step": 1')
    with Tracker(tmp_path, enabled=True):
        assert path.read_text() == whole


def test_a_file_of_one_unfinished_line_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step"')
    with Tracker(tmp_path, enabled=True):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("text", ["[]\n", '{"step": 1}\n', "not json\n"])
def test_a_foreign_line_is_named(tmp_path: Path, text: str) -> None:
    write_steps(tmp_path, 0, 2, loss=1.0)
    path = tmp_path / "metrics.jsonl"
    before = path.read_text() + text
    path.write_text(before)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3: .* remove the line"):
        read_metrics(path)
    with (
        Tracker(tmp_path, enabled=True) as tracker,
        pytest.raises(ValueError, match="line 3"),
    ):
        tracker.resume(1)
    assert path.read_text() == before


def test_a_negative_step_is_refused(tmp_path: Path) -> None:
    with (
        Tracker(tmp_path, enabled=True) as tracker,
        pytest.raises(ValueError, match="step = -1 of stage 'pretrain'"),
    ):
        tracker.log(-1, {"loss": 1.0}, "pretrain")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FileNotFoundError, match="choose another output folder"),
        Tracker(tmp_path / "file" / "run", enabled=True),
    ):
        pass


def test_missing_metrics_are_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_tensorboard_holds_the_values_and_forgets_dropped_steps(
    tmp_path: Path,
) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    write_steps(tmp_path, 0, 4, loss=1.0)
    write_steps(tmp_path, 2, 5, loss=2.0)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("pretrain/loss")]
    assert scalars == losses(tmp_path)


def test_without_tensorboard_it_says_so_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING):
        write_steps(tmp_path, 0, 3, loss=1.0)
    assert len(losses(tmp_path)) == 3
    (record,) = caplog.records
    assert "tensorboard is not installed" in record.getMessage()


def crash_after_one_step(run_dir: Path) -> None:
    with Tracker(run_dir, enabled=True) as tracker:
        tracker.log(0, {"loss": 1.0}, "pretrain")
        raise KeyError("stop")


def test_an_error_inside_passes_and_keeps_what_was_logged(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="stop"):
        crash_after_one_step(tmp_path)
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line == MetricLine(
        step=0, stage="pretrain", time_s=line.time_s, values={"loss": 1.0}
    )
