"""A trial -> did it pass, and why not; a row of the table -> JSON."""

import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sgrec_torchrec.files.atomic import write_json
from sgrec_torchrec.files.origin import describe_run

TRIALS = "trials passed"
SHOWN_FAILURES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRow:
    """What came of all trials of one kind."""

    name: str
    unit: str
    ours: float
    """Trials that passed, or the figure itself."""
    goal: float
    trials: int
    asked: int
    """Trials that the whole campaign has; more than ``trials`` where it ran smaller."""
    met: bool
    seconds: float
    failures: tuple[str, ...]
    """What the first few said that did not pass."""


def run_trials(name: str, asked: int, trials: Iterable[str | None]) -> FaultRow:
    """The row of trials that yield None, or why they did not pass."""
    begin = time.monotonic()
    said = list(trials)
    failures = [one for one in said if one is not None]
    return FaultRow(
        name=name,
        unit=TRIALS,
        ours=len(said) - len(failures),
        goal=len(said),
        trials=len(said),
        asked=asked,
        met=not failures and bool(said),
        seconds=time.monotonic() - begin,
        failures=tuple(failures[:SHOWN_FAILURES]),
    )


def part(asked: int, share: float) -> int:
    """How many trials of those that the whole campaign has; never none."""
    return max(1, round(asked * share))


def measured(name: str, unit: str, ours: float, goal: float) -> FaultRow:
    """The row of a figure that has a bound: at most the goal."""
    return FaultRow(
        name=name,
        unit=unit,
        ours=ours,
        goal=goal,
        trials=1,
        asked=1,
        met=ours <= goal,
        seconds=0.0,
        failures=(),
    )


def show(rows: Iterable[FaultRow]) -> Iterator[FaultRow]:
    """Print each row as it comes, with what failed below it."""
    for row in rows:
        word = "met" if row.met else "MISSED"
        if row.unit == TRIALS:
            figures = f"{row.ours:.0f} of {row.trials} passed"
        else:
            figures = f"{row.ours:.4g} {row.unit} (goal {row.goal:g})"
        smaller = "" if row.trials >= row.asked else f"  (asked: {row.asked:,})"
        print(f"{row.name:<40} {word:<7} {figures:<32} {row.seconds:4.0f} s{smaller}")
        for failure in row.failures:
            print(f"    {failure}")
        sys.stdout.flush()
        yield row


def write_rows(rows: list[FaultRow], path: Path) -> None:
    """All rows beside hardware, versions, commit and date."""
    records = [dataclasses.asdict(row) for row in rows]
    write_json(path, {"meta": describe_run(), "rows": records})
