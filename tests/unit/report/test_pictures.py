"""Charts hold the geometry of the logged values, and nothing that is not finite."""

import itertools
import math

import pytest

from sgrec_torchrec.files.tracking import MetricLine
from sgrec_torchrec.report.pictures import (
    bars,
    nice_ticks,
    short,
    training_charts,
)


def metric(step: int, stage: str, **values: float) -> MetricLine:
    return MetricLine(step=step, stage=stage, time_s=0.0, values=values)


def test_bars_scale_to_the_longest_whisker() -> None:
    ours, other = bars([("a", 0.5, (0.4, 0.8)), ("b", 0.2, None)], "a")
    # 100 % is .8: .5 -> 62.5, .4 -> 50, .8 - .4 -> 50, .2 -> 25.
    assert (ours.width, ours.whisker_left, ours.whisker_width) == (62.5, 50.0, 50.0)
    assert (other.width, other.whisker_left) == (25.0, None)
    assert (ours.is_ours, other.is_ours) == (True, False)


def test_a_curve_runs_from_corner_to_corner() -> None:
    (chart,) = training_charts([metric(0, "t", loss=0.0), metric(10, "t", loss=4.0)])
    # y grows downwards in SVG: 0 is at the bottom, 1000.
    assert chart.lines[0].path == "M0.0 1000.0L1000.0 0.0"
    assert [tick.label for tick in chart.y_ticks] == ["0", "1", "2", "3", "4"]
    assert chart.y_ticks[2].percent == 50.0
    assert chart.summary == "last 4"


def test_a_long_curve_is_averaged_with_a_band() -> None:
    lines = [metric(step, "t", loss=float(step % 2)) for step in range(320)]
    (chart,) = training_charts(lines)
    # Two points a bucket, 0 and 1: a mean of .5 between 0 and 1.
    assert chart.lines[0].path.count("L") == 159
    assert set(chart.lines[0].path[1:].replace("L", " ").split()[1::2]) == {"500.0"}
    assert set(chart.lines[0].band[1:-1].replace("L", " ").split()[1::2]) == {
        "0.0",
        "1000.0",
    }
    assert chart.lines[0].dots == []


def test_stages_are_separate_lines_and_nan_is_left_out() -> None:
    lines = [
        metric(0, "pretrain", loss=2.0),
        metric(1, "pretrain", loss=math.nan),
        metric(2, "pretrain", loss=1.0),
        metric(2, "valid", loss=1.5),
        metric(2, "valid", **{"NDCG@10": 0.1}),
        metric(3, "valid", **{"NDCG@10": 0.05}),
        metric(9, "test", **{"NDCG@10": 0.9}),
    ]
    loss, ndcg = training_charts(lines)
    assert [line.name for line in loss.lines] == ["pretrain", "valid"]
    assert len(loss.lines[0].dots) == 2
    assert ndcg.summary == "best 0.1 at step 2"
    assert [line.name for line in ndcg.lines] == ["valid"]


def test_all_charts_span_the_same_steps() -> None:
    lines = [metric(step, "pretrain", loss=1.0 + step) for step in range(11)]
    lines.append(metric(5, "valid", **{"NDCG@10": 0.1}))
    loss, ndcg = training_charts(lines)
    assert loss.x_ticks == ndcg.x_ticks
    # Step 5 of 0 to 10 lies in the middle; .1 between ticks at .05 and .15 as well.
    assert ndcg.lines[0].path == "M500.0 500.0"


@pytest.mark.parametrize(("least", "first"), [(1.9, "0"), (2.5, "2.5"), (-1.0, "-2")])
def test_a_value_axis_starts_at_zero_if_that_is_near(least: float, first: str) -> None:
    lines = [metric(0, "t", loss=least), metric(1, "t", loss=4.0)]
    assert training_charts(lines)[0].y_ticks[0].label == first


def test_charts_of_nothing_but_nan_are_left_out() -> None:
    assert training_charts([metric(0, "pretrain", loss=math.inf)]) == []


def test_levels_are_in_order_of_number_from_one() -> None:
    values = {f"loss_level_{level}": 1.0 for level in (10, 2, 0)}
    (chart,) = training_charts([metric(0, "pretrain", **values)])
    assert [line.name for line in chart.lines] == ["level 1", "level 3", "level 11"]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.2, 5.1), (1e-9, 2e-9), (7.0, 7.0), (0, 123456)]
)
def test_ticks_enclose_the_values_at_equal_gaps(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    gap = ticks[1] - ticks[0]
    gaps = {round((b - a) / gap, 6) for a, b in itertools.pairwise(ticks)}
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert gaps == {1.0}
    assert 3 <= len(ticks) <= 7


def test_numbers_are_short() -> None:
    assert short(0.05312) == "0.0531"
    assert short(2e-5) == "2e-05"
    assert short(-12.345) == "-12.35"
    assert short(48210.7) == "48,211"
