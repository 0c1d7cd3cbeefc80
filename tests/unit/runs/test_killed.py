"""Each command that writes into a run, killed: what was whole stays, and it goes on.

Killed by SIGKILL at a seeded change of the folder: SGREC_KILLS=20 tries that many.
"""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from folder_state import folder_state

from sgrec_torchrec import cli
from sgrec_torchrec.config.arguments import parse_with
from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.content_key import content_key
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.reward_table import RewardTable
from sgrec_torchrec.reward_table.manifest import read_manifest
from sgrec_torchrec.runs import pipeline
from sgrec_torchrec.runs.closed_loop import close_loop, read_published
from sgrec_torchrec.runs.pipeline import pipeline_steps, with_bounds
from sgrec_torchrec.runs.steps import stamp_path
from sgrec_torchrec.serving import Recommender

pytestmark = pytest.mark.long

SEEDS = range(int(os.environ.get("SGREC_KILLS", "1")))
KILL_AT = Path(__file__).parents[2] / "harness" / "kill_at.py"
JUDGE = "judge train RUN --model MODEL --sft-updates 1 --grpo-steps 1 --no-bf16"
EVALUATED = ("evaluation", "evaluation-pretrained", "aligned/gain.json", "report.html")
TRAINED = (
    *("aligned", "aligned.1", "config.json", "meta.json", "metrics.jsonl"),
    *("tensorboard", *EVALUATED),
)
COMMANDS = {
    # command -> changes of the folder that it does at least, what it may write
    "candidates RUN --max-users 5 --max-per-user 24": (14, ("candidates",)),
    "judge label RUN --max-cases 300": (6, ("labels",)),
    f"{JUDGE} --max-held-out 2 --max-weight-cases 2 --out RUN/new": (50, ("new",)),
    "judge run RUN --pairs PAIRS --written 0 --out RUN/told": (12, ("told",)),
    "table build RUN/judged --out RUN/reward_table": (28, ("reward_table",)),
    "table append RUN/grown RUN/judged": (18, ("grown",)),
    "export RUN --out RUN/package": (12, ("package",)),
    "report RUN": (3, ("report.html",)),
    "evaluate RUN": (50, EVALUATED),
    "train --config RUN/config.json": (500, ("best", "checkpoints", *TRAINED)),
    "train --config RUN/config.json --resume --set align.table=none": (250, TRAINED),
}


