"""The policy loss by hand: ratio, clipping, KL, weights, and what is counted."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sgrec_torchrec.a2po.loss import MAX_LOG_RATIO, PolicyTerms, policy_loss

LEVELS = 2


def terms_of(
    old_SL: Tensor,
    advantages: list[float],
    *,
    reference_SL: Tensor | None = None,
    weights: list[float] | None = None,
    scale: float = 1.0,
    kl_weight: float = 0.0,
) -> PolicyTerms:
    return PolicyTerms(
        logprob_old_SL=old_SL.detach(),
        logprob_reference_SL=(
            old_SL if reference_SL is None else reference_SL
        ).detach(),
        advantage_S=torch.tensor(advantages),
        weight_S=torch.tensor(weights or [1.0] * len(advantages)),
        scale=scale,
        clip=0.2,
        kl_weight=kl_weight,
    )


def spread(log_ratios: list[float]) -> tuple[Tensor, Tensor]:
    """Old and new log-probabilities whose sums over two levels differ by so much."""
    old_SL = torch.tensor([[-1.0, -2.0]] * len(log_ratios))
    gap_S = torch.tensor(log_ratios)
    # uneven over the levels: only the sum may count
    new_SL = old_SL + torch.stack((0.25 * gap_S, 0.75 * gap_S), dim=1)
    return old_SL, new_SL.requires_grad_()


def test_ratio_one_gives_the_weighted_sum_of_advantages() -> None:
    old_SL, new_SL = spread([0.0, 0.0, 0.0])
    terms = terms_of(old_SL, [1.5, -0.5, 2.0], weights=[1.0, 2.0, 0.5], scale=0.25)
    loss, figures = policy_loss(new_SL, terms)
    # -(1.5 - 0.5 * 2 + 2 * 0.5) / 4
    assert loss.item() == pytest.approx(-0.375)
    assert figures.ratio_S.tolist() == [1.0] * 3
    assert (figures.clip_share, figures.clamp_share) == (0.0, 0.0)


def test_without_an_old_policy_the_learning_one_rolled_out() -> None:
    old_SL, new_SL = spread([0.4, -0.7, 0.0])
    reference_SL = old_SL - 0.1
    terms = terms_of(new_SL, [1.5, -0.5, 2.0], reference_SL=reference_SL, kl_weight=0.3)
    losses, gradients = [], []
    for one in (terms, replace(terms, logprob_old_SL=None)):
        loss, figures = policy_loss(new_SL, one)
        losses.append(loss.detach())
        gradients += torch.autograd.grad(loss, new_SL)
        assert figures.ratio_S.tolist() == [1.0] * 3
    assert torch.equal(*losses)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "is_clipped"),
    # min(rho A, clip(rho, .8, 1.2) A): what already moved far enough gets no more,
    # what moved the wrong way is pulled back in full.
    [
        (1.5, 2.0, 1.2 * 2, True),
        (1.5, -2.0, 1.5 * -2, False),
        (0.5, 2.0, 0.5 * 2, False),
        (0.5, -2.0, 0.8 * -2, True),
        (1.1, 2.0, 1.1 * 2, False),
        (0.9, -2.0, 0.9 * -2, False),
    ],
)
def test_ratio_is_clipped_on_the_side_that_the_advantage_asks_for(
    ratio: float, advantage: float, gain: float, is_clipped: bool
) -> None:
    old_SL, new_SL = spread([math.log(ratio)])
    loss, figures = policy_loss(new_SL, terms_of(old_SL, [advantage]))
    loss.backward()
    assert loss.item() == pytest.approx(-gain, rel=1e-5)
    assert figures.clip_share == float(is_clipped)
    # d(rho A) / d log pi = rho A, for each level alike
    expected = 0.0 if is_clipped else -ratio * advantage
    torch.testing.assert_close(new_SL.grad, torch.full((1, LEVELS), expected))


def test_gradient_at_ratio_one_is_that_of_minus_advantage_times_log_pi() -> None:
    torch.manual_seed(0)
    logits_SLK = torch.randn(5, LEVELS, 4, requires_grad=True)
    codes_SL1 = torch.randint(4, (5, LEVELS, 1))
    advantage_S = torch.randn(5)

    def logprob_SL() -> Tensor:
        return logits_SLK.log_softmax(-1).gather(-1, codes_SL1).squeeze(-1)

    terms = terms_of(logprob_SL(), advantage_S.tolist(), scale=0.2, kl_weight=0.3)
    (got,) = torch.autograd.grad(policy_loss(logprob_SL(), terms)[0], logits_SLK)
    plain = -(advantage_S * logprob_SL().sum(1)).mean()
    (expected,) = torch.autograd.grad(plain, logits_SLK)
    torch.testing.assert_close(got, expected)


def test_kl_by_hand() -> None:
    old_SL, new_SL = spread([0.0])
    reference_SL = old_SL + torch.tensor([[math.log(2.0), math.log(0.5)]])
    terms = terms_of(old_SL, [0.0], reference_SL=reference_SL, kl_weight=0.1)
    loss, figures = policy_loss(new_SL, terms)
    loss.backward()
    # r - 1 - ln r, code by code: 2 - 1 - ln 2, and 1/2 - 1 + ln 2; the sum is 1/2
    assert figures.kl_S.tolist() == [pytest.approx(0.5, rel=1e-5)]
    assert loss.item() == pytest.approx(0.1 * 0.5, rel=1e-5)
    # d(r - 1 - ln r) / d log pi = 1 - r: pi rises where the reference is higher
    torch.testing.assert_close(new_SL.grad, 0.1 * torch.tensor([[1 - 2.0, 1 - 0.5]]))


def test_kl_is_zero_with_zero_gradient_at_the_reference_and_positive_elsewhere() -> (
    None
):
    old_SL, new_SL = spread([0.0, 0.0])
    loss, figures = policy_loss(new_SL, terms_of(old_SL, [0.0, 0.0], kl_weight=1.0))
    loss.backward()
    assert figures.kl_S.tolist() == [0.0, 0.0]
    assert new_SL.grad.abs().max() == 0
    torch.manual_seed(0)
    other_SL = old_SL + torch.randn(2, LEVELS)
    moved = terms_of(old_SL, [0.0, 0.0], reference_SL=other_SL, kl_weight=1.0)
    assert (policy_loss(new_SL, moved)[1].kl_S > 0).all()


def test_weight_zero_leaves_a_rollout_out_of_loss_gradient_and_figures() -> None:
    # The second stands where there is no item: its numbers mean nothing.
    old_SL, new_SL = spread([0.1, -60.0])
    wild_SL = torch.stack((old_SL[0] + 0.2, torch.tensor([30.0, -30.0])))
    both = terms_of(
        old_SL, [1.0, 9.0], reference_SL=wild_SL, weights=[1.0, 0.0], kl_weight=0.5
    )
    one = terms_of(old_SL[:1], [1.0], reference_SL=wild_SL[:1], kl_weight=0.5)
    loss, figures = policy_loss(new_SL, both)
    loss.backward()
    alone, alone_figures = policy_loss(new_SL[:1].detach(), one)
    torch.testing.assert_close(loss.detach(), alone)
    assert new_SL.grad[1].tolist() == [0.0, 0.0]
    assert new_SL.grad[0].abs().min() > 0
    torch.testing.assert_close(figures.kl_S, alone_figures.kl_S)
    torch.testing.assert_close(figures.ratio_S, alone_figures.ratio_S)
    assert (figures.clip_share, figures.clamp_share) == (0.0, 0.0)


def test_shares_are_of_the_rollouts_that_weigh() -> None:
    logs = [math.log(1.5), 0.0, 0.0, MAX_LOG_RATIO + 1]
    old_SL, new_SL = spread(logs)
    weights = [1.0, 2.0, 0.0, 1.0]
    _, figures = policy_loss(new_SL, terms_of(old_SL, [1.0] * 4, weights=weights))
    assert figures.clip_share == pytest.approx(2 / 3)
    assert figures.clamp_share == pytest.approx(1 / 3)
    nothing = terms_of(old_SL, [1.0] * 4, weights=[0.0] * 4)
    loss, figures = policy_loss(new_SL, nothing)
    assert (loss.item(), figures.clip_share, figures.clamp_share) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("log_ratio", [-1000.0, -30.0, 30.0, 1000.0])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_wild_ratios_keep_loss_and_gradient_finite(
    log_ratio: float, advantage: float
) -> None:
    old_SL, new_SL = spread([log_ratio])
    terms = terms_of(old_SL, [advantage], kl_weight=0.1)
    loss, figures = policy_loss(new_SL, terms)
    loss.backward()
    assert math.isfinite(loss.item())
    assert new_SL.grad.isfinite().all()
    assert figures.clamp_share == 1.0
    assert figures.ratio_S.item() == pytest.approx(
        math.exp(math.copysign(MAX_LOG_RATIO, log_ratio))
    )


@pytest.fixture
def random_terms() -> Callable[[slice], tuple[Tensor, PolicyTerms]]:
    """random_terms(rows) -> log-probabilities and terms of some of 8 rollouts."""
    torch.manual_seed(1)
    new_SL, old_SL, reference_SL = -torch.rand(3, 8, LEVELS) * 2
    advantages, weights = torch.randn(8), torch.rand(8)

    def make(rows: slice) -> tuple[Tensor, PolicyTerms]:
        terms = terms_of(
            old_SL[rows],
            advantages[rows].tolist(),
            reference_SL=reference_SL[rows],
            weights=weights[rows].tolist(),
            scale=1 / 8,
            kl_weight=0.2,
        )
        return new_SL[rows].clone().requires_grad_(), terms

    return make


def test_two_parts_add_up_to_the_whole(random_terms) -> None:
    # The scale is of all rollouts; two ranks double it, since DDP takes their mean.
    rows = [slice(0, 8), slice(0, 3), slice(3, 8)]
    losses, gradients = [], []
    for part in rows:
        logprob_SL, terms = random_terms(part)
        loss, _ = policy_loss(logprob_SL, terms)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(logprob_SL.grad)
    torch.testing.assert_close(losses[1] + losses[2], losses[0])
    torch.testing.assert_close(torch.cat(gradients[1:]), gradients[0])


def test_figures_and_terms_carry_no_gradient(random_terms) -> None:
    logprob_SL, terms = random_terms(slice(0, 8))
    _, figures = policy_loss(logprob_SL, terms)
    assert not figures.kl_S.requires_grad
    assert not figures.ratio_S.requires_grad


def test_a_ratio_beyond_e_to_the_20_is_cut_and_counted() -> None:
    # Sums of exact numbers: log ratios of 20 and 21. e^20 = 485,165,195.
    old_SL, new_SL = spread([20.0, 21.0])
    _, figures = policy_loss(new_SL, terms_of(old_SL, [1.0, 1.0]))
    assert figures.ratio_S.tolist() == pytest.approx([485165195.4] * 2, rel=1e-6)
    assert figures.clamp_share == 0.5


def test_a_reference_far_above_in_one_code_is_cut_and_counted() -> None:
    # Gaps to the reference of 20 and 21 in one code; the policy itself has not moved.
    old_SL, new_SL = spread([0.0, 0.0, 0.0])
    gap_SL = torch.tensor([[20.0, 0.0], [0.0, 21.0], [0.0, 0.0]])
    terms = terms_of(old_SL, [1.0] * 3, reference_SL=old_SL + gap_SL)
    _, figures = policy_loss(new_SL, terms)
    # r - 1 - ln r at e^20: 485,165,195 - 1 - 20
    expected = [pytest.approx(485165174.4, rel=1e-6)] * 2
    assert figures.kl_S.tolist() == [*expected, 0.0]
    assert figures.clamp_share == pytest.approx(1 / 3)
