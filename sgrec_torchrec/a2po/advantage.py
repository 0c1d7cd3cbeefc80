"""Rewards of groups of rollouts -> advantages: A2PO, and the fusions it is compared to.

Letters: B users (groups), G rollouts of a group. Pure functions; ranks do not
communicate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sgrec_torchrec.config import registry

EPS = 1e-8
SAME = 1e-6
"""Rewards are alike where their deviation is at most this share of the largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageStats:
    """Advantages, and what a run watches of them.

    All tensors are detached, float32 [B, G] or bool [B]; shares are over rollouts of
    live groups that the semantic term speaks of, 0 where there are none.
    """

    advantage_BG: Tensor
    business_BG: Tensor
    """A_biz."""
    semantic_BG: Tensor
    """A_sem, 0 where it is missing."""
    lambda_BG: Tensor
    is_live_B: Tensor
    """Business rewards differ in the group: it teaches."""
    is_judged_B: Tensor
    """Two or more rollouts are judged, and their rewards differ."""
    same_sign_share: float
    mean_lambda: float
    bound_violations: int
    """Advantages off sign(A) = sign(A_biz), |A_biz| <= |A| <= 2 |A_biz|: 0 for A2PO and
    GRPO, by construction."""

    @property
    def dead_share(self) -> float:
        """Share of groups that teach nothing."""
        return (
            1.0 - float(self.is_live_B.float().mean()) if len(self.is_live_B) else 0.0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """Rewards of groups of rollouts, checked and standardised once, by ``of``.

    float64 [B, G] unless it says otherwise.
    """

    business_BG: Tensor
    semantic_BG: Tensor
    """Anything where nobody judged."""
    judged_BG: Tensor
    """bool."""
    real_BG: Tensor
    """bool, False where a slot has no item: it takes part in nothing and gets 0."""
    eps: float
    """Added to deviations and to lambda's denominator."""
    a_biz_BG: Tensor
    """(r_biz - mean) / (std + eps); exactly 0 in a group that is not live."""
    a_sem_BG: Tensor
    """(r_sem - mean over judged) / (std + eps), 0 where missing."""
    is_live_B: Tensor
    """bool [B], as in ``AdvantageStats``."""
    is_judged_B: Tensor

    @staticmethod
    def of(
        r_biz_BG: Tensor,
        r_sem_BG: Tensor,
        judged_BG: Tensor,
        eps: float = EPS,
        real_BG: Tensor | None = None,
    ) -> "Rewards":
        """What a fusion starts from.

        Statistics are in float64, with the sample deviation; an advantage is exactly 0
        where the rewards are alike (std <= 1e-6 max |r|) or fewer than two.

        Args:
            r_biz_BG: float, finite.
            r_sem_BG: float, finite where judged; anything elsewhere.
            judged_BG: bool.
            eps: added to deviations and to lambda's denominator.
            real_BG: bool, False where a slot has no item. None: all are real.

        Raises:
            ValueError: naming the first group and rollout whose reward is not finite,
                or shapes that differ.
        """
        if not r_biz_BG.shape == r_sem_BG.shape == judged_BG.shape:
            raise ValueError(
                f"r_biz {tuple(r_biz_BG.shape)}, r_sem {tuple(r_sem_BG.shape)} and "
                f"judged {tuple(judged_BG.shape)} must have one shape [B, G]"
            )
        real_BG = torch.ones_like(judged_BG) if real_BG is None else real_BG
        judged_BG = judged_BG & real_BG
        _check_finite("r_biz", r_biz_BG, real_BG)
        _check_finite("r_sem", r_sem_BG, judged_BG)
        business_BG, semantic_BG = r_biz_BG.double(), r_sem_BG.double()
        a_biz_BG, is_live_B = _standardised(business_BG, real_BG, eps)
        a_sem_BG, is_judged_B = _standardised(semantic_BG, judged_BG, eps)
        return Rewards(
            business_BG=business_BG,
            semantic_BG=semantic_BG,
            judged_BG=judged_BG,
            real_BG=real_BG,
            eps=eps,
            a_biz_BG=a_biz_BG,
            a_sem_BG=a_sem_BG,
            is_live_B=is_live_B,
            is_judged_B=is_judged_B,
        )

    def lambda_BG(self) -> Tensor:
        """How far both advantages agree, in [0, 1): 0 where their signs differ.

        1[sign A_biz = sign A_sem] min(|A_biz|, |A_sem|) / (max(|A_biz|, |A_sem|) + eps)
        """
        size_biz, size_sem = self.a_biz_BG.abs(), self.a_sem_BG.abs()
        ratio = torch.minimum(size_biz, size_sem) / (
            torch.maximum(size_biz, size_sem) + self.eps
        )
        agrees = self.a_biz_BG.sign() == self.a_sem_BG.sign()
        return torch.where(agrees, ratio, torch.zeros_like(ratio))

    def known_or_mean_BG(self) -> Tensor:
        """r_sem; an unjudged rollout of a judged group gets the group's mean.

        So that want of a judgement is neither praise nor blame. 0 in other groups.
        """
        known_BG = self.judged_BG & self.is_judged_B[:, None]
        zero = torch.zeros_like(self.semantic_BG)
        sem_BG = torch.where(known_BG, self.semantic_BG, zero)
        count_B1 = known_BG.sum(1, keepdim=True).clamp(min=1)
        mean_B1 = sem_BG.sum(1, keepdim=True) / count_B1
        return torch.where(known_BG, sem_BG, mean_B1)

    def fused(self, advantage_BG: Tensor, lambda_BG: Tensor) -> AdvantageStats:
        """The record, with the figures that a run watches."""
        biz_BG, sem_BG = self.a_biz_BG, self.a_sem_BG
        spoken_BG = self.judged_BG & (self.is_live_B & self.is_judged_B)[:, None]
        same_BG = biz_BG.sign() == sem_BG.sign()
        slack = 1e-9
        size_biz, size = biz_BG.abs(), advantage_BG.abs()
        is_off = (advantage_BG.sign() != biz_BG.sign()) | (
            (size < size_biz * (1 - slack)) | (size > 2 * size_biz * (1 + slack))
        )
        return AdvantageStats(
            advantage_BG=advantage_BG.float(),
            business_BG=biz_BG.float(),
            semantic_BG=sem_BG.float(),
            lambda_BG=lambda_BG.float(),
            is_live_B=self.is_live_B,
            is_judged_B=self.is_judged_B,
            same_sign_share=_share(same_BG.double(), spoken_BG),
            mean_lambda=_share(lambda_BG, spoken_BG),
            bound_violations=int(is_off.sum()),
        )


Fusion = Callable[[Rewards], AdvantageStats]


def a2po_advantage(rewards: Rewards) -> AdvantageStats:
    """The business reward anchors; semantics are added where both agree.

        A = A_biz + lambda A_sem

    S-GRec, arXiv 2602.10606, asymmetric advantage. So sign(A) = sign(A_biz),
    |A_biz| <= |A| <= 2 |A_biz|, and A = A_biz in a group without judgements. Differs
    from the paper by what ``Rewards.of`` says.
    """
    lambda_BG = rewards.lambda_BG()
    advantage_BG = rewards.a_biz_BG + lambda_BG * rewards.a_sem_BG
    return rewards.fused(advantage_BG, lambda_BG)


def grpo_advantage(rewards: Rewards) -> AdvantageStats:
    """The business reward alone: A = A_biz (Shao et al. 2024, arXiv 2402.03300)."""
    return rewards.fused(rewards.a_biz_BG, torch.zeros_like(rewards.a_biz_BG))


def reward_sum_advantage(rewards: Rewards) -> AdvantageStats:
    """Rewards are added, then standardised: the paper's Reward-Sum ablation.

    A judged rollout earns r_biz + r_sem; of others see ``Rewards.known_or_mean_BG``.
    """
    total_BG = rewards.business_BG + rewards.known_or_mean_BG()
    summed_BG, _ = _standardised(total_BG, rewards.real_BG, rewards.eps)
    return rewards.fused(summed_BG, torch.ones_like(summed_BG))


def advantage_sum(rewards: Rewards) -> AdvantageStats:
    """Advantages are added whether they agree or not: the paper's Adv-Sum ablation."""
    summed_BG = rewards.a_biz_BG + rewards.a_sem_BG
    return rewards.fused(summed_BG, torch.ones_like(summed_BG))


FUSIONS: Mapping[str, Fusion] = registry.FUSIONS


def _standardised(
    reward_BG: Tensor, known_BG: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(r - mean) / (std + eps) over the known ones, 0 elsewhere; bool [B]: any at all?

    Sample deviation. Shifted by a known reward first, so that a constant reward gives
    exactly 0 whatever the constant.
    """
    count_B1 = known_BG.sum(1, keepdim=True)
    zero = torch.zeros_like(reward_BG)
    held = torch.where(known_BG, reward_BG, zero)
    largest_B1 = held.abs().amax(1, keepdim=True)
    first_B1 = held.gather(1, known_BG.to(torch.int8).argmax(1, keepdim=True))
    moved = torch.where(known_BG, reward_BG - first_B1, zero)
    mean_B1 = moved.sum(1, keepdim=True) / count_B1.clamp(min=1)
    gap = torch.where(known_BG, moved - mean_B1, zero)
    deviation_B1 = (
        gap.square().sum(1, keepdim=True) / (count_B1 - 1).clamp(min=1)
    ).sqrt()
    tells_B1 = (count_B1 >= 2) & (deviation_B1 > SAME * largest_B1)
    standard = torch.where(tells_B1, gap / (deviation_B1 + eps), zero)
    return standard, tells_B1.squeeze(1)


def _check_finite(name: str, reward_BG: Tensor, known_BG: Tensor) -> None:
    bad = (known_BG & ~reward_BG.isfinite()).nonzero()
    if len(bad):
        group, rollout = bad[0].tolist()
        value = float(reward_BG[group, rollout])
        raise ValueError(
            f"{name}[{group}, {rollout}] is {value}: rewards must be finite"
        )


def _share(values_BG: Tensor, of_BG: Tensor) -> float:
    return float(values_BG[of_BG].mean()) if bool(of_BG.any()) else 0.0
