"""What preparing a log costs, stage by stage: CPU seconds and peak memory.

    python benchmarks/bench_prepare.py [--events 1e6 1e7] [--until split] [--workers 2]
        [--json PATH]

Logs are generated (``prepare/zipf_log.py``): a tenth as many items as events. Each size
is imported by ``sgrec import table`` and prepared by the functions that training calls,
in a process of its own. Kernels are compiled before on a small log. Goals are for 2
cores; CPU seconds count all threads of this process. ``--workers`` measures all again
by so many, whose own CPU time and memory are not counted: wall time is compared.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prepare.zipf_log import write_zipf_log

from sgrec_torchrec.config import LogConfig, RunConfig, TokenConfig
from sgrec_torchrec.distributed.executor import InProcess
from sgrec_torchrec.files.atomic import write_json
from sgrec_torchrec.files.origin import describe_run
from sgrec_torchrec.files.room import bytes_below
from sgrec_torchrec.files.run_folder import EVIDENCE, PREPARED, SCORER
from sgrec_torchrec.runs.prepare import (
    prepare_evidence,
    prepare_graph,
    prepare_log,
    prepare_teacher,
    prepare_texts,
    prepare_tokens,
)
from sgrec_torchrec.runs.stage_links import StageLinks

CPU, MEMORY, WALL, DISK = "CPU-s", "GiB", "s", "MB on disk"
STAGES = ("split", "graph", "texts", "evidence", "teacher", "tokens")
FOLDERS = {"graph": ("covisits", "graph-form", "graph"), "evidence": (EVIDENCE, SCORER)}
"""What a stage leaves below ``prepared``, where that is not one folder of its name."""
WARM_EVENTS = 20_000
CPU_GOALS = {1_000_000: 45.0, 10_000_000: 450.0, 100_000_000: 5_850.0}
MEMORY_GOALS = {10_000_000: 4.0, 100_000_000: 8.0}
MAX_GROWTH = 1.3
MIN_SPEEDUP = 1.6
"""Of two workers."""
KIB, MB = 1024, 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure beside what is asked of it."""

    name: str
    unit: str
    ours: float
    goal: float | None
    met: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one stage."""

    stage: str
    cpu_s: float
    wall_s: float
    peak_gib: float
    """Of the process while the stage ran, what it held before included."""
    disk_mb: float = 0.0
    """Of what it made."""


def main() -> int:
    """Measure each size; 1 where a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--events", type=lambda word: int(float(word)), nargs="+", default=[1_000_000]
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--folder", type=Path, help="where logs are made, and go")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="and stop")
    parser.add_argument("--workers", type=int, default=1, help="measured, too")
    parser.add_argument("--stages-of", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stages_of:
        costs_of = stages(given.stages_of, given.until, given.workers)
        print(json.dumps([dataclasses.asdict(one) for one in costs_of]))
        return 0
    measure(WARM_EVENTS, given.folder, given.until)
    costs = {
        num_events: measure(num_events, given.folder, given.until)
        for num_events in given.events
    }
    rows = [row for size, spent in costs.items() for row in rows_of(size, spent)]
    rows += growth(costs)
    if given.workers > 1:
        for size, alone in costs.items():
            shared = measure(size, given.folder, given.until, given.workers)
            rows += speedup(size, alone, shared, given.workers)
    for row in rows:
        met = {None: "", True: "met", False: "MISSED"}[row.met]
        goal = "" if row.goal is None else f"(goal {row.goal:g})"
        print(f"{row.name:<52} {row.ours:12.4g} {row.unit:<6} {goal:<14} {met}")
    if given.json:
        records = [dataclasses.asdict(row) for row in rows]
        write_json(given.json, {"meta": describe_run(), "rows": records})
    return int(any(row.met is False for row in rows))


def measure(
    num_events: int, folder: Path | None, until: str, workers: int = 1
) -> list[Cost]:
    """The stages of a generated log up to this one; the log goes at the end."""
    with tempfile.TemporaryDirectory(prefix="prepare-", dir=folder) as name:
        place = Path(name)
        write_zipf_log(place, num_events)
        words = ("-m", "sgrec_torchrec.cli", "import", "table", "--path")
        words += (str(place / "log.parquet"), "--items", str(place / "items.parquet"))
        imported, _ = in_child("import", (*words, "--out", str(place / "canonical")))
        words = (__file__, "--until", until, "--workers", str(workers))
        words += ("--stages-of", str(place))
        _, said = in_child("stages", words)
        imported = dataclasses.replace(
            imported, disk_mb=bytes_below([place / "canonical"]) / MB
        )
        return [imported, *(Cost(**one) for one in json.loads(said))]


def in_child(stage: str, words: Sequence[str]) -> tuple[Cost, str]:
    """Run Python on these words; what it cost, and the last line that it said."""
    begin = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout as said:
        lines = said.read().strip().splitlines()
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"{stage} ended with status {status}")
    cost = Cost(
        stage=stage,
        cpu_s=used.ru_utime + used.ru_stime,
        wall_s=time.perf_counter() - begin,
        peak_gib=used.ru_maxrss * KIB / 2**30,
    )
    return cost, lines[-1]


