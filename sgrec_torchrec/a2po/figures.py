"""What a run watches of post-training, and when it is ill.

Sums are kept per rank and combined by one all-reduce. Letters: B prompts, G rollouts,
S rollouts that were learned from.
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sgrec_torchrec.a2po.advantage import AdvantageStats
from sgrec_torchrec.a2po.rollout import PolicyOutput, RolledOut


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """One rank's part: name -> (sum, count), and what cannot be summed."""

    sums: dict[str, tuple[float, float]]
    top_item_B: Tensor
    """int64: the surest item of each prompt, for the count of distinct ones."""
    kl_S: Tensor


def step_figures(
    rolled: RolledOut,
    stats: AdvantageStats,
    judged_BG: Tensor,
    in_table_B: Tensor,
    is_good_B: Tensor,
    r_biz_BG: Tensor,
    output: PolicyOutput | None,
    *,
    has_own: bool,
) -> StepFigures:
    """This rank's figures of a step; a rank without prompts of its own counts none.

    Args:
        in_table_B: bool, prompts of which the table holds some judgement:
            ``live_in_table`` is the share of them with a live group,
            ``missed_rollouts`` that of their rollouts that were not judged.
    """
    num = len(is_good_B) * has_own
    judged_live = stats.is_judged_B & stats.is_live_B
    spoken = float((judged_BG & judged_live[:, None]).sum()) * has_own
    is_real_BG = (rolled.rollout.item_BG >= 0).cpu()
    empty = 1 - float(is_real_BG.float().mean())
    asked_BG = is_real_BG & in_table_B[:, None]
    in_table, asked = (float(part.sum()) * has_own for part in (in_table_B, asked_BG))
    live, missed = in_table_B & stats.is_live_B, asked_BG & ~judged_BG
    sums = {
        "reward": (float(r_biz_BG.mean()) * num, num),
        "dead_share": (stats.dead_share * num, num),
        "dropped_share": (float((~is_good_B).sum()) * has_own, num),
        "judged_share": (float(judged_live.sum()) * has_own, num),
        "in_table_share": (in_table, num),
        "live_in_table": (float(live.sum()) * has_own, in_table),
        "missed_rollouts": (float(missed.sum()) * has_own, asked),
        "judged_rollouts": (float(judged_BG.float().mean()) * num, num),
        "empty_slots": (empty * num, num),
        "same_sign_share": (stats.same_sign_share * spoken, spoken),
        "mean_lambda": (stats.mean_lambda * spoken, spoken),
        "bound_violations": (float(stats.bound_violations) * has_own, 1.0),
        "entropy": (float(rolled.entropy_B.mean()) * num, num),
    }
    device = rolled.rollout.item_BG.device
    kl_S = torch.zeros(0, device=device)
    if output is not None:
        kl_S = output.kl_S
        count = float(len(kl_S))
        sums["loss"] = (float(output.loss), 1.0)
        sums["clip_share"] = (float(output.clip_share) * count, count)
        sums["clamp_share"] = (float(output.clamp_share) * count, count)
    else:
        sums |= dict.fromkeys(("loss", "clip_share", "clamp_share"), (0.0, 0.0))
    top_item_B = rolled.rollout.item_BG[:, 0]
    return StepFigures(
        sums=sums, top_item_B=top_item_B[: len(top_item_B) * has_own], kl_S=kl_S
    )


def combined(figures: StepFigures) -> dict[str, float]:
    """Means over all ranks' prompts or rollouts; collective, the same on every rank.

    ``distinct_top1``: distinct surest items over prompts. ``kl_p99``: over the
    rollouts that were learned from.
    """
    names = sorted(figures.sums)
    device = figures.top_item_B.device
    total = torch.tensor(
        [figures.sums[name] for name in names], dtype=torch.float64, device=device
    )
    top_item_B, kl_S = figures.top_item_B, figures.kl_S
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
        top_item_B, kl_S = _gathered(top_item_B), _gathered(kl_S)
    values = {
        name: (part / count if count else 0.0)
        for name, (part, count) in zip(names, total.tolist(), strict=True)
    }
    values["bound_violations"] = float(total[names.index("bound_violations"), 0])
    values["distinct_top1"] = len(torch.unique(top_item_B)) / max(len(top_item_B), 1)
    values["kl_mean"] = float(kl_S.mean()) if len(kl_S) else 0.0
    values["kl_p99"] = float(kl_S.float().quantile(0.99)) if len(kl_S) else 0.0
    return values


def health(figures: dict[str, float], min_distinct: float) -> str | None:
    """What is wrong, in words; None while the policy is well."""
    if not math.isfinite(figures["loss"]) or not math.isfinite(figures["kl_mean"]):
        return f"loss {figures['loss']}, KL {figures['kl_mean']}"
    if figures["distinct_top1"] < min_distinct:
        return (
            f"only {figures['distinct_top1']:.1%} of the prompts have a first item of "
            f"their own, the floor is {min_distinct:.1%}"
        )
    return None


def _gathered(values: Tensor) -> Tensor:
    world_size = dist.get_world_size()
    lengths = torch.zeros(world_size, dtype=torch.int64, device=values.device)
    lengths[dist.get_rank()] = len(values)
    dist.all_reduce(lengths)
    padded = values.new_zeros(int(lengths.max()))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    pairs = zip(parts, lengths.tolist(), strict=True)
    return torch.cat([part[:length] for part, length in pairs])
