"""Bounds stand beside their fields, and every stage holds its own to them."""

import dataclasses
import math
import re
from typing import Any

import pytest

from sgrec_torchrec.config import STAGES, bounded, check_bounds
from sgrec_torchrec.config.bounds import BOUNDS

BOUNDED = [
    (stage, field.name, *field.metadata[BOUNDS])
    for stage, settings in STAGES.items()
    for field in dataclasses.fields(settings)
    if BOUNDS in field.metadata
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Some:
    """A stage that does not check itself."""

    share: float | None = bounded(None, 0, 1)
    num_steps: int = bounded(3, 1, 1 << 31)
    free: float = -7.0


@pytest.mark.parametrize(
    "values",
    [{}, {"share": 0}, {"share": 1}, {"num_steps": 1}, {"num_steps": 1 << 31}],
)
def test_none_the_bounds_themselves_and_unbounded_fields_pass(
    values: dict[str, Any],
) -> None:
    check_bounds("some", Some(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": -0.5}, "some.share = -0.5 is outside [0, 1]"),
        ({"share": 1.5}, "some.share = 1.5 is outside [0, 1]"),
        ({"share": math.nan}, "some.share = nan is outside [0, 1]"),
        ({"num_steps": 0}, "some.num_steps = 0 is outside [1, 2147483648]"),
    ],
)
def test_what_is_outside_is_named_with_its_bounds(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_bounds("some", Some(**values))


@pytest.mark.parametrize(("stage", "name", "low", "high"), BOUNDED)
def test_every_stage_refuses_what_is_below_a_bound(
    stage: str, name: str, low: float, high: float
) -> None:
    below = low - max(1, abs(low))
    message = f"{stage}.{name} = {below} is outside [{low}, {high}]"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        STAGES[stage](**{name: below})


def test_the_stages_are_bounded() -> None:
    assert {stage for stage, *_ in BOUNDED} == set(STAGES)
    assert len(BOUNDED) >= 75
