"""Lines of ``metrics.jsonl`` -> charts in percent of a box, drawn by the template.

A chart holds geometry and plain text only. The template draws it as inline SVG paths
with HTML labels, so text keeps its size on a phone and colours follow light or dark.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sgrec_torchrec.files.tracking import MetricLine

MAX_POINTS = 160
"""More points than this are averaged in buckets, with a band from least to most."""
BOX = 1000.0
"""Width and height of a chart's SVG coordinates."""
MAX_DOTS = 40
"""Curves of at most so many points show each of them."""
ROUNDING = 1e-6
VALID_STAGE = "valid"
LEVELS_PREFIX = "loss_level_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A label at ``percent`` of an axis, from the left or the bottom."""

    percent: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve: SVG path data, and what its legend says."""

    name: str
    path: str
    band: str
    """Closed path from least to most of each bucket; empty if nothing is averaged."""
    dots: list[str]
    """A path of zero length per point, drawn as a round dot; empty for dense curves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Curves over steps; ``summary`` stands beside the title."""

    title: str
    summary: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A named series of finite values; steps do not fall."""

    name: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """An axis from ``low`` to ``high`` with labels at round numbers inside."""

    low: float
    high: float
    rounds: list[float]

    def place(self, value: float) -> float:
        """The value's place in [0, BOX]."""
        return BOX * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[Tick]:
        """One tick for each round number."""
        return [
            Tick(percent=round(self.place(value) * 100 / BOX, 2), label=short(value))
            for value in self.rounds
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A system's bar: left ends and widths in percent of the track."""

    label: str
    text: str
    width: float
    whisker_left: float | None
    whisker_width: float
    is_ours: bool


def training_charts(metrics: Sequence[MetricLine]) -> list[Chart]:
    """The charts that the lines have values for, in reading order.

    Time grows with the number of lines, the result is bounded by ``MAX_POINTS``.
    """
    if not metrics:
        return []
    steps = _step_scale([line.step for line in metrics])
    valid = [line for line in metrics if line.stage == VALID_STAGE]
    charts = [
        _chart("Loss", _by_stage(metrics, "loss"), steps, last_summary),
        _chart("Validation NDCG@10", _by_stage(valid, "NDCG@10"), steps, best_summary),
        _chart("Loss by code level", _by_level(metrics), steps),
        _chart("Learning rate", _by_stage(metrics, "learning_rate"), steps),
        _chart("Tokens a second", _by_stage(metrics, "tokens_per_s"), steps, typical),
        _chart("Seconds a step", _by_stage(metrics, "step_s"), steps, typical),
        _chart("Gradient norm", _by_stage(metrics, "gradient_norm"), steps, typical),
    ]
    return [chart for chart in charts if chart is not None]


def alignment_charts(metrics: Sequence[MetricLine]) -> list[Chart]:
    """What guards post-training, by step; likewise bounded."""
    if not metrics:
        return []
    # A validation stands at the number of steps done before it.
    steps = _step_scale([0, *(line.step + 1 for line in metrics)])

    def of(names: Mapping[str, str]) -> list[Curve]:
        return [_curve(label, metrics, name) for label, name in names.items()]

    reward = of({"reward": "reward"})
    groups = of({"dead": "dead_share", "live and judged": "judged_share"})
    fusion = of({"mean lambda": "mean_lambda", "same sign": "same_sign_share"})
    spread = of({"mean": "kl_mean", "99th percentile": "kl_p99"})
    charts = [
        _chart("Validation NDCG@10", [_validated(metrics)], steps, best_summary),
        _chart("Business reward", _unless_zero(reward), steps, last_summary),
        _chart("KL to the pretrained policy", spread, steps),
        _chart(
            "Entropy of the policy", of({"entropy": "entropy"}), steps, last_summary
        ),
        _chart("Share of groups", groups, steps),
        _chart(
            "Distinct first items, share of prompts",
            of({"distinct": "distinct_top1"}),
            steps,
            last_summary,
        ),
        _chart("Fusion, judged rollouts", fusion, steps),
    ]
    return [chart for chart in charts if chart is not None]


def _unless_zero(curves: list[Curve]) -> list[Curve]:
    """Rewards that sum to 0 in every group leave nothing but rounding to draw."""
    return [one for one in curves if any(abs(value) > ROUNDING for value in one.values)]


def _validated(metrics: Sequence[MetricLine]) -> Curve:
    """Validations by the steps done before them; at 0 the pretrained model."""
    points = []
    for line in metrics:
        if line.stage == VALID_STAGE:
            for name, step in (("pretrained NDCG@10", 0), ("NDCG@10", line.step + 1)):
                if math.isfinite(line.values.get(name, math.nan)):
                    points.append((step, line.values[name]))
    points.sort()
    return Curve(
        name="valid", steps=[p[0] for p in points], values=[p[1] for p in points]
    )


def count_not_finite(metrics: Sequence[MetricLine]) -> int:
    """How many logged values are NaN or infinite; charts leave them out."""
    values = (value for line in metrics for value in line.values.values())
    return sum(not math.isfinite(value) for value in values)


def best_summary(curve: Curve) -> str:
    """The highest value and its step."""
    best = max(range(len(curve.values)), key=curve.values.__getitem__)
    return f"best {short(curve.values[best])} at step {curve.steps[best]:,}"


def last_summary(curve: Curve) -> str:
    """The last value."""
    return f"last {short(curve.values[-1])}"


def typical(curve: Curve) -> str:
    """The upper median of the values."""
    return f"median {short(sorted(curve.values)[len(curve.values) // 2])}"


def short(value: float) -> str:
    """A number with at most four digits that matter, thousands separated.

    >>> [short(value) for value in (0.0, 0.05312, 12.345, 48210.7)]
    ['0', '0.0531', '12.35', '48,211']
    """
    if value != 0 and not 1e-4 <= abs(value) < 1e9:
        return f"{value:.2g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 2 if abs(value) >= 1 else 4
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers around [low, high], about ``count`` gaps of 1, 2, 2.5 or 5 x 10^n.

    The first is at most ``low``, the last at least ``high``.

    >>> nice_ticks(0.3, 9.1)
    [0.0, 2.5, 5.0, 7.5, 10.0]
    """
    if high <= low:
        margin = abs(low) * 0.5 or 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [round(number * gap, 12) for number in range(first, last + 1)]


def bars(
    rows: Sequence[tuple[str, float, tuple[float, float] | None]], ours: str
) -> list[Bar]:
    """Horizontal bars from zero for (label, value >= 0, interval), order kept."""
    ends = [interval[1] if interval else value for _, value, interval in rows]
    scale = 100 / (max(ends, default=0.0) or 1.0)
    result = []
    for label, value, interval in rows:
        low, high = interval or (value, value)
        result.append(
            Bar(
                label=label,
                text=f"{value:.4f}",
                width=round(value * scale, 2),
                whisker_left=round(low * scale, 2) if interval else None,
                whisker_width=round((high - low) * scale, 2),
                is_ours=label == ours,
            )
        )
    return result


def _by_stage(metrics: Sequence[MetricLine], name: str) -> list[Curve]:
    stages = dict.fromkeys(line.stage for line in metrics if name in line.values)
    return [
        _curve(stage, [line for line in metrics if line.stage == stage], name)
        for stage in stages
    ]


def _by_level(metrics: Sequence[MetricLine]) -> list[Curve]:
    names = {name for line in metrics for name in line.values}
    suffixes = {name.removeprefix(LEVELS_PREFIX) for name in names} - names
    levels = sorted(int(suffix) for suffix in suffixes if suffix.isdecimal())
    return [
        _curve(f"level {level + 1}", metrics, f"{LEVELS_PREFIX}{level}")
        for level in levels
    ]


def _curve(label: str, metrics: Sequence[MetricLine], name: str) -> Curve:
    points = [
        (line.step, line.values[name])
        for line in metrics
        if math.isfinite(line.values.get(name, math.nan))
    ]
    points.sort(key=lambda point: point[0])
    steps, values = [p[0] for p in points], [p[1] for p in points]
    return Curve(name=label, steps=steps, values=values)


def _chart(
    title: str,
    curves: Sequence[Curve],
    x_scale: Scale,
    summarise: Callable[[Curve], str] | None = None,
) -> Chart | None:
    curves = [curve for curve in curves if curve.values]
    if not curves:
        return None
    y_scale = value_scale([value for curve in curves for value in curve.values])
    return Chart(
        title=title,
        summary=summarise(curves[0]) if summarise else "",
        lines=[_line(curve, x_scale, y_scale) for curve in curves],
        x_ticks=x_scale.ticks(),
        y_ticks=y_scale.ticks(),
    )


def _step_scale(steps: Sequence[int]) -> Scale:
    """From the first step to the last: no empty room beside a curve."""
    low, high = min(steps), max(steps)
    if low == high:
        low, high = low - 1, high + 1
    inside = [at for at in nice_ticks(low, high) if low <= at <= high]
    return Scale(low=low, high=high, rounds=inside)


def value_scale(values: Sequence[float]) -> Scale:
    """From the round number below all values to the one above; from 0 if that is near.

    Near: the least value is positive and under half of the largest.
    """
    low, high = min(values), max(values)
    rounds = nice_ticks(0.0 if 0 < low < high / 2 else low, high)
    return Scale(low=rounds[0], high=rounds[-1], rounds=rounds)


def _line(curve: Curve, x_scale: Scale, y_scale: Scale) -> Line:
    buckets = _buckets(curve)
    xs = [x_scale.place(sum(steps) / len(steps)) for steps, _ in buckets]
    means = [y_scale.place(sum(values) / len(values)) for _, values in buckets]
    points = [f"{x:.1f} {BOX - y:.1f}" for x, y in zip(xs, means, strict=True)]
    band = ""
    if len(buckets) < len(curve.values):
        lows = [y_scale.place(min(values)) for _, values in buckets]
        highs = [y_scale.place(max(values)) for _, values in buckets]
        rim = [*zip(xs, lows, strict=True), *zip(xs[::-1], highs[::-1], strict=True)]
        band = "M" + "L".join(f"{x:.1f} {BOX - y:.1f}" for x, y in rim) + "Z"
    has_dots = len(points) <= MAX_DOTS
    return Line(
        name=curve.name,
        path="M" + "L".join(points),
        band=band,
        dots=[f"M{point}l0.01 0" for point in points] if has_dots else [],
    )


def _buckets(curve: Curve) -> list[tuple[list[int], list[float]]]:
    """Neighbouring points put together so that at most ``MAX_POINTS`` remain."""
    size = -(-len(curve.values) // MAX_POINTS)
    starts = range(0, len(curve.values), size)
    return [
        (curve.steps[at : at + size], curve.values[at : at + size]) for at in starts
    ]
