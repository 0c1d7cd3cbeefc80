"""Processes of this machine that call functions, and may be lost.

The standard library's pools end, or hang, when a worker is killed; here its one call is
named and another worker begins it again. What is called and what it raises are pickled
between these processes and nowhere else.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any

from sgrec_torchrec.distributed.progress import say_nothing

Call = tuple[Callable[..., object], tuple[Any, ...]]
THREADS = "OMP_NUM_THREADS"
GRACE_S = 10.0
"""For an idle worker to end by itself."""
# Not fork: threads of OpenMP, Arrow and torch do not live on in a fork.
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    process: SpawnProcess
    pipe: "Connection[Call, BaseException | None]"


class Workers:
    """A context with so many processes; they end with it, or with this process."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, int] = {}

    def __enter__(self) -> "Workers":
        """Processes start when there is a call for them."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all; a call that still runs is cut off."""
        for worker in self._busy:
            worker.process.terminate()
        for worker in (*self._idle, *self._busy):
            worker.pipe.close()
        # An idle one sees that, and gives back what its libraries hold of the system.
        for worker in self._idle:
            worker.process.join(GRACE_S)
            worker.process.terminate()
        for worker in (*self._idle, *self._busy):
            worker.process.join()

    def map(
        self, function: Callable[..., object], arguments: Sequence[tuple[Any, ...]]
    ) -> Generator[tuple[int, str | None], None, None]:
        """Call the function on each; yield (number, None) as calls end, in any order.

        A call that is lost with its worker is yielded as (number, how it ended), and
        begun again unless the caller stops.

        Raises:
            Exception: what a call raises.
        """
        waiting = deque(range(len(arguments)))
        while waiting or self._busy:
            while waiting and len(self._busy) < self._count:
                number = waiting.popleft()
                self._busy[self._give((function, arguments[number]))] = number
            for worker in self._ready():
                number = self._busy.pop(worker)
                try:
                    error = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    worker.process.join()
                    yield number, _ended(worker.process.exitcode)
                    waiting.appendleft(number)
                    continue
                self._idle.append(worker)
                if error is not None:
                    raise error
                yield number, None

    def _give(self, call: Call) -> _Worker:
        """Send a call to an idle worker that is still there, or to a new one."""
        while self._idle:
            worker = self._idle.pop()
            try:
                worker.pipe.send(call)
            except ConnectionError:
                worker.process.join()
            else:
                return worker
        worker = _start(max(1, len(os.sched_getaffinity(0)) // self._count))
        worker.pipe.send(call)
        return worker

    def _ready(self) -> list[_Worker]:
        """Those that answered or ended, where the pipe closes; waits for one."""
        by_pipe = {worker.pipe: worker for worker in self._busy}
        return [by_pipe[pipe] for pipe in wait(list(by_pipe)) if pipe in by_pipe]


def _start(threads: int) -> _Worker:
    """Begin a process that takes its share of the cores, unless the user gave one."""
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_work, args=(theirs,), daemon=True)
    is_given = THREADS in os.environ
    # Libraries read it as they are loaded, which is before any line of ours.
    os.environ.setdefault(THREADS, str(threads))
    try:
        process.start()
    finally:
        if not is_given:
            del os.environ[THREADS]
    theirs.close()
    return _Worker(process=process, pipe=ours)


def _work(pipe: "Connection[BaseException | None, Call]") -> None:
    """Of a worker: call and answer until the other end of the pipe is gone."""
    # Ctrl-C goes to all processes of a terminal: the asking one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    say_nothing()
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            function(*arguments)
            pipe.send(None)
        except Exception as error:  # noqa: BLE001 (whatever: the asker raises it)
            error.add_note(traceback.format_exc())
            pipe.send(error)


def _end_with_parent() -> None:
    """A call that nobody waits for would hold cores and memory for minutes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _ended(code: int | None) -> str:
    return f"signal {-code}" if code and code < 0 else f"status {code}"
