"""What a recommender is made of, wherever it was read from."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

import torch

from sgrec_torchrec.config import EvidenceConfig, GeneratorConfig
from sgrec_torchrec.evidence.prior import EvidencePrior
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.serving.catalogue import ServedCatalogue
from sgrec_torchrec.serving.network import Network
from sgrec_torchrec.serving.program import Program

Made = TypeVar("Made", GeneratorConfig, EvidenceConfig, "ServingSettings")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSettings:
    """Everything beside weights and catalogue that an answer depends on."""

    generator: GeneratorConfig
    evidence: EvidenceConfig
    num_items: int
    num_levels: int
    num_codes: int
    event_types: tuple[str, ...]
    has_clock: bool
    has_value: bool
    max_history: int
    """Newest events that the network reads."""
    beam_width: int
    filter_seen: bool
    prior_weight: float | None
    """The evidence's share, as the evaluation chose it. None: not evaluated."""
    made_of: str
    """The checkpoint, for people."""

    def __post_init__(self) -> None:
        _check_types(self)
        for name, high in (
            ("num_items", (1 << 31) - 2),
            ("num_levels", 8),
            ("num_codes", 32_000),
            ("max_history", 100_000),
            ("beam_width", 4096),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= high:
                raise ValueError(f"{name} = {value!r} is outside [1, {high}]")
        weight = self.prior_weight
        if weight is not None and not 0 <= weight < 1:
            raise ValueError(f"prior_weight = {weight!r} is outside [0, 1)")
        if self.evidence.max_history is None:
            raise ValueError("evidence.max_history is None: train the run again")

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "ServingSettings":
        """What ``to_plain`` gave.

        Raises:
            ValueError, TypeError, KeyError: where it is something else.
        """
        plain = dict(plain)
        return cls(
            **plain
            | {
                "generator": _check_types(GeneratorConfig(**plain["generator"])),
                "evidence": _check_types(EvidenceConfig(**plain["evidence"])),
                "event_types": tuple(plain["event_types"]),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Read by ``run_files`` or ``package``; a ``Recommender`` adds the requests."""

    network: Network
    trie: PrefixTrie
    catalogue: ServedCatalogue
    evidence: EvidencePrior | None
    """None where it is left out, or has no share."""
    settings: ServingSettings
    program: Program | None = None
    """Takes the place of the network's dense part where it was asked for."""
    name: object = field(default_factory=object)
    """Tells these parts from any others, also of the same checkpoint."""


def _check_types(made: Made) -> Made:
    """``made``, whose fields came from JSON: a float may be written without its point.

    Raises:
        ValueError: naming the field.
    """
    for field_of in fields(made):
        value, kind = getattr(made, field_of.name), field_of.type
        if kind == tuple[str, ...]:
            is_right = isinstance(value, tuple) and all(
                isinstance(one, str) for one in value
            )
        else:
            # True is an integer to Python alone.
            is_right = isinstance(value, kind) and (  # type: ignore[arg-type]
                kind is bool or not isinstance(value, bool)
            )
            is_right |= type(value) is int and isinstance(0.0, kind)  # type: ignore[arg-type]
        if not is_right:
            raise ValueError(f"{field_of.name} = {value!r}: not of its type")
    return made


def empty_network(settings: ServingSettings, *, is_int8: bool = False) -> Network:
    """A network of these shapes without memory: on the meta device."""
    with torch.device("meta"):
        network = Network(
            config=settings.generator,
            num_items=settings.num_items,
            num_levels=settings.num_levels,
            num_codes=settings.num_codes,
            num_event_types=len(settings.event_types),
            is_int8=is_int8,
        )
    return network.eval().requires_grad_(False)
