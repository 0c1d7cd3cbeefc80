"""Mixed faults in a row on one field: what one leaves behind, the next one meets.

Of a thousand: 250 flipped bits, 75 cuts and 75 swaps of files that a run's recommending
reads, 150 flipped bits of a reward table, 40 of a package, 200 hostile requests to a
server that stays up for all of it, 80 bad rewards, 50 reloads under load, 40 kills of a
quick command, 40 full disks. They come in rounds of a hundred, each of all kinds in an
order of its own. What costs seconds (training, its kills, evaluation) is left to the
other groups.
"""

import asyncio
import dataclasses
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from faults.client import Server, serving
from faults.damage import flips, swaps, trials
from faults.field import NAME, Field
from faults.flips import KINDS, files_of
from faults.hostile import attack, reloads
from faults.inputs import bad_pairs, full_disks
from faults.kills import in_folder
from faults.outcome import FaultRow, part, run_trials
from faults.quick import UNREAD, QuickKills, answer_of

ASKED = 1000
PER_ROUND = 100
FLIPS, CUTS, SWAPS = "soak: bit flips of a run", "soak: cuts", "soak: swaps"
SMALL_WRITES = ("import", "export", "table")
HISTORY = ["i3", "i24"]
Said = Iterable[str | None]


@dataclass(slots=True)
class _Kind:
    """A kind of fault, and what its trials have said so far."""

    asked: int
    take: Callable[[int], Said]
    """So many trials."""
    said: list[str | None] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def go_on(self, count: int) -> None:
        begin = time.monotonic()
        self.said += self.take(count)
        self.seconds += time.monotonic() - begin


def soak_rows(field: Field, share: float, seed: int) -> Iterator[FaultRow]:
    """A row a kind, a row of all together, a row of what the field is afterwards."""
    draw = random.Random(seed)
    begin = time.monotonic()
    copy = _Copies.of(field)
    before = copy.answers()
    with serving(field.package) as server:
        answer = server.items(HISTORY)
        kinds = _kinds(field, copy, server, draw)
        num_rounds = part(ASKED // PER_ROUND, share)
        for nth in range(num_rounds):
            for name in draw.sample(list(kinds), len(kinds)):
                total = part(kinds[name].asked, share)
                # What does not divide goes to the first rounds.
                kinds[name].go_on(total // num_rounds + (nth < total % num_rounds))
        is_up = server.items(HISTORY) == answer
    for name, kind in kinds.items():
        row = run_trials(name, kind.asked, kind.said)
        yield replace(row, seconds=kind.seconds)
    everything = [one for kind in kinds.values() for one in kind.said]
    whole = run_trials("soak: all in a row", ASKED, everything)
    yield replace(whole, seconds=time.monotonic() - begin)
    after = copy.answers()
    left = [
        None if after[name] == before[name] else f"{name}: other answers than before"
        for name in before
    ]
    left += [f"{name}: {text}" for name, text in before.items() if UNREAD in text]
    left.append(None if is_up else "the server: other answers than before")
    yield run_trials("soak: what is left answers as before", len(left), left)


@dataclass(frozen=True, slots=True)
class _Copies:
    """What is damaged and mended again, trial by trial."""

    runs: Path
    table: Path
    package: Path

    @classmethod
    def of(cls, field: Field) -> "_Copies":
        root = field.root / "soak"
        runs = field.copy_runs(root / "runs", prepared_only=False)
        shutil.copytree(field.table, root / "table")
        shutil.copytree(field.package, root / "package")
        return cls(runs, root / "table", root / "package")

    def answers(self) -> dict[str, str]:
        return {
            "the run": answer_of("recommend", self.runs / NAME),
            "the table": answer_of("verified_table", self.table),
            "the package": answer_of("recommend_of_package", self.package),
        }


def _kinds(
    field: Field, copy: _Copies, server: Server, draw: random.Random
) -> dict[str, _Kind]:
    run_dir, other = copy.runs / NAME, field.runs(seed=1) / NAME
    patterns = [one.patterns for one in KINDS if one.reader == "recommend"]
    files = files_of(run_dir, tuple(name for some in patterns for name in some))
    disks = full_disks(field, ASKED, draw, SMALL_WRITES)
    pairs = bad_pairs(field, ASKED, draw)
    killed = QuickKills(field)

    def of_run(how: str) -> Callable[[int], Said]:
        def take(count: int) -> Said:
            damages = (
                swaps(run_dir, files, other, count, draw)
                if how == "swap"
                else flips(files, count, draw, how)
            )
            return trials(damages, "recommend", run_dir)

        return take

    def of_folder(reader: str, folder: Path) -> Callable[[int], Said]:
        whole = files_of(folder, ("*", "*/*"))
        return lambda count: trials(flips(whole, count, draw), reader, folder)

    return {
        FLIPS: _Kind(250, of_run("flip")),
        CUTS: _Kind(75, of_run("cut")),
        SWAPS: _Kind(75, of_run("swap")),
        "soak: bit flips of a table": _Kind(
            150, of_folder("verified_table", copy.table)
        ),
        "soak: bit flips of a package": _Kind(
            40, of_folder("recommend_of_package", copy.package)
        ),
        "soak: hostile requests": _Kind(
            200, lambda count: asyncio.run(attack(server, count, draw))
        ),
        "soak: bad rewards": _Kind(80, lambda count: islice(pairs, count)),
        "soak: reloads under load": _Kind(
            50, lambda count: reloads(field, count, draw) if count else []
        ),
        "soak: kill -9 of a quick command": _Kind(
            40,
            lambda count: [in_folder(killed.trial, field, draw) for _ in range(count)],
        ),
        "soak: disk full": _Kind(40, lambda count: islice(disks, count)),
    }
