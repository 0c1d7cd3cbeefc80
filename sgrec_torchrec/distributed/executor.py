"""Who does the tasks: this process, or processes of this machine. Ray: ``ray_cluster``.

An executor maps a function over tasks and gives back nothing but their folders: what
passes between tasks lies in files. The outcome is the same whoever does them.
"""

import os
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from sgrec_torchrec.distributed.progress import progress, progress_of
from sgrec_torchrec.distributed.tasks import Kind, Task, Work, do, is_done
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
            with Workers(min(self.workers, len(left))) as workers:
                arguments = [(function, task, code_key()) for task in left]
                see_through(workers.map(do, arguments), left, len(tasks), description)
        return [task.out for task in tasks]


HERE: Executor = InProcess()
"""In this process, one after another."""


def see_through(
    calls: Generator[tuple[int, str | None], None, None],
    left: Sequence[Task],
    total: int,
    description: str,
) -> None:
    """Show how far the calls are, and count those that are lost with their workers.

    Args:
        calls: yields (number of the task in ``left``, None) as tasks are done, and (the
            same, how it ended) for one that is lost: it gives that one again.
        total: tasks with those that were done before.

    Raises:
        LostWorkerError: naming the task that was lost too often.
        Exception: what ``calls`` raises.
    """
    lost: Counter[int] = Counter()
    done = total - len(left)
    with (
        closing(calls),
        progress_of(
            description=description, total=total, done=done, unit="task"
        ) as bar,
    ):
        for number, reason in calls:
            if reason is None:
                bar.update(1)
                continue
            lost[number] += 1
            if lost[number] > MAX_LOST:
                raise LostWorkerError(
                    f"{description}: {left[number].out.name} was lost with its worker "
                    f"{lost[number]} times ({reason}); where memory is short, start "
                    "again with fewer --workers: what is done stays"
                )
    if lost:
        print(f"{description}: {lost.total()} lost with their workers, done again")
