"""Pretraining: next-item cross-entropy over code levels, the evidence as a teacher.

Turns a sharded generator and a stream of batches into the weights that rank the
validation rows best. The state is explicit, so a run goes on exactly where it stopped.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from sgrec_torchrec.distributed.checkpoint import (
    FREE_FIELDS,
    latest_checkpoint,
    other_setting,
)
from sgrec_torchrec.distributed.keeper import Keeper, LoopState
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.distributed.optimizer import (
    gradient_norm,
    set_learning_rates,
)
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.distributed.schedule import warmup_cosine
from sgrec_torchrec.distributed.termination import Termination, ToldError
from sgrec_torchrec.generator.trainee import Trainee
from sgrec_torchrec.logs.stream import TrainStream, resolved
from sgrec_torchrec.logs.token_batch import TokenBatch
from sgrec_torchrec.schema import StepOutput

FLUSH_EVERY_STEPS = 10
"""Losses are averaged over ranks and written in groups of so many steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainState(LoopState):
    """Where pretraining stands."""


def pretrain(
    trainee: Trainee,
    validate: Callable[[], float] | None,
    *,
    resume: bool,
    begun: Callable[[], object] = lambda: None,
) -> PretrainState:
    """Train until the last epoch, or until validation stops getting better.

    At the end the model holds the weights of the best validation, or of the last step
    where there was none. All ranks call together.

    Args:
        trainee: model, optimizer, data, settings.
        validate: all ranks call it together and get the same NDCG@10; None trains for
            the given number of epochs (a refit on train and valid).
        resume: go on from the newest whole checkpoint, if there is one. Else what an
            older run of this name left is removed; its weights go as the first ship.
        begun: called once the checkpoint to go on from has been read.

    Raises:
        TerminatedError: after SIGTERM, once the state is kept.
    """
    settings = trainee.config.pretrain
    keeper = _keeper(trainee)
    first = state = _begin(trainee, keeper, resume=resume)
    begun()
    num_epochs = resolved("pretrain.num_epochs", settings.num_epochs)
    total_steps = num_epochs * trainee.stream.steps_per_epoch
    pipeline = TrainPipelineSparseDist(
        trainee.dmp, trainee.optimizer, trainee.device, execute_all_batches=True
    )
    trainee.tracker.resume(state.step)
    with Termination() as told:
        for end in _segment_ends(state, total_steps, trainee):
            if state.stale_validations >= settings.patience:
                break
            at = end
            if state.step < end:
                at = _run_segment(trainee, pipeline, told, state.step, end, total_steps)
            state = replace(state, step=at)
            is_due = end % _validation_steps(trainee) == 0 or end == total_steps
            if validate and is_due and at == end:
                state = _validated(trainee, keeper, state, validate)
            is_told = told.ask()
            if is_told or at % settings.checkpoint_every_steps == 0:
                keeper.keep(state)
            if is_told:
                told.leave(at)
    if state != first and state.step % settings.checkpoint_every_steps:
        # So that a finished run resumes as finished.
        keeper.keep(state)
    if validate and state.best_step:
        restore_best(trainee)
        return state
    if validate:
        # It stopped before the first validation.
        state = replace(state, best_step=state.step)
    keeper.ship(state)
    return state


def _begin(
    trainee: Trainee, keeper: Keeper[PretrainState], *, resume: bool
) -> PretrainState:
    state = (keeper.go_on() if resume else None) or PretrainState()
    if state.step == 0 and is_main_rank():
        keeper.begin()
        _forget_other_weights(trainee)
    return state


def restore_best(trainee: Trainee) -> PretrainState:
    """Read the shipped weights into the model. All ranks call together.

    Raises:
        FileNotFoundError: where the run has not been trained yet.
    """
    keeper = _keeper(trainee)
    return keeper.load(keeper.best)


def _forget_other_weights(trainee: Trainee) -> None:
    """Those of equal settings ship until this run has its own."""
    try:
        best = latest_checkpoint(trainee.best)
    except ValueError:
        best = None  # Damaged, and this run was told to replace it.
    config_json = trainee.config.to_json()
    if best is None or other_setting(best, config_json, FREE_FIELDS) is not None:
        shutil.rmtree(trainee.best, ignore_errors=True)


