"""Pretraining: next-item cross-entropy over code levels, the item graph as a teacher.

Turns a sharded generator and a stream of batches into the weights that rank the
validation rows best. The state is explicit, so a run goes on exactly where it stopped.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from sgrec_torchrec.distributed.optimizer import (
    gradient_norm,
    set_learning_rates,
    warmup_cosine,
)
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.distributed.tracking import Tracker
from sgrec_torchrec.logs.stream import TrainStream
from sgrec_torchrec.schema import TokenBatch

FLUSH_EVERY_STEPS = 10
"""Losses are averaged over ranks and written in groups of so many steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainState:
    """Where a run stands: what a checkpoint holds beside weights."""

    step: int = 0
    """Optimizer steps done; with the seed it fixes the data position."""
    best_step: int = 0
    best_ndcg: float = -1.0
    """Best validation NDCG@10 so far; -1 before the first."""
    stale_validations: int = 0
    """Validations since the best one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainee:
    """What a run trains and where it writes: the same objects for every segment."""

    dmp: DistributedModelParallel
    optimizer: CombinedOptimizer
    stream: TrainStream
    config: RunConfig
    tracker: Tracker
    device: torch.device

    @property
    def checkpoints(self) -> Path:
        return self.config.run_dir / "checkpoints"

    @property
    def best(self) -> Path:
        return self.config.run_dir / "best"


def pretrain(
    trainee: Trainee, validate: Callable[[], float] | None, *, resume: bool
) -> PretrainState:
    """Train until the last epoch, or until validation stops getting better.

    At the end the model holds the weights of the best validation (of the last step
    where there is nothing to validate on). All ranks call together.

    Args:
        trainee: model, optimizer, data, settings.
        validate: all ranks call it together and get the same NDCG@10; None trains for
            the given number of epochs (a refit on train and valid).
        resume: go on from the newest whole checkpoint, if there is one.
    """
    settings = trainee.config.pretrain
    state = _load(trainee, trainee.checkpoints) if resume else PretrainState()
    total_steps = settings.num_epochs * trainee.stream.steps_per_epoch
    pipeline = TrainPipelineSparseDist(
        trainee.dmp, trainee.optimizer, trainee.device, execute_all_batches=True
    )
    trainee.tracker.resume(state.step)
    for end in _segment_ends(state.step, total_steps, trainee):
        _run_segment(trainee, pipeline, state.step, end, total_steps)
        state = replace(state, step=end)
        if validate and _is_validation(end, total_steps, trainee):
            state = _note_validation(trainee, state, validate())
        if end % settings.checkpoint_every_steps == 0:
            _save(trainee, trainee.checkpoints, state, settings.keep_checkpoints)
        if state.stale_validations >= settings.patience:
            break
    if validate:
        _load(trainee, trainee.best)
    else:
        _save(trainee, trainee.best, state, keep=1)
    return state


def _run_segment(
    trainee: Trainee,
    pipeline: "TrainPipelineSparseDist[TokenBatch, object]",
    start: int,
    end: int,
    total_steps: int,
) -> None:
    """Optimizer steps ``start`` to ``end``, then a drained and detached pipeline."""
    settings = trainee.config.pretrain
    batches = _batches(trainee.stream, start, end)
    trainee.dmp.train()
    pending: list[Tensor] = []
    began_s = time.perf_counter()
    steps = progress(
        range(start, end),
        description=f"pretrain to {end}/{total_steps}",
        total=end - start,
        unit="step",
    )
    for step in steps:
        factor = warmup_cosine(step, settings.warmup_steps, total_steps)
        dense_lr, table_lr = settings.dense_lr * factor, settings.table_lr * factor
        set_learning_rates(trainee.optimizer, dense_lr, table_lr)
        output = pipeline.progress(batches)
        pending.append(torch.cat((output.loss[None], output.level_loss_L)))
        if len(pending) == FLUSH_EVERY_STEPS or step + 1 == end:
            elapsed_s = (time.perf_counter() - began_s) / len(pending)
            _log_losses(trainee, pending, step + 1, dense_lr, elapsed_s)
            pending, began_s = [], time.perf_counter()
    # The pipeline rewires the tables' forward; evaluation needs the plain one.
    pipeline.detach()
    pipeline.attach(trainee.dmp)
    pipeline.detach()


def _batches(stream: TrainStream, start: int, end: int) -> Iterator[TokenBatch]:
    step = start
    while step < end:
        epoch, offset = divmod(step, stream.steps_per_epoch)
        for batch in stream.batches(epoch, offset):
            if step == end:
                return
            yield batch
            step += 1


def _log_losses(
    trainee: Trainee,
    pending: list[Tensor],
    next_step: int,
    dense_lr: float,
    step_s: float,
) -> None:
    """Average the pending losses over ranks (one all-reduce) and write them."""
    losses = torch.stack(pending)
    dist.all_reduce(losses)
    losses /= dist.get_world_size()
    first = next_step - len(pending)
    for offset, (loss, *levels) in enumerate(losses.tolist()):
        values = {"loss": loss, "learning_rate": dense_lr, "step_s": step_s}
        values |= {f"loss_level_{level}": part for level, part in enumerate(levels)}
        if first + offset + 1 == next_step:
            values["gradient_norm"] = gradient_norm(trainee.optimizer)
        trainee.tracker.log(first + offset, values, "pretrain")


def _segment_ends(start: int, total_steps: int, trainee: Trainee) -> list[int]:
    """Steps after which the pipeline drains: validations, checkpoints, the end."""
    settings = trainee.config.pretrain
    every = (settings.checkpoint_every_steps, _validation_steps(trainee))
    ends = {end for gap in every for end in range(gap, total_steps, gap)}
    return sorted(end for end in ends | {total_steps} if end > start)


def _validation_steps(trainee: Trainee) -> int:
    return (
        trainee.config.pretrain.valid_every_epochs * trainee.stream.steps_per_epoch
    )


def _is_validation(step: int, total_steps: int, trainee: Trainee) -> bool:
    return step % _validation_steps(trainee) == 0 or step == total_steps


def _note_validation(
    trainee: Trainee, state: PretrainState, ndcg: float
) -> PretrainState:
    trainee.tracker.log(state.step, {"NDCG@10": ndcg}, "valid")
    if ndcg <= state.best_ndcg:
        return replace(state, stale_validations=state.stale_validations + 1)
    state = replace(
        state, best_step=state.step, best_ndcg=ndcg, stale_validations=0
    )
    _save(trainee, trainee.best, state, keep=1)
    return state


def _save(trainee: Trainee, folder: Path, state: PretrainState, keep: int) -> None:
    save_checkpoint(
        folder,
        state.step,
        trainee.dmp,
        trainee.optimizer,
        extra=asdict(state),
        config_json=trainee.config.to_json(),
        keep=keep,
    )


def _load(trainee: Trainee, folder: Path) -> PretrainState:
    newest = latest_checkpoint(folder)
    if newest is None:
        return PretrainState()
    extra = load_checkpoint(
        newest,
        trainee.dmp,
        trainee.optimizer,
        config_json=trainee.config.to_json(),
    )
    return PretrainState(**extra)
