"""What post-training left in a run -> its part of the report.

``aligned/best/*/state.json`` (what ships), ``gain.json`` (before and after),
``metrics.jsonl`` (curves), ``advantages-*.parquet`` (how rewards were fused).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sgrec_torchrec.files.run_folder import (
    ADVANTAGES,
    ALIGNED,
    BEST,
    GAIN,
    METRICS,
    STATE,
    STEP,
)
from sgrec_torchrec.files.sealed_json import without_seal
from sgrec_torchrec.files.tracking import read_metrics
from sgrec_torchrec.report.pictures import (
    BOX,
    Chart,
    Tick,
    alignment_charts,
    value_scale,
)
from sgrec_torchrec.report.tables import OURS, Cell, Row, Table, p_value

SHOWN_METRICS = ("HR@10", "NDCG@10")
MAX_POINTS = 1500
"""Of the scatter; of more, evenly spaced ones are drawn."""
MAX_SAMPLE_FILES = 64
LAMBDA_ENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Upper ends of the classes that are coloured alike; the first is 0 itself."""
COLUMNS = ("business", "semantic", "lambda")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """Points of one class of lambda: SVG path data of zero-length lines."""

    label: str
    path: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """A_biz from left to right, A_sem from bottom to top, coloured by lambda."""

    clouds: list[Cloud]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_zero: float
    """Percent of the box at which A_biz is 0."""
    y_zero: float
    num_shown: int
    num_kept: int
    agree_percent: float
    """Of the kept rollouts: both advantages have the same sign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """The section on post-training."""

    verdict: str
    has_helped: bool
    gains: Table | None
    charts: list[Chart]
    scatter: Scatter | None


def read_alignment(run_dir: Path) -> Alignment | None:
    """The section, or None where the run has not been post-trained.

    Memory is bounded but for ``aligned/metrics.jsonl``, which has a line a step.

    Raises:
        ValueError: naming a file that is not what post-training writes.
    """
    folder = run_dir / ALIGNED
    states = sorted(folder.glob(f"{BEST}/{STEP}/{STATE}"))
    if not states:
        return None
    state = _json(states[-1])
    gain = _json(folder / GAIN) if (folder / GAIN).is_file() else None
    metrics_path = folder / METRICS
    metrics = read_metrics(metrics_path) if metrics_path.is_file() else []
    try:
        verdict, has_helped = verdict_of(state)
        gains = None if gain is None else gain_table(gain)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: {STATE} or {GAIN} cannot be read "
            f"({type(error).__name__}: {error}); post-train the run again"
        ) from error
    return Alignment(
        verdict=verdict,
        has_helped=has_helped,
        gains=gains,
        charts=alignment_charts(metrics),
        scatter=scatter(_sample(folder)),
    )


def verdict_of(state: Mapping[str, Any]) -> tuple[str, bool]:
    """What ships, in a sentence, and whether post-training has helped."""
    fell = " It was stopped because the policy had collapsed; see the curves."
    end = fell if state["has_collapsed"] else ""
    start, best = float(state["start_ndcg"]), float(state["best_ndcg"])
    if start < 0:
        return f"The weights after step {state['step']} ship, unvalidated.{end}", True
    if not state["best_step"]:
        words = (
            "Post-training did not help: no validation was above the pretrained "
            f"model's NDCG@10 of {start:.4f}, so the pretrained model ships."
        )
        return words + end, False
    words = (
        f"The weights after step {state['best_step']} ship: NDCG@10 on the valid rows "
        f"{start:.4f} before, {best:.4f} after."
    )
    return words + end, True


def gain_table(gain: Mapping[str, Any]) -> Table:
    """Before, after and the paired difference, a row for each system and metric."""
    rows = []
    for system, comparison in gain.items():
        for part in comparison["differences"]:
            if part["metric"] not in SHOWN_METRICS:
                continue
            low, high = (_signed(part[end]) for end in ("low", "high"))
            cells = [
                Cell(text=f"{part['value_a']:.4f}"),
                Cell(text=f"{part['value_b']:.4f}"),
                Cell(text=_signed(part["difference"]), low=low, high=high),
                Cell(text=p_value(part["p_value"])),
            ]
            label = f"{system}, {part['metric']}"
            rows.append(Row(label=label, is_ours=system == OURS, cells=cells))
    columns = ["Pretrained", "Shipped", "Difference", "p"]
    return Table(
        title="Before and after, test rows",
        columns=columns,
        rows=rows,
        corner="System, metric",
    )


def scatter(sample: pa.Table) -> Scatter | None:
    """The picture of the fusion; None where nothing was judged."""
    if not len(sample):
        return None
    points = list(
        zip(*(sample[name].to_pylist() for name in COLUMNS), strict=True),
    )
    finite = [point for point in points if all(map(math.isfinite, point))]
    if not finite:
        return None
    step = -(-len(finite) // MAX_POINTS)
    shown = finite[::step]
    x_scale = value_scale([point[0] for point in shown] + [0.0])
    y_scale = value_scale([point[1] for point in shown] + [0.0])
    clouds = []
    for place, end in enumerate(LAMBDA_ENDS):
        low = LAMBDA_ENDS[place - 1] if place else -math.inf
        some = [(x, y) for x, y, weight in shown if low < weight <= end + 1e-6]
        path = "".join(
            f"M{x_scale.place(x):.0f} {BOX - y_scale.place(y):.0f}h.01" for x, y in some
        )
        label = f"{max(low, 0):g} to {end:g}" if place else "0"
        clouds.append(Cloud(label=label, path=path, count=len(some)))
    agreeing = sum(x * y > 0 for x, y, _ in finite)
    return Scatter(
        clouds=clouds,
        x_ticks=x_scale.ticks(),
        y_ticks=y_scale.ticks(),
        x_zero=round(x_scale.place(0.0) * 100 / BOX, 2),
        y_zero=round(y_scale.place(0.0) * 100 / BOX, 2),
        num_shown=len(shown),
        num_kept=len(finite),
        agree_percent=round(100 * agreeing / len(finite), 1),
    )


def _sample(folder: Path) -> pa.Table:
    """The ranks' samples, each bounded by its writer."""
    tables = []
    for path in sorted(folder.glob(ADVANTAGES))[:MAX_SAMPLE_FILES]:
        try:
            tables.append(pq.read_table(path, columns=list(COLUMNS)))
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise ValueError(
                f"{path}: cannot be read ({error}); remove it to leave its picture out"
            ) from error
    return (
        pa.concat_tables(tables) if tables else pa.table({name: [] for name in COLUMNS})
    )


def _signed(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:+.4f}"


def _json(path: Path) -> Any:
    try:
        return without_seal(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); post-train the run again"
        ) from error
