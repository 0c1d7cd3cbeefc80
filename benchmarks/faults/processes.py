"""Real processes that run `sgrec` commands, forked from one that has imported all.

A process begins in .2 s instead of ten: without that fifty kills would take an hour.
"""

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended, and what it wrote."""

    code: int
    said: str

    @property
    def fault(self) -> str | None:
        """What no ending may be, whatever was broken: a traceback, a signal."""
        if self.code < 0:
            return f"{signal.Signals(-self.code).name}: {self.last_line}"
        if "Traceback (most recent call last)" in self.said:
            return f"traceback: {self.last_line}"
        return None

    @property
    def last_line(self) -> str:
        """What a user would read first."""
        lines = self.said.strip().splitlines()
        return lines[-1][:300] if lines else "(nothing said)"


@dataclass(slots=True)
class Started:
    """One rank of a command, or a command of its own."""

    process: multiprocessing.process.BaseProcess
    output: Path
    begin: float = field(default_factory=time.monotonic)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; a process that has ended gets none."""
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, number)

    def said(self) -> str:
        """What it has written by now."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait(self, limit_s: float = LIMIT_S) -> Ended:
        """Its ending. Over the limit it is killed, and said to have hung."""
        self.process.join(limit_s)
        hung = self.process.is_alive()
        if hung:
            self.kill(signal.SIGCONT)
            self.process.kill()
            self.process.join()
        said = self.said()
        if hung:
            said += f"\nhung: had not ended after {limit_s:.0f} s"
        code = self.process.exitcode
        return Ended(1 if code is None else code, said)


def serve_forks() -> None:
    """Before the first process: what they are forked from imports everything."""
    here = Path(__file__).resolve().parents[1]
    paths = (str(here), str(here.parent), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    CONTEXT.set_forkserver_preload(["faults.warm"])


def start(words: Sequence[object], **environment: str) -> Started:
    """``sgrec WORDS`` in a process of its own."""
    return start_call(_command, tuple(map(str, words)), **environment)


def start_ranks(words: Sequence[object], num_ranks: int) -> list[Started]:
    """The same on so many ranks of one host, as torchrun would start them."""
    if num_ranks == 1:
        return [start(words)]
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    world = {
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = range(num_ranks)
    return [start(words, **world, RANK=str(r), LOCAL_RANK=str(r)) for r in ranks]


def start_call(
    call: Callable[..., None], *arguments: object, **environment: str
) -> Started:
    """A function of a module, by name, in a process of its own."""
    handle, name = tempfile.mkstemp(suffix=".txt")
    os.close(handle)
    process = CONTEXT.Process(
        target=_redirected, args=(call, arguments, name, environment)
    )
    process.start()
    return Started(process, Path(name))


def run(*words: object) -> Ended:
    """A command from its start to its end."""
    return start(words).wait()


def _redirected(
    call: Callable[..., None],
    arguments: tuple[object, ...],
    name: str,
    environment: dict[str, str],
) -> None:
    with Path(name).open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.update(environment)
    # What is forked ignores neither, as a shell would start it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    call(*arguments)


def _command(words: tuple[str, ...]) -> None:
    from sgrec_torchrec import cli

    sys.argv = ["sgrec", *words]
    cli.main()
