"""Who does the tasks: this process, or processes of this machine. Ray: ``ray_cluster``.

An executor maps a function over tasks and gives back nothing but their folders: what
passes between tasks lies in files. The outcome is the same whoever does them.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sgrec_torchrec.distributed.progress import progress, progress_of
from sgrec_torchrec.distributed.tasks import Kind, Work, do, is_done
from sgrec_torchrec.distributed.workers import Workers
from sgrec_torchrec.files.origin import code_key

MAX_LOST = 3
"""Times that a task may be lost with its worker: one that needs too much memory is."""


class LostWorkerError(ChildProcessError):
    """A task was lost with its worker again and again."""


class Executor(Protocol):
    """``map(function, tasks)``, wherever the tasks are done."""

    def map(
        self, function: Work[Kind], tasks: Sequence[Kind], *, description: str
    ) -> list[Path]:
        """Do what is not done yet; returns the folders, in the order of the tasks.

        A task whose worker is lost is given again; how often is said at the end.

        Raises:
            LostWorkerError: naming the task that was lost too often.
            Exception: the first that a task raises; no further task is begun.
        """
        ...


class InProcess:
    """On this machine.

    Args:
        workers: processes. 1: this one, and nothing is started. None: one a core.
    """

    def __init__(self, workers: int | None = 1) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers = {workers}: at least 1 must do the work")
        self.workers = workers or len(os.sched_getaffinity(0))

    def map(
        self, function: Work[Kind], tasks: Sequence[Kind], *, description: str
    ) -> list[Path]:
        """See ``Executor``."""
        left = [task for task in tasks if not is_done(function, task)]
        if self.workers == 1 or len(left) < 2:
            for task in progress(left, description=description, unit="task"):
                do(function, task, code_key())
        else:
            self._share(function, left, len(tasks), description)
        return [task.out for task in tasks]

    def _share(
        self, function: Work[Kind], left: list[Kind], total: int, description: str
    ) -> None:
        lost = LostTasks(description)
        arguments = [(function, task, code_key()) for task in left]
        done = total - len(left)
        with (
            progress_of(
                description=description, total=total, done=done, unit="task"
            ) as bar,
            Workers(min(self.workers, len(left))) as workers,
        ):
            for number, reason in workers.map(do, arguments):
                if reason is None:
                    bar.update(1)
                else:
                    lost.count(left[number].out, reason)
        lost.tell()


HERE: Executor = InProcess()
"""In this process, one after another."""


class LostTasks:
    """How often each task was lost with its worker."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._times: dict[Path, int] = {}

    def count(self, out: Path, reason: str) -> None:
        """Note one; it is given again.

        Raises:
            LostWorkerError: naming the task, where it was lost too often.
        """
        self._times[out] = self._times.get(out, 0) + 1
        if self._times[out] > MAX_LOST:
            raise LostWorkerError(
                f"{self._description}: {out.name} was lost with its worker "
                f"{self._times[out]} times ({reason}); where memory is short, start "
                "again with fewer --workers: what is done stays"
            )

    def tell(self) -> None:
        """Print how many there were."""
        if total := sum(self._times.values()):
            print(f"{self._description}: {total} lost with their workers, done again")
