"""A plan of preparing as a table, and what it rests on."""

from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.files.room import GIB
from sgrec_torchrec.runs.plan_costs import MEASURED
from sgrec_torchrec.runs.plan_size import LogSize
from sgrec_torchrec.runs.prepare_plan import (
    Stage,
    stages,
    times_measured,
    while_asking,
    while_counting,
)

MACHINES = (1, 16, 128)
WIDTH = 100


def show(config: RunConfig, size: LogSize, cores: int) -> None:
    """Print the plan: a table, and what it rests on.

    Args:
        cores: of each machine.

    Raises:
        ValueError: as ``stages``.
    """
    planned = stages(config, size)
    console = Console(width=WIDTH, highlight=False)
    console.print(
        f"{size.events:,} events, {size.users:,} users, {size.items:,} items:",
        size.told,
    )
    table = Table("stage", box=box.SIMPLE)
    walls = [f"wall, {count}" for count in MACHINES]
    for name in ("tasks", "disk", "GiB a task", "CPU-h", *walls):
        table.add_column(name, justify="right")
    for stage in planned:
        tasks = " + ".join(f"{count:,}" for count in stage.tasks)
        table.add_row(
            stage.name,
            "1 process" if stage.tasks == (1,) else tasks,
            _bytes(stage.disk),
            _or_not(stage.memory_gib),
            _or_not(stage.cpu_s, 3_600),
            *(_time(stage.wall_s(cores * count)) for count in MACHINES),
        )
    table.add_section()
    total_s = [
        _total(stage.wall_s(cores * count) for stage in planned) for count in MACHINES
    ]
    all_s = _total(stage.cpu_s for stage in planned)
    disk = _bytes(sum(stage.disk for stage in planned))
    table.add_row("all", "", disk, "", _or_not(all_s, 3_600), *map(_time, total_s))
    spread = [_time(all_s / (cores * count)) for count in MACHINES]
    table.add_row("were all tasks", "", "", "", "", *spread)
    console.print(table)
    for note in _notes(config, size, planned, cores):
        console.print(f"- {note}")


def _notes(
    config: RunConfig, size: LogSize, planned: list[Stage], cores: int
) -> Iterator[str]:
    """What the numbers rest on, and where they end."""
    alone = [stage for stage in planned if stage.tasks == (1,) and stage.cpu_s]
    alone_s = _total(stage.cpu_s for stage in alone)
    share = alone_s / _total(stage.cpu_s for stage in planned)
    longest = sorted(alone, key=lambda stage: -(stage.cpu_s or 0.0))[:3]
    bound = ", ".join(f"{stage.name} {_time(stage.cpu_s)}" for stage in longest)
    yield (
        f"wall: on 1, 16 and 128 machines of {cores} cores. Tasks spread over all of "
        f"them, 1 process is one core of one machine: {share:.1%} of the CPU time. So "
        f"all of it takes {_time(alone_s)} at least, on any number of machines; it is "
        f"bound by {bound}. The last row is that CPU time spread over all cores "
        "without loss: nobody has done that."
    )
    missing = [stage.name for stage in planned if stage.cpu_s is None]
    if missing:
        yield f"In no sum, since not measured by these settings: {', '.join(missing)}."
    times = max(times_measured(MEASURED[stage.name], size) for stage in planned)
    yield (
        "CPU time was measured by default settings on one core of an AMD EPYC, on logs "
        "of 1e6 to 1e7 events. It grows with events or items, whichever is more"
        + (f": up to {times:,.0f} times here." if times > 1 else ".")
    )
    yield (
        "Memory follows the line through two logs; where only one was measured, it is "
        "not said. Disk of graph and evidence is a bound: fewer neighbours take less. "
        "Items are as in the measured logs, 64 floats and a title of three words."
    )
    disk, main = while_counting(config, size)
    yield (
        f"While pairs are counted they take {_bytes(disk)} of disk, and the process "
        f"that hands out the tasks holds {_or_not(main, GIB)} GiB of the log. While "
        "evidence and teacher are made, relations without each fold take up to "
        f"{_bytes(while_asking(config, size))} of disk."
    )


def _total(parts: Iterable[float | None]) -> float:
    return sum(part for part in parts if part is not None)


def _or_not(amount: float | None, of: float = 1.0) -> str:
    return "not measured" if amount is None else f"{amount / of:,.3g}"


def _time(seconds: float | None) -> str:
    """Read by people.

    >>> [_time(one) for one in (None, 3, 600, 9_000, 900_000)]
    ['?', '3 s', '10 min', '2.5 h', '10.4 days']
    """
    if seconds is None:
        return "?"
    for limit, unit, of in ((120, "s", 1), (7_200, "min", 60), (172_800, "h", 3_600)):
        if seconds < limit:
            return f"{seconds / of:.3g} {unit}"
    return f"{seconds / 86_400:,.1f} days"


def _bytes(count: float) -> str:
    """Read by people.

    >>> _bytes(2.5e12), _bytes(310)
    ('2.5 TB', '310 B')
    """
    for unit, of in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.3g} {unit}"
    return f"{count:.0f} B"
