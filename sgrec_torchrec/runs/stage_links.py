"""What was prepared -> the links of a run's folder to it, moved all at one moment.

Weights, settings and links of a folder belong together. A call that goes on with other
settings of the evidence takes minutes to prepare, and may be refused or killed after
all: until it writes its settings, a link that leads somewhere stays as it is.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.files.run_folder import CONFIG


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLinks:
    """Of one run's folder. All ranks note; the main rank alone links."""

    run_dir: Path
    _folders: dict[str, Path] = field(default_factory=dict, init=False)
    """Stage -> where it was prepared."""

    def add(self, stage: str, folder: Path) -> None:
        """Note where a stage lies; a link that leads nowhere is made at once."""
        self._folders[stage] = folder
        if not (self.run_dir / stage).exists():
            self._link(stage)

    def name_of(self, stage: str) -> str:
        """Of the folder that a stage lies in: it stands for all that made it."""
        return self._folders[stage].name

    @property
    def folders(self) -> dict[str, Path]:
        """Stage -> where it was prepared."""
        return dict(self._folders)

    def folder_of(self, stage: str) -> Path:
        """Where a stage was prepared, by a path that other processes can use."""
        return self._folders[stage].resolve()

    def leads_to(self, stage: str, folder: Path) -> bool:
        """Does the run's link lead to this folder, which is there?"""
        link = self.run_dir / stage
        return link.exists() and folder.exists() and link.samefile(folder)

    def move(self) -> None:
        """Move every link that leads elsewhere, each by one rename.

        The settings come after: who is killed between two of them leaves weights and
        settings that are refused beside the new stages (``check_stage_keys``), until
        the same call, or one with the settings that are there, is given again.
        """
        for stage in self._folders:
            self._link(stage)

    def move_where_settled(self, config: RunConfig) -> None:
        """Move them where the folder's settings ask for these stages already."""
        try:
            there = RunConfig.read(self.run_dir / CONFIG)
        except (FileNotFoundError, ValueError):
            return
        if _of_stages(there) == _of_stages(config):
            self.move()

    def _link(self, stage: str) -> None:
        if not is_main_rank():
            return
        link, folder = self.run_dir / stage, self._folders[stage]
        link.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(folder, link.parent)
        if link.is_symlink() and str(link.readlink()) == target:
            return
        with atomic_file(link) as temporary:
            temporary.symlink_to(target)


def _of_stages(config: RunConfig) -> tuple[object, ...]:
    return config.log, config.graph, config.evidence, config.tokens, config.seed
