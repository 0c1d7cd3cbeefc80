"""Grades of what others chose, against the definition counted user by user."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_torchrec.judge.ask import past_choices
from sgrec_torchrec.judge.ask.past_choices import PastChoices

NUM_ITEMS, NUM_USERS, LAST = 12, 40, 60


def drawn(seed: int) -> list[list[tuple[int, int]]]:
    """Events (item, second) of users who also choose items again."""
    noise = np.random.default_rng(seed)
    users = []
    for _ in range(NUM_USERS):
        times = np.sort(noise.integers(0, LAST, int(noise.integers(1, 9))))
        items = noise.integers(0, NUM_ITEMS, len(times)) ** 2 // NUM_ITEMS
        users.append(list(zip(items.tolist(), times.tolist(), strict=True)))
    return users


def choices_of(users, make_split, *, has_clock: bool = True) -> PastChoices:
    titles = [f"T{n}" for n in range(NUM_ITEMS)]
    ends = [len(events) for events in users]
    return PastChoices(make_split(users, ends, titles, has_clock=has_clock).sequences)


def together_by_hand(users, item: int, past: list[int], user: int, now: int) -> int:
    """The grade from sets of users."""

    def choosers(one: int) -> set[int]:
        return {
            other
            for other, events in enumerate(users)
            if other != user and any(i == one and t < now for i, t in events)
        }

    num_users = max(1, sum(events[0][1] < now for events in users))
    lifts = []
    for other in past[-20:]:
        both = len(choosers(item) & choosers(other))
        expected = len(choosers(item)) * len(choosers(other)) / num_users
        lifts.append((both + 0.5) / (expected + 0.5))
    return min(max(math.floor(2 * math.log2(max(lifts))), 0), 9)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), user=st.integers(0, NUM_USERS - 1))
def test_together_is_the_lift_over_independent_choices(make_split, seed, user) -> None:
    users = drawn(seed)
    now = int(np.random.default_rng(seed).integers(1, LAST + 2))
    past = [item for item, time in users[user] if time < now] or [0]
    found = choices_of(users, make_split).together(range(NUM_ITEMS), past, user, now)
    assert found == [
        together_by_hand(users, item, past, user, now) for item in range(NUM_ITEMS)
    ]


def test_together_finds_a_pair_that_few_choose(make_split) -> None:
    # 64 users; items 0 and 1 always come together, in two of them; 2 and 3 in half of
    # the users, independent of each other.
    users = [[(2 if n % 2 else 4, n), (3 if n % 4 < 2 else 5, n)] for n in range(62)]
    users += [[(0, 62), (1, 62)], [(0, 63), (1, 63)], [(0, 64)]]
    choices = choices_of(users, make_split)
    # 2.5 / (2 * 2 / 64 + .5) = 4.4, and log2 of it 2.15.
    assert choices.together([1, 2, 7], [2, 0], 64, 70)[0] == 4
    assert choices.together([3], [2], 64, 70) == [0]
    # An item that nobody chose is neither for nor against.
    assert choices.together([7], [2], 64, 70) == [0]
    # Before the pairs were chosen, nothing is known of them.
    assert choices.together([1], [0], 64, 62) == [0]


def test_own_choices_are_no_evidence(make_split) -> None:
    users = [[(0, 1), (1, 2)], [(0, 1)], [(2, 1)], [(2, 2)], [(3, 1)]]
    choices = choices_of(users, make_split)
    assert choices.together([1], [0], 0, 9) == choices.together([4], [0], 0, 9) == [0]
    # Of 5 users nobody but user 0 has both: 1.5 / (2 * 1 / 5 + .5) = 1.67.
    assert choices.together([1], [0], 4, 9) == [1]


def test_without_a_clock_the_whole_period_counts(make_split) -> None:
    users = [[(0, 0), (1, 0)] for _ in range(4)] + [[(2, 0)]] * 28 + [[(0, 0)]]
    timeless = choices_of(users, make_split, has_clock=False)
    assert timeless.together([1], [0], 32, 0) == [4]
    assert choices_of(users, make_split).together([1], [0], 32, 0) == [0]
    assert timeless.before(0, 0) == 5


def test_familiarity_falls_with_the_distance_of_fame(make_split) -> None:
    # Item n has e^n - 1 events, about; past choices are items 3 and 5: mean of logs 4.
    counts = [round(math.e**n - 1) for n in range(7)]
    events = [item for item, count in enumerate(counts) for _ in range(count)]
    users = [[(item, second)] for second, item in enumerate(events)]
    choices = choices_of(users, make_split)
    grades = choices.familiarity(range(7), [3, 5], len(users))
    assert grades == [9 - 8, 9 - 6, 9 - 4, 9 - 2, 9, 9 - 2, 9 - 4]
    assert choices.familiarity([11], [6, 6], len(users)) == [0]


def test_of_many_users_a_sample_is_asked(make_split, monkeypatch) -> None:
    users = drawn(5)
    monkeypatch.setattr(past_choices, "MAX_USERS", 10)
    sampled = choices_of(users, make_split)
    is_sampled = past_choices._sampled(NUM_USERS)
    assert 3 < is_sampled.sum() < 20
    few = [
        u if keep else [(9, LAST)] for u, keep in zip(users, is_sampled, strict=True)
    ]
    past = [0, 3, 5]
    expected = []
    for item in range(9):
        expected.append(together_by_hand(few, item, past, -1, LAST))
    assert sampled.together(range(9), past, -1, LAST) == expected
