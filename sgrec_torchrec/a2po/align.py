"""Post-training: A2PO over a pretrained, sharded generator.

One step is roll out -> reward -> advantage -> batch -> update. Kept from the paper
(S-GRec, arXiv 2602.10606): asymmetric fusion, rank-aware business reward, judgements
for a small share of users. Different: the tables are frozen and shared with the
reference policy; rollouts are drawn without replacement, which biases the estimate;
groups that teach nothing are left out of the update. The best validation ships, and
that may be the pretrained model itself.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sgrec_torchrec.a2po.advantage import FUSIONS, AdvantageStats, Rewards
from sgrec_torchrec.a2po.aligner import Aligner, AlignState, is_made_of
from sgrec_torchrec.a2po.figures import (
    StepFigures,
    combined,
    health,
    step_figures,
)
from sgrec_torchrec.a2po.fusion_sample import FusionSample
from sgrec_torchrec.a2po.prompts import prompt_batches
from sgrec_torchrec.a2po.reward import Group, finite_groups
from sgrec_torchrec.a2po.rollout import (
    PolicyOutput,
    RolledOut,
    policy_batch,
    roll_out,
)
from sgrec_torchrec.distributed.checkpoint import latest_checkpoint, read_extra
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.distributed.optimizer import set_learning_rates
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.distributed.schedule import warmup_cosine
from sgrec_torchrec.distributed.termination import Termination, ToldError
from sgrec_torchrec.files.atomic import set_aside
from sgrec_torchrec.files.run_folder import BEST
from sgrec_torchrec.files.tracking import Tracker
from sgrec_torchrec.hashing import ROLLOUT, hash64
from sgrec_torchrec.logs.stream import EvalBatch, eval_batch
from sgrec_torchrec.schema import Int64Array


def align(
    aligner: Aligner,
    validate: Callable[[], float] | None,
    *,
    resume: bool,
    start_ndcg: float | None = None,
) -> AlignState:
    """Post-train, and leave the weights of the best validation in the model.

    All ranks call together.

    Args:
        validate: all ranks call it together and get the same NDCG@10; None ships the
            last step.
        resume: go on from the newest whole checkpoint, if there is one.
        start_ndcg: what ``validate`` says of the pretrained model; None asks it.

    Raises:
        ValueError: for a reward that is not finite, naming user and item.
        TerminatedError: after SIGTERM, once the state is kept.
    """
    state = _begin(aligner, validate, start_ndcg, resume=resume)
    missed = aligner.missed
    if missed:
        missed.go_on(state.step)
    sample = FusionSample(aligner.folder, aligner.ranks.rank, state.step)
    with Tracker(aligner.folder, enabled=is_main_rank()) as tracker:
        tracker.resume(state.step)
        if state.step == 0 and validate:
            tracker.log(0, {"pretrained NDCG@10": state.start_ndcg}, "valid")
        with Termination() as told:
            state = _run(aligner, tracker, sample, state, validate, told)
    if missed:
        missed.write()
    if validate or state.has_collapsed:
        aligner.keeper.load(aligner.keeper.best)
    else:
        aligner.keeper.ship(state)
    if is_main_rank():
        print(_verdict(state, is_validated=validate is not None))
    return state


def _verdict(state: AlignState, *, is_validated: bool) -> str:
    if not is_validated:
        return f"post-training: the weights after step {state.step} ship, unvalidated"
    if not state.best_step:
        return "post-training did not help: the pretrained model ships"
    return (
        f"post-training: step {state.best_step} ships, validation NDCG@10 "
        f"{state.start_ndcg:.4f} -> {state.best_ndcg:.4f}"
    )


def _run(
    aligner: Aligner,
    tracker: Tracker,
    sample: FusionSample,
    state: AlignState,
    validate: Callable[[], float] | None,
    told: Termination,
) -> AlignState:
    """Steps until the last one, a collapse, the end of patience, or SIGTERM."""
    settings = aligner.config.align
    if validate and state.is_unvalidated:
        state = _validated(aligner, tracker, state, validate)
        is_told = told.ask()
        aligner.keeper.keep(state)
        if is_told:
            told.leave(state.step)
    batches = prompt_batches(
        len(aligner.prompts),
        settings.global_batch_size,
        aligner.config.seed,
        state.step,
    )
    steps = progress(
        range(state.step, settings.num_steps), description="A2PO", unit="step"
    )
    for step in steps:
        if state.is_over(settings.patience):
            break
        figures = combined(_step(aligner, next(batches), step, sample))
        tracker.log(step, figures, "align")
        state = _watch(aligner, replace(state, step=step + 1), figures)
        is_last = state.step == settings.num_steps
        if validate and (is_last or state.step % settings.valid_every_steps == 0):
            state = _validated(aligner, tracker, state, validate)
        is_told = told.ask()
        is_last = is_last or is_told or state.is_over(settings.patience)
        if is_last or state.step % settings.checkpoint_every_steps == 0:
            sample.write()
            if aligner.missed:
                aligner.missed.keep(state.step)
            aligner.keeper.keep(state)
        if is_told:
            told.leave(state.step)
    return state


def _begin(
    aligner: Aligner,
    validate: Callable[[], float] | None,
    start_ndcg: float | None,
    *,
    resume: bool,
) -> AlignState:
    """The newest checkpoint's state, or that of the pretrained model, which is best."""
    keeper = aligner.keeper
    found = keeper.go_on(partial(is_made_of, aligner.made_of)) if resume else None
    if found is not None:
        return found
    state = AlignState(made_of=aligner.made_of)
    if validate:
        ndcg = validate() if start_ndcg is None else start_ndcg
        state = replace(state, best_ndcg=ndcg, start_ndcg=ndcg)
    # Last, so that what went before ships until this does.
    if is_main_rank():
        _make_room(aligner, resume=resume)
        keeper.begin()
    keeper.ship(state)
    return state


