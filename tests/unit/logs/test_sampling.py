"""Windows, the order of an epoch, and the teacher's draws."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_torchrec.logs import sampling
from sgrec_torchrec.logs.sampling import (
    NO_SOFT_TARGETS,
    SoftTargets,
    Teacher,
    cut_windows,
    epoch_order,
)

BELOW_ONE = np.float32(1) - np.float32(2) ** -24
"""The largest float32 under 1."""


def make_soft_targets(
    rows: list[int], items: list[list[int]], cumulative: list[list[float]]
) -> SoftTargets:
    return SoftTargets(
        row_E=np.array(rows, np.int64),
        item_EQ=np.array(items, np.int32),
        cumulative_EQ=np.array(cumulative, np.float32),
    )


@pytest.fixture
def soft_targets() -> SoftTargets:
    """Events 2, 5 and 9, with three, one and two items."""
    return make_soft_targets(
        [2, 5, 9],
        [[4, 1, 0], [3, -1, -1], [2, 6, -1]],
        [[0.5, 0.8, 1.0], [1.0, 1.0, 1.0], [0.25, 1.0, 1.0]],
    )


def draw(targets: SoftTargets, rows: list[int], num_draws: int = 4, *, epoch: int = 0):
    """What is drawn for these events: each is a sample's first target."""
    teacher = Teacher(targets, num_draws=num_draws, seed=1)
    zero_S = np.zeros(len(rows), dtype=np.int64)
    return teacher.draw(np.array(rows), (epoch, np.arange(len(rows)), zero_S))


@pytest.fixture
def fixed_noise(monkeypatch: pytest.MonkeyPatch):
    """fixed_noise(*values): the noise of draws 0, 1, ... of every target."""

    def fix(*values: float) -> int:
        def noise(hashed: np.ndarray) -> np.ndarray:
            return np.broadcast_to(np.array(values), hashed.shape)

        monkeypatch.setattr(sampling, "uniform", noise)
        return len(values)

    return fix


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=8),
    max_history=st.integers(1, 20),
)
@settings(max_examples=200, deadline=None)
def test_windows_ask_every_event_once_behind_enough_history(lengths, max_history):
    windows = cut_windows(np.array(lengths), max_history)
    asked = Counter()
    for w in range(len(windows)):
        user, start, end = windows.user_W[w], windows.start_W[w], windows.end_W[w]
        assert 0 <= start <= windows.first_target_W[w] < end <= lengths[user]
        assert end - start <= max_history + 1
        for event in range(windows.first_target_W[w], end):
            asked[int(user), event] += 1
            assert event - start >= min(event, max(1, max_history // 2))
    wanted = {(u, e) for u, n in enumerate(lengths) for e in range(n)}
    assert asked == dict.fromkeys(wanted, 1)


def test_windows_by_hand():
    # Up to 4 events and one asked, stride 2: nine events are three windows, which ask
    # the first five, then two and two.
    windows = cut_windows(np.array([0, 9, 5]), 4)
    assert len(windows) == 4
    assert windows.user_W.tolist() == [1, 1, 1, 2]
    assert windows.start_W.tolist() == [0, 2, 4, 0]
    assert windows.end_W.tolist() == [5, 7, 9, 5]
    assert windows.first_target_W.tolist() == [0, 5, 7, 0]
    assert windows.num_targets(np.array([0, 2, 3])) == 5 + 2 + 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [2, 5]}, "of different lengths"),
        ({"items": [[1, 2], [3, 4]]}, "of different lengths"),
        ({"cumulative": [[0.5, 1.0]] * 4}, "of different lengths"),
        ({"rows": [2, 9, 5]}, "row_E must rise"),
        ({"rows": [2, 5, 5]}, "row_E must rise"),
        ({"cumulative": [[0.5, 1.0], [0.5, 0.4], [1.0, 1.0]]}, "must not fall"),
        ({"cumulative": [[-0.5, 1.0], [0.5, 1.0], [1.0, 1.0]]}, "must not fall"),
        ({"cumulative": [[0.5, 1.0], [0.0, 0.0], [1.0, 1.0]]}, "nor end at 0"),
        ({"items": [[1, 2], [3, 7], [0, 8]]}, "name item 7, the tokens describe 7"),
        ({"items": [[1, 2], [-1, 3], [-5, 8]]}, "name item -1, the tokens"),
    ],
)
def test_bad_soft_targets_are_named(change, message: str) -> None:
    parts = {
        "rows": [2, 5, 9],
        "items": [[1, 0], [3, 6], [6, -1]],
        "cumulative": [[0.5, 1.0], [0.25, 1.0], [1.0, 1.0]],
    }
    make_soft_targets(**parts).validate(7)
    with pytest.raises(ValueError, match=message):
        make_soft_targets(**(parts | change)).validate(7)


def test_good_soft_targets_may_be_neighbours_and_begin_with_nothing() -> None:
    first = make_soft_targets(
        [2, 3], [[-1, -1, 6], [0, 1, 2]], [[0, 0, 1], [0.5, 1, 1]]
    )
    first.validate(7)
    NO_SOFT_TARGETS.validate(0)
    assert NO_SOFT_TARGETS.item_EQ.shape == NO_SOFT_TARGETS.cumulative_EQ.shape
    assert NO_SOFT_TARGETS.item_EQ.shape == (0, 1)


