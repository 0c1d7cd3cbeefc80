"""What a training loop keeps: the newest states, and the best by validation."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.checkpoint import (
    FREE_FIELDS,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)


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


State = TypeVar("State", bound=LoopState)


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

    def load(self, folder: Path) -> State:
        """Read what stands in ``newest`` or ``best`` into model and optimizer.

        Raises:
            FileNotFoundError: where nothing does.
            ValueError: as ``load_checkpoint``.
        """
        checkpoint = latest_checkpoint(folder)
        if checkpoint is None:
            raise FileNotFoundError(f"{folder} holds no checkpoint: train the run")
        extra = load_checkpoint(
            checkpoint,
            self.dmp,
            self.optimizer,
            config_json=self.config.to_json(),
            free_fields=self.free_fields,
        )
        return self.state_type(**extra)

    def _save(self, folder: Path, state: State, num_kept: int) -> None:
        save_checkpoint(
            folder,
            state.step,
            self.dmp,
            self.optimizer,
            extra=asdict(state),
            config_json=self.config.to_json(),
            keep=num_kept,
        )
