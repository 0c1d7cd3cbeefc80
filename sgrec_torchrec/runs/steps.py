"""Commands in a row, each a process of its own, each done once.

    RUN/logs/NN-name.log    what the process said
    RUN/steps/name.json     stamp: sums of its command, settings and inputs, what it
                            wrote, seconds
    RUN/steps/row.json      names of the steps, in order

A step whose stamp still fits is not done again. One that was interrupted goes on; one
whose settings or inputs have changed begins anew, and so do those that read its files.
What it had made goes once the new is whole, and is put back where that fails.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

from rich.console import Console
from rich.table import Table

from sgrec_torchrec import STAGES
from sgrec_torchrec.files.content_key import content_key, file_keys
from sgrec_torchrec.files.run_folder import LOGS, ROW, STAMPS
from sgrec_torchrec.files.sealed_json import without_seal, write_sealed
from sgrec_torchrec.runs.kept import Kept

TRAIN = ("-m", "sgrec_torchrec.train")
SGREC = ("-m", "sgrec_torchrec.cli")
ALIGN_STEPS = 60
"""Of post-training, where nothing says how many."""
LOCK = ".lock"
HELD = "SGREC_HELD_FOLDERS"
"""Environment: folders whose locks are held by who started this process, a line each:
a path may hold any other sign."""
CHUNK_BYTES = 1 << 16
TAIL_BYTES = 4096
MAX_WORDS = 300
"""Characters of a failed process' last line that the error repeats."""
END_S = 30.0
"""What a process has to end by itself when the row is interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One process of a row. Patterns are globs below the run's folder."""

    name: str
    command: tuple[str, ...]
    """Words after the interpreter."""
    stages: tuple[str, ...] = ()
    """Of ``STAGES``: whose work it does, for its title."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """A change of these begins the step anew; of other words of the command, it goes on
    with what is there."""
    inputs: tuple[str, ...] = ()
    """Files that it reads: manifests, which hold the sums of all else."""
    outputs: tuple[str, ...] = ()
    """Files that it must have written, and that nobody else changes."""
    grown: tuple[str, ...] = ()
    """Files that it must have written, and that others may add to."""
    folders: tuple[str, ...] = ()
    """Folders that it begins anew without; they go once it is done (``kept``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What a step was done with; sums are sha256."""

    command: str
    settings: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    """Empty until it is done."""
    seconds: float
    """Of all processes that the step took, interrupted ones included."""
    is_done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a step in this call."""

    name: str
    is_reused: bool
    seconds: float
    """Of this call; of all earlier ones where it is reused."""


def run_steps(run_dir: Path, steps: Sequence[Step], home: str = "") -> list[Outcome]:
    """Do the steps in order, or reuse what is there.

    What the processes say goes on to standard output, and to the logs.

    Args:
        run_dir: what the patterns are relative to.
        home: folder below it that holds logs and stamps.

    Raises:
        ChildProcessError: naming the step that failed, its log and the way to go on.
        FileNotFoundError: for an input that no step has written.
        BlockingIOError: where another process is at work on the folder.
    """
    place = run_dir / home
    outcomes = []
    with alone(place) as lock, _ended_by_signals():
        write_sealed(place / STAMPS / ROW, {"names": [step.name for step in steps]})
        for number, step in enumerate(steps, start=1):
            title = f"[{number}/{len(steps)}] {step.name}{of_stages(step.stages)}"
            row = _Row(run_dir=run_dir, place=place, number=number, lock=lock)
            outcomes.append(row.do(step, title))
    return outcomes


def of_stages(stages: Sequence[str]) -> str:
    """Their numbers and names, as a step's title says them.

    >>> of_stages(["logs", "item_graph", "evaluation"])
    ' (stages 1 logs, 2 item_graph, 10 evaluation)'
    """
    told = ", ".join(f"{STAGES.index(stage) + 1} {stage}" for stage in stages)
    plural = "s" if len(stages) > 1 else ""
    return f" (stage{plural} {told})" if stages else ""


def set_words(assignments: Iterable[str]) -> list[str]:
    """``--set`` before each."""
    return [word for one in assignments for word in ("--set", one)]


def show(outcomes: Sequence[Outcome], title: str) -> None:
    """Print a table of the steps: which were reused, and seconds."""
    table = Table("step", "", "seconds", title=title, title_justify="left")
    for one in outcomes:
        state = "reused" if one.is_reused else "done"
        table.add_row(one.name, state, f"{one.seconds:,.1f}")
    spent = sum(one.seconds for one in outcomes if not one.is_reused)
    table.add_section()
    table.add_row("this call", "", f"{spent:,.1f}")
    Console().print(table)


def stamp_path(place: Path, name: str) -> Path:
    """Where a step's stamp lies."""
    return place / STAMPS / f"{name}.json"


def read_stamp(path: Path) -> Stamp | None:
    """The stamp, or None where there is none that this version can read.

    One that is damaged counts as none: its step is done again. Older ones have no seal.
    """
    try:
        return Stamp(**without_seal(json.loads(path.read_text(encoding="utf-8"))))
    except (FileNotFoundError, ValueError, TypeError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """Where one step of a row is done."""

    run_dir: Path
    place: Path
    number: int
    lock: BinaryIO

    def do(self, step: Step, title: str) -> Outcome:
        path = stamp_path(self.place, step.name)
        try:
            inputs = file_keys(self.run_dir, step.inputs)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"step {step.name}: {error}, which an earlier step should have written"
            ) from None
        fresh = Stamp(
            command=content_key(step.command),
            settings=content_key(step.settings),
            inputs=inputs,
            outputs={},
            seconds=0.0,
            is_done=False,
        )
        kept = Kept(
            folders=[self.run_dir / folder for folder in step.folders], stamp=path
        )
        earlier = _settled(kept, fresh)
        if earlier is not None and self._serves(step, earlier, fresh):
            print(f"{title}: reused", flush=True)
            return Outcome(name=step.name, is_reused=True, seconds=earlier.seconds)
        spent = 0.0
        if earlier is not None:
            if _is_of_same(earlier, fresh):
                spent = earlier.seconds
            elif earlier.is_done:
                kept.put_away()
            else:
                for folder in kept.folders:
                    shutil.rmtree(folder, ignore_errors=True)
        try:
            seconds = self._run(step, title, path, fresh, spent)
        except ChildProcessError:
            if kept.place.exists():
                kept.put_back()
            raise
        kept.drop()
        return Outcome(name=step.name, is_reused=False, seconds=round(seconds, 1))

    def _serves(self, step: Step, earlier: Stamp, fresh: Stamp) -> bool:
        """Is the step done, with this command and these inputs, its files in place?"""
        if not earlier.is_done or (earlier.command, earlier.settings) != (
            fresh.command,
            fresh.settings,
        ):
            return False
        if earlier.inputs != fresh.inputs:
            return False
        try:
            return self._written(step) == earlier.outputs
        except FileNotFoundError:
            return False

    def _written(self, step: Step) -> dict[str, str]:
        """Sums of what it wrote; all of it must be there."""
        file_keys(self.run_dir, step.grown)
        return file_keys(self.run_dir, step.outputs)

    def _run(
        self, step: Step, title: str, path: Path, fresh: Stamp, spent: float
    ) -> float:
        """Stamp it as begun, run it, stamp it as done; returns this call's seconds."""
        log = self.place / LOGS / f"{self.number:02d}-{step.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        stamp = asdict(fresh)
        write_sealed(path, stamp | {"seconds": round(spent, 6)})
        print(f"{title}: begins", flush=True)
        began_s = time.perf_counter()
        try:
            code = _streamed(step.command, log, self.lock)
        finally:
            seconds = time.perf_counter() - began_s
            stamp["seconds"] = round(spent + seconds, 6)
            write_sealed(path, stamp)
        if code:
            raise ChildProcessError(
                f"step {self.number} ({step.name}) ended with code {code}: "
                f"{_last_line(log)}; its log is {log}; mend that and give the same "
                "command again: it goes on from this step"
            )
        try:
            outputs = self._written(step)
        except FileNotFoundError as error:
            raise ChildProcessError(
                f"step {self.number} ({step.name}) ended well, but {error}; its log is "
                f"{log}"
            ) from None
        write_sealed(path, stamp | {"outputs": outputs, "is_done": True})
        print(f"{title}: done in {seconds:.1f} s", flush=True)
        return seconds


def _settled(kept: Kept, fresh: Stamp) -> Stamp | None:
    """The step's stamp, once what a killed call has kept is put back or dropped."""
    stamp = read_stamp(kept.stamp)
    if not kept.place.exists():
        return stamp
    is_begun = stamp is not None and stamp != read_stamp(kept.kept_stamp)
    if is_begun and stamp is not None and stamp.is_done:
        kept.drop()
    elif not (is_begun and stamp is not None and _is_of_same(stamp, fresh)):
        kept.put_back()
    return read_stamp(kept.stamp)


def _is_of_same(stamp: Stamp, fresh: Stamp) -> bool:
    """Does the step go on with what is there, rather than begin anew?"""
    return (stamp.settings, stamp.inputs) == (fresh.settings, fresh.inputs)


def _streamed(command: Sequence[str], log: Path, lock: BinaryIO) -> int:
    """Run the command to its end; what it says goes to standard output and the log."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            # The folder stays locked while this process lives, whatever becomes of us.
            pass_fds=(lock.fileno(),),
        )
        assert process.stdout is not None
        try:
            while chunk := os.read(process.stdout.fileno(), CHUNK_BYTES):
                file.write(chunk)
                file.flush()
                sys.stdout.write(chunk.decode("utf-8", errors="replace"))
                sys.stdout.flush()
            return process.wait()
        finally:
            _end(process)
            process.stdout.close()


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(log: Path) -> str:
    """The last thing that a failed process said, within a bound."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        tail = file.read().decode("utf-8", errors="replace")
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return lines[-1][-MAX_WORDS:] if lines else "it said nothing"


@contextlib.contextmanager
def alone(place: Path) -> Iterator[BinaryIO]:
    """Hold the folder's lock, so that no second process writes the same files.

    A process that a holder has started works for it, and is let in.

    Raises:
        BlockingIOError: where another one holds it.
    """
    held = os.environ.get(HELD, "").splitlines()
    path = place / STAMPS / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as lock:
        if str(place.resolve()) in held:
            yield lock
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another process is at work on {place}: wait for its end, or end it"
            ) from None
        os.environ[HELD] = "\n".join((*held, str(place.resolve())))
        try:
            yield lock
        finally:
            os.environ[HELD] = "\n".join(held)


def check_alone(place: Path) -> None:
    """Ask for the lock before any work; writes nothing.

    Raises:
        BlockingIOError: where another process holds it.
    """
    if (place / STAMPS / LOCK).exists():
        with alone(place):
            return


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C unwind quietly, so that the running process is ended too."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        raise SystemExit(128 + number)

    before = {one: signal.signal(one, leave) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
