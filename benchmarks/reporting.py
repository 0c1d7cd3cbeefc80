"""What every benchmark shares: interleaved timing, a table, and a JSON result file.

The file holds ``{"meta": {hardware, versions, commit, date}, "rows": [...]}``; each
row carries both absolute figures beside their ratio, so that none hides the other.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from sgrec_torchrec.files.atomic import write_json
from sgrec_torchrec.files.origin import describe_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured figure beside what a user would otherwise run."""

    name: str
    unit: str
    ours: float
    peer: float | None
    """None where a figure has no peer (a size, a growth factor)."""
    peer_name: str
    ratio: float | None
    """How many times better ours is; above 1 is in our favour."""
    spread: float
    """Interquartile range of the repetitions over their median (0 if not timed)."""
    ours_quartiles: tuple[float, float] | None = None
    peer_quartiles: tuple[float, float] | None = None


def time_interleaved(
    ours: Callable[[], object], peer: Callable[[], object], repetitions: int = 7
) -> tuple[list[float], list[float]]:
    """Seconds of each repetition of both sides, run in turn after one warm-up each.

    Taking turns spreads the machine's other load over both sides alike. On a CUDA
    device each run is synchronised before the clock is read.
    """
    ours_s: list[float] = []
    peer_s: list[float] = []
    for repetition in range(repetitions + 1):
        for run, times_s in ((ours, ours_s), (peer, peer_s)):
            elapsed_s = _time(run)
            if repetition:
                times_s.append(elapsed_s)
    return ours_s, peer_s


def timed_row(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    peer_name: str,
    calls: tuple[int, int] = (1, 1),
    repetitions: int = 7,
) -> Row:
    """Median seconds of one call; ``calls`` are the calls inside ours and peer."""
    totals = time_interleaved(ours, peer, repetitions)
    ours_s, peer_s = (
        [total / count for total in side]
        for side, count in zip(totals, calls, strict=True)
    )
    ratios = [one / other for one, other in zip(peer_s, ours_s, strict=True)]
    return Row(
        name=name,
        unit="s",
        ours=median(ours_s),
        peer=median(peer_s),
        peer_name=peer_name,
        ratio=median(peer_s) / median(ours_s),
        spread=relative_spread(ratios),
        ours_quartiles=quartiles(ours_s),
        peer_quartiles=quartiles(peer_s),
    )


def relative_spread(values: Sequence[float]) -> float:
    """Interquartile range over the median."""
    low, high = quartiles(values)
    return (high - low) / median(values)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper one, each a value that was measured."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]


def report(rows: Sequence[Row], json_path: Path | None) -> None:
    """Print the rows as a table; with a path, also write them with the meta."""
    names = [field.name for field in dataclasses.fields(Row)]
    cells = [names, *([_cell(getattr(row, name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)))
    if json_path is not None:
        records = [dataclasses.asdict(row) for row in rows]
        write_json(Path(json_path), {"meta": describe_run(), "rows": records})


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " to ".join(map(_cell, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
