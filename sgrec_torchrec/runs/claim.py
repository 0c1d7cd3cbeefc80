"""May this call use the run's folder? Asked before anything of it is written or moved.

Turns the settings of a call and the checkpoint that the folder holds into a refusal in
seconds: what went before a refused call is there afterwards, to the byte.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from sgrec_torchrec.config import JUDGE_STAGES, RunConfig
from sgrec_torchrec.distributed.checkpoint import (
    FREE_FIELDS,
    OtherSetting,
    check_config,
    latest_checkpoint,
    other_setting,
)
from sgrec_torchrec.distributed.checkpoint_files import read_manifest
from sgrec_torchrec.distributed.keeper import resumable
from sgrec_torchrec.files.atomic import check_writable, next_aside
from sgrec_torchrec.files.run_folder import (
    ALIGNED,
    BEST,
    CHECKPOINTS,
    MANIFEST,
    SPLIT,
)
from sgrec_torchrec.files.sealed_json import naming, without_seal
from sgrec_torchrec.files.stage_keys import stage_key
from sgrec_torchrec.item_graph.choose import GRID
from sgrec_torchrec.runs.aside import set_aside_run
from sgrec_torchrec.runs.steps import alone, check_alone

Use = Literal["begin", "go on", "read"]
IfThere = Literal["refuse", "set aside", "replace"]
"""What a run that begins does with a model of other settings or another log."""
SAME_MODEL = (
    *("name", "out_dir", "evaluation"),
    *JUDGE_STAGES,
    "pretrain.checkpoint_every_steps",
    "pretrain.keep_checkpoints",
)
"""Settings (or whole stages) that change nothing of what training makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a call is about to do with a run's folder. The main rank alone asks.

    A context: what was taken is let go at its end.
    """

    use: Use
    if_there: IfThere = "refuse"
    _held: ExitStack = field(
        default_factory=ExitStack, init=False, repr=False, compare=False
    )

    def __enter__(self) -> "Claim":
        """Nothing is taken yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the folder; an error passes through."""
        self._held.close()

    @property
    def keeps(self) -> bool:
        """Does it begin only where nothing but the same model is replaced?"""
        return self.use == "begin" and self.if_there == "refuse"

    def check_given(self, config: RunConfig) -> None:
        """Refuse by the settings as they were given, before the log is read.

        Raises:
            ValueError: naming the setting that the folder's model has otherwise.
            FileNotFoundError: for a folder that cannot be written.
            BlockingIOError: where another process is at work on it.
        """
        self._check_settings(config, is_open=True)
        if self.use != "read":
            check_writable(config.run_dir)
            check_alone(config.run_dir)

    def check_resolved(self, config: RunConfig, split_dir: Path) -> None:
        """Refuse by the settings as the log resolves them, and by the log itself.

        Args:
            split_dir: what was prepared from the log as it now is; not linked yet.

        Raises:
            ValueError: naming the setting, or the log that has changed.
        """
        self._check_settings(config, is_open=False)
        checkpoint = self._checkpoint(config)
        if checkpoint is None:
            return
        was, now = (_sums(place) for place in (config.run_dir / SPLIT, split_dir))
        split = read_manifest(checkpoint).trained_on.get(SPLIT)
        is_other = was is not None and was != now
        if is_other or split not in (None, stage_key(SPLIT, split_dir)):
            raise ValueError(
                f"{config.run_dir} was trained on another log than log.source = "
                f"{config.log.source!r} now holds: restore its files, or start afresh "
                f"under another name{_or_overwrite(config) if self.keeps else ''}"
            )

    def take(self, config: RunConfig) -> None:
        """Make room, once nothing speaks against it; keep others away.

        Raises:
            BlockingIOError: where another process is at work on the folder.
        """
        if self.use == "begin" and self.if_there == "set aside":
            set_aside_run(config)
        if self.use != "read":
            self._held.enter_context(alone(config.run_dir))

    def _check_settings(self, config: RunConfig, *, is_open: bool) -> None:
        checkpoint = self._checkpoint(config)
        if checkpoint is None:
            return
        chosen = _chosen_later(config)
        if not self.keeps:
            free = (*FREE_FIELDS, *chosen)
            check_config(checkpoint, config.to_json(), free, is_open=is_open)
            return
        aligned = latest_checkpoint(config.run_dir / ALIGNED / BEST)
        free = (*SAME_MODEL, *chosen, *(("align",) if aligned is None else ()))
        found = other_setting(
            aligned or checkpoint, config.to_json(), free, is_open=is_open
        )
        _refuse(found, config)

    def _checkpoint(self, config: RunConfig) -> Path | None:
        """What the call would read, or replace."""
        if self.use == "begin" and not self.keeps:
            return None
        if self.use == "go on":
            return resumable(config.run_dir / CHECKPOINTS, config.run_dir / BEST)
        kept = latest_checkpoint(config.run_dir / CHECKPOINTS)
        best = latest_checkpoint(config.run_dir / BEST)
        return best or kept if self.use == "begin" else best


def check_pretrained(config: RunConfig, best: Path) -> None:
    """Refuse a pretrained model that was made of other settings.

    Args:
        best: where the model lies.

    Raises:
        ValueError: naming the first such setting, and the ways on.
    """
    checkpoint = latest_checkpoint(best)
    if checkpoint is not None:
        free = (*SAME_MODEL, *_chosen_later(config), "align")
        _refuse(other_setting(checkpoint, config.to_json(), free, is_open=True), config)


def _refuse(found: OtherSetting | None, config: RunConfig) -> None:
    if found is not None:
        raise ValueError(
            f"{config.run_dir} holds a model of {found}: set {found.field} back, "
            f"choose another --name{_or_overwrite(config)}"
        )


def _or_overwrite(config: RunConfig) -> str:
    return (
        f", or give --overwrite, which moves {config.run_dir} to "
        f"{next_aside(config.run_dir).name} first"
    )


def _chosen_later(config: RunConfig) -> tuple[str, ...]:
    """Settings of the graph that stand for nothing until the valid rows have chosen.

    The checkpoint's are compared with what was chosen when it is loaded.
    """
    if config.graph.text_weight is not None:
        return ()
    return tuple(f"graph.{name}" for name, _ in GRID)


def _sums(split_dir: Path) -> Any:
    """Of the files of the log that a split was made of; None where it is gone."""
    path = split_dir / MANIFEST
    if not path.is_file():
        return None
    with naming(path, "prepare the split again"):
        return without_seal(json.loads(path.read_bytes())).get("canonical_files")