@pytest.fixture(scope="module")
def whole_runs(
    piped_run: Path, piped_alone: FileLock, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Of a run that went through all of S-GRec; little of it is evaluated."""
    runs = tmp_path_factory.mktemp("killed") / "runs"
    with piped_alone:
        shutil.copytree(piped_run.parent, runs, symlinks=True)
    # Its table is its own, and not that of the run that this is a copy of.
    for path in runs.glob("tiny/**/config.json"):
        if path.parent.name == "tiny" or "aligned" in path.parts:
            path.write_text(path.read_text().replace(str(piped_run.parent), str(runs)))
    for path in runs.glob("tiny/aligned/*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        sum_now = sha256_file(path.with_name("config.json"))
        manifest["sha256"]["config.json"] = sum_now
        write_sealed(path, manifest)
    path = runs / "tiny" / "config.json"
    config = json.loads(path.read_text())
    config["evaluation"] |= {"max_rows": 60, "max_valid_rows": 40}
    write_sealed(path, config)
    # Who appends to the run's own ends what was post-trained with it.
    shutil.copytree(runs / "tiny" / "reward_table", runs / "tiny" / "grown")
    some = pq.read_table(runs / "tiny" / "candidates" / "candidates.parquet")[:6]
    pq.write_table(some, runs / "pairs.parquet")
    shutil.copytree(runs, runs.with_name("whole"), symlinks=True)
    return runs


@pytest.fixture
def run_dir(whole_runs: Path) -> Path:
    """That run, as no command has met it yet."""
    shutil.rmtree(whole_runs)
    shutil.copytree(whole_runs.with_name("whole"), whole_runs, symlinks=True)
    return whole_runs / "tiny"


@pytest.fixture
def words_of(run_dir: Path, tiny_folder: Path) -> Callable[[str], list[str]]:
    names = {
        "RUN": str(run_dir),
        "PAIRS": str(run_dir.parent / "pairs.parquet"),
        "MODEL": str(tiny_folder),
    }

    def make(command: str) -> list[str]:
        for name, path in names.items():
            command = command.replace(name, path)
        return command.split()

    return make


def untouched(run_dir: Path, written: Sequence[str]) -> dict[str, str]:
    """What a command has no business with."""
    places = tuple(f"{name}/" for name in written)
    return {
        name: state
        for name, state in folder_state(run_dir).items()
        # Hidden: what a killed process was about to rename.
        if name not in written
        and not name.startswith(places)
        and not any(part.startswith(".") for part in Path(name).parts)
    }


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_harms_nothing_and_ends_well_when_given_again(
    run_dir: Path,
    words_of: Callable[[str], list[str]],
    warm_python: Path,
    world_of_one: None,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    seed: int,
) -> None:
    words = words_of(command)
    num_changes, written = COMMANDS[command]
    number = random.Random(f"{command} {seed}").randint(1, num_changes)
    before = untouched(run_dir, written)
    line = (warm_python, KILL_AT, run_dir, number, "sgrec_torchrec.cli", *words)
    killed = subprocess.run(
        [str(word) for word in line], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert untouched(run_dir, written) == before
    Recommender.load(run_dir)
    for table in ("reward_table", "grown"):
        RewardTable.open(run_dir / table).verify()
    assert sgrec(monkeypatch, words) == 0, number
    assert untouched(run_dir, written) == before
    Recommender.load(run_dir)


@pytest.fixture
def python_that_dies(
    warm_python: Path, run_dir: Path, tmp_path: Path
) -> Callable[..., str]:
    """python_that_dies(n, of=words): a program to put in place of ``sys.executable``.

    ``of``: only whose command holds these words is killed.
    """

    def make(number: int, of: str = "") -> str:
        path = tmp_path / "python"
        words = shlex.join(map(str, (warm_python, KILL_AT, run_dir, number)))
        # The first word is -m.
        path.write_text(
            f'#!/bin/sh\ncase "$*" in *{shlex.quote(of)}*) shift; exec {words} "$@";; '
            f'esac\nexec {shlex.quote(str(warm_python))} "$@"\n'
        )
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_pipeline_whose_process_is_killed_puts_back_what_was_and_ends_well_again(
    run_dir: Path,
    piped_arguments: Callable[..., list[str]],
    warm_python: Path,
    python_that_dies: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seed: int,
) -> None:
    """Post-training by other settings, the judge and its table as they are."""
    few = (
        "align.num_steps=2",
        "evaluation.max_rows=60",
        "evaluation.max_valid_rows=40",
    )
    argv = piped_arguments(run_dir.parent, *few)
    restamp(run_dir, argv, but="align")
    aligned = folder_state(run_dir / "aligned")
    written = ("logs", "config.json", "meta.json", *EVALUATED, "steps")
    before = untouched(run_dir, written)
    number = random.Random(f"pipeline {seed}").randint(1, 120)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", python_that_dies(number))
        with pytest.raises(SystemExit):
            pipeline.main(argv)
    said = capsys.readouterr()
    assert said.out.count(": reused") == 6
    assert "step 7 (align) ended with code -9" in said.err
    assert untouched(run_dir, written) == before
    assert folder_state(run_dir / "aligned") == aligned
    Recommender.load(run_dir)
    monkeypatch.setattr(sys, "executable", str(warm_python))
    pipeline.main(argv)
    assert folder_state(run_dir / "aligned") != aligned
    assert not list((run_dir / "steps").glob("*.kept"))


LOOP = "loop RUN --rounds 2 --max-pairs 30 --set align.checkpoint_every_steps=2"
LOOPED = ("loop", "published.json", "reward_table", *TRAINED)
DIES = {
    # "": the loop itself; words of a child -> changes of the folder at least
    "": 30,
    "sgrec_torchrec.train": 100,
    "judge run": 10,
    "table append": 15,
}


def made_by_loop(run_dir: Path) -> dict[str, Any]:
    """All that two rounds come to, without times."""
    rounds = [run_dir / "loop" / f"round-{number:03d}" for number in (1, 2)]
    pairs = [
        pq.read_table(path).to_pylist()
        for one in rounds
        for path in one.glob("pairs.parquet")
    ]
    weights = run_dir.glob("aligned/best/*/*.distcp")
    evaluated = json.loads((run_dir / "evaluation" / "results.json").read_text())
    published = read_published(run_dir)
    assert published is not None
    # Of a manifest, which holds the time.
    del published["sha256"]
    return {
        "rounds": [json.loads((one / "round.json").read_text()) for one in rounds],
        "published": published,
        "pairs": pairs,
        "table": read_manifest(run_dir / "reward_table"),
        "weights": {path.parent.name: sha256_file(path) for path in weights},
        "figures": [one["metrics"] for one in evaluated["systems"]],
    }


@pytest.fixture(scope="module")
def loop_unkilled(whole_runs: Path, warm_python: Path) -> dict[str, Any]:
    """What is left where nobody is killed."""
    shutil.rmtree(whole_runs)
    shutil.copytree(whole_runs.with_name("whole"), whole_runs, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(warm_python))
        close_loop(whole_runs / "tiny", 2, 30, ["align.checkpoint_every_steps=2"])
    return made_by_loop(whole_runs / "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("of", DIES)
def test_a_killed_loop_goes_on_to_what_an_unkilled_one_leaves(
    loop_unkilled: dict[str, Any],
    run_dir: Path,
    words_of: Callable[[str], list[str]],
    warm_python: Path,
    python_that_dies: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    of: str,
    seed: int,
) -> None:
    before = untouched(run_dir, LOOPED)
    number = random.Random(f"loop {of} {seed}").randint(1, DIES[of])
    words = words_of(LOOP)
    if of:
        monkeypatch.setattr(sys, "executable", python_that_dies(number, of))
        assert sgrec(monkeypatch, words) == 2
    else:
        line = (warm_python, KILL_AT, run_dir, number, "sgrec_torchrec.cli", *words)
        killed = subprocess.run(
            [str(word) for word in line],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHON_OF_CHILDREN": str(warm_python)},
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert untouched(run_dir, LOOPED) == before
    Recommender.load(run_dir)
    RewardTable.open(run_dir / "reward_table").verify()
    read_published(run_dir)
    monkeypatch.setattr(sys, "executable", str(warm_python))
    assert sgrec(monkeypatch, words) == 0, number
    assert made_by_loop(run_dir) == loop_unkilled, number
    assert untouched(run_dir, LOOPED) == before
    Recommender.load(run_dir)


def sgrec(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> object:
    """The command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["sgrec", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def restamp(run_dir: Path, argv: list[str], *, but: str) -> None:
    """The copy's steps are done with the copy's paths; of one, with other settings."""
    config, args = parse_with(pipeline._parser(), argv)
    judged = with_bounds(config, args)
    for step in pipeline_steps(config, pipeline._words(args), judged):
        path = stamp_path(run_dir, step.name)
        stamp = json.loads(path.read_text()) | {"command": content_key(step.command)}
        if step.name != but:
            stamp["settings"] = content_key(step.settings)
        write_sealed(path, stamp)
