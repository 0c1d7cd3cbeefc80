import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgrec_torchrec.a2po import advantage as fusions
from sgrec_torchrec.a2po.advantage import AdvantageStats, Fusion, Rewards

EPS = 1e-8


def of_tensors(fusion: Fusion) -> Callable[..., AdvantageStats]:
    """The fusion of what ``Rewards.of`` takes."""
    return lambda *rewards: fusion(Rewards.of(*rewards))


FUSIONS = {name: of_tensors(fusion) for name, fusion in fusions.FUSIONS.items()}
a2po_advantage = of_tensors(fusions.a2po_advantage)
grpo_advantage = of_tensors(fusions.grpo_advantage)
reward_sum_advantage = of_tensors(fusions.reward_sum_advantage)
advantage_sum = of_tensors(fusions.advantage_sum)
REWARD = st.floats(-100, 100, width=32)


@st.composite
def groups(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Business rewards, semantic rewards and who is judged: [B, G] each."""
    num_groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    count = num_groups * size

    def column(values: st.SearchStrategy) -> list:
        return draw(st.lists(values, min_size=count, max_size=count))

    shape = (num_groups, size)
    return (
        torch.tensor(column(REWARD)).reshape(shape),
        torch.tensor(column(REWARD)).reshape(shape),
        torch.tensor(column(st.booleans())).reshape(shape),
    )


def test_advantage_by_hand() -> None:
    # r_biz: mean 1/4, sample std sqrt((9/16 + 3/16) / 3) = 1/2 -> (3, -1, -1, -1) / 2
    r_biz = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    # r_sem of the first three: mean .5, std .5 -> (1, 0, -1)
    r_sem = torch.tensor([[1.0, 0.5, 0.0, 9.0]])
    judged = torch.tensor([[True, True, True, False]])
    stats = a2po_advantage(r_biz, r_sem, judged, EPS)
    torch.testing.assert_close(
        stats.business_BG, torch.tensor([[1.5, -0.5, -0.5, -0.5]])
    )
    torch.testing.assert_close(stats.semantic_BG, torch.tensor([[1.0, 0.0, -1.0, 0.0]]))
    # agree at 0: lambda = 1 / 1.5; at 2: lambda = .5 / 1
    torch.testing.assert_close(
        stats.lambda_BG, torch.tensor([[1 / 1.5, 0.0, 0.5, 0.0]])
    )
    torch.testing.assert_close(
        stats.advantage_BG, torch.tensor([[1.5 + 1 / 1.5, -0.5, -0.5 - 0.5, -0.5]])
    )
    # of the three judged ones two agree; the middle one has sign 0 against -1
    assert stats.same_sign_share == pytest.approx(2 / 3)
    assert stats.mean_lambda == pytest.approx((1 / 1.5 + 0.5) / 3)
    assert stats.dead_share == 0.0


@pytest.mark.long
@given(groups())
@settings(max_examples=300, deadline=None)
def test_sign_and_size_stay_with_the_business_reward(
    rewards: tuple[Tensor, Tensor, Tensor],
) -> None:
    stats = a2po_advantage(*rewards, EPS)
    biz, advantage = stats.business_BG, stats.advantage_BG
    assert (advantage.sign() == biz.sign()).all()
    slack = 1e-5
    assert (advantage.abs() >= biz.abs() * (1 - slack)).all()
    assert (advantage.abs() <= 2 * biz.abs() * (1 + slack)).all()
    assert stats.bound_violations == 0
    unjudged = ~rewards[2]
    assert (advantage == biz)[unjudged].all()


@given(groups(), st.floats(-50, 50, width=32))
@settings(max_examples=150, deadline=None)
def test_a_shift_of_either_reward_changes_nothing(
    rewards: tuple[Tensor, Tensor, Tensor], shift: float
) -> None:
    r_biz, r_sem, judged = (
        part.double() if part.is_floating_point() else part for part in rewards
    )
    # to multiples of 1/8, so that adding the shift is exact
    r_biz, r_sem, shift = (
        r_biz.mul(8).round() / 8,
        r_sem.mul(8).round() / 8,
        round(shift),
    )
    plain = a2po_advantage(r_biz, r_sem, judged, EPS)
    moved = a2po_advantage(r_biz + shift, r_sem + shift, judged, EPS)
    torch.testing.assert_close(
        moved.advantage_BG, plain.advantage_BG, rtol=1e-5, atol=1e-6
    )


@given(groups(), st.floats(0.1, 50))
@settings(max_examples=150, deadline=None)
def test_a_scale_changes_nothing(
    rewards: tuple[Tensor, Tensor, Tensor], scale: float
) -> None:
    r_biz, r_sem, judged = rewards
    r_biz, r_sem = r_biz.double().mul(8).round() / 8, r_sem.double().mul(8).round() / 8
    plain = a2po_advantage(r_biz, r_sem, judged, EPS)
    scaled = a2po_advantage(r_biz * scale, r_sem * scale, judged, EPS)
    torch.testing.assert_close(
        scaled.advantage_BG, plain.advantage_BG, rtol=1e-5, atol=1e-5
    )


@given(groups(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_in_a_group_does_not_matter(
    rewards: tuple[Tensor, Tensor, Tensor], random: object
) -> None:
    size = rewards[0].shape[1]
    order = list(range(size))
    random.shuffle(order)  # type: ignore[attr-defined]
    plain = a2po_advantage(*rewards, EPS).advantage_BG[:, order]
    shuffled = a2po_advantage(*(part[:, order] for part in rewards), EPS).advantage_BG
    torch.testing.assert_close(shuffled, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, -7.7, 1e4])
def test_a_constant_business_reward_teaches_nothing(
    dtype: torch.dtype, constant: float
) -> None:
    r_biz = torch.full((2, 5), constant, dtype=dtype)
    r_sem = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    for fusion in (a2po_advantage, grpo_advantage):
        stats = fusion(r_biz, r_sem, torch.ones(2, 5, dtype=torch.bool), EPS)
        assert (stats.advantage_BG == 0).all()
        assert stats.dead_share == 1.0


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 0.7])
def test_a_constant_semantic_reward_leaves_the_business_one(constant: float) -> None:
    r_biz = torch.tensor([[1.0, 0.0, -0.5, -0.5]])
    judged = torch.ones(1, 4, dtype=torch.bool)
    stats = a2po_advantage(r_biz, torch.full((1, 4), constant), judged, EPS)
    assert torch.equal(stats.advantage_BG, stats.business_BG)
    assert not stats.is_judged_B.any()


def test_a_single_judgement_counts_as_none() -> None:
    r_biz = torch.tensor([[1.0, 0.0, -1.0]])
    judged = torch.tensor([[True, False, False]])
    stats = a2po_advantage(r_biz, torch.tensor([[0.9, 0.0, 0.0]]), judged, EPS)
    assert torch.equal(stats.advantage_BG, stats.business_BG)


def test_a_group_of_one_gets_nothing() -> None:
    one = torch.tensor([[5.0]])
    stats = a2po_advantage(one, one, torch.tensor([[True]]), EPS)
    assert stats.advantage_BG.item() == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("fusion", FUSIONS.values(), ids=FUSIONS.keys())
def test_a_reward_that_is_not_finite_is_refused_by_place(fusion, value: float) -> None:
    good, judged = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    bad = good.clone()
    bad[1, 2] = value
    with pytest.raises(ValueError, match=r"r_biz\[1, 2\] is"):
        fusion(bad, good, judged, EPS)
    with pytest.raises(ValueError, match=r"r_sem\[1, 2\] is"):
        fusion(good, bad, judged, EPS)
    # where nobody judged, nobody looks
    assert fusion(good, bad, ~judged, EPS).bound_violations == 0


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        a2po_advantage(torch.zeros(2, 3), torch.zeros(2, 2), torch.zeros(2, 3), EPS)


def test_sums_may_turn_the_sign_and_a2po_may_not() -> None:
    r_biz = torch.tensor([[1.0, 0.9, 0.0]])
    r_sem = torch.tensor([[0.0, 0.0, 1.0]])
    judged = torch.ones(1, 3, dtype=torch.bool)
    assert advantage_sum(r_biz, r_sem, judged).bound_violations > 0
    assert reward_sum_advantage(r_biz, 5 * r_sem, judged).bound_violations > 0
    assert a2po_advantage(r_biz, r_sem, judged).bound_violations == 0


def test_reward_sum_is_blind_to_what_is_not_judged() -> None:
    # judged 0 and 1 have mean .5: the third earns that
    r_biz = torch.tensor([[1.0, 0.0, 0.0]])
    judged = torch.tensor([[True, True, False]])
    stats = reward_sum_advantage(r_biz, torch.tensor([[1.0, 0.0, 99.0]]), judged)
    total = torch.tensor([2.0, 0.0, 0.5], dtype=torch.float64)
    expected = (total - total.mean()) / (total.std() + EPS)
    torch.testing.assert_close(stats.advantage_BG[0], expected.float())


@pytest.mark.parametrize("judged", [[False] * 3, [True, False, False], [True] * 3])
def test_without_judgements_that_differ_every_fusion_is_the_business_reward(
    judged: list[bool],
) -> None:
    r_biz, r_sem = torch.tensor([[1.0, 0.0, -1.0]]), torch.full((1, 3), 0.3)
    for fusion in FUSIONS.values():
        stats = fusion(r_biz, r_sem, torch.tensor([judged]))
        torch.testing.assert_close(stats.advantage_BG, r_biz)


@pytest.mark.parametrize("fusion", FUSIONS.values(), ids=FUSIONS.keys())
def test_a_slot_without_an_item_takes_part_in_nothing(fusion) -> None:
    r_biz = torch.tensor([[2.0, 1.0, 0.0, 77.0], [3.0, 3.0, 3.0, 0.0]])
    r_sem = torch.tensor([[0.0, 0.5, 1.0, math.nan], [0.1, 0.9, 0.5, math.nan]])
    real = torch.tensor([[True, True, True, False]] * 2)
    judged = torch.ones(2, 4, dtype=torch.bool)
    stats = fusion(r_biz, r_sem, judged, EPS, real)
    alone = fusion(r_biz[:, :3], r_sem[:, :3], judged[:, :3], EPS)
    assert torch.equal(stats.advantage_BG[:, :3], alone.advantage_BG)
    assert (stats.advantage_BG[:, 3] == 0).all()
    # a constant reward stays dead, whatever the empty slot holds
    assert stats.is_live_B.tolist() == [True, False]


def test_two_rollouts_and_a_large_eps_by_hand() -> None:
    # r_biz: mean 1/2, sample std 1/sqrt 2; A_biz = +-.5 / (1/sqrt 2 + 1)
    # r_sem: mean 1, sample std sqrt 2; A_sem = +-1 / (sqrt 2 + 1)
    biz, sem = 0.5 / (math.sqrt(0.5) + 1), 1 / (math.sqrt(2.0) + 1)
    judged = torch.ones(1, 2, dtype=torch.bool)
    rewards = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]), judged
    stats = a2po_advantage(*rewards, 1.0)
    # they agree: lambda = smaller / (larger + 1)
    lambda_ = biz / (sem + 1)
    size = biz + lambda_ * sem
    torch.testing.assert_close(stats.lambda_BG, torch.full((1, 2), lambda_))
    torch.testing.assert_close(stats.advantage_BG, torch.tensor([[size, -size]]))


@pytest.mark.parametrize(
    ("rewards", "is_live"),
    # The sample deviation is gap / sqrt 2: it counts from a millionth of the largest.
    [
        ([1000.0, 1000.001], False),
        ([1000.0, 1000.0014], False),
        ([1000.0, 1000.0015], True),
        ([-1000.0, -1000.0015], True),
        ([1e-5, 3e-5], True),
    ],
)
def test_rewards_within_a_millionth_of_the_largest_are_alike(
    rewards: list[float], is_live: bool
) -> None:
    r_biz = torch.tensor([rewards], dtype=torch.float64)
    nobody = torch.zeros(1, 2, dtype=torch.bool)
    stats = grpo_advantage(r_biz, r_biz, nobody)
    assert stats.is_live_B.tolist() == [is_live]
    assert (stats.advantage_BG != 0).all() == is_live


def test_advantages_off_the_bounds_are_counted() -> None:
    # A_biz = (3, -1, -1, -1) / 2. Rewards of two and two have mean 1/2 and sample std
    # sqrt(1/3): A_sem = +-sqrt(3) / 2 = +-.866.
    r_biz = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3)
    r_sem = torch.tensor(
        [
            # sums 2.37, -1.37, -1.37, .37: in bounds, beyond 2 |-.5| twice, other sign
            [1.0, 0.0, 0.0, 1.0],
            # sums .63, -1.37, .37, .37: short of 1.5, beyond, other sign twice
            [0.0, 0.0, 1.0, 1.0],
            # A_sem = A_biz: exactly twice
            [1.0, 0.0, 0.0, 0.0],
        ]
    )
    judged = torch.ones(3, 4, dtype=torch.bool)
    counts = [
        advantage_sum(*(part[row : row + 1] for part in (r_biz, r_sem, judged)))
        for row in range(3)
    ]
    assert [stats.bound_violations for stats in counts] == [3, 4, 0]


def test_shares_are_of_judged_rollouts_in_groups_that_teach_and_differ() -> None:
    r_biz = torch.tensor(
        [
            [1.0, 0.0, -1.0],
            [5.0, 5.0, 5.0],  # dead
            [1.0, 0.0, -1.0],  # judged alike
            [1.0, 0.0, -1.0],  # judged once
        ]
    )
    r_sem = torch.tensor(
        [[1.0, 0.0, 9.0], [1.0, 0.0, -1.0], [4.0, 4.0, 4.0], [1.0, 0.0, -1.0]]
    )
    judged = torch.tensor(
        [[True, True, False], [True] * 3, [True] * 3, [True, False, False]]
    )
    stats = a2po_advantage(r_biz, r_sem, judged)
    assert stats.is_live_B.tolist() == [True, False, True, True]
    assert stats.is_judged_B.tolist() == [True, True, False, False]
    assert stats.dead_share == 0.25
    # Of the first group's two judged ones: A_biz 1 and 0, A_sem +-1/sqrt 2.
    assert stats.same_sign_share == 0.5
    assert stats.mean_lambda == pytest.approx(math.sqrt(0.5) / 2)


def test_no_groups_and_nobody_judged_give_shares_of_zero() -> None:
    none, nobody = torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)
    stats = a2po_advantage(none, none, nobody)
    assert stats.advantage_BG.shape == (0, 3)
    assert (stats.dead_share, stats.same_sign_share, stats.mean_lambda) == (0, 0, 0)
    r_biz = torch.tensor([[1.0, 0.0]])
    stats = advantage_sum(r_biz, r_biz, torch.zeros(1, 2, dtype=torch.bool))
    assert (stats.dead_share, stats.same_sign_share, stats.mean_lambda) == (0, 0, 0)


def test_of_many_rewards_that_are_not_finite_the_first_is_named() -> None:
    bad = torch.zeros(3, 3)
    bad[1, 2] = bad[2, 0] = bad[2, 1] = math.inf
    with pytest.raises(ValueError, match=r"r_biz\[1, 2\] is inf"):
        a2po_advantage(bad, torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.bool))
