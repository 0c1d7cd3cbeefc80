"""Tasks are done once, whole, by whoever is there, and again when they are lost."""

import os
from pathlib import Path

import number_tasks
import pytest
from number_tasks import squares

from sgrec_torchrec.distributed import tasks as tasks_module
from sgrec_torchrec.distributed.executor import MAX_LOST, InProcess, LostWorkerError
from sgrec_torchrec.distributed.tasks import (
    DamagedError,
    checked_file,
    do,
    is_done,
    read_part,
)
from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.origin import code_key
from sgrec_torchrec.files.run_folder import MANIFEST

WORKERS = [1, 2]


def attempts(given: Path) -> list[str]:
    log = given.parents[1] / "attempts.txt"
    return sorted(log.read_text().split()) if log.exists() else []


@pytest.mark.parametrize("workers", WORKERS)
def test_each_task_makes_its_folder(given, workers):
    made = InProcess(workers).map(
        number_tasks.squared, squares(given, 4), description="squares"
    )
    assert [path.name for path in made] == [f"part-{number}" for number in range(4)]
    for number, path in enumerate(made):
        facts = read_part(path, {"number": int})
        assert checked_file(path, "square.txt").read_text() == str(number**2)
        assert facts["number"] == number
        sums = facts["files"]["square.txt"]
        assert sums["sha256"] == sha256_file(path / "square.txt")
    assert attempts(given) == ["0", "1", "2", "3"]


def test_one_worker_is_this_process(given):
    made = InProcess(1).map(
        number_tasks.as_worker, squares(given, 4), description="squares"
    )
    assert {(path / "pid.txt").read_text() for path in made} == {str(os.getpid())}


def test_two_workers_are_two_processes(given):
    tasks = squares(given, 4, seconds=0.5)
    made = InProcess(2).map(number_tasks.as_worker, tasks, description="squares")
    pids = {(path / "pid.txt").read_text() for path in made}
    assert len(pids) == 2
    assert str(os.getpid()) not in pids


@pytest.mark.parametrize("workers", WORKERS)
def test_what_is_done_is_not_done_again(given, workers):
    first = squares(given, 4)
    InProcess(1).map(number_tasks.squared, first[:2], description="squares")
    InProcess(workers).map(number_tasks.squared, first, description="squares")
    assert attempts(given) == ["0", "1", "2", "3"]


def test_other_settings_inputs_or_functions_are_done_again(given, monkeypatch):
    (task, *_) = squares(given, 4)
    do(number_tasks.squared, task, code_key())
    assert is_done(number_tasks.squared, task)
    (longer, *_) = squares(given, 4, seconds=0.01)
    assert not is_done(number_tasks.squared, longer)
    assert not is_done(number_tasks.refused, task)
    with monkeypatch.context() as patch:
        patch.setattr(tasks_module, "code_key", lambda: "another")
        assert not is_done(number_tasks.squared, task)
    given.write_text("[]")
    assert not is_done(number_tasks.squared, task)


def test_where_its_inputs_lie_is_no_part_of_a_task(given, tmp_path):
    (task, *_) = squares(given, 4)
    do(number_tasks.squared, task, code_key())
    given.parent.rename(tmp_path / "elsewhere")
    moved = number_tasks.Square(
        out=task.out, inputs=(tmp_path / "elsewhere" / MANIFEST,), number=0
    )
    assert is_done(number_tasks.squared, moved)


def test_a_damaged_manifest_is_done_again_and_a_damaged_file_is_refused(given):
    (task, *_) = squares(given, 4)
    do(number_tasks.squared, task, code_key())
    (task.out / "square.txt").write_text("1")
    with pytest.raises(DamagedError, match=r"square\.txt is damaged"):
        checked_file(task.out, "square.txt")
    manifest = task.out / MANIFEST
    manifest.write_text(manifest.read_text().replace('"number": 0', '"number": 1'))
    assert not is_done(number_tasks.squared, task)
    (task.out / "square.txt").unlink()
    do(number_tasks.squared, task, code_key())
    assert checked_file(task.out, "square.txt").read_text() == "0"


@pytest.mark.parametrize("workers", WORKERS)
def test_what_a_task_raises_is_raised_and_whole_parts_stay(given, workers):
    tasks = squares(given, 4)
    with pytest.raises(ValueError, match="two is no number here"):
        InProcess(workers).map(number_tasks.refused, tasks, description="squares")
    assert not tasks[2].out.exists()
    # The third begins when one of the first two is done.
    assert any(is_done(number_tasks.refused, task) for task in tasks[:2])


def test_a_killed_worker_is_counted_and_its_task_done_again(given, capfd):
    made = InProcess(2).map(
        number_tasks.squared, squares(given, 4, fatal=1), description="squares"
    )
    assert [checked_file(path, "square.txt").read_text() for path in made] == [
        "0",
        "1",
        "4",
        "9",
    ]
    assert "squares: 4 lost with their workers, done again" in capfd.readouterr().out


def test_a_task_that_kills_every_worker_ends_the_row(given):
    with pytest.raises(LostWorkerError, match=r"part-\d was lost .* \(signal 9\)"):
        InProcess(2).map(
            number_tasks.squared,
            squares(given, 4, fatal=MAX_LOST + 1),
            description="squares",
        )


def test_a_host_of_another_version_is_refused(given):
    (task, *_) = squares(given, 4)
    with pytest.raises(ValueError, match="another version of sgrec_torchrec"):
        do(number_tasks.squared, task, "of another one")
    assert not task.out.exists()


def test_a_host_without_the_shared_folder_is_named(given, tmp_path):
    task = number_tasks.Square(
        out=tmp_path / "not" / "mounted" / "part", inputs=(given,), number=1
    )
    with pytest.raises(FileNotFoundError, match=r"does not see .*mounted"):
        do(number_tasks.squared, task, code_key())


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="workers = 0: at least 1"):
        InProcess(0)