def test_an_epochs_order_is_a_permutation_of_its_own():
    assert sorted(epoch_order(50, 0, 1)) == list(range(50))
    assert not np.array_equal(epoch_order(50, 0, 0), epoch_order(50, 0, 1))
    assert not np.array_equal(epoch_order(50, 0, 0), epoch_order(50, 1, 0))


def test_draws_follow_the_probabilities(soft_targets) -> None:
    num_draws = 20_000
    drawn_SD, is_taught_S = draw(soft_targets, [9, 2], num_draws)
    assert is_taught_S.tolist() == [True, True]
    assert drawn_SD.dtype == np.int64
    expected_SN = num_draws * np.array(
        # items 2 and 6: .25 and 1 - .25; items 4, 1 and 0: .5, .8 - .5 and 1 - .8
        [[0, 0, 0.25, 0, 0, 0, 0.75], [0.2, 0.3, 0, 0, 0.5, 0, 0]]
    )
    for drawn_D, expected_N in zip(drawn_SD, expected_SN, strict=True):
        found_N = np.bincount(drawn_D, minlength=7)
        possible_N = expected_N > 0
        assert not found_N[~possible_N].any()
        # One time in 1000, chi-square of two degrees of freedom passes 13.8.
        error_N = (found_N - expected_N)[possible_N] ** 2 / expected_N[possible_N]
        assert error_N.sum() < 13.8


def test_only_events_with_soft_targets_get_draws(soft_targets) -> None:
    asked = [0, 2, 3, 5, 5, 9, 10]
    drawn_SD, is_taught_S = draw(soft_targets, asked)
    assert is_taught_S.tolist() == [False, True, False, True, True, True, False]
    assert drawn_SD.shape == (4, 4)
    assert set(drawn_SD[0].tolist()) <= {4, 1, 0}
    assert drawn_SD[1:3].tolist() == [[3] * 4] * 2
    assert set(drawn_SD[3].tolist()) <= {2, 6}


def test_a_draw_depends_on_its_own_target_alone(soft_targets) -> None:
    teacher = Teacher(soft_targets, num_draws=50, seed=1)
    row_S, sample_S, position_S = np.array([[2, 3, 9, 2], [7, 7, 8, 8], [0, 1, 0, 3]])
    whole_SD, _ = teacher.draw(row_S, (4, sample_S, position_S))
    for place, target in ((0, 0), (1, 2), (2, 3)):
        one = slice(target, target + 1)
        alone_SD, _ = teacher.draw(row_S[one], (4, sample_S[one], position_S[one]))
        assert alone_SD[0].tolist() == whole_SD[place].tolist()


def test_every_epoch_sample_position_and_seed_draws_anew(soft_targets) -> None:
    found = set()
    keys = [(1, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (2, 0, 0, 0)]
    for seed, epoch, sample, position in keys:
        teacher = Teacher(soft_targets, num_draws=50, seed=seed)
        noise_key = (epoch, np.array([sample]), np.array([position]))
        drawn_SD, _ = teacher.draw(np.array([2]), noise_key)
        assert len(set(drawn_SD[0].tolist())) == 3
        found.add(tuple(drawn_SD[0].tolist()))
    assert len(found) == len(keys)


def test_no_soft_targets_give_no_draws() -> None:
    drawn_SD, is_taught_S = draw(NO_SOFT_TARGETS, [0, 3])
    assert drawn_SD.shape == (0, 4)
    assert drawn_SD.dtype == np.int64
    assert is_taught_S.tolist() == [False, False]
    assert NO_SOFT_TARGETS.item_EQ.dtype == np.int32
    assert NO_SOFT_TARGETS.cumulative_EQ.dtype == np.float32


def test_no_target_asked_gives_no_draws(soft_targets) -> None:
    drawn_SD, is_taught_S = draw(soft_targets, [])
    assert drawn_SD.shape == (0, 4)
    assert is_taught_S.shape == (0,)


def test_noise_picks_the_item_whose_share_holds_it(soft_targets, fixed_noise) -> None:
    count = fixed_noise(0.0, 0.4999, 0.5, 0.7999, 0.8001, 1 - 2.0**-53)
    drawn_SD, _ = draw(soft_targets, [2], count)
    assert drawn_SD[0].tolist() == [4, 4, 1, 1, 0, 0]


def test_an_item_without_probability_is_never_drawn(soft_targets, fixed_noise) -> None:
    count = fixed_noise(0.0, 0.2499, 0.25, 1 - 2.0**-53)
    drawn_SD, _ = draw(soft_targets, [5, 9], count)
    assert drawn_SD.tolist() == [[3] * 4, [2, 2, 6, 6]]
    # Neither before the first, nor between two.
    gaps = make_soft_targets([0], [[-1, 3, -1, 5]], [[0.0, 0.25, 0.25, 1.0]])
    assert draw(gaps, [0], count)[0].tolist() == [[3, 3, 5, 5]]


@pytest.mark.parametrize(
    ("items", "cumulative"),
    [
        ([4, 6], [0.5, BELOW_ONE]),
        ([4, 6, -1], [0.5, BELOW_ONE, BELOW_ONE]),
        ([6, -1, -1], [BELOW_ONE] * 3),
    ],
)
def test_a_row_that_rounds_to_less_than_one_gives_its_last_item(
    fixed_noise, items: list[int], cumulative: list[float]
) -> None:
    count = fixed_noise(1 - 2.0**-53, float(BELOW_ONE))
    drawn_SD, _ = draw(make_soft_targets([0], [items], [cumulative]), [0], count)
    assert drawn_SD.tolist() == [[6, 6]]
