"""What a training loop keeps: the newest states, and the best by validation."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.checkpoint import (
    FREE_FIELDS,
    MEND,
    latest_checkpoint,
    load_checkpoint,
    other_setting,
    save_checkpoint,
)
from sgrec_torchrec.distributed.checkpoint_files import (
    checkpoint_folders,
    read_manifest,
    why_not_whole,
)
from sgrec_torchrec.distributed.launch import all_gather_rows
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.files.sealed_json import DamagedError
from sgrec_torchrec.files.stage_keys import OF_EVIDENCE, check_stage_keys, stage_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopState:
    """Where a loop stands: what a checkpoint holds beside weights."""

    step: int = 0
    """Optimizer steps done; with the seed it fixes the data position."""
    best_step: int = 0
    """0: what the loop began with is still the best."""
    best_ndcg: float = -1.0
    """Best validation NDCG@10 so far; -1 before the first."""
    stale_validations: int = 0
    """Validations since the best one."""
    is_unvalidated: bool = False
    """Told to end before the validation of this step was done: it comes first."""


BEGUN = ".begun"
"""Beside the folder of the newest states, until it holds one."""
FAILED = -2
State = TypeVar("State", bound=LoopState)


def check_data(config: RunConfig, run_dir: Path, checkpoint: Path) -> None:
    """Raise where weights were trained on other data than the run's folder has.

    Data of the evidence may be others where its settings are: those are free. What an
    older version saved names no data, so there is nothing to compare. No communication.

    Raises:
        ValueError: naming what differs.
    """
    trained_on = read_manifest(checkpoint).trained_on
    if not trained_on:
        return
    every = [field.name for field in fields(config) if field.name != "evidence"]
    is_same = other_setting(checkpoint, config.to_json(), every) is None
    free = () if is_same else OF_EVIDENCE
    check_stage_keys(checkpoint, trained_on, run_dir, free=free)


def resumable(
    newest: Path, best: Path, accepts: Callable[[Path], bool] = lambda _: True
) -> Path | None:
    """The checkpoint that a run goes on from; None where it has kept none yet.

    No communication.

    Args:
        newest, best: as ``Keeper`` has them.
        accepts: whether a checkpoint counts; others are as good as absent.

    Raises:
        ValueError: where what is there cannot be read, or where weights ship whose
            states are gone: neither is a fresh start.
    """
    found, shipped = latest_checkpoint(newest), latest_checkpoint(best)
    if found is not None:
        return found if accepts(found) else None
    has_begun = newest.with_name(BEGUN).is_file()
    if shipped is not None and accepts(shipped) and not has_begun:
        raise ValueError(
            f"{newest} holds no checkpoint to go on from, but {shipped} is there: "
            f"{MEND}"
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper(Generic[State]):
    """Checkpoints of a loop. All ranks call its methods together."""

    state_type: type[State]
    newest: Path
    """Folder of the states to go on from."""
    best: Path
    """Folder of the one that ships."""
    num_newest: int
    """States that ``newest`` holds at most."""
    dmp: DistributedModelParallel
    optimizer: CombinedOptimizer
    config: RunConfig
    free_fields: tuple[str, ...] = FREE_FIELDS
    """Settings that may differ when the loop goes on."""

    def keep(self, state: State) -> None:
        """Write weights, optimizer and state, to go on from."""
        self._save(self.newest, state, self.num_newest)
        if is_main_rank():
            self.newest.with_name(BEGUN).unlink(missing_ok=True)

    def ship(self, state: State) -> None:
        """Write them in the place of the best."""
        self._save(self.best, state, 1)

    def note(self, state: State, ndcg: float) -> State:
        """The state after a validation; a better one ships, an equal one is stale."""
        state = replace(state, is_unvalidated=False)
        if ndcg <= state.best_ndcg:
            return replace(state, stale_validations=state.stale_validations + 1)
        better = replace(
            state, best_step=state.step, best_ndcg=ndcg, stale_validations=0
        )
        self.ship(better)
        return better

    def begin(self) -> None:
        """Forget the states of an older run, and note that this one has none yet.

        By the note a run that was killed before its first checkpoint is told from one
        whose checkpoints are gone. The main rank alone calls it.
        """
        self.newest.parent.mkdir(parents=True, exist_ok=True)
        self.newest.with_name(BEGUN).touch()
        shutil.rmtree(self.newest, ignore_errors=True)

    def go_on(self, accepts: Callable[[Path], bool] = lambda _: True) -> State | None:
        """The newest state, read into the model; None where the run is to begin.

        Args:
            accepts: as ``resumable``.

        Raises:
            ValueError: as ``resumable`` and ``load``.
        """
        found = self._of_main_rank(
            self.newest, lambda: resumable(self.newest, self.best, accepts)
        )
        return None if found is None else self.load(self.newest)

    def load(self, folder: Path) -> State:
        """Read what stands in ``newest`` or ``best`` into model and optimizer.

        Where the newest is damaged, the next older one is taken, with a warning.

        Raises:
            FileNotFoundError: where nothing stands there.
            ValueError: as ``latest_checkpoint`` and ``load_checkpoint``.
        """
        checkpoint = self._of_main_rank(folder, lambda: latest_checkpoint(folder))
        if checkpoint is None:
            raise FileNotFoundError(f"{folder} holds no checkpoint: train the run")
        extra, why = None, None
        while extra is None:
            try:
                extra = load_checkpoint(
                    checkpoint,
                    self.dmp,
                    self.optimizer,
                    config_json=self.config.to_json(),
                    free_fields=self.free_fields,
                    check=partial(check_data, self.config, self.config.run_dir),
                )
            except DamagedError as error:
                # On all ranks alike, and before anything was read into the model.
                older = partial(latest_checkpoint, folder, below=checkpoint)
                found = self._of_main_rank(folder, older)
                if found is None:
                    raise ValueError(f"{error}: {MEND}") from error
                checkpoint, why = found, str(error)
        passed_over = [one for one in checkpoint_folders(folder) if one > checkpoint]
        if passed_over and is_main_rank():
            logging.getLogger(__name__).warning(
                "%s: %s is read in its place",
                why or why_not_whole(passed_over[0]),
                checkpoint,
            )
        return self.state_type(**extra)

    def _of_main_rank(
        self, folder: Path, find: Callable[[], Path | None]
    ) -> Path | None:
        """What the main rank finds in the folder, on all ranks."""
        found, error = None, None
        if is_main_rank():
            try:
                found = find()
            except ValueError as caught:
                error = caught
        step = -1 if found is None else int(found.name.rpartition("-")[2])
        step = int(all_gather_rows(torch.tensor([FAILED if error else step]))[0])
        if error is not None:
            raise error
        if step == FAILED:
            raise ValueError(f"{folder} cannot be read: see the main rank")
        return found or (None if step < 0 else folder / f"step-{step:012d}")

    def _save(self, folder: Path, state: State, num_kept: int) -> None:
        save_checkpoint(
            folder,
            state.step,
            self.dmp,
            self.optimizer,
            extra=asdict(state),
            config_json=self.config.to_json(),
            keep=num_kept,
            trained_on=stage_keys(self.config.run_dir),
        )
