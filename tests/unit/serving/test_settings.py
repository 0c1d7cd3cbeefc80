"""Settings that an answer depends on come from a file: each is bounded by name."""

import re
from dataclasses import replace
from typing import Any

import pytest

from sgrec_torchrec.config import EvidenceConfig, GeneratorConfig
from sgrec_torchrec.serving.parts import ServingSettings

WHOLE = ServingSettings(
    generator=GeneratorConfig(),
    evidence=EvidenceConfig(max_history=50),
    num_items=10,
    num_levels=3,
    num_codes=16,
    event_types=("view", "buy"),
    has_clock=True,
    has_value=False,
    max_history=20,
    beam_width=8,
    filter_seen=True,
    prior_weight=0.5,
    made_of="run/best",
)
HIGHEST = {
    "num_items": (1 << 31) - 2,
    "num_levels": 8,
    "num_codes": 32_000,
    "max_history": 100_000,
    "beam_width": 4096,
}


@pytest.mark.parametrize("name", HIGHEST)
def test_a_number_outside_its_bounds_is_refused_by_name(name: str) -> None:
    high = HIGHEST[name]
    for value in (1, high):
        assert getattr(replace(WHOLE, **{name: value}), name) == value
    for value in (-1, 0, high + 1):
        told = re.escape(f"{name} = {value} is outside [1, {high}]")
        with pytest.raises(ValueError, match=told):
            replace(WHOLE, **{name: value})


def test_the_evidence_has_less_than_the_whole_share() -> None:
    for share in (None, 0, 0.0, 0.999):
        assert replace(WHOLE, prior_weight=share).prior_weight == share
    for share in (-0.001, 1.0, 1, 7.5, float("inf"), float("nan")):
        told = re.escape(f"prior_weight = {share} is outside [0, 1)")
        with pytest.raises(ValueError, match=told):
            replace(WHOLE, prior_weight=share)


def test_the_evidence_knows_how_much_of_a_history_it_reads() -> None:
    evidence = EvidenceConfig(max_history=None)
    with pytest.raises(ValueError, match=r"evidence\.max_history is None: train"):
        replace(WHOLE, evidence=evidence)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("generator", {}),
        ("evidence", None),
        *((name, value) for name in HIGHEST for value in (1.5, "1", True, None)),
        ("event_types", ["view"]),
        ("event_types", ("view", 7)),
        ("has_clock", 1),
        ("has_value", "no"),
        ("filter_seen", None),
        ("prior_weight", "0.5"),
        ("prior_weight", True),
        ("made_of", 3),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: Any) -> None:
    told = re.escape(f"{name} = {value!r}: not of its type")
    with pytest.raises(ValueError, match=told):
        replace(WHOLE, **{name: value})


def test_plain_settings_come_back() -> None:
    assert ServingSettings.from_plain(WHOLE.to_plain()) == WHOLE
