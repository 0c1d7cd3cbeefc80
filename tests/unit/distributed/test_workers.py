"""Workers that are killed between two calls are not asked again."""

import os
import time
from pathlib import Path

import number_tasks
import pytest

from sgrec_torchrec.distributed.workers import Workers


def test_an_idle_worker_that_was_killed_is_replaced() -> None:
    with Workers(1) as workers:
        assert list(workers.map(time.sleep, [(0,), (0,)])) == [(0, None), (1, None)]
        (idle,) = workers._idle
        idle.process.kill()
        idle.process.join()
        assert list(workers.map(time.sleep, [(0,)])) == [(0, None)]
        assert workers._idle != [idle]


def test_workers_end_with_their_context() -> None:
    with Workers(1) as workers:
        list(workers.map(time.sleep, [(0,)]))
        (idle,) = workers._idle
    # Not cut off: libraries give back what they hold of the system.
    assert idle.process.exitcode == 0


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("3", "3")])
def test_a_worker_takes_its_share_of_the_cores_unless_told_otherwise(
    given: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    with Workers(len(os.sched_getaffinity(0))) as workers:
        list(workers.map(number_tasks.note_threads, [(tmp_path / "threads",)]))
    assert (tmp_path / "threads").read_text() == expected
    assert os.environ.get("OMP_NUM_THREADS") == given
