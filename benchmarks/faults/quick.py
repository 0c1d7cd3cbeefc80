"""Commands of a second, killed at any moment: old or new is whole, and it goes on."""

import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from faults import readers
from faults.field import NAME, Field
from faults.processes import run, start, start_call
from sgrec_torchrec.files.run_folder import CANDIDATES

COMMANDS = ("append", "export", "candidates")
UNREAD = "cannot be read: "
LATEST = 1.2
"""Of the seconds that the command takes: some are killed at their end, or too late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quick:
    """A command in a folder of its own, and what reads its outcome."""

    words: tuple[str | Path, ...]
    reader: str
    read: Path
    made: Path
    """Is there where the outcome is."""

    def answer(self) -> str | None:
        """None where there is no outcome yet."""
        return answer_of(self.reader, self.read) if self.made.exists() else None


class QuickKills:
    """Trials that compare with the same commands, done once and not killed."""

    def __init__(self, field: Field) -> None:
        """Do each once.

        Raises:
            RuntimeError: where one does not end well.
        """
        pairs = pq.read_table(field.root / "pairs.parquet")
        turned = pc.subtract(pa.scalar(1.0), pairs["reward"])
        rewards = pairs.set_column(2, "reward", turned)
        pq.write_table(rewards, field.root / "more-pairs.parquet")
        self._whole: dict[str, tuple[str, float]] = {}
        for name in COMMANDS:
            quick = _prepared(field, field.root / f"quick-{name}", name)
            begin = time.monotonic()
            ended = run(*quick.words)
            seconds = time.monotonic() - begin
            answer = quick.answer()
            if ended.code != 0 or answer is None or answer.startswith(UNREAD):
                raise RuntimeError(f"{name} cannot be done: {ended.said}, {answer}")
            self._whole[name] = (answer, seconds)

    def trial(self, field: Field, folder: Path, draw: random.Random) -> str | None:
        """One of them: None, or what is wrong after the kill or after the second call.

        Args:
            folder: not there yet.
        """
        name = draw.choice(COMMANDS)
        quick, (whole, seconds) = _prepared(field, folder, name), self._whole[name]
        before = quick.answer()
        killed = start(quick.words)
        time.sleep(draw.uniform(0, LATEST * seconds))
        killed.kill()
        killed.process.join()
        if quick.answer() not in (before, whole):
            return f"{name}, killed: neither what was there nor what was to be"
        ended = run(*quick.words)
        if ended.code != 0:
            return f"{name}, again: {ended.fault or ended.last_line}"
        return None if quick.answer() == whole else f"{name}, again: another outcome"


def answer_of(reader: str, path: Path) -> str:
    """What a process of its own says that reads the path, be it an error."""
    ended = start_call(readers.say, reader, path).wait()
    return ended.said if ended.code == 0 else f"{UNREAD}{ended.said}"


def _prepared(field: Field, place: Path, name: str) -> _Quick:
    place.mkdir()
    if name == "append":
        table = place / "table"
        shutil.copytree(field.table, table)
        return _Quick(
            words=("table", "append", table, field.root / "more-pairs.parquet"),
            reader="verified_table",
            read=table,
            made=table,
        )
    if name == "export":
        package = place / "package"
        return _Quick(
            words=("export", field.runs() / NAME, "--out", package),
            reader="recommend_of_package",
            read=package,
            made=package,
        )
    run_dir = field.copy_runs(place / "runs", prepared_only=False) / NAME
    return _Quick(
        words=("candidates", run_dir),
        reader="candidates",
        read=run_dir,
        made=run_dir / CANDIDATES,
    )
