"""Group-relative policy loss over known distributions, by hand and by invariants."""

import math

import pytest
import torch
from torch import Tensor

from sgrec_torchrec.judge.learn.group_reward import (
    chance_reward,
    group_advantage,
    group_policy_loss,
    ordinal_reward,
)

ONE_DRAW = pytest.mark.filterwarnings("ignore:std")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loss_of(logits_QS: Tensor, reward, **changes):
    options = {"num_draws": 4, "kl_weight": 0.0, "generator": seeded()} | changes
    reference_QS = options.pop("reference", torch.zeros_like(logits_QS))
    return group_policy_loss(logits_QS, reference_QS, reward, **options)


def test_advantage_by_hand() -> None:
    advantage, is_live = group_advantage(torch.tensor([[1.0, 2.0, 3.0], [5, 5, 5]]))
    # Mean 2; unbiased std sqrt((1 + 0 + 1) / 2) = 1.
    torch.testing.assert_close(advantage, torch.tensor([[-1.0, 0, 1], [0, 0, 0]]))
    assert is_live.tolist() == [True, False]


@ONE_DRAW
@pytest.mark.parametrize("constant", [0.0, 1.0, -3.7, 0.1, 1 / 3, 1e-30, 1e30])
@pytest.mark.parametrize("num_draws", [1, 2, 3, 7, 64])
def test_advantage_is_zero_when_all_rewards_are_alike(constant, num_draws) -> None:
    advantage, is_live = group_advantage(torch.full((2, num_draws), constant))
    assert advantage.tolist() == [[0.0] * num_draws] * 2
    assert not is_live.any()


@ONE_DRAW
def test_a_single_draw_teaches_nothing() -> None:
    advantage, is_live = group_advantage(torch.tensor([[3.0], [0.0]]))
    assert advantage.tolist() == [[0.0], [0.0]]
    assert not is_live.any()


def test_advantage_knows_neither_shift_nor_scale() -> None:
    reward = torch.rand(5, 8, generator=seeded())
    advantage, _ = group_advantage(reward)
    for other in (reward + 100, reward * 1e-4, reward * 50 - 3):
        torch.testing.assert_close(
            group_advantage(other)[0], advantage, rtol=1e-3, atol=1e-4
        )
    torch.testing.assert_close(advantage.mean(1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(advantage.std(1), torch.ones(5))


def test_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]], requires_grad=True)  # p = 1/4, 3/4
    drawn = []

    def reward(drawn_QG: Tensor) -> Tensor:
        drawn.append(drawn_QG)
        return drawn_QG.float()  # the higher level is worth 1

    loss, figures = loss_of(logits, reward, num_draws=8)
    loss.backward()
    (levels,) = drawn[0].tolist()
    ones = sum(levels)
    assert 0 < ones < 8
    mean = ones / 8
    std = math.sqrt(8 / 7 * mean * (1 - mean))
    advantage = [(level - mean) / std for level in levels]
    logprob = [math.log(1 / 4), math.log(3 / 4)]
    expected = -sum(a * logprob[n] for a, n in zip(advantage, levels, strict=True)) / 8
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # d log p(n) / d logit_1 = 1[n = 1] - p_1; the advantages sum to 0.
    slope = -sum(a * n for a, n in zip(advantage, levels, strict=True)) / 8
    torch.testing.assert_close(logits.grad, torch.tensor([[-slope, slope]]))
    assert figures == {
        "reward": pytest.approx(mean),
        "kl": pytest.approx((math.log(2 * 1 / 4) + 3 * math.log(2 * 3 / 4)) / 4),
        "live": 1.0,
    }


def test_one_answer_to_all_questions_shares_its_reward() -> None:
    logits = torch.tensor([[0.0, 0.5], [1.0, 0.0], [0.2, 0.2]], requires_grad=True)
    drawn = []

    def reward(drawn_QG: Tensor) -> Tensor:
        drawn.append(drawn_QG)
        return (drawn_QG[:1] > drawn_QG[1:2]).float()  # [1, G]

    loss, figures = loss_of(logits, reward, num_draws=16)
    loss.backward()
    rewards = (drawn[0][0] > drawn[0][1]).float()
    assert 0 < rewards.sum() < 16
    advantage = (rewards - rewards.mean()) / rewards.std()
    # The answer's log-probability is the sum over its questions.
    logprob_QG = logits.detach().log_softmax(-1).gather(1, drawn[0])
    expected = -(advantage * logprob_QG.sum(0)).mean()
    torch.testing.assert_close(loss.detach(), expected)
    assert figures["reward"] == pytest.approx(float(rewards.mean()))
    assert figures["live"] == 1.0
    assert (logits.grad.abs() > 0).all()


