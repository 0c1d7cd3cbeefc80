"""Draws from known distributions -> a group-relative policy loss (GRPO).

Both parts of the judge answer with levels whose whole distribution one forward yields,
so a group of draws costs nothing more. Letters: Q questions, S levels, G draws.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def group_policy_loss(
    logits_QS: Tensor,
    reference_QS: Tensor,
    reward: Callable[[Tensor], Tensor],
    *,
    num_draws: int,
    kl_weight: float,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """-mean(A log pi(level)) + beta KL(pi || reference), with A over each group.

    Shao et al. 2024 (arXiv 2402.03300), eq. 3, for one update a draw (ratio 1) and an
    exact KL in place of its estimate. Draws are made on the CPU, so that a seed gives
    the same ones everywhere.

    Args:
        logits_QS: float32, differentiable.
        reference_QS: float32, logits of the policy to stay near; no gradient.
        reward: drawn levels int64 [Q, G] in [0, S) -> float32 [Q, G] where a question
            is a group of its own, or [1, G] where a draw is one answer to all Q.
        num_draws: G.

    Returns:
        The loss, and reward, kl and live (the share of groups with std > 0).
    """
    logprob_QS = logits_QS.log_softmax(-1)
    with torch.no_grad():
        drawn_QG = torch.multinomial(
            logprob_QS.exp().cpu(), num_draws, replacement=True, generator=generator
        ).to(logits_QS.device)
        reward_QG = reward(drawn_QG)
        advantage_QG, is_live_Q = group_advantage(reward_QG)
    taken_QG = logprob_QS.gather(1, drawn_QG)
    if len(reward_QG) == 1:
        taken_QG = taken_QG.sum(0, keepdim=True)
    gap_QS = logprob_QS - reference_QS.log_softmax(-1)
    kl = (logprob_QS.exp() * gap_QS).sum(-1).mean()
    loss = kl_weight * kl - (advantage_QG * taken_QG).mean()
    figures = {
        "reward": float(reward_QG.mean()),
        "kl": float(kl.detach()),
        "live": float(is_live_Q.float().mean()),
    }
    return loss, figures


def group_advantage(reward_QG: Tensor) -> tuple[Tensor, Tensor]:
    """(r - mean) / std over each group [Q, G], 0 where all rewards are alike.

    Returns:
        The advantages in float32, and bool [Q]: is the group live?
    """
    wide = reward_QG.double()
    spread = wide.std(-1, keepdim=True)
    is_live = spread > 1e-6 * wide.abs().amax(-1, keepdim=True)
    standard = (wide - wide.mean(-1, keepdim=True)) / spread.where(
        is_live, torch.ones_like(spread)
    )
    advantage = standard.where(is_live, torch.zeros_like(standard))
    return advantage.float(), is_live.squeeze(-1)


def ordinal_reward(drawn_QG: Tensor, label_Q: Tensor, num_levels: int) -> Tensor:
    """1 for the exact level, plus 1 - |drawn - label| / (S - 1): float32 [Q, G]."""
    label_Q1 = label_Q.to(drawn_QG.device)[:, None]
    distance = (drawn_QG - label_Q1).abs().float()
    return (distance == 0).float() + 1.0 - distance / (num_levels - 1)


def chance_reward(label_NA: Tensor, num_levels: int) -> Tensor:
    """What each level earns by ``ordinal_reward`` whatever is asked: float32 [A, S].

    The mean over the labels int64 [N, A] in [0, S) of its aspect. The middle levels are
    never far from a label, so they earn most: left in, that would draw a judge who is
    unsure to the middle.
    """
    level_NS = torch.arange(num_levels).expand(len(label_NA), -1)
    by_aspect = [
        ordinal_reward(level_NS, label_N, num_levels).mean(0) for label_N in label_NA.T
    ]
    return torch.stack(by_aspect)
