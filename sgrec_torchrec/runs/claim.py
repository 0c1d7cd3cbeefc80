"""May this call use the run's folder? Asked before anything of it is written or moved.

Turns the settings of a call and the checkpoint that the folder holds into a refusal in
seconds: what went before a refused call is there afterwards, to the byte.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.checkpoint import check_config, latest_checkpoint
from sgrec_torchrec.files.run_folder import BEST, CHECKPOINTS, MANIFEST, SPLIT

Use = Literal["begin", "go on", "read"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a call is about to do with a run's folder. The main rank alone asks."""

    use: Use

    def check_given(self, config: RunConfig) -> None:
        """Refuse by the settings as they were given, before the log is read.

        Raises:
            ValueError: naming the setting that the folder's model has otherwise.
        """
        self._check_settings(config, is_open=True)

    def check_resolved(self, config: RunConfig, split_dir: Path) -> None:
        """Refuse by the settings as the log resolves them, and by the log itself.

        Args:
            split_dir: what was prepared from the log as it now is; not linked yet.

        Raises:
            ValueError: naming the setting, or the log that has changed.
        """
        self._check_settings(config, is_open=False)
        if self._checkpoint(config) is None:
            return
        was, now = (_sums(place) for place in (config.run_dir / SPLIT, split_dir))
        if was is not None and was != now:
            raise ValueError(
                f"{config.run_dir} was trained on another log than log.source = "
                f"{config.log.source!r} now holds: restore its files, or start afresh "
                "under another name"
            )

    def _check_settings(self, config: RunConfig, *, is_open: bool) -> None:
        checkpoint = self._checkpoint(config)
        if checkpoint is None:
            return
        check_config(checkpoint, config.to_json(), is_open=is_open)

    def _checkpoint(self, config: RunConfig) -> Path | None:
        """What the call would read, or replace."""
        if self.use == "begin":
            return None
        kept = latest_checkpoint(config.run_dir / CHECKPOINTS)
        best = latest_checkpoint(config.run_dir / BEST)
        return best if self.use == "read" else kept


def _sums(split_dir: Path) -> Any:
    """Of the files of the log that a split was made of; None where it is gone."""
    path = split_dir / MANIFEST
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8")).get("canonical_files")