def _make_room(aligner: Aligner, *, resume: bool) -> None:
    """Who goes on did not ask for the end of what other rewards have made."""
    best = latest_checkpoint(aligner.folder / BEST) if resume else None
    # What a killed call began with, or made before it kept a state, is made again.
    is_begun = best is not None and (
        is_made_of(aligner.made_of, best)
        or (
            latest_checkpoint(aligner.keeper.newest) is None
            and not read_extra(best)["step"]
        )
    )
    if best is not None and not is_begun:
        place = set_aside(aligner.folder)
        print(f"{aligner.folder}, of other weights or tables, is now {place}")
    shutil.rmtree(aligner.folder, ignore_errors=True)


def _step(
    aligner: Aligner, prompt_B: Int64Array, step: int, sample: FusionSample
) -> StepFigures:
    """Five calls, each of which can be looked at alone."""
    mine_B = prompt_B[aligner.ranks.rank :: aligner.ranks.world_size]
    # Sharded tables fail on an empty batch: such a rank asks along and learns nothing.
    has_own = len(mine_B) > 0
    mine_B = mine_B if has_own else prompt_B[:1]
    rolled = _roll_out(aligner, mine_B, step)
    group = Group(
        prompt_B=mine_B,
        item_BG=rolled.rollout.item_BG.cpu(),
        target_B=torch.from_numpy(aligner.prompts.rows.target_E[mine_B]).long(),
    )
    r_biz_BG, r_sem_BG, judged_BG, is_good_B = _rewards(aligner, group)
    settings = aligner.config.align
    is_real_BG = group.item_BG >= 0
    rewards = Rewards.of(r_biz_BG, r_sem_BG, judged_BG, settings.eps, is_real_BG)
    stats = FUSIONS[settings.fusion](rewards)
    if has_own:
        sample.add(step, stats, judged_BG)
    # Sums of rewards may teach where the business reward alone is dead.
    teaches_B = (stats.advantage_BG != 0).any(1) & is_good_B & has_own
    output = first = _update(aligner, mine_B, rolled, stats, teaches_B, step)
    for _ in range(1, settings.updates_per_rollout):
        output = _update(aligner, mine_B, rolled, stats, teaches_B, step, first)
    return step_figures(
        rolled,
        stats,
        judged_BG,
        _is_in_table(aligner, group, judged_BG),
        is_good_B,
        r_biz_BG,
        output,
        has_own=has_own,
    )


def _is_in_table(aligner: Aligner, group: Group, judged_BG: Tensor) -> Tensor:
    """bool [B]: does the table hold the prompt's user, be it for other items?"""
    is_judged_E = getattr(aligner.semantic, "is_judged_E", None)
    if is_judged_E is None:
        # A reward of another kind tells by its answers alone.
        return judged_BG.any(1)
    return torch.from_numpy(is_judged_E[group.prompt_B])


