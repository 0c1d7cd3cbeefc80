"""Bounds beside the field that they bound, and the checks that all settings share."""

import dataclasses
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
BOUNDS = "bounds"
"""Key of a field's metadata."""


def bounded(default: T, low: float, high: float) -> T:
    """A field whose value is None or in [low, high]; ``check_bounds`` holds it there.

    It says that it returns the default's type, as ``dataclasses.field`` does.
    """
    return dataclasses.field(default=default, metadata={BOUNDS: (low, high)})


def check_bounds(stage: str, settings: "DataclassInstance") -> None:
    """Raise ValueError unless each field is within its bounds (NaN is outside)."""
    for field in dataclasses.fields(settings):
        if BOUNDS not in field.metadata:
            continue
        low, high = field.metadata[BOUNDS]
        value = getattr(settings, field.name)
        if value is not None and not low <= value <= high:
            raise ValueError(
                f"{stage}.{field.name} = {value} is outside [{low}, {high}]"
            )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} = {value!r}: choose one of {', '.join(choices)}")
