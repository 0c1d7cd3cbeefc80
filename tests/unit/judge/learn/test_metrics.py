"""Metrics by hand, and against torchmetrics where it has the same one."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import (
    MulticlassCalibrationError,
    MulticlassCohenKappa,
    MulticlassConfusionMatrix,
)

from sgrec_torchrec.judge.ask.aspects import ASPECTS
from sgrec_torchrec.judge.ask.cases import Case
from sgrec_torchrec.judge.learn.labels import LabelledCase, Preference
from sgrec_torchrec.judge.learn.metrics import (
    Judged,
    auc_interval,
    baseline_aucs,
    calibration_error,
    confusion,
    is_trade_off,
    measure,
    pair_auc,
    quadratic_kappa,
    trade_off_share,
)

TWO = ASPECTS[:2]


def judged_of(
    levels: list[list[int]],
    said: list[list[int]],
    pairs: list[tuple[int, int]],
    *,
    user: int = 0,
    weights: tuple[float, ...] = (0.5, 0.5),
    sources: tuple[str, ...] | None = None,
) -> Judged:
    """A case whose judge is certain of the levels ``said`` (1 to 5)."""
    count = len(levels)
    case = LabelledCase(
        case=Case(user=user, as_of=1, request_timestamp=0, items=tuple(range(count))),
        sources=sources or ("next", *["easy_negative"] * (count - 1)),
        levels_CA=np.array(levels, dtype=np.int8),
        evidence=tuple(("",) * len(levels[0]) for _ in levels),
        preferences=tuple(Preference(*pair) for pair in pairs),
        is_held_out=True,
    )
    return Judged(
        case=case,
        probability_CAS=np.eye(5, dtype=np.float32)[np.array(said) - 1],
        weight_A=np.array(weights, dtype=np.float32),
    )


def reward_of(one: Judged) -> np.ndarray:
    return one.reward_C


def random_answers(count: int) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(4)
    probability = noise.dirichlet([0.4] * 5, count).astype(np.float32)
    label = noise.integers(0, 5, count)
    label[::2] = probability.argmax(1)[::2]
    return probability, label


def test_reward_is_the_weighted_sum_of_mean_levels() -> None:
    one = judged_of([[1, 1]], [[5, 2]], [], weights=(0.75, 0.25))
    np.testing.assert_allclose(one.score_CA, [[1, 0.25]])
    # .75 x 1 + .25 x .25
    np.testing.assert_allclose(one.reward_C, [0.8125])


def test_pair_auc_by_hand_with_ties_and_sources() -> None:
    # Rewards of the first: .5, .25, .5, 1; of the second: 0, .5.
    first = judged_of(
        [[1, 1]] * 4,
        [[3, 3], [2, 2], [3, 3], [5, 5]],
        [(0, 1), (0, 2), (0, 3)],
        sources=("next", "easy_negative", "hard_negative", "hard_negative"),
    )
    second = judged_of([[1, 1]] * 2, [[1, 1], [3, 3]], [(0, 1)])
    assert pair_auc([first, second], reward_of) == {
        "all": pytest.approx((1 + 0.5 + 0 + 0) / 4),
        "easy_negative": pytest.approx((1 + 0) / 2),
        "hard_negative": pytest.approx((0.5 + 0) / 2),
    }
    assert pair_auc([judged_of([[1, 1]], [[1, 1]], [])], reward_of) == {}


def test_interval_draws_users_whole() -> None:
    # Of one user any number of pairs is one opinion: the interval has no width.
    alone = [judged_of([[1, 1]] * 2, [[2, 2], [1, 1]], [(0, 1)]) for _ in range(9)]
    assert auc_interval(alone, reward_of) == (1.0, 1.0)
    # Ten users, half of them all right, half all wrong: mean .5, std .5 / sqrt(10).
    users = [
        judged_of([[1, 1]] * 2, [[2, 2], [1, 1]], [(n % 2, 1 - n % 2)], user=n)
        for n in range(10)
    ]
    low, high = auc_interval(users, reward_of)
    assert low == pytest.approx(0.5 - 1.96 * 0.158, abs=0.06)
    assert high == pytest.approx(0.5 + 1.96 * 0.158, abs=0.06)
    assert auc_interval(users, reward_of) == (low, high)


def test_lead_is_paired_by_user() -> None:
    # The judge wins where the rival does, and one user more: the difference is at
    # least 0 in every draw, although both swing widely.
    users = [
        judged_of([[1, 1]] * 2, [[2, 2], [1, 1]], [(int(n > 4), int(n <= 4))], user=n)
        for n in range(10)
    ]

    def rival(one: Judged) -> np.ndarray:
        right = one.reward_C if one.case.case.user != 0 else -one.reward_C
        return right

    low, high = auc_interval(users, reward_of, other=rival)
    assert low == 0.0
    assert 0.1 < high <= 0.4
    found = baseline_aucs(users, {"rival": rival})["rival"]
    assert found["pair_auc"]["all"] == pytest.approx(0.4)
    assert found["lead_interval"] == (low, high)


@pytest.mark.parametrize(
    ("better", "worse", "is_open"),
    [
        ((0.5, 0.5), (0.2, 0.8), True),
        ((0.5, 0.5), (0.4, 0.4), False),
        ((0.4, 0.4), (0.5, 0.5), False),
        ((0.5, 0.5), (0.5, 0.4), False),
        ((0.5, 0.5), (0.5, 0.5), False),
    ],
)
def test_trade_off_needs_a_win_on_both_sides(better, worse, is_open) -> None:
    score_CA = np.array([better, worse], dtype=np.float32)
    assert is_trade_off(score_CA, 0, 1) == is_open
    assert is_trade_off(score_CA, 1, 0) == is_open


def test_trade_off_share_by_hand() -> None:
    # Of four pairs 0-1 (5,1 against 1,5) and 0-3 (5,1 against 4,2) are open.
    one = judged_of(
        [[1, 1]] * 4,
        [[5, 1], [1, 5], [4, 1], [4, 2]],
        [(0, 1), (0, 2), (3, 2), (3, 0)],
    )
    assert trade_off_share([one]) == pytest.approx(2 / 4)
    assert trade_off_share([]) == 0.0


def test_confusion_and_kappa_by_hand() -> None:
    label, said = np.array([0, 0, 4, 4]), np.array([0, 4, 4, 4])
    table = confusion(said, label)
    assert table[0].tolist() == [1, 0, 0, 0, 1]  # rows are labels
    assert table[4].tolist() == [0, 0, 0, 0, 2]
    # Disagreement 16 x 1 / 4 = 4; by chance 16 x (.5 x .75 + .5 x .25) = 8.
    assert quadratic_kappa(said, label) == pytest.approx(1 - 4 / 8)
    assert quadratic_kappa(label, label) == 1.0
    assert quadratic_kappa(4 - label, label) == pytest.approx(-1)
    constant = np.full(4, 2)
    assert quadratic_kappa(constant, constant) is None
    assert quadratic_kappa(constant, label) == pytest.approx(0)


def test_confusion_kappa_and_calibration_equal_torchmetrics() -> None:
    probability, label = random_answers(500)
    said = probability.argmax(1)
    ours_and_theirs = [
        (confusion(said, label), MulticlassConfusionMatrix(5)),
        (quadratic_kappa(said, label), MulticlassCohenKappa(5, weights="quadratic")),
    ]
    for ours, theirs in ours_and_theirs:
        expected = theirs(torch.from_numpy(said), torch.from_numpy(label))
        np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-5)
    oracle = MulticlassCalibrationError(5, n_bins=10, norm="l1")
    expected = oracle(torch.from_numpy(probability), torch.from_numpy(label))
    ours = calibration_error(probability, label)
    assert ours == pytest.approx(float(expected), abs=1e-6)
    assert ours > 0.05


def test_calibration_by_hand() -> None:
    # Three in the bin [.6, .7), one of them right; one in [.9, 1], right.
    rows = [[0.65, 0.35, 0, 0, 0]] * 3 + [[0, 1.0, 0, 0, 0]]
    probability = np.array(rows, dtype=np.float32)
    error = calibration_error(probability, np.array([0, 1, 2, 1]))
    # 3/4 x |1/3 - .65| + 1/4 x |1 - 1|
    assert error == pytest.approx(0.75 * (0.65 - 1 / 3), rel=1e-5)


def test_measure_by_hand() -> None:
    one = judged_of([[5, 1], [2, 2]], [[5, 2], [2, 2]], [(0, 1)], user=3)
    two = judged_of([[4, 4]], [[1, 4]], [], user=3)
    found = measure([one, two], TWO)
    assert (found["candidates"], found["users"]) == (3, 1)
    assert found["point_accuracy"] == pytest.approx(4 / 6)
    profile = found["by_aspect"]["profile"]
    assert profile["accuracy"] == pytest.approx(2 / 3)
    assert profile["mean_distance"] == pytest.approx(3 / 3)  # 4 taken for 1
    assert profile["pair_auc"] == 1.0
    assert profile["calibration_error"] == pytest.approx(1 / 3)
    assert profile["confusion"][3] == [1, 0, 0, 0, 0]
    second = found["by_aspect"][TWO[1].name]
    assert second["mean_distance"] == pytest.approx(1 / 3)
    assert second["pair_auc"] == 0.5
    assert found["pair_auc"] == {"all": 1.0, "easy_negative": 1.0}
    assert found["pair_auc_interval"] == (1.0, 1.0)
    assert found["trade_off_share"] == 0.0
