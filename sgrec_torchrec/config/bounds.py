"""Checks that every stage's settings share."""


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} = {value!r}: choose one of {', '.join(choices)}")


def check_fields(stage: str, settings: object, **bounds: tuple[float, float]) -> None:
    """Raise ValueError unless each field is None or in [low, high] (NaN is outside)."""
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"{stage}.{name} = {value} is outside [{low}, {high}]")
