"""A disk that is too small is told in seconds, before anything is made on it."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from folder_state import folder_state

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.config.arguments import parse_run
from sgrec_torchrec.distributed.checkpoint_files import open_reader, read_manifest
from sgrec_torchrec.item_graph.pair_runs import bytes_for_pairs
from sgrec_torchrec.logs.split import load_split
from sgrec_torchrec.runs import pipeline
from sgrec_torchrec.runs.disk import checkpoint_bytes
from sgrec_torchrec.runs.prepare import prepare_graph, prepare_log
from sgrec_torchrec.runs.stage_links import StageLinks

pytestmark = pytest.mark.long


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """free(bytes): of every disk."""
    return lambda num: monkeypatch.setattr(
        "shutil.disk_usage", lambda _: SimpleNamespace(free=num)
    )


def test_pairs_that_would_not_fit_are_refused_before_they_are_counted(
    planted_log, tiny_arguments, tmp_path: Path, free: Callable[[int], None]
) -> None:
    config, _ = parse_run(tiny_arguments(planted_log(3), tmp_path / "runs"))
    links = StageLinks(run_dir=config.run_dir)
    split, config = prepare_log(config, links)
    sequences = split.sequences
    needed = bytes_for_pairs(sequences.train_end_U, 20)
    # Users of so few events have pairs of all of them, both ways.
    assert needed == sum(16 * n * (n - 1) for n in sequences.train_end_U.tolist())
    free(needed - 1)
    with pytest.raises(OSError, match="needed for the log's counted pairs"):
        prepare_graph(split, config, links)
    assert not list((tmp_path / "runs" / "prepared").glob("covisits-*"))
    free(needed)
    prepare_graph(split, config, links)


def test_a_checkpoint_is_as_large_as_its_tensors(finished_run: Path) -> None:
    config = RunConfig.read(finished_run / "config.json").at(finished_run)
    (best,) = (finished_run / "best").iterdir()
    tensors = open_reader(best, read_manifest(best)).tensors
    saved = sum(
        math.prod(one.size) * one.properties.dtype.itemsize
        for name, one in tensors.items()
        # A number for each of AdamW's parameters.
        if not name.endswith(".step")
    )
    assert checkpoint_bytes(load_split(finished_run / "split"), config) == saved


@pytest.mark.parametrize(
    ("changes", "num_states", "told"),
    [
        ((), 12, "lower pretrain.keep_checkpoints = 10; make room, or take another"),
        (("pretrain.keep_checkpoints=1",), 3, "keep_checkpoints = 1;"),
        (("align.num_steps=5",), 16, "= 10 and align.keep_checkpoints = 2;"),
    ],
)
def test_checkpoints_that_would_not_fit_are_refused_once_the_log_is_read(
    planted_log,
    tiny_arguments,
    train_here,
    prepared_runs: Path,
    finished_run: Path,
    free: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    changes: tuple[str, ...],
    num_states: int,
    told: str,
) -> None:
    config = RunConfig.read(finished_run / "config.json").at(finished_run)
    needed = num_states * checkpoint_bytes(load_split(finished_run / "split"), config)
    before = folder_state(prepared_runs)
    argv = tiny_arguments(planted_log(), prepared_runs, *changes, name="full")
    free(needed - 1)
    with pytest.raises(SystemExit) as stopped:
        train_here(argv)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{prepared_runs / 'full'}: 0.00" in last
    assert told in last
    assert folder_state(prepared_runs) == before
    free(needed)
    # It gets past the check.
    monkeypatch.setattr(StageLinks, "add", None)
    with pytest.raises(TypeError):
        train_here(argv)


def test_what_a_run_has_written_counts_as_free_and_ranking_needs_nothing(
    finished_run: Path, planted_log, tiny_arguments, train_here, free, monkeypatch
) -> None:
    free(0)
    monkeypatch.setattr(StageLinks, "add", None)
    # Checkpoints after 20, 40 and 52 steps, and the best, are more than 1 + 2.
    argv = tiny_arguments(
        planted_log(), finished_run.parent, "pretrain.keep_checkpoints=1"
    )
    with pytest.raises(TypeError):
        train_here([*argv, "--resume"])


def test_a_log_that_would_not_fit_is_refused_before_it_is_imported(
    planted_log, tiny_arguments, train_here, tmp_path: Path, free, capsys
) -> None:
    log = planted_log()
    num_bytes = sum(path.stat().st_size for path in log.rglob("*") if path.is_file())
    free(2 * num_bytes - 1)
    argv = tiny_arguments(log, tmp_path / "runs")
    with pytest.raises(SystemExit):
        train_here(argv)
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'runs'}: " in last
    assert "needed for the imported log and its split; make room" in last
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("options", "needed"),
    # The packaged model's bytes; none, for want of a judge.
    [((), "0.512 GiB"), (("--business-only",), None)],
)
def test_a_full_disk_is_told_before_the_first_step(
    tmp_path: Path,
    free,
    monkeypatch,
    capsys,
    options: tuple[str, ...],
    needed: str | None,
) -> None:
    monkeypatch.setattr(pipeline, "check_judge", lambda _: None)
    monkeypatch.setattr(pipeline, "run_steps", lambda *_: [])
    free(1 << 20)
    argv = ["--run", "smoke", "--set", f"out_dir={tmp_path}", *options]
    if needed is None:
        pipeline.main(argv)
        return
    with pytest.raises(SystemExit) as stopped:
        pipeline.main(argv)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}: 0.000977 GiB are free and about {needed} needed for" in line
    assert line.endswith("--set out_dir=")
    assert list(tmp_path.iterdir()) == []
