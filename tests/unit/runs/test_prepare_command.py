"""``sgrec prepare`` makes what training then finds; a run's model is not touched."""

import shutil
from pathlib import Path

import pytest

from sgrec_torchrec.config.arguments import parse_run
from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.run_folder import (
    BEST,
    COVISITS,
    EVIDENCE,
    GRAPH,
    PREPARED,
    SCORER,
    TEACHER,
    TEXTS,
    TOKENS,
)
from sgrec_torchrec.runs import made_once
from sgrec_torchrec.runs.claim import Claim
from sgrec_torchrec.runs.open_run import prepare_run
from sgrec_torchrec.runs.prepare_command import main
from sgrec_torchrec.runs.stopwatch import Stopwatch

pytestmark = pytest.mark.long


@pytest.fixture
def words(planted_log, tiny_arguments, tmp_path: Path) -> list[str]:
    return tiny_arguments(planted_log(3), tmp_path / "runs")


def names(runs: Path) -> list[str]:
    return sorted(path.name for path in (runs / PREPARED).iterdir())


def test_training_finds_all_that_was_prepared(words, tmp_path, capsys, world_of_one):
    main([*words, "--workers", "2"])
    told = capsys.readouterr().out
    assert "3 users" in told
    assert f"next: train with the same settings; it reads {tmp_path}/runs/tiny" in told
    made = names(tmp_path / "runs")
    assert {name.rpartition("-")[0] for name in made} >= {COVISITS, TEACHER, TOKENS}
    assert not [name for name in made if name.startswith(".")]
    config, _ = parse_run(words)
    prepare_run(config, Stopwatch(), claim=Claim(use="begin"), with_teacher=True)
    assert names(tmp_path / "runs") == made


def test_workers_and_one_process_make_the_same_bytes(
    planted_log, tiny_arguments, tmp_path, capsys
):
    log, sums = planted_log(40), []
    for words in ([], ["--workers", "2"]):
        runs = tmp_path / f"runs{len(sums)}"
        main([*tiny_arguments(log, runs), *words])
        arrays = [*runs.rglob("*.npy"), *runs.rglob("*.safetensors")]
        sums.append({str(path.relative_to(runs)): sha256_file(path) for path in arrays})
    assert sums[0] == sums[1]
    stages = {name.split("/")[1].rpartition("-")[0] for name in sums[0]}
    assert stages >= {COVISITS, TEXTS, EVIDENCE, SCORER, TEACHER, GRAPH, TOKENS}


def test_two_that_make_the_same_stage_are_kept_apart(words, tmp_path, monkeypatch):
    monkeypatch.setattr(made_once, "alone", _taken_by_another)
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2


def _taken_by_another(place: Path):
    raise BlockingIOError(f"another process is at work on {place}")


def test_what_a_killed_call_left_half_written_goes(words, tmp_path):
    main(words)
    (counts,) = (tmp_path / "runs" / PREPARED).glob(f"{COVISITS}-*")
    counts.rename(tmp_path / "counts")
    (next((tmp_path / "runs" / PREPARED).glob("teacher-*"))).rename(
        tmp_path / "teacher"
    )
    half = counts.with_name(f".{counts.name}.parts") / ".shard-00000.12345678.tmp"
    half.mkdir(parents=True)
    main(words)
    assert counts.exists()
    assert not half.parent.exists()


def test_an_address_without_ray_is_refused(words, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words, "--address", "head:6379"])
    assert end.value.code == 2
    assert "add --executor ray" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_no_workers_are_refused(words, capsys, count):
    with pytest.raises(SystemExit) as end:
        main([*words, "--workers", count])
    assert end.value.code == 2
    assert "--workers" in capsys.readouterr().err


def test_another_models_folder_is_refused(words, tmp_path, finished_run, capsys):
    there = tmp_path / "runs" / "tiny"
    there.mkdir(parents=True)
    shutil.copytree(finished_run / BEST, there / BEST)
    with pytest.raises(SystemExit):
        main([*words, "--set", "generator.dim=48"])
    assert "generator.dim" in capsys.readouterr().err
    assert [path.name for path in there.iterdir()] == [BEST]
