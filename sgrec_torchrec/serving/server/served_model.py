"""A folder -> a model that is ready for users: found, verified, warmed up."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from sgrec_torchrec.serving.catalogue import ItemId
from sgrec_torchrec.serving.recommender import Recommender
from sgrec_torchrec.serving.server.titles import Titles
from sgrec_torchrec.serving.server.wire import Example

CURRENT = "current"
WARM_USERS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedModel:
    """Never changes; requests keep the one that they began with."""

    recommender: Recommender
    titles: Titles
    generation: int
    """1 for the first of the server, then 2, ..."""
    source: Path
    examples: list[Example]
    seconds_a_user: float
    """Of a user with a full history, as the warm-up measured it."""

    @property
    def name(self) -> str:
        """The checkpoint, for people."""
        return self.recommender.settings.made_of


def find_source(root: Path) -> Path:
    """``root/current`` where there is one, as a link to the newest; else ``root``.

    Raises:
        FileNotFoundError: where the link leads nowhere.
    """
    current = root / CURRENT
    if current.is_symlink() or current.exists():
        if not current.is_dir():
            raise FileNotFoundError(
                f"{current} leads to no folder: let it point to a package or a run"
            )
        return current.resolve()
    return root


def load_model(root: Path, generation: int, *, compiled: bool = False) -> ServedModel:
    """Read, verify every sum, and answer a few made-up users.

    Args:
        root: as ``find_source``.
        generation: the number that answers will name.
        compiled: as ``Recommender.load``.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or damaged, or
            what the answers lacked.
    """
    source = find_source(root)
    recommender = Recommender.load(source, compiled=compiled)
    if recommender.settings.prior_weight is None:
        # Not evaluated: no weight is known, so the network serves alone.
        recommender = Recommender(replace(recommender.parts, evidence=None))
    seconds = _warm_up(recommender, source)
    titles = Titles(recommender.catalogue, recommender.parts.trie)
    return ServedModel(
        recommender=recommender,
        titles=titles,
        examples=titles.examples(),
        generation=generation,
        source=source,
        seconds_a_user=seconds,
    )


def _warm_up(recommender: Recommender, source: Path) -> float:
    """Seconds a user. The first pass allocates and compiles; the second is timed."""
    ids = recommender.catalogue.item_ids
    length = min(len(ids), recommender.settings.max_history)
    # Groups of categories are made on first use, which no user should wait for.
    categories = [category for category in recommender.catalogue.categories if category]
    if categories:
        recommender.catalogue.items_of_category(categories[0])
    full: list[ItemId] = [*ids[:length]]
    k = min(10, recommender.max_k)
    recommender.recommend([[], full], k)
    start = time.perf_counter()
    states = recommender.encode([full] * WARM_USERS)
    found = recommender.decode([*states, *recommender.encode([[]])], k)
    seconds = time.perf_counter() - start
    for one in found:
        if not all(math.isfinite(score) for score in one.scores):
            raise ValueError(f"{source} gives scores that are not finite: export again")
    if not found[-1].item_ids:
        raise ValueError(f"{source} recommends nothing to a new user: export again")
    return seconds / len(found)
