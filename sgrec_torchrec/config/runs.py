"""Everything a run depends on, and the named runs."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgrec_torchrec.config.data import (
    EvidenceConfig,
    GraphConfig,
    LogConfig,
    TokenConfig,
)
from sgrec_torchrec.config.judging import CandidatesConfig, JudgeConfig
from sgrec_torchrec.config.training import (
    AlignConfig,
    EvaluationConfig,
    GeneratorConfig,
    PretrainConfig,
)
from sgrec_torchrec.files.run_folder import PREPARED
from sgrec_torchrec.files.sealed_json import read_sealed, write_sealed

FORMAT_VERSION = 1
"""Files that name none are older, or written by hand: they have no seal."""
MEND = (
    "if it was edited, undo that and change settings by --set; else copy the "
    "config.json of a checkpoint of the run over it"
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
    align: AlignConfig = field(default_factory=AlignConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    candidates: CandidatesConfig = field(default_factory=CandidatesConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        """Nothing is written outside of ``out_dir``.

        Raises:
            ValueError: for a name that is no folder below it, or one that is taken.
        """
        parts = self.name.split("/")
        if "\0" in self.name or any(part in ("", ".", "..") for part in parts):
            raise ValueError(
                f"name = {self.name!r}: give the name of a folder below out_dir, "
                "as movielens or experiments/movielens"
            )
        if parts[0] == PREPARED:
            raise ValueError(
                f"name = {self.name!r}: {PREPARED} holds what runs share; give another"
            )

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

    def of_training(self) -> dict[str, Any]:
        """Plain settings that weights and lists hang on: all but ``JUDGE_STAGES``."""
        plain = settled(self)
        return {name: plain[name] for name in plain if name not in JUDGE_STAGES}

    def write(self, path: Path) -> None:
        """Write the settings sealed: who changes one by hand is told how to do it."""
        content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        write_sealed(path, content)

    @classmethod
    def read(cls, path: Path) -> "RunConfig":
        """The settings that a run wrote.

        Raises:
            FileNotFoundError: naming the file that is not there.
            ValueError: where it is not such a file, was changed, or is of another
                version.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: is this the folder of a run?")
        plain = read_sealed(path, {}, format_version=FORMAT_VERSION, mend=MEND)
        plain.pop("format_version", None)
        try:
            for name, stage in STAGES.items():
                # A stage that is newer than the run has its defaults.
                plain[name] = stage(**plain.get(name, {}))
            return cls(**plain)
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"{path} does not hold the settings of this version ({error}): "
                "train the run again"
            ) from error


LATER = ("relations", "business")
"""Settings that are newer than runs which must go on as they are."""


def settled(settings: Any) -> dict[str, Any]:
    """A run's or a stage's settings for keys and sums, without unset ``LATER`` ones.

    So what was made before a setting came is still known to be what it is.
    """
    plain = dataclasses.asdict(settings)
    for part in (plain, *plain.values()):
        for name in LATER if isinstance(part, dict) else ():
            if name in part and part[name] is None:
                del part[name]
    return plain


STAGES: dict[str, Callable[..., object]] = {
    "log": LogConfig,
    "graph": GraphConfig,
    "evidence": EvidenceConfig,
    "tokens": TokenConfig,
    "generator": GeneratorConfig,
    "pretrain": PretrainConfig,
    "align": AlignConfig,
    "evaluation": EvaluationConfig,
    "candidates": CandidatesConfig,
    "judge": JudgeConfig,
}
JUDGE_STAGES = ("candidates", "judge")
"""What training reads the work of, as a table: it keeps its weights if they change."""

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
