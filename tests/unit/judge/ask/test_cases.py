"""A case shows the past of its user, and of others what came before the request."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_torchrec.judge.ask.cases import Case, CaseReader
from sgrec_torchrec.judge.ask.prompt import FAME, PromptSettings, rating
from sgrec_torchrec.logs.judged_users import history_hash
from sgrec_torchrec.schema import SplitLog

NUM_USERS = 60
TITLES = ["Red lamp", "Oak chair", "Desk", "Rug"]


def with_events(split: SplitLog, user_events, train_end, make_split) -> SplitLog:
    return make_split(
        user_events,
        train_end,
        split.catalogue.titles,
        has_clock=split.sequences.has_clock,
    )


def events_of(split: SplitLog) -> list[list[tuple[int, int]]]:
    """(item, timestamp) by user."""
    seq = split.sequences
    return [
        list(
            zip(
                seq.items_R[first:end].tolist(),
                seq.timestamps_R[first:end].tolist(),
                strict=True,
            )
        )
        for first, end in zip(
            seq.offsets_U1[:-1].tolist(), seq.offsets_U1[1:].tolist(), strict=True
        )
    ]


def changed_future(
    split: SplitLog, case: Case, seed: int, make_split: Callable[..., SplitLog]
) -> SplitLog:
    """Other events from the request on: more or fewer, of other items, at any time.

    Of the case's user everything from ``as_of`` on is drawn anew; of others what is
    not before the request.
    """
    noise = np.random.default_rng(seed)
    num_items, now = len(split.catalogue), case.request_timestamp
    users, ends = [], []
    train_end = split.sequences.train_end_U.tolist()
    for user, events in enumerate(events_of(split)):
        kept = [event for event in events if event[1] < now]
        was_kept = min(train_end[user], len(kept))
        is_own = user == case.user
        if is_own:
            kept = events[: case.as_of]
            was_kept = len(kept)
        times = np.sort(now + noise.integers(0, 10**6, int(noise.integers(0, 9))))
        items = noise.integers(0, num_items, len(times))
        if noise.random() < 0.5:  # a crowd that all choose the same
            items[:] = case.items[0]
        new = list(zip(items.tolist(), times.tolist(), strict=True))
        users.append(kept + new)
        # What was train before the request must stay so; later is train or not.
        is_train_open = was_kept == len(kept)
        ends.append(was_kept + (len(new) if is_train_open else 0))
    return with_events(split, users, ends, make_split)


@pytest.mark.long
@settings(max_examples=30, deadline=None)
@given(
    user=st.integers(0, NUM_USERS - 1),
    seed=st.integers(0, 2**31),
    shows_grades=st.booleans(),
)
def test_no_future_changes_a_prompt(
    split, make_split, next_case, user, seed, shows_grades
) -> None:
    shown = PromptSettings(max_history=20, shows_grades=shows_grades)
    reader = CaseReader(split, shown)
    case = next_case(reader, user, (0, 1, 17, 29))
    other = CaseReader(changed_future(split, case, seed, make_split), shown)
    # The cuts between grades are of the whole train period, as ``likeness`` says.
    other.grader = reader.grader
    asked = rating(reader.aspects)
    assert other.prompt(case, asked) == reader.prompt(case, asked)
    assert other.history_hash(case) == reader.history_hash(case)
    for item in case.items:
        assert other.popularity(item, case.request_timestamp) == reader.popularity(
            item, case.request_timestamp
        )


def test_a_changed_past_does_change_the_prompt(split, make_split, next_case) -> None:
    reader = CaseReader(split, PromptSettings(max_history=20))
    case = next_case(reader, 7, (0, 1))
    events = events_of(split)
    item, time = events[7][case.as_of - 1]
    events[7][case.as_of - 1] = ((item + 1) % 30, time)
    ends = split.sequences.train_end_U.tolist()
    other = CaseReader(
        with_events(split, events, ends, make_split), PromptSettings(max_history=20)
    )
    asked = rating(reader.aspects)
    assert other.prompt(case, asked) != reader.prompt(case, asked)
    assert other.history_hash(case) != reader.history_hash(case)


@pytest.fixture
def small(make_split) -> Callable[..., CaseReader]:
    """small(has_clock=True): two users, four items, an event every ten seconds."""

    def make(*, has_clock: bool = True) -> CaseReader:
        users = [
            [(0, 10), (0, 20), (1, 30), (0, 40)],
            [(1, 15), (2, 25), (0, 35), (3, 45)],
        ]
        split = make_split(users, [3, 4], TITLES, has_clock=has_clock)
        return CaseReader(split, PromptSettings(max_history=20))

    return make


def case_of(user: int, as_of: int, now: int, *items: int) -> Case:
    return Case(user=user, as_of=as_of, request_timestamp=now, items=items or (0,))


def test_history_ends_where_the_case_says(small) -> None:
    reader = small()
    assert reader.history(case_of(0, 2, 30)) == ([0, 0], [10, 20])
    assert reader.history(case_of(1, 3, 45)) == ([1, 2, 0], [15, 25, 35])
    assert reader.history(case_of(1, 0, 15)) == ([], [])
    assert reader.history_ids(case_of(1, 2, 35)) == ["i1", "i2"]
    assert reader.history_hash(case_of(1, 2, 35)) == history_hash(["i1", "i2"])


def test_the_next_event_is_that_of_the_same_user(small) -> None:
    reader = small()
    assert [reader.next_timestamp(0, n) for n in (0, 1, 3)] == [10, 20, 40]
    # Nothing follows the last one; the next row belongs to another user.
    assert reader.next_timestamp(0, 4) == 40
    assert reader.next_timestamp(1, 4) == 45


def test_popularity_counts_train_events_strictly_before(small) -> None:
    reader = small()
    # Item 0 in train: at 10, 20 and 35; user 0's event at 40 is not of the period.
    assert [reader.popularity(0, now) for now in (10, 11, 20, 35, 36, 99)] == [
        *(0, 1, 1, 2, 3, 3)
    ]
    assert reader.popularity(3, 45) == 0
    assert reader.popularity(3, 46) == 1


def test_without_a_clock_popularity_counts_the_whole_period(small) -> None:
    reader = small(has_clock=False)
    assert reader.popularity(0, 0) == 3
    prompt = reader.prompt(case_of(0, 2, 30, 1), rating(reader.aspects))
    assert [aspect.name for aspect in reader.aspects] == [
        *("profile", "future_interest", "novelty")
    ]
    (text, *_) = prompt.texts()
    assert "known" not in text
    assert "Now" not in text
    assert "1970" not in text
    assert '"Red lamp"; Lamps, Oak\n"Red lamp"; Lamps, Oak\n' in text


def test_grades_are_shown_where_there_is_a_past(small) -> None:
    reader = small()
    asked = rating(reader.aspects)
    (candidate,) = reader.prompt(case_of(0, 3, 40, 0), asked).candidates
    # The past is a red lamp twice, and an oak chair.
    assert 'nearest "Red lamp"\n' in candidate
    assert "profile " in candidate
    (candidate,) = reader.prompt(case_of(0, 0, 10, 0), asked).candidates
    assert "profile " not in candidate
    plain = CaseReader(reader.split, PromptSettings(max_history=20, shows_grades=False))
    (candidate,) = plain.prompt(case_of(0, 3, 40, 0), asked).candidates
    assert "profile " not in candidate


def test_the_prompt_shows_history_request_and_candidates(small) -> None:
    reader = small()
    prompt = reader.prompt(case_of(0, 2, 30, 1, 3), rating(reader.aspects))
    assert (
        "Profile: 2 items so far since January 1970; mostly Lamps, Oak\n"
        in prompt.shared
    )
    assert "Now: Thursday 1970-01-01, 00h, 0 minutes after" in prompt.shared
    assert "Oak chair" not in prompt.shared
    assert [c.split(";")[0] for c in prompt.candidates] == [
        'Candidate: "Oak chair"',
        'Candidate: "Rug"',
    ]
    assert len(prompt.questions) == 4


def test_fame_by_hand(make_split) -> None:
    # 100 items; item n is chosen n + 1 times, one event a second, item by item.
    choices = [item for item in range(100) for _ in range(item + 1)]
    users = [[(item, second)] for second, item in enumerate(choices)]
    split = make_split(users, [1] * len(users), [f"T{n}" for n in range(100)])
    reader = CaseReader(split, PromptSettings(max_history=20))

    def fame(item: int, now: int) -> str:
        prompt = reader.prompt(case_of(0, 0, now, item), rating(reader.aspects))
        return prompt.candidates[0].rpartition("; ")[2].strip()

    # Of 5050 events, 4871 = 2^(98 / 8) when bounds were taken last: by then 98 items
    # were chosen 1, 2, ... 98 times, and item 98 twenty times. In the order of their
    # counts (1 ... 20, 20 ... 98) the shares lie at places 49, 78.4, 93.1 and 97.02,
    # whose counts are the same numbers.
    last = len(choices)
    found = {item: fame(item, last) for item in (0, 47, 48, 77, 78, 92, 93, 96, 97)}
    assert found == {
        **{0: FAME[0], 47: FAME[0]},
        **{48: FAME[1], 77: FAME[1]},
        **{78: FAME[2], 92: FAME[2]},
        **{93: FAME[3], 96: FAME[3]},
        **{97: FAME[4]},
    }
    assert fame(98, 0) == FAME[0]  # nothing is known yet


def test_alike_items_share_a_category_or_else_the_brand(split) -> None:
    reader = CaseReader(split, PromptSettings(max_history=20))
    # Kinds n % 5 and n // 5 % 3: item 1 is a chair of oak, 6 one of steel, 7 a desk of
    # steel.
    assert reader.num_alike(1, [6, 7, 1]) == 2
    assert reader.num_alike(7, [6]) == 1
    assert reader.num_alike(7, []) == 0
    empty = [""] * len(split.catalogue)
    catalogue = dataclasses.replace(split.catalogue, categories=empty)
    branded = CaseReader(
        dataclasses.replace(split, catalogue=catalogue), PromptSettings(max_history=20)
    )
    # Of brands n % 3.
    assert branded.num_alike(1, [4, 6, 7]) == 2


def test_prompt_version_follows_settings_and_clock(small) -> None:
    clocked, ordinal = small(), small(has_clock=False)
    wide = CaseReader(clocked.split, PromptSettings(max_history=9))
    assert clocked.prompt_version == small().prompt_version
    versions = {r.prompt_version for r in (clocked, ordinal, wide)}
    assert len(versions) == 3
