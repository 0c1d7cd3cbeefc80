"""Log-probabilities and advantages -> the clipped policy loss.

    J = E (1/G) sum min(rho A, clip(rho, 1 - c, 1 + c) A) - beta KL(pi || pi_ref)

with rho = exp(sum over levels of log pi - log pi_old) per rollout (S-GRec, arXiv
2602.10606; GRPO, arXiv 2402.03300, eq. 3). Letters: S rollouts of all groups end to
end, L code levels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Beyond, exp would overflow float32 in a few steps; such a rollout is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTerms:
    """What the loss takes beside the policy's log-probabilities; no gradient."""

    logprob_old_SL: Tensor | None
    """Of the policy that rolled out; None: it is the one that learns, at ratio 1."""
    logprob_reference_SL: Tensor
    advantage_S: Tensor
    weight_S: Tensor
    """0 leaves a rollout out; else the group's weight (its money's worth)."""
    scale: float
    """World size / number of rollouts of all ranks, so that the mean over ranks of a
    rank's loss is the global mean."""
    clip: float
    """c."""
    kl_weight: float
    """beta."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFigures:
    """What a run watches of an update, detached: of the rollouts that weigh alone.

    float [S'] each, and shares of them, 0 where there are none.
    """

    ratio_S: Tensor
    kl_S: Tensor
    clip_share: float
    clamp_share: float


def policy_loss(logprob_SL: Tensor, terms: PolicyTerms) -> tuple[Tensor, PolicyFigures]:
    """-scale * sum of weight * (min(rho A, clip(rho) A) - beta KL), in nats.

    KL by the estimator r - 1 - ln r with r = pi_ref / pi (Schulman 2020), code by code:
    non-negative, and 0 with zero gradient at the reference. Rollouts that are not
    i.i.d. draws (a beam, sampling without replacement) bias both terms; the bias is
    accepted and stated.

    Args:
        logprob_SL: float32, differentiable: log pi of each code under the trie.
        terms: everything else, detached.
    """
    old_SL = terms.logprob_old_SL
    old_SL = logprob_SL.detach() if old_SL is None else old_SL
    log_ratio_S = (logprob_SL - old_SL).sum(1)
    gap_SL = terms.logprob_reference_SL - logprob_SL
    is_clamped_S = (log_ratio_S.detach().abs() > MAX_LOG_RATIO) | (
        gap_SL.detach() > MAX_LOG_RATIO
    ).any(1)
    ratio_S = log_ratio_S.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped_S = ratio_S.clamp(1 - terms.clip, 1 + terms.clip)
    advantage_S = terms.advantage_S
    surrogate_S = torch.minimum(ratio_S * advantage_S, clipped_S * advantage_S)
    # Bounded on the side that overflows; on the other it must go on pulling back.
    gap_SL = gap_SL.clamp(max=MAX_LOG_RATIO)
    kl_S = (gap_SL.exp() - 1 - gap_SL).sum(1)
    gain_S = surrogate_S - terms.kl_weight * kl_S
    loss = -terms.scale * (terms.weight_S * gain_S).sum()
    is_clipped_S = surrogate_S.detach() < (ratio_S * advantage_S).detach()
    weighs_S = terms.weight_S > 0
    figures = PolicyFigures(
        ratio_S=ratio_S.detach()[weighs_S],
        kl_S=kl_S.detach()[weighs_S],
        clip_share=_share(is_clipped_S[weighs_S]),
        clamp_share=_share(is_clamped_S[weighs_S]),
    )
    return loss, figures


def _share(is_S: Tensor) -> float:
    return float(is_S.float().mean()) if len(is_S) else 0.0