def test_rewards_that_are_all_alike_leave_only_the_kl() -> None:
    logits = torch.randn(3, 5, generator=seeded(), requires_grad=True)
    loss, figures = loss_of(logits, lambda drawn: torch.full(drawn.shape, 0.7))
    loss.backward()
    assert figures["live"] == 0.0
    assert loss.item() == 0.0
    assert not logits.grad.any()


def test_kl_by_hand_and_its_gradient_is_zero_at_the_reference() -> None:
    reference = torch.tensor([[0.0, math.log(3.0)]])
    alike = {"kl_weight": 2.0, "reference": reference}

    def reward(drawn: Tensor) -> Tensor:
        return torch.ones(drawn.shape)

    at = (reference + 1.0).requires_grad_()  # the same distribution
    loss, figures = loss_of(at, reward, **alike)
    loss.backward()
    assert figures["kl"] == pytest.approx(0, abs=1e-7)
    torch.testing.assert_close(at.grad, torch.zeros(1, 2), atol=1e-6, rtol=0)
    off = torch.zeros(1, 2, requires_grad=True)  # p = 1/2, 1/2
    loss, figures = loss_of(off, reward, **alike)
    loss.backward()
    # KL(policy || reference) = .5 ln(.5 / .25) + .5 ln(.5 / .75)
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert figures["kl"] == pytest.approx(kl, rel=1e-6)
    assert loss.item() == pytest.approx(2 * kl, rel=1e-6)
    assert off.grad[0, 0] > 0 > off.grad[0, 1]  # toward the reference


def test_same_seed_same_draws_other_seed_others() -> None:
    logits = torch.randn(4, 5, generator=seeded(9))
    drawn = []

    def reward(drawn_QG: Tensor) -> Tensor:
        drawn.append(drawn_QG)
        return drawn_QG.float()

    for seed in (1, 1, 2):
        loss_of(logits, reward, num_draws=32, generator=seeded(seed))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert (drawn[0] != drawn[2]).any()
    assert drawn[0].shape == (4, 32)


def test_levels_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.6, 0.3]]))
    drawn = []

    def reward(drawn_QG: Tensor) -> Tensor:
        drawn.append(drawn_QG)
        return drawn_QG.float()

    loss_of(logits, reward, num_draws=20_000)
    share = torch.bincount(drawn[0][0]) / 20_000
    torch.testing.assert_close(share, logits.exp()[0], atol=0.015, rtol=0)


def test_descent_finds_the_level_that_is_rewarded() -> None:
    logits = torch.zeros(2, 5, requires_grad=True)
    noise = seeded()
    optimizer = torch.optim.SGD([logits], lr=0.5)
    label = torch.tensor([4, 1])
    for _ in range(60):
        loss, _ = loss_of(
            logits,
            lambda drawn: ordinal_reward(drawn, label, 5),
            num_draws=16,
            generator=noise,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logits.argmax(1).tolist() == [4, 1]


def test_ordinal_reward_by_hand() -> None:
    drawn = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    reward = ordinal_reward(drawn, torch.tensor([0, 3]), 5)
    assert reward.dtype == torch.float32
    # 1 - |drawn - label| / 4, and 1 more for the exact level.
    torch.testing.assert_close(
        reward,
        torch.tensor([[2, 0.75, 0.5, 0.25, 0], [0.25, 0.5, 0.75, 2, 0.75]]),
    )


def test_chance_reward_by_hand() -> None:
    labels = torch.tensor([[0, 2], [4, 2]])
    # Of the first aspect half the labels are the lowest level, half the highest.
    torch.testing.assert_close(
        chance_reward(labels, 5),
        torch.tensor([[1, 0.5, 0.5, 0.5, 1], [0.5, 0.75, 2, 0.75, 0.5]]),
    )


def test_less_chance_no_level_is_worth_more_on_labels_at_large() -> None:
    labels = torch.randint(0, 5, (200, 1), generator=seeded())
    every_level = torch.arange(5).expand(200, -1)
    earned = ordinal_reward(every_level, labels[:, 0], 5) - chance_reward(labels, 5)
    torch.testing.assert_close(earned.mean(0), torch.zeros(5), atol=1e-6, rtol=0)
