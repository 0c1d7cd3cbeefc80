"""Each command that writes into a run, called wrongly: the run is as it was before."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from folder_state import folder_state

from sgrec_torchrec import cli
from sgrec_torchrec.files.sealed_json import write_sealed

pytestmark = pytest.mark.long

TRAIN = "train --config RUN/config.json"
PIPELINE = "pipeline --run smoke --name tiny --set out_dir=RUNS"
WRONG = {
    # command -> what its last line says
    f"{TRAIN} --resume --set generator.dim=24": "generator.dim = 16, this run has 24",
    f"{TRAIN} --resume --set generator.width=24": "no field 'width'",
    f"{TRAIN} --resume --set align.lr=0.5": "align.lr = 0.001, this run has 0.5",
    f"{TRAIN} --resume --set align.table=/nowhere": "/nowhere",
    f"{TRAIN} --resume --set align.business_table=BAD": "BAD",
    f"{TRAIN} --resume --set log.path=/nowhere": "log.path = ",
    f"{TRAIN} --set generator.dim=24": "or give --overwrite, which moves RUN to tiny.1",
    f"{TRAIN} --set log.path=/no --set align.table=TABLE": "a model of log.path = ",
    f"{TRAIN} --overwrite --set log.path=/nowhere": "/nowhere",
    f"{TRAIN} --overwrite --set align.table=/nowhere": "/nowhere",
    f"{PIPELINE} --max-pairs 5": "--max-pairs 5: give 24 or more",
    f"{PIPELINE} --set align.table=/nowhere": "/nowhere",
    f"{PIPELINE} --overwrite --set align.num_steps=0": "nothing to judge for",
    "candidates RUN --set candidates.nosuch=1": "nosuch",
    "candidates RUN --max-users 0": "max_users",
    "candidates RUN --out RUN/labels": "labels",
    "judge label RUN --max-cases 0": "max_cases",
    "judge label RUN --cases-per-user 1 --compare /nowhere": "/nowhere",
    "judge label RUN --out RUN/candidates": "candidates",
    "judge train RUN --labels /nowhere": "/nowhere",
    "judge train RUN --model /nowhere": "holds a judge of other settings",
    "judge train RUN --model /nowhere --out RUN/other": "/nowhere",
    "judge train RUN --form nosuch": "nosuch",
    "judge run RUN --judge /nowhere": "/nowhere",
    "judge run RUN --candidates /nowhere": "/nowhere",
    "judge run RUN --pairs BAD": "BAD",
    "judge run RUN --backend nosuch": "nosuch",
    "judge run RUN --out RUN/candidates": "'candidates.parquet' and no judgements",
    "judge run RUN --out RUN/labels": "holds 'pairs.parquet' and no judgements",
    "table build /nowhere --out RUN/reward_table": "/nowhere",
    "table build BAD --out RUN/reward_table": "reward",
    "table build RUN/judged --out RUN/judged": "judged",
    "table append RUN/reward_table BAD": "reward",
    "table append RUN/reward_table RUN/judged --reward-high 9": "--reward-high",
    "loop RUN --set generator.width=3 --rounds 0": "--rounds 0",
    "table build RUN/judged --out RUN/candidates": "and no reward table",
    "export RUN --out RUN": "RUN",
    "export RUN --out RUN/reward_table": "holds other files",
    "export RUN --out RUN/split": "holds other files",
    "export RUN --out RUN/judged": "judged",
}


@pytest.fixture(scope="module")
def run_dir(
    piped_run: Path, piped_alone: FileLock, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that went through all of S-GRec; no test changes it: that is the point."""
    runs = tmp_path_factory.mktemp("harmed") / "runs"
    with piped_alone:
        shutil.copytree(piped_run.parent, runs, symlinks=True)
    # Others may be at work on the table of the run that this is a copy of.
    path = runs / "tiny" / "config.json"
    moved = path.read_text().replace(str(piped_run.parent), str(runs))
    write_sealed(path, json.loads(moved))
    return runs / "tiny"


@pytest.fixture
def refused(
    run_dir: Path,
    piped_run: Path,
    tmp_path: Path,
    world_of_one: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], str]:
    """refused(command line) -> what it said last; the run is as it was."""
    bad = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"user_id": ["u1"], "item_id": ["i1"]}), bad)
    names = {"RUNS": str(run_dir.parent), "RUN": str(run_dir), "BAD": str(bad)}
    # What the weights were trained with; the settings of the copy name its own.
    names["TABLE"] = str(piped_run / "reward_table")

    def call(line: str) -> str:
        words = line
        for name, path in names.items():
            words = words.replace(name, path)
        before = folder_state(run_dir)
        monkeypatch.setattr(sys, "argv", ["sgrec", *words.split()])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        after = folder_state(run_dir)
        assert {name for name in before if after.get(name) != before[name]} == set()
        assert set(after) == set(before)
        said = capsys.readouterr().err
        for name in ("BAD", "RUN"):
            said = said.replace(names[name], name)
        return said

    return call


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_call_says_why_and_changes_nothing(
    refused: Callable[[str], str], line: str
) -> None:
    assert WRONG[line] in refused(line)


@pytest.mark.parametrize(
    ("command", "pattern"),
    [
        ("evaluate RUN", "best/*/*.distcp"),
        ("evaluate RUN", "aligned/best/*/*.distcp"),
        ("candidates RUN", "best/*/*.distcp"),
        ("judge train RUN", "labels/*.parquet"),
        ("judge run RUN", "judge/judge.json"),
        ("table build RUN/judged --out RUN/reward_table", "judged/part-*.parquet"),
        ("table append RUN/reward_table RUN/judged", "judged/part-*.parquet"),
        ("export RUN --out RUN/package", "aligned/best/*/*.distcp"),
        ("report RUN", "evaluation/results.json"),
    ],
)
def test_a_damaged_input_is_named_and_nothing_else_changes(
    refused: Callable[[str], str], run_dir: Path, command: str, pattern: str
) -> None:
    path = max(run_dir.glob(pattern), key=lambda one: one.stat().st_size)
    sound = path.read_bytes()
    path.write_bytes(sound[: len(sound) // 2])
    try:
        assert path.name in refused(command)
    finally:
        path.write_bytes(sound)
