"""Weak labels: whose behaviour they come from, what of it, and what they say."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp

from sgrec_torchrec.config import GraphConfig, JudgeConfig
from sgrec_torchrec.item_graph.graph import ItemGraph, graph_of
from sgrec_torchrec.judge.ask.cases import CaseReader
from sgrec_torchrec.judge.ask.prompt import PromptSettings, rating
from sgrec_torchrec.judge.learn.labels import CHOSEN, LabelledCase
from sgrec_torchrec.judge.learn.weak_labels import weak_labels
from sgrec_torchrec.logs.judged_users import is_label_user
from sgrec_torchrec.logs.prompts import eligible_prompts
from sgrec_torchrec.schema import Sequences, SplitLog

SETTINGS = JudgeConfig()
SEED = 0


def with_items(split: SplitLog, items_R: np.ndarray) -> SplitLog:
    sequences = dataclasses.replace(split.sequences, items_R=items_R.astype(np.int32))
    return dataclasses.replace(split, sequences=sequences)


def rows_of(sequences: Sequences, user: int) -> slice:
    return slice(*sequences.offsets_U1[user : user + 2].tolist())


def same(ours: LabelledCase, theirs: LabelledCase) -> bool:
    """Equal in everything (arrays do not compare by ==)."""
    fields = (dataclasses.asdict(one) for one in (ours, theirs))
    first, second = ({**one, "levels_CA": one["levels_CA"].tolist()} for one in fields)
    return first == second


def test_cases_are_of_label_users_and_of_no_one_else(split, labels) -> None:
    is_label_U = is_label_user(split.user_ids, SEED)
    users = {one.case.user for one in labels}
    assert users == set(np.flatnonzero(is_label_U).tolist())
    assert 5 < len(users) < len(split.user_ids)


def test_no_label_user_is_asked_in_post_training(split, labels) -> None:
    prompts = eligible_prompts(split, SEED, max_history=20)
    asked = set(prompts.user_E.tolist())
    assert len(asked) > 50
    assert not asked & {one.case.user for one in labels}


def test_held_out_users_are_others_than_those_to_learn_from(labels) -> None:
    by_share = [
        {o.case.user for o in labels if o.is_held_out == is_out}
        for is_out in (False, True)
    ]
    assert all(by_share)
    assert not by_share[0] & by_share[1]


def test_cases_begin_baskets_of_the_train_period(split, labels) -> None:
    sequences = split.sequences
    for one in labels:
        case = one.case
        times = sequences.timestamps_R[rows_of(sequences, case.user)]
        assert SETTINGS.min_history <= case.as_of < sequences.train_end_U[case.user]
        assert case.request_timestamp == times[case.as_of] > times[case.as_of - 1]
    counts = np.bincount([one.case.user for one in labels])
    assert counts.max() == SETTINGS.cases_per_user
    assert len({(one.case.user, one.case.as_of) for one in labels}) == len(labels)


def test_candidates_are_distinct_and_the_next_item_is_among_them(split, labels) -> None:
    sequences = split.sequences
    places = set()
    for one in labels:
        case = one.case
        items = sequences.items_R[rows_of(sequences, case.user)]
        train = items[: sequences.train_end_U[case.user]].tolist()
        assert len(set(case.items)) == len(case.items) == len(one.sources)
        (place,) = (n for n, source in enumerate(one.sources) if source == "next")
        places.add(place)
        assert case.items[place] == train[case.as_of]
        for item, source in zip(case.items, one.sources, strict=True):
            if source == "chosen":
                assert item in train[case.as_of + 1 : case.as_of + SETTINGS.horizon]
            elif source != "next":
                assert item not in train
    sources = {source for one in labels for source in one.sources}
    assert sources == {"next", "chosen", "hard_negative", "easy_negative"}
    assert len(places) > 3  # the place says nothing


def test_levels_and_preferences_have_their_ranges(labels, reader) -> None:
    levels = np.concatenate([one.levels_CA for one in labels])
    assert levels.shape[1] == len(reader.aspects)
    assert levels.dtype == np.int8
    assert (np.unique(levels) == [1, 2, 3, 4, 5]).all()
    for one in labels:
        pairs = {(pair.better, pair.worse) for pair in one.preferences}
        is_chosen = [source in CHOSEN for source in one.sources]
        num_chosen = sum(is_chosen)
        assert len(pairs) == num_chosen * (len(is_chosen) - num_chosen) > 0
        assert all(is_chosen[a] and not is_chosen[b] for a, b in pairs)


def test_evidence_is_of_the_schema_and_of_what_was_seen(labels, reader) -> None:
    for one in labels[:20]:
        for place in range(len(one.case.items)):
            evidence = one.answer(place).evidence
            assert all(0 < len(said) <= 240 for said in evidence)
        seen = set(reader.history_ids(one.case))
        closest = one.evidence[0][2]  # novelty: names the choice most like it
        assert any(
            f'"{title}"' in closest
            for title, item in zip(
                reader.split.catalogue.titles,
                reader.split.catalogue.item_ids,
                strict=True,
            )
            if item in seen
        )


def test_same_seed_same_labels_other_seed_others(reader, graph, labels) -> None:
    again = weak_labels(reader, graph, SETTINGS, SEED)
    assert len(again) == len(labels)
    assert all(map(same, again, labels))
    other = weak_labels(reader, graph, SETTINGS, 1)
    assert {one.case.user for one in other} != {one.case.user for one in labels}


def test_events_after_the_train_period_change_no_label(split, graph, labels) -> None:
    sequences = split.sequences
    items_R = sequences.items_R.copy()
    for user, end in enumerate(sequences.train_end_U.tolist()):
        rows = rows_of(sequences, user)
        items_R[rows.start + end : rows.stop] = 29
    assert (items_R != sequences.items_R).any()
    other = CaseReader(with_items(split, items_R), PromptSettings(max_history=3))
    assert all(map(same, weak_labels(other, graph, SETTINGS, SEED), labels))


def test_held_out_users_move_no_cut(split, graph, labels) -> None:
    sequences = split.sequences
    held_out = {one.case.user for one in labels if one.is_held_out}
    items_R = sequences.items_R.copy()
    for user in held_out:
        items_R[rows_of(sequences, user)] = 5  # all alike, and to themselves
    other = CaseReader(with_items(split, items_R), PromptSettings(max_history=3))
    moved = {
        (one.case.user, one.case.as_of): one
        for one in weak_labels(other, graph, SETTINGS, SEED)
    }
    learned = [one for one in labels if not one.is_held_out]
    assert len(learned) > 20
    for one in learned:
        assert same(moved[one.case.user, one.case.as_of], one)


def test_draws_belong_to_a_user_by_id(split, graph, labels, make_split) -> None:
    # Without the first 60 users every other one has another index, and the same cases.
    sequences, kept = split.sequences, range(60, len(split.user_ids))
    users = []
    for user in kept:
        rows = rows_of(sequences, user)
        items, times = sequences.items_R[rows], sequences.timestamps_R[rows]
        users.append(list(zip(items.tolist(), times.tolist(), strict=True)))
    train_end = sequences.train_end_U[60:].tolist()
    fewer = make_split(users, train_end, split.catalogue.titles)
    fewer = dataclasses.replace(fewer, user_ids=split.user_ids[60:])
    found = weak_labels(
        CaseReader(fewer, PromptSettings(max_history=20)), graph, SETTINGS, SEED
    )
    ours = [
        (one.case.user - 60, one.case.as_of, one.case.items)
        for one in labels
        if one.case.user >= 60
    ]
    theirs = [(one.case.user, one.case.as_of, one.case.items) for one in found]
    assert theirs == ours != []


@pytest.fixture
def one_user(make_split) -> Callable[..., tuple[CaseReader, ItemGraph]]:
    """Twelve events of a user that the judge learns from, in a log of that one user."""

    def make() -> tuple[CaseReader, ItemGraph]:
        events = [(item, 100 * item) for item in range(12)]
        titles = [
            *("lamp oak", "lamp red", "lamp big", "rug wool", "rug silk", "rug tiny"),
            *("desk pine", "desk teak", "chair one", "chair two", "sofa", "bed"),
            *("lamp huge", "tent", "kite", "boat"),
        ]
        split = make_split([events], [12], titles)
        names = [f"u{n}" for n in range(99)]
        learned = names[int(np.argmax(is_label_user(names, SEED)))]
        split = dataclasses.replace(split, user_ids=[learned])
        popular = np.ones(len(titles), dtype=np.int64)
        empty = sp.csr_matrix((len(titles), len(titles)), dtype=np.float32)
        return CaseReader(split, PromptSettings(max_history=20)), graph_of(
            empty, popular, GraphConfig(text_weight=0.0)
        )

    return make


def test_future_interest_by_hand(one_user) -> None:
    reader, graph = one_user()
    settings = dataclasses.replace(
        SETTINGS, cases_per_user=99, num_soon=2, horizon=4, num_chosen=99, num_easy=9
    )
    cases = {one.case.as_of: one for one in weak_labels(reader, graph, settings, SEED)}
    assert sorted(cases) == [5, 6, 7, 8, 9, 10, 11]
    one = cases[5]  # items 5, 6 come soon, 7 and 8 within the horizon
    level = {
        item: int(one.levels_CA[place, 1]) for place, item in enumerate(one.case.items)
    }
    source = dict(zip(one.case.items, one.sources, strict=True))
    assert [level[item] for item in (5, 6, 7, 8)] == [5, 5, 4, 4]
    assert [source[item] for item in (5, 6, 7, 8)] == ["next", *["chosen"] * 3]
    never = {item: n for item, n in level.items() if item > 11}
    assert never
    assert set(never.values()) <= {1, 2}


def test_novelty_and_profile_by_hand(one_user) -> None:
    reader, graph = one_user()
    settings = dataclasses.replace(SETTINGS, cases_per_user=99, num_hard=9, num_easy=0)
    named = [aspect.name for aspect in reader.aspects]
    novelty, profile = named.index("novelty"), named.index("profile")
    seen_lamp, seen_kite = [], []
    for one in weak_labels(reader, graph, settings, SEED):
        for place, item in enumerate(one.case.items):
            (seen_lamp if item == 12 else seen_kite if item == 14 else []).append(
                one.levels_CA[place]
            )
    # After three lamps a huge lamp is like the profile; a kite is like nothing.
    assert min(one[profile] for one in seen_lamp) > max(
        one[profile] for one in seen_kite
    )
    assert max(one[novelty] for one in seen_lamp) < min(
        one[novelty] for one in seen_kite
    )


def test_without_a_clock_there_is_no_context(ordinal_split, graph) -> None:
    reader = CaseReader(ordinal_split, PromptSettings(max_history=20))
    (one, *_) = weak_labels(reader, graph, SETTINGS, SEED)
    assert one.levels_CA.shape[1] == 3
    assert len(one.evidence[0]) == 3
    assert reader.prompt(one.case, rating(reader.aspects)).questions[-1] == (
        "Rate novelty."
    )


def test_a_log_without_a_case_says_what_to_do(reader, graph) -> None:
    settings = dataclasses.replace(SETTINGS, min_history=99)
    with pytest.raises(ValueError, match="no label user has a train period long"):
        weak_labels(reader, graph, settings, SEED)


def test_cases_are_bounded_by_leaving_out_whole_users(reader, graph, labels) -> None:
    most = {one.case.user for one in labels}
    bounded = dataclasses.replace(SETTINGS, max_cases=3 * SETTINGS.cases_per_user)
    few = weak_labels(reader, graph, bounded, SEED)
    users = {one.case.user for one in few}
    assert len(users) == 3
    assert users < most
    kept = {one.case for one in labels if one.case.user in users}
    assert {one.case for one in few} == kept