def _run_segment(
    trainee: Trainee,
    pipeline: "TrainPipelineSparseDist[TokenBatch, StepOutput]",
    told: Termination,
    start: int,
    end: int,
    total_steps: int,
) -> int:
    """Optimizer steps ``start`` to ``end``, then a drained and detached pipeline.

    Returns:
        ``end``, or the step that all ranks got to when one was told to end.
    """
    settings = trainee.config.pretrain
    batches = _until_told(_batches(trainee.stream, start, end), told)
    trainee.dmp.train()
    window = _Window(trainee, start)
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
        try:
            window.add(pipeline.progress(batches), dense_lr)
        except StopIteration:
            end = step
            break
        if len(window) == FLUSH_EVERY_STEPS:
            window.flush()
    if len(window):
        window.flush()
    # The pipeline rewires the tables' forward, and evaluation needs the plain one; the
    # next ``progress`` attaches it again.
    pipeline.detach()
    return end


def _until_told(
    batches: Iterator[TokenBatch], told: Termination
) -> Iterator[TokenBatch]:
    """What the pipeline has taken already is still trained on, on every rank."""
    for batch in batches:
        if told.poll():
            return
        yield batch


def _batches(stream: TrainStream, start: int, end: int) -> Iterator[TokenBatch]:
    step = start
    while step < end:
        epoch, offset = divmod(step, stream.steps_per_epoch)
        for batch in stream.batches(epoch, offset):
            if step == end:
                return
            yield batch
            step += 1


class _Window:
    """Figures of the last few steps, kept on the device until they are written."""

    def __init__(self, trainee: Trainee, first_step: int) -> None:
        self.trainee, self.first_step = trainee, first_step
        self.figures: list[Tensor] = []
        self.learning_rates: list[float] = []
        self.began_s = time.perf_counter()

    def __len__(self) -> int:
        return len(self.figures)

    def add(self, output: StepOutput, learning_rate: float) -> None:
        positions = output.num_positions[None]
        self.figures.append(
            torch.cat((positions, output.loss[None], output.level_loss_L))
        )
        self.learning_rates.append(learning_rate)

    def flush(self) -> None:
        """Combine over ranks (one all-reduce), write one line a step, start anew."""
        figures = torch.stack(self.figures)
        dist.all_reduce(figures)
        figures[:, 1:] /= dist.get_world_size()
        elapsed_s = time.perf_counter() - self.began_s
        shared = {
            "step_s": elapsed_s / len(self),
            "tokens_per_s": float(figures[:, 0].sum()) / elapsed_s,
            "gradient_norm": gradient_norm(self.trainee.optimizer),
        }
        for offset, (_, loss, *levels) in enumerate(figures.tolist()):
            values = {"loss": loss, "learning_rate": self.learning_rates[offset]}
            values |= {f"loss_level_{level}": part for level, part in enumerate(levels)}
            if offset + 1 == len(self):
                values |= shared
            self.trainee.tracker.log(self.first_step + offset, values, "pretrain")
        self.first_step += len(self)
        self.figures, self.learning_rates = [], []
        self.began_s = time.perf_counter()


def _segment_ends(
    state: PretrainState, total_steps: int, trainee: Trainee
) -> list[int]:
    """Steps after which the pipeline drains: validations, checkpoints, the end.

    Where the step that it stands at was not validated, that comes first.
    """
    start, here = state.step, [state.step] if state.is_unvalidated else []
    settings = trainee.config.pretrain
    every = (settings.checkpoint_every_steps, _validation_steps(trainee))
    ends = {end for gap in every for end in range(gap, total_steps, gap)}
    last = total_steps
    if settings.stop_after_epochs is not None:
        last = min(last, settings.stop_after_epochs * trainee.stream.steps_per_epoch)
    return here + sorted(end for end in ends | {last} if start < end <= last)


def _validation_steps(trainee: Trainee) -> int:
    return trainee.config.pretrain.valid_every_epochs * trainee.stream.steps_per_epoch


def _validated(
    trainee: Trainee,
    keeper: Keeper[PretrainState],
    state: PretrainState,
    validate: Callable[[], float],
) -> PretrainState:
    try:
        ndcg = validate()
    except ToldError:
        return replace(state, is_unvalidated=True)
    return _note_validation(trainee, keeper, state, ndcg)


def _note_validation(
    trainee: Trainee, keeper: Keeper[PretrainState], state: PretrainState, ndcg: float
) -> PretrainState:
    trainee.tracker.log(state.step - 1, {"NDCG@10": ndcg}, "valid")
    return keeper.note(state, ndcg)


def _keeper(trainee: Trainee) -> Keeper[PretrainState]:
    return Keeper(
        state_type=PretrainState,
        newest=trainee.checkpoints,
        best=trainee.best,
        num_newest=trainee.config.pretrain.keep_checkpoints,
        dmp=trainee.dmp,
        optimizer=trainee.optimizer,
        config=trainee.config,
    )
