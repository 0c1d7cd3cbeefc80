"""A file is damaged; what reads its folder finds it, or answers as before.

Trials run one after another in a process of their own, which puts the file back after
each; a signal that ends it counts as that trial's outcome, and another one goes on.
"""

import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from faults.processes import start_call

LIMIT_S = 1800.0
POISON = Path(tempfile.gettempdir()) / "sgrec-poison-ran"
"""Written by a pickle that somebody loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What is done to one file, or to a folder that is another's then."""

    path: Path
    how: str
    """flip, cut, swap or poison."""
    place: float = 0.0
    """Where in the file, as a share of its bytes."""
    bit: int = 0
    other: Path | None = None
    """What is put in its place."""

    def do(self, aside: Path) -> None:
        """Move what is whole aside, and put the damaged one there."""
        shutil.move(self.path, aside)
        if self.other is None:
            self.path.write_bytes(self._damaged(aside.read_bytes()))
        elif self.other.is_dir():
            shutil.copytree(self.other, self.path)
        else:
            shutil.copyfile(self.other, self.path)

    def undo(self, aside: Path) -> None:
        """Where it was done: put back what is whole."""
        if os.path.lexists(aside):
            if self.path.is_dir() and not self.path.is_symlink():
                shutil.rmtree(self.path)
            else:
                self.path.unlink(missing_ok=True)
            shutil.move(aside, self.path)

    def _damaged(self, data: bytes) -> bytes:
        if self.how == "poison":
            return poisoned(data)
        at = int(self.place * len(data))
        if self.how == "cut":
            return data[:at]
        return data[:at] + bytes([data[at] ^ (1 << self.bit)]) + data[at + 1 :]

    def __str__(self) -> str:
        is_at_a_place = self.how in ("flip", "cut")
        what = f"{self.how} at {self.place:.4f}" if is_at_a_place else self.how
        return f"{self.path.name}, {what}"


def flips(
    files: Sequence[Path], count: int, draw: random.Random, how: str = "flip"
) -> list[Damage]:
    """Every file as often as any other; seeded by ``draw``."""
    whole = [path for path in files if path.stat().st_size]
    return [
        Damage(
            path=whole[at % len(whole)],
            how=how,
            place=draw.random(),
            bit=draw.randrange(8),
        )
        for at in range(count)
    ]


def swaps(
    root: Path, files: Sequence[Path], others: Path, count: int, draw: random.Random
) -> list[Damage]:
    """A whole file of the same name out of another run of the same shapes."""
    pairs = [(path, others / path.relative_to(root)) for path in files]
    differing = [
        (path, other)
        for path, other in pairs
        if other.is_file() and other.read_bytes() != path.read_bytes()
    ]
    return [
        Damage(path=path, how="swap", other=other)
        for path, other in (draw.choice(differing) for _ in range(count))
    ]


def poisoned(data: bytes) -> bytes:
    """A file of the same kind whose unpickling writes ``POISON``."""
    # "call os.system with ...", in the opcodes of pickle's first protocol.
    call = f"cos\nsystem\n(S'touch {POISON}'\ntR.".encode()
    if not data.startswith(b"\x93NUMPY"):
        return call
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header + b"\n" + call


def trials(
    damages: Sequence[Damage], reader: str, *arguments: Path
) -> Iterator[str | None]:
    """None where it was found or had no effect; else what went wrong.

    Args:
        reader: name of a function of ``faults.readers``; what it returns is compared
            with what it returns of the whole files.
    """
    with tempfile.TemporaryDirectory() as folder:
        results, aside = (Path(folder) / name for name in ("results.jsonl", "aside"))
        at = 0
        while at < len(damages):
            results.write_text("")
            process = start_call(
                _run_all, damages[at:], reader, arguments, results, aside
            )
            ended = process.wait(LIMIT_S)
            lines = [json.loads(line) for line in results.read_text().splitlines()]
            yield from lines
            at += len(lines)
            if at < len(damages):
                yield f"{damages[at]}: {ended.fault or ended.last_line}"
                damages[at].undo(aside)
                at += 1


def _run_all(
    damages: Sequence[Damage],
    reader: str,
    arguments: Sequence[Path],
    results: Path,
    aside: Path,
) -> None:
    from faults import readers

    read: Callable[..., str] = getattr(readers, reader)
    whole = read(*arguments)
    if read(*arguments) != whole:
        raise RuntimeError(f"{reader} is not the same twice")
    for damage in damages:
        damage.do(aside)
        said = _outcome(lambda: read(*arguments), whole)
        damage.undo(aside)
        if POISON.exists():
            POISON.unlink()
            said = "the pickle ran"
        with results.open("a") as file:
            file.write(json.dumps(said and f"{damage}: {said}") + "\n")


def _outcome(read: Callable[[], str], whole: str) -> str | None:
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            answer = read()
    except SystemExit as stop:
        lines = [
            line for line in errors.getvalue().splitlines() if "Warning" not in line
        ]
        if stop.code == 2 and lines:
            return None
        return f"ended with {stop.code} and {len(lines)} lines: {lines[-1:]}"
    except (ValueError, FileNotFoundError):
        # What the library's own calls raise where a command prints one line.
        return None
    except Exception as error:  # noqa: BLE001  any other is what must not be
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"
    return None if answer == whole else "silent: another answer"


def command(*words: object) -> str:
    """``sgrec WORDS`` in this process; what it printed."""
    from sgrec_torchrec import cli

    said = io.StringIO()
    before, sys.argv = sys.argv, ["sgrec", *map(str, words)]
    try:
        with contextlib.redirect_stdout(said):
            try:
                cli.main()
            except SystemExit as stop:
                if stop.code:
                    raise
    finally:
        sys.argv = before
    return said.getvalue()