def _roll_out(aligner: Aligner, prompt_B: Int64Array, step: int) -> RolledOut:
    key_B = hash64(aligner.config.seed, ROLLOUT, step, prompt_B).view(np.int64)
    aligner.dmp.eval()
    return roll_out(
        aligner.dmp.module,
        aligner.reference,
        _batch(aligner, prompt_B),
        torch.from_numpy(key_B).to(aligner.ranks.device),
        aligner.config.align,
        filter_seen=bool(aligner.config.log.filter_seen),
    )


def _batch(aligner: Aligner, prompt_B: Int64Array) -> EvalBatch:
    return eval_batch(
        aligner.split.sequences,
        aligner.events,
        aligner.prompts.rows,
        prompt_B,
        aligner.tokens,
        aligner.config.generator,
    ).to(aligner.ranks.device)


def _rewards(aligner: Aligner, group: Group) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Business and semantic rewards, who is judged, and which groups are usable."""
    r_biz_BG = aligner.business(group)
    r_sem_BG, judged_BG = aligner.semantic(group)
    is_good_B = finite_groups(
        group,
        r_biz_BG,
        r_sem_BG,
        judged_BG,
        aligner.split,
        aligner.prompts,
        drops=aligner.config.align.drop_bad_rewards,
    )
    keep_B1 = is_good_B[:, None]
    zero = torch.zeros_like(r_biz_BG)
    return (
        torch.where(keep_B1, r_biz_BG, zero),
        torch.where(keep_B1, r_sem_BG, zero),
        judged_BG & keep_B1,
        is_good_B,
    )


def _update(
    aligner: Aligner,
    prompt_B: Int64Array,
    rolled: RolledOut,
    stats: AdvantageStats,
    teaches_B: Tensor,
    step: int,
    first: PolicyOutput | None = None,
) -> PolicyOutput | None:
    """One forward, one backward, one optimizer step, over the groups that teach.

    A rank without one takes its first group at weight 0, so that no rank waits. None,
    on all ranks alike, where no rank has one.

    Args:
        first: of the first update on these rollouts, which saw the policy that rolled
            them out; None at that update.
    """
    device, settings = aligner.ranks.device, aligner.config.align
    num_teaching = torch.tensor([int(teaches_B.sum())], device=device)
    dist.all_reduce(num_teaching)
    if not int(num_teaching):
        return None
    rows = (
        teaches_B.nonzero().squeeze(1) if bool(teaches_B.any()) else torch.tensor([0])
    )
    weight_E = torch.from_numpy(aligner.prompts.value_weight_E)
    weight_B = weight_E[torch.from_numpy(prompt_B)[rows]] * teaches_B[rows]
    batch = policy_batch(
        _batch(aligner, prompt_B[rows.numpy()]).features,
        rolled.take(rows.to(device)),
        stats.advantage_BG[rows].to(device),
        weight_B.to(device),
        settings,
        scale=aligner.ranks.world_size / (int(num_teaching) * settings.num_rollouts),
        logprob_old_SL=None if first is None else first.logprob_SL,
    )
    factor = warmup_cosine(step, settings.warmup_steps, settings.num_steps)
    set_learning_rates(aligner.optimizer, settings.lr * factor, 0.0)
    aligner.dmp.train()
    aligner.optimizer.zero_grad()
    loss, output = aligner.dmp(batch)
    torch.autograd.backward(loss)
    aligner.optimizer.step()
    learned: PolicyOutput = output
    return learned


def _watch(
    aligner: Aligner, state: AlignState, figures: dict[str, float]
) -> AlignState:
    """Note the pretrained policy's breadth; say so when it is gone."""
    if state.start_distinct < 0:
        return replace(state, start_distinct=figures["distinct_top1"])
    floor = aligner.config.align.min_distinct_share * state.start_distinct
    complaint = health(figures, floor)
    if complaint and is_main_rank():
        print(f"post-training has collapsed at step {state.step}: {complaint}")
    return replace(state, has_collapsed=state.has_collapsed or complaint is not None)


def _validated(
    aligner: Aligner,
    tracker: Tracker,
    state: AlignState,
    validate: Callable[[], float],
) -> AlignState:
    try:
        ndcg = validate()
    except ToldError:
        return replace(state, is_unvalidated=True)
    tracker.log(state.step - 1, {"NDCG@10": ndcg}, "valid")
    if ndcg < aligner.config.align.min_ndcg_share * state.start_ndcg:
        if is_main_rank():
            print(
                f"post-training has collapsed at step {state.step}: validation NDCG@10 "
                f"{ndcg:.4f}, pretrained {state.start_ndcg:.4f}"
            )
        return replace(state, has_collapsed=True, is_unvalidated=False)
    return aligner.keeper.note(state, ndcg)