def stages(place: Path, until: str, workers: int) -> list[Cost]:
    """Split, graph, texts, evidence, teacher and tokens, up to this one."""
    config, executor = settings(place), InProcess(workers)
    links = StageLinks(run_dir=config.run_dir)
    costs: list[Cost] = []
    for stage in STAGES[: STAGES.index(until) + 1]:
        with metered(stage, costs):
            if stage == "split":
                split, config = prepare_log(config, links)
            elif stage == "graph":
                graph, config = prepare_graph(split, config, links, executor)
            elif stage == "texts":
                prepare_texts(split, config, links)
            elif stage == "evidence":
                prepare_evidence(split, config, links, executor)
            elif stage == "teacher":
                prepare_teacher(split, config, links, executor)
            else:
                prepare_tokens(split, graph, config, links)
    made = Path(config.out_dir) / PREPARED
    return [dataclasses.replace(one, disk_mb=on_disk(made, one)) for one in costs]


def on_disk(made: Path, cost: Cost) -> float:
    """MB of the folders of a stage."""
    names = FOLDERS.get(cost.stage, (cost.stage,))
    folders = [path for name in names for path in made.glob(f"{name}-*")]
    return bytes_below(set(folders)) / MB


def settings(place: Path) -> RunConfig:
    """Defaults, but for tokens of the vectors that the log brings."""
    config = RunConfig(name="timed", out_dir=str(place / "runs"))
    return dataclasses.replace(
        config,
        log=LogConfig(source="canonical", path=str(place / "canonical")),
        tokens=TokenConfig(source="embedding"),
    )


@contextmanager
def metered(stage: str, costs: list[Cost]) -> Iterator[None]:
    """Add what the body cost."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    yield
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    costs.append(
        Cost(
            stage=stage,
            cpu_s=time.process_time() - cpu_s,
            wall_s=time.perf_counter() - wall_s,
            peak_gib=int(peak) * KIB / 2**30,
        )
    )


def rows_of(num_events: int, costs: Sequence[Cost]) -> list[Row]:
    """Each stage's cost, and the whole beside its goal."""
    size = f"{num_events:.0e} events"
    rows = []
    for one in costs:
        rows += [
            Row(name=f"{size}: {one.stage}", unit=unit, ours=ours, goal=None, met=None)
            for unit, ours in (
                (CPU, one.cpu_s),
                (WALL, one.wall_s),
                (MEMORY, one.peak_gib),
                (DISK, one.disk_mb),
            )
        ]
    if costs[-1].stage != STAGES[-1]:
        return rows
    peak_gib = max(one.peak_gib for one in costs)
    goal = CPU_GOALS.get(num_events)
    rows.append(
        bounded(f"{size}: all but the teacher", CPU, without_teacher(costs), goal)
    )
    cpu_s = sum(one.cpu_s for one in costs)
    rows.append(bounded(f"{size}: whole", CPU, cpu_s, None))
    goal = MEMORY_GOALS.get(num_events)
    rows.append(bounded(f"{size}: whole", MEMORY, peak_gib, goal))
    return rows


def without_teacher(costs: Sequence[Cost]) -> float:
    """CPU seconds of the stages that the goals are for."""
    return sum(one.cpu_s for one in costs if one.stage != "teacher")


def growth(costs: dict[int, list[Cost]]) -> Iterator[Row]:
    """CPU time an event of the largest log over that of the smallest."""
    each = {size: without_teacher(spent) / size for size, spent in costs.items()}
    low, high = min(each), max(each)
    if low < high:
        name = f"an event, {low:.0e} -> {high:.0e}"
        yield bounded(name, "times", each[high] / each[low], MAX_GROWTH)


def speedup(
    num_events: int, alone: Sequence[Cost], shared: Sequence[Cost], workers: int
) -> Iterator[Row]:
    """Wall time by one process over that by workers, of each stage and of all."""
    pairs = [
        (one.stage, one.wall_s, other.wall_s)
        for one, other in zip(alone, shared, strict=True)
    ]
    whole = tuple(
        sum(column) for column in zip(*(pair[1:] for pair in pairs), strict=True)
    )
    for stage, before_s, after_s in (*pairs, ("whole", *whole)):
        goal = MIN_SPEEDUP if stage == "whole" and workers == 2 else None
        times = before_s / after_s
        yield Row(
            name=f"{num_events:.0e} events: {stage}, {workers} workers against 1",
            unit="times",
            ours=times,
            goal=goal,
            met=None if goal is None else times >= goal,
        )


def bounded(name: str, unit: str, ours: float, goal: float | None) -> Row:
    """The row of a figure that is to be at most the goal, where there is one."""
    met = None if goal is None else ours <= goal
    return Row(name=name, unit=unit, ours=ours, goal=goal, met=met)


if __name__ == "__main__":
    sys.exit(main())
