"""A call that is refused leaves the run's folder as it was, to the byte."""

import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from folder_state import folder_state

from sgrec_torchrec.config import RUNS, GraphConfig, RunConfig
from sgrec_torchrec.distributed.checkpoint_files import read_manifest
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.generator import pretrain as loop
from sgrec_torchrec.runs import open_run, prepare
from sgrec_torchrec.runs.aside import set_aside_run
from sgrec_torchrec.runs.claim import Claim
from sgrec_torchrec.runs.stage_links import StageLinks
from sgrec_torchrec.runs.steps import HELD, alone

pytestmark = pytest.mark.long

Refused = Callable[..., str]


@pytest.fixture
def runs(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of ``finished_run`` and of what was prepared for it."""
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs"


@pytest.fixture
def refused(
    planted_log, tiny_arguments, train_here, runs: Path, capsys: pytest.CaptureFixture
) -> Refused:
    """refused(*assignments, options=...) -> the last line; the run is as it was."""

    def call(*changes: str, options: tuple[str, ...], log: Path | None = None) -> str:
        before = folder_state(runs / "tiny")
        argv = tiny_arguments(log or planted_log(), runs, *changes)
        with pytest.raises(SystemExit) as stopped:
            train_here([*argv, *options])
        assert stopped.value.code == 2
        assert folder_state(runs / "tiny") == before
        return capsys.readouterr().err.splitlines()[-1]

    return call


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("generator.dropout=0.5", "generator.dropout = 0.2, this run has 0.5"),
        ("log.max_history=20", "log.max_history = 50, this run has 20"),
        ("tokens.num_codes=24", "tokens.num_codes = 16, this run has 24"),
        ("seed=3", "seed = 0, this run has 3"),
    ],
)
def test_resume_is_refused_by_a_setting_before_the_log_is_read(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, change: str, named: str
) -> None:
    monkeypatch.setattr(prepare, "made", None)
    assert named in refused(change, options=("--resume",))


def test_resume_is_refused_by_a_setting_that_only_the_log_tells(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before minutes of other stages, whose loads would refuse as well.
    monkeypatch.setattr(open_run, "prepare_graph", None)
    last = refused("tokens.num_codes=none", options=("--resume",))
    assert "tokens.num_codes = 16, this run has " in last


def test_resume_on_another_log_of_the_same_name_is_refused(
    planted_log, tiny_arguments, train_here, refused: Refused, runs: Path, tmp_path
) -> None:
    log = tmp_path / "log"
    log.symlink_to(planted_log(3))
    shutil.rmtree(runs / "tiny")
    settings = ("pretrain.num_epochs=2",)
    train_here(tiny_arguments(log, runs, *settings))
    log.unlink()
    log.symlink_to(planted_log(4))
    last = refused(*settings, options=("--resume",), log=log)
    assert "was trained on another log than log.source = 'canonical' now holds" in last
    last = refused(*settings, options=(), log=log)
    assert f"or give --overwrite, which moves {runs / 'tiny'} to tiny.1" in last
    # The checkpoint's own sum of the split is enough, and so are those of the log's
    # files: a link may be gone, and an older version's checkpoint names no data.
    link = runs / "tiny" / "split"
    split = link.readlink()
    link.unlink()
    last = refused(*settings, options=("--resume",), log=log)
    assert "was trained on another log than log.source" in last
    link.symlink_to(split)
    for path in (runs / "tiny").glob("*/step-*/manifest.json"):
        write_sealed(path, json.loads(path.read_text()) | {"trained_on": {}})
    last = refused(*settings, options=("--resume",), log=log)
    assert "was trained on another log than log.source" in last


def test_checkpoints_whose_settings_are_damaged_are_named(
    refused: Refused, runs: Path
) -> None:
    folder = runs / "tiny" / "checkpoints"
    for checkpoint in folder.iterdir():
        (checkpoint / "config.json").write_text("{")
    last = refused(options=("--resume",))
    assert f"{folder} holds no checkpoint that can be read" in last
    assert f"{max(folder.iterdir()) / 'config.json'} differs from its sha256" in last


@pytest.mark.parametrize("harmed", ["gone", "emptied", "a bit in every manifest"])
def test_damage_is_no_fresh_start(refused: Refused, runs: Path, harmed: str) -> None:
    folder = runs / "tiny" / "checkpoints"
    if harmed == "gone":
        shutil.rmtree(folder)
    for checkpoint in folder.glob("step-*"):
        if harmed == "emptied":
            shutil.rmtree(checkpoint)
        else:
            flip(checkpoint / "manifest.json", 40)
    last = refused(options=("--resume",))
    assert f"{folder} holds no checkpoint " in last
    assert "restore it from a copy, or start afresh under another --name" in last


def test_a_newer_format_is_refused_by_name(refused: Refused, runs: Path) -> None:
    newest = max((runs / "tiny" / "checkpoints").iterdir()) / "manifest.json"
    write_sealed(newest, json.loads(newest.read_text()) | {"format_version": 3})
    last = refused(options=("--resume",))
    assert f"{newest}: format_version 3, this program reads 2" in last


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    planted_log, tiny_arguments, train_here, finished_run: Path, runs: Path, caplog
) -> None:
    older, newest = sorted((runs / "tiny" / "checkpoints").iterdir())[-2:]
    flip(newest / "__0_0.distcp", 999)
    train_here([*tiny_arguments(planted_log(), runs), "--resume"])
    assert f"{newest / '__0_0.distcp'} differs from its sha256" in caplog.text
    assert f"{older} is read in its place" in caplog.text
    # It went the way again, to the same weights.
    again = max((runs / "tiny" / "checkpoints").iterdir())
    whole = max((finished_run / "checkpoints").iterdir())
    sums = [read_manifest(one).sha256["__0_0.distcp"] for one in (again, whole)]
    assert again.name == whole.name == newest.name
    assert sums[0] == sums[1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("generator.dropout=0.5", "a model of generator.dropout = 0.2, this run has"),
        ("evidence.hidden=4", "a model of evidence.hidden = 8, this run has 4"),
        ("pretrain.patience=1", "a model of pretrain.patience = "),
    ],
)
def test_a_model_of_other_settings_is_not_replaced(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, change: str, named: str
) -> None:
    monkeypatch.setattr(prepare, "made", None)
    last = refused(change, options=())
    assert named in last
    assert "choose another --name, or give --overwrite, which moves " in last
    assert last.endswith("tiny to tiny.1 first")


def test_weights_of_equal_settings_ship_until_the_run_that_begins_anew_has_its_own(
    planted_log, tiny_arguments, train_here, runs: Path, monkeypatch
) -> None:
    best = runs / "tiny" / "best"
    before = folder_state(best)
    (best / "step-000000000900").mkdir()
    argv = tiny_arguments(planted_log(), runs)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_run_segment", None)
        with pytest.raises(TypeError):
            train_here(argv)
    left = folder_state(best)
    assert {name: left[name] for name in before} == before
    assert not (runs / "tiny" / "checkpoints").exists()
    train_here(argv)
    after = folder_state(best)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in after if "distcp" in name)


def test_overwrite_moves_the_old_run_which_stays_usable(
    planted_log, tiny_arguments, train_here, runs: Path, capsys
) -> None:
    before = folder_state(runs / "tiny")
    argv = tiny_arguments(planted_log(), runs, "pretrain.num_epochs=2")
    train_here([*argv, "--overwrite"])
    assert f"{runs / 'tiny'} is now {runs / 'tiny.1'}" in capsys.readouterr().out
    after = folder_state(runs / "tiny.1")
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"config.json"}
    config = RunConfig.read(runs / "tiny" / "config.json")
    old = RunConfig.read(runs / "tiny.1" / "config.json").at(runs / "tiny.1")
    assert (old.name, old.pretrain.num_epochs) == ("tiny.1", 4)
    assert (config.name, config.pretrain.num_epochs) == ("tiny", 2)
    set_aside_run(config)
    assert sorted(path.name for path in runs.iterdir()) == [
        *("prepared", "tiny.1", "tiny.2")
    ]


def test_overwrite_waits_for_no_pipeline_and_goes_with_no_resume(
    planted_log, tiny_arguments, train_here, runs: Path, refused: Refused
) -> None:
    with (runs / "tiny" / "steps" / ".lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process is at work on" in refused(
            "pretrain.num_epochs=2", options=("--overwrite",)
        )
    last = refused(options=("--overwrite", "--resume"))
    assert "argument --resume: not allowed with argument --overwrite" in last


@pytest.mark.parametrize("lost", ["best", "checkpoints"])
def test_either_kind_of_checkpoint_tells_what_the_model_is(
    refused: Refused, runs: Path, lost: str
) -> None:
    shutil.rmtree(runs / "tiny" / lost)
    assert "a model of seed = 0, this run has 3" in refused("seed=3", options=())


def test_a_log_whose_split_is_lost_is_taken_for_the_same(
    runs: Path,
) -> None:
    config = RunConfig.read(runs / "tiny" / "config.json").at(runs / "tiny")
    split_dir = (runs / "tiny" / "split").resolve()
    (runs / "tiny" / "split").unlink()
    Claim(use="go on").check_resolved(config, split_dir)


@pytest.mark.parametrize("options", [(), ("--resume",)], ids=str)
def test_a_flipped_bit_of_the_split_is_no_other_log(
    refused: Refused, runs: Path, options: tuple[str, ...]
) -> None:
    path = (runs / "tiny" / "split" / "manifest.json").resolve()
    sums = path.read_bytes().index(b'"canonical_files"')
    flip(path, 8 * path.read_bytes().index(b"parquet", sums))
    last = refused(options=options)
    assert f"{path.name} is damaged (its checksum does not fit): prepare the " in last


def test_what_has_no_settings_yet_is_moved_too(tmp_path: Path) -> None:
    config = dataclasses.replace(RUNS["smoke"], out_dir=str(tmp_path))
    (config.run_dir / "checkpoints").mkdir(parents=True)
    set_aside_run(config)
    moved = [path.name for path in (tmp_path / "smoke.1").iterdir()]
    assert sorted(moved) == ["checkpoints", "steps"]


def test_overwrite_of_nothing_moves_nothing(tmp_path: Path) -> None:
    config = dataclasses.replace(RUNS["smoke"], out_dir=str(tmp_path))
    config.run_dir.mkdir()
    set_aside_run(config)
    assert [path.name for path in tmp_path.iterdir()] == ["smoke"]


def test_a_run_whose_graph_the_valid_rows_chose_goes_on_and_begins_again(
    planted_log, tiny_arguments, train_here, runs: Path, capsys
) -> None:
    """The checkpoint holds the graph that was chosen; the call's is open until then."""
    shutil.rmtree(runs / "tiny")
    argv = tiny_arguments(planted_log(), runs, "graph.text_weight=none")
    train_here(argv)
    chosen = RunConfig.read(runs / "tiny" / "config.json").graph
    assert dataclasses.replace(chosen, text_weight=None) != GraphConfig()
    for options in (["--resume"], []):
        train_here([*argv, *options])
    changed = tiny_arguments(
        planted_log(), runs, "graph.text_weight=none", "graph.max_distance=3"
    )
    for options in (["--resume"], []):
        with pytest.raises(SystemExit):
            train_here([*changed, *options])
        assert "graph.max_distance = 5" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named_before_the_log_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    config = dataclasses.replace(RUNS["smoke"], out_dir=str(tmp_path / "file"))
    links = StageLinks(run_dir=config.run_dir)
    with pytest.raises(FileNotFoundError, match="file is no folder that this user may"):
        prepare.prepare_log(config, links, claim=Claim(use="begin"))
    sound = dataclasses.replace(config, out_dir=str(tmp_path / "new"), name="run")
    Claim(use="begin").check_given(sound)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(FileNotFoundError, match=r"cannot write .*new/run: "):
        Claim(use="go on").check_given(sound)
    Claim(use="read").check_given(sound)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("options", [(), ("--resume",), ("--overwrite",)], ids=str)
def test_a_second_training_under_one_name_is_refused(
    refused: Refused, runs: Path, options: tuple[str, ...]
) -> None:
    with (runs / "tiny" / "steps" / ".lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        said = refused(options=options)
    assert said == (
        f"train.py: another process is at work on {runs / 'tiny'}: wait for its end, "
        "or end it"
    )


def test_a_folder_at_work_is_told_before_the_log_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "import_log", None)
    config = dataclasses.replace(RUNS["smoke"], out_dir=str(tmp_path))
    links = StageLinks(run_dir=config.run_dir)
    lock = config.run_dir / "steps" / ".lock"
    lock.parent.mkdir(parents=True)
    with lock.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for use in ("begin", "go on"):
            with pytest.raises(BlockingIOError, match="another process is at work"):
                prepare.prepare_log(config, links, claim=Claim(use=use))
        Claim(use="read").check_given(config)


def test_a_folder_at_work_is_not_moved_aside(tmp_path: Path) -> None:
    config = dataclasses.replace(RUNS["smoke"], out_dir=str(tmp_path))
    (config.run_dir / "checkpoints").mkdir(parents=True)
    (config.run_dir / "steps").mkdir()
    with (config.run_dir / "steps" / ".lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process is at work"):
            set_aside_run(config)
    assert [path.name for path in tmp_path.iterdir()] == ["smoke"]


def test_settings_that_cannot_be_read_move_with_their_run(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = dataclasses.replace(RUNS["smoke"], out_dir=str(tmp_path))
    config.run_dir.mkdir()
    (config.run_dir / "config.json").write_text("{")
    set_aside_run(config)
    moved = tmp_path / "smoke.1" / "config.json"
    assert moved.read_text() == "{"
    assert "it keeps its settings as they are: " in capsys.readouterr().out


def test_a_training_holds_its_folder_from_its_first_write_to_its_end(
    planted_log, tiny_arguments, train_here, prepared_runs: Path, monkeypatch
) -> None:
    begun = []

    def steps(*_: object, **__: object) -> None:
        monkeypatch.setenv(HELD, "")
        with pytest.raises(BlockingIOError), alone(prepared_runs / "tiny"):
            begun.append("never")
        begun.append("held")
        raise ValueError("row 7")

    monkeypatch.setattr("sgrec_torchrec.train.learn", steps)
    with pytest.raises(SystemExit):
        train_here(tiny_arguments(planted_log(), prepared_runs))
    assert begun == ["held"]
    monkeypatch.setenv(HELD, "")
    with alone(prepared_runs / "tiny"):
        assert begun == ["held"]


def test_what_a_holder_starts_is_let_in(tmp_path: Path) -> None:
    enter = (
        "import sys; from pathlib import Path; from sgrec_torchrec.runs.steps import "
        "alone; alone(Path(sys.argv[1])).__enter__(); print('in')"
    )
    place = tmp_path / "a:b"
    words = [sys.executable, "-c", enter, str(place)]
    with alone(place):
        assert subprocess.run(words, capture_output=True, check=False).stdout == b"in\n"
        lonely = {key: value for key, value in os.environ.items() if key != HELD}
        done = subprocess.run(words, capture_output=True, check=False, env=lonely)
        assert b"another process is at work" in done.stderr
