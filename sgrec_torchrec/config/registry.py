"""Names that settings may take -> functions: built-in ones, and those of packages.

A registry names its functions as entry points do, ``module:function``: settings are
checked, and ``--help`` answers, before any stage is imported. An installed package adds
to a registry by an entry point in its group:

    [project.entry-points."sgrec.importers"]
    my-shop = "my_package.logs:import_my_shop"

Nothing of a package is imported before its name is asked for.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Registry(Mapping[str, Made]):
    """One table of names. As a mapping it holds what is installed, built-in first."""

    what: str
    """How errors call one of them."""
    built_in: Mapping[str, str]
    """Name -> module:function."""
    group: str | None = None
    """Entry-point group of packages. None: no package adds to it."""

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from self.from_packages()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return any(name == known for known in self)

    def __getitem__(self, name: str) -> Made:
        if name not in self:
            raise KeyError(name)
        return self.load(name)

    def installed(self) -> list[EntryPoint]:
        """What packages add. Reads their metadata and imports none of them."""
        return [] if self.group is None else list(entry_points(group=self.group))

    def from_packages(self) -> list[str]:
        """Names that are not built in."""
        return sorted({one.name for one in self.installed()} - set(self.built_in))

    def check(self, setting: str, name: str) -> None:
        """Raise unless there is such a name; imports nothing.

        Raises:
            ValueError: naming the setting and what there is.
        """
        # What is built in needs no look at the packages.
        if name not in self.built_in and name not in self:
            raise ValueError(f"{setting} = {name!r}: choose one of {self._known()}")

    def load(self, name: str) -> Made:
        """The function of that name; imports its module.

        Raises:
            ValueError: for a name that nobody has, or more than one has.
            ImportError: naming the package whose entry point cannot be loaded.
        """
        points = self._points(name)
        if not points:
            raise ValueError(f"no {self.what} {name!r}: there are {self._known()}")
        if len(points) > 1:
            who = ", ".join(f"{_package(one)} ({one.value})" for one in points)
            raise ValueError(
                f"the {self.what} {name!r} is there more than once, by {who}: "
                "uninstall one of these packages, or rename its entry point"
            )
        (point,) = points
        made: Made = _load_foreign(self.what, point) if point.dist else point.load()
        return made

    def signature(self, name: str) -> str:
        """The name, with package and version unless it is built in: for keys."""
        points = [one for one in self._points(name) if one.dist is not None]
        return name if not points else f"{name} of {_package(points[0])}"

    def _points(self, name: str) -> list[EntryPoint]:
        found = [one for one in self.installed() if one.name == name]
        if name in self.built_in:
            found.insert(0, EntryPoint(name, self.built_in[name], self.group or ""))
        return found

    def _known(self) -> str:
        more = "" if self.group is None else f" (packages add to {self.group})"
        return ", ".join(self) + more


def _package(point: EntryPoint) -> str:
    if point.dist is None:
        return "sgrec_torchrec"
    return f"{point.dist.name} {point.dist.version}"


def _load_foreign(what: str, point: EntryPoint) -> Any:
    said = f"the {what} {point.name!r} of the package {_package(point)}"
    try:
        made = point.load()
    except Exception as error:
        # The import of a foreign module may raise anything.
        raise ImportError(
            f"{said} cannot be loaded: {point.value} raised {type(error).__name__}: "
            f"{error}; mend the package, or uninstall it"
        ) from error
    if not callable(made):
        raise ImportError(f"{said} is no function: {point.value}; mend the package")
    return made


IMPORTERS: Registry[Callable[..., Any]] = Registry(
    what="importer",
    group="sgrec.importers",
    built_in={
        "movielens": "sgrec_torchrec.logs.importers.choose:packaged_movielens",
        "complete-journey": "sgrec_torchrec.logs.importers.choose:packaged_journey",
        "minionerec": "sgrec_torchrec.logs.importers.minionerec:import_minionerec",
        "sequences": "sgrec_torchrec.logs.importers.sequences:import_sequences",
        "canonical": "sgrec_torchrec.logs.importers.choose:import_canonical",
    },
)
"""``log.source`` -> (path, out_dir) -> ImportReport."""

RELATIONS: Registry[Callable[..., Any]] = Registry(
    what="item relation",
    group="sgrec.relations",
    built_in={
        "forward": "sgrec_torchrec.evidence.builders:forward",
        "backward": "sgrec_torchrec.evidence.builders:backward",
        "around": "sgrec_torchrec.evidence.builders:around",
        "text": "sgrec_torchrec.evidence.builders:text",
        "text-visits": "sgrec_torchrec.evidence.builders:text_visits",
        "visits-text": "sgrec_torchrec.evidence.builders:visits_text",
    },
)
"""``evidence.relations`` -> a ``RelationSource`` -> sparse weights [N, N]."""

BUSINESS_REWARDS: Registry[Callable[..., Any]] = Registry(
    what="business reward",
    group="sgrec.business_rewards",
    built_in={
        "next-item": "sgrec_torchrec.a2po.reward:next_item_business",
        "table": "sgrec_torchrec.a2po.reward:table_business",
    },
)
"""``align.business`` -> a ``RewardSource`` -> a ``BusinessReward``."""

FUSIONS: Registry[Callable[..., Any]] = Registry(
    what="fusion",
    built_in={
        "a2po": "sgrec_torchrec.a2po.advantage:a2po_advantage",
        "grpo": "sgrec_torchrec.a2po.advantage:grpo_advantage",
        "reward-sum": "sgrec_torchrec.a2po.advantage:reward_sum_advantage",
        "adv-sum": "sgrec_torchrec.a2po.advantage:advantage_sum",
    },
)
"""``align.fusion`` -> rewards -> ``AdvantageStats``."""

JUDGE_BACKENDS: Registry[Callable[..., Any]] = Registry(
    what="backend",
    group="sgrec.judge_backends",
    built_in={
        "transformers": "sgrec_torchrec.judge.backends.open_backend:open_transformers",
        "vllm": "sgrec_torchrec.judge.backends.open_backend:open_vllm",
        "openai": "sgrec_torchrec.judge.backends.open_backend:open_openai",
    },
)
"""``sgrec judge run --backend`` -> (model, settings) -> a ``Backend``."""
