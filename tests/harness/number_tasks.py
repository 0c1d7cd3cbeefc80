"""Small tasks for the executors, in a module that workers can import."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgrec_torchrec.distributed.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Square(Task):
    """Write the square of a number."""

    number: int
    seconds: float = 0.0
    fatal: int = 0
    """How many of its first attempts are killed."""


def squares(given: Path, count: int, **fields: Any) -> list[Square]:
    """Tasks that read ``given`` and write beside its folder."""
    return [
        Square(
            out=given.parents[1] / f"part-{number}",
            inputs=(given,),
            number=number,
            **fields,
        )
        for number in range(count)
    ]


def squared(task: Square, folder: Path) -> Mapping[str, object]:
    """One file; a line in a log of attempts beside the folders."""
    log = task.out.parent / "attempts.txt"
    with log.open("a") as file:
        file.write(f"{task.number}\n")
    attempts = log.read_text().split().count(str(task.number))
    if attempts <= task.fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(task.seconds)
    (folder / "square.txt").write_text(str(task.number**2))
    return {"number": task.number}


def refused(task: Square, folder: Path) -> Mapping[str, object]:
    """What a user got wrong."""
    if task.number == 2:
        raise ValueError("two is no number here")
    return squared(task, folder)


def as_worker(task: Square, folder: Path) -> Mapping[str, object]:
    """Which process does it."""
    (folder / "pid.txt").write_text(str(os.getpid()))
    return squared(task, folder)


def noted_gpus(task: Square, folder: Path) -> dict[str, int]:
    """Which GPUs Ray gave, in a file."""
    import ray

    (folder / "gpus.txt").write_text(" ".join(map(str, ray.get_gpu_ids())))
    return {"number": task.number}


def note_threads(path: Path) -> None:
    """How many this process may take."""
    path.write_text(os.environ["OMP_NUM_THREADS"])
