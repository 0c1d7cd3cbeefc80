"""Served lists: the trainer's own, whatever is asked beside, and deterministic."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgrec_torchrec.generator.beam import beam_search
from sgrec_torchrec.logs.stream import eval_batches
from sgrec_torchrec.schema import feature_names
from sgrec_torchrec.serving import Filters, History, Recommended, Recommender
from sgrec_torchrec.serving import recommender as recommender_module
from sgrec_torchrec.serving.encoder import feature_ids
from sgrec_torchrec.serving.history import check_history

WEIGHT = 0.6

NUM_ITEMS = 60
ITEM = st.integers(0, NUM_ITEMS - 1).map(lambda item: f"i{item}")
ITEMS = st.lists(ITEM, max_size=30)
DISTINCT = st.lists(ITEM, max_size=NUM_ITEMS, unique=True)
relaxed = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def assert_same(ours: Recommended, theirs: Recommended, atol: float = 1e-5) -> None:
    assert ours.item_ids == theirs.item_ids
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=atol)


@pytest.mark.parametrize("with_evidence", [True, False])
def test_lists_are_those_of_the_trainers_ranker(
    finished_ranker, recommender, row_histories, with_evidence: bool
) -> None:
    rows = finished_ranker.split.test
    (top,) = finished_ranker.top_items(rows, (WEIGHT if with_evidence else 0.0,))
    width = finished_ranker.config.evaluation.beam_width
    served = recommender.recommend(row_histories, width, with_evidence=with_evidence)
    ids = finished_ranker.split.catalogue.item_ids
    assert len(served) == len(rows) > 100
    for row, found in enumerate(served):
        real = top.item_EW[row] >= 0
        assert found.item_ids == [ids[item] for item in top.item_EW[row][real]]
        np.testing.assert_allclose(found.scores, top.score_EW[row][real], atol=1e-4)
        codes = finished_ranker.tokens.codes_NL[top.item_EW[row][real]]
        assert found.codes == [tuple(sid) for sid in codes.tolist()]
    assert len({tuple(found.item_ids) for found in served}) > 20


def test_evidence_changes_the_lists(recommender, row_histories) -> None:
    mixed = recommender.recommend(row_histories, 5)
    alone = recommender.recommend(row_histories, 5, with_evidence=False)
    assert any(a.item_ids != b.item_ids for a, b in zip(mixed, alone, strict=True))


def test_a_user_without_history_gets_what_the_model_gives_at_the_begin(
    finished_ranker, recommender
) -> None:
    split = finished_ranker.split
    nothing = replace(split.test.take(np.array([0])), history_end_E=np.zeros(1, int))
    (batch,) = eval_batches(
        *(split.sequences, nothing, finished_ranker.tokens.codes_NL),
        *(finished_ranker.tokens.num_codes, finished_ranker.config.generator),
        batch_size=1,
    )
    generator = finished_ranker.dmp.module
    with torch.no_grad():
        hidden_BD = generator.encode_last(batch.features)
    tower = generator.tower
    rollout = beam_search(tower.decoder, tower.trie, hidden_BD, 50)
    for history in ([], History(item_ids=[])):
        (found,) = recommender.recommend([history], 10, with_evidence=False)
        ids = split.catalogue.item_ids
        assert found.item_ids == [ids[item] for item in rollout.item_BG[0, :10]]
        np.testing.assert_allclose(
            found.scores, rollout.key_BG[0, :10].numpy(), atol=1e-4
        )
        assert (found.num_events, found.num_read) == (0, 0)
    (mixed,) = recommender.recommend([[]], 10)
    # Nothing is known of nobody: the evidence has no candidate, the order stays.
    assert mixed.item_ids == found.item_ids


def test_the_same_request_gives_the_same_list_alone_or_not(
    recommender, row_histories
) -> None:
    some = row_histories[:9]
    together = recommender.recommend(some, 10)
    assert recommender.recommend(some, 10) == together
    for history, found in zip(some, together, strict=True):
        assert_same(recommender.recommend([history], 10)[0], found)


def test_a_checked_history_is_not_looked_up_again(
    recommender, row_histories, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = row_histories[:5]
    checked = [recommender.check(history) for history in some]
    expected = recommender.recommend(some, 10)

    def never(*_: object) -> None:
        raise AssertionError("looked up again")

    monkeypatch.setattr(recommender_module, "check_history", never)
    assert recommender.recommend(checked, 10) == expected


def test_a_history_that_another_model_checked_is_refused(
    recommender, served_run
) -> None:
    other = Recommender.load(served_run)
    with pytest.raises(ValueError, match="history 1 was checked by another model"):
        recommender.encode([["i1"], other.check(["i1"])])


def test_each_user_may_ask_for_other_things(recommender, row_histories) -> None:
    some = row_histories[:4]
    sizes = [1, 55, 3, 60]
    asked = [
        Filters(),
        Filters(seen=False),
        Filters(allowed=["i1", "i2", "i3", "i4"]),
        Filters(max_per_prefix=1, seen=False),
    ]
    together = recommender.recommend(some, sizes, filters=asked)
    for history, k, one, found in zip(some, sizes, asked, together, strict=True):
        (alone,) = recommender.recommend([history], k, filters=one)
        assert_same(found, alone)


def test_searches_in_pieces_are_the_whole(
    recommender, row_histories, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recommender.recommend(row_histories, 10)
    monkeypatch.setattr(recommender_module, "CHUNK_PLACES", 5 * 50 * 16)
    monkeypatch.setattr("sgrec_torchrec.serving.encoder.CHUNK_POSITIONS", 40)
    for ours, theirs in zip(
        recommender.recommend(row_histories, 10), whole, strict=True
    ):
        assert_same(ours, theirs)


@relaxed
@given(ITEMS, st.data())
def test_filters_leave_what_a_brute_force_leaves(
    recommender: Recommender, history: list[str], data: st.DataObject
) -> None:
    """A beam of 50 holds all of the 16 x 16 prefixes that there are, so it is exact."""
    filters = Filters(
        seen=data.draw(st.sampled_from([None, True, False])),
        blocked=data.draw(DISTINCT),
        allowed=data.draw(st.none() | DISTINCT),
    )
    k = data.draw(st.integers(1, NUM_ITEMS))
    with_evidence = data.draw(st.booleans())
    (everything,) = recommender.recommend(
        *([history], NUM_ITEMS),
        filters=Filters(seen=False),
        with_evidence=with_evidence,
    )
    (found,) = recommender.recommend(
        [history], k, filters=filters, with_evidence=with_evidence
    )
    filters_seen = recommender.settings.filter_seen
    seen = (
        set(history) if filters.seen or (filters.seen is None and filters_seen) else ()
    )
    allowed = None if filters.allowed is None else set(filters.allowed)
    score_of = dict(zip(everything.item_ids, everything.scores, strict=True))
    assert len(score_of) == NUM_ITEMS
    expected = [
        item
        for item in everything.item_ids
        if item not in seen
        and item not in filters.blocked
        and (allowed is None or item in allowed)
    ]
    assert len(found.item_ids) == min(k, len(expected))
    np.testing.assert_allclose(
        found.scores, [score_of[item] for item in expected[:k]], atol=1e-5
    )
    assert set(found.item_ids) <= set(expected)


@relaxed
@given(ITEMS, st.integers(1, 4), st.integers(1, 2), st.integers(1, NUM_ITEMS))
def test_capped_lists_are_the_greedy_choice(
    recommender: Recommender, history: list[str], count: int, length: int, k: int
) -> None:
    (everything,) = recommender.recommend(
        [history], NUM_ITEMS, filters=Filters(seen=False)
    )
    filters = Filters(seen=False, max_per_prefix=count, prefix_length=length)
    (found,) = recommender.recommend([history], k, filters=filters)
    taken: Counter[tuple[int, ...]] = Counter()
    expected = []
    for score, codes in zip(everything.scores, everything.codes, strict=True):
        taken[codes[:length]] += 1
        if taken[codes[:length]] <= count:
            expected.append(score)
    np.testing.assert_allclose(found.scores, expected[:k], atol=1e-5)
    assert max(Counter(codes[:length] for codes in found.codes).values()) <= count


@relaxed
@given(st.data())
def test_a_kept_state_goes_on_as_if_started_afresh(
    recommender: Recommender, data: st.DataObject
) -> None:
    def one(size: int) -> History:
        times = sorted(
            data.draw(st.lists(st.integers(0, 999), min_size=size, max_size=size))
        )
        items = data.draw(st.lists(ITEM, min_size=size, max_size=size))
        has_times = data.draw(st.booleans())
        return History(item_ids=items, timestamps=times if has_times else None)

    histories = [one(data.draw(st.integers(0, 60))) for _ in range(3)]
    cuts = [data.draw(st.integers(0, len(h.item_ids))) for h in histories]
    begun = [
        History(
            item_ids=history.item_ids[:cut],
            timestamps=history.timestamps and history.timestamps[:cut],
        )
        for history, cut in zip(histories, cuts, strict=True)
    ]
    older: list = recommender.encode(begun)
    if data.draw(st.booleans()):
        older[1] = None
    gone_on = recommender.encode(histories, older)
    afresh = recommender.encode(histories)
    for ours, theirs in zip(gone_on, afresh, strict=True):
        torch.testing.assert_close(ours.hidden_D, theirs.hidden_D, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.past, theirs.past, rtol=1e-4, atol=1e-5)
        assert len(ours.history) == len(theirs.history)
    for ours, theirs in zip(
        recommender.decode(gone_on, 5), recommender.decode(afresh, 5), strict=True
    ):
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


def test_only_a_beginning_is_gone_on_from(recommender, monkeypatch) -> None:
    read: list[int] = []
    backbone = recommender.parts.network.tower.backbone
    for name in ("read", "extend"):
        original = getattr(backbone, name)

        def counted(input_TD, *rest, original=original):
            read.append(len(input_TD))
            return original(input_TD, *rest)

        monkeypatch.setattr(backbone, name, counted)
    long = [f"i{place % NUM_ITEMS}" for place in range(51)]
    state, full = recommender.encode([["i1", "i2", "i3"], long[:50]])
    read.clear()
    assert recommender.encode([["i1", "i2", "i3"]], [state])[0] is state
    assert read == []
    recommender.encode([["i1", "i2", "i3", "i4", "i5"]], [state])
    assert read == [2]
    read.clear()
    for changed in (["i1", "i3", "i3", "i4"], ["i1", "i2"]):
        recommender.encode([changed], [state])
    recommender.encode(
        [History(item_ids=["i1", "i2", "i3", "i4"], timestamps=[0, 1, 2, 3])], [state]
    )
    assert read == [5, 3, 5]
    read.clear()
    # The network reads the newest 50 events: with a 51st the window moves.
    recommender.encode([long], [full])
    assert read == [51]
    assert state.num_bytes > 4 * state.past.numel()


def test_over_long_histories_are_cut_and_said(recommender) -> None:
    items = [f"i{(7 * place) % NUM_ITEMS}" for place in range(130)]
    (found,) = recommender.recommend(
        [items], 5, filters=Filters(seen=False), with_evidence=False
    )
    assert (found.num_events, found.num_read) == (130, 50)
    (newest,) = recommender.recommend(
        [items[-50:]], 5, filters=Filters(seen=False), with_evidence=False
    )
    assert_same(found, newest)
    # What is too old to be read was seen all the same.
    (left,) = recommender.recommend(
        [["i9", *(["i1"] * 60)]], 60, filters=Filters(seen=True)
    )
    assert "i9" not in left.item_ids
    assert "i1" not in left.item_ids
    assert len(left.item_ids) == 58


def test_a_filter_that_leaves_nothing_gives_an_empty_list(recommender) -> None:
    for filters in (
        Filters(allowed=[]),
        Filters(blocked=[f"i{item}" for item in range(NUM_ITEMS)]),
        Filters(allowed=["i3"], blocked=["i3"]),
    ):
        (found,) = recommender.recommend([["i1"]], 10, filters=filters)
        assert found.item_ids == found.titles == found.scores == found.codes == []


@pytest.mark.parametrize("k", [0, -1, 61, 2**70, 1.0, True, None, "3", float("nan")])
def test_k_is_within_the_catalogue(recommender, k) -> None:
    with pytest.raises(ValueError, match=r"k = .*outside \[1, 60\]"):
        recommender.recommend([["i1"]], k)


def test_counts_must_agree(recommender) -> None:
    with pytest.raises(ValueError, match="k has 1 entries for 2 users"):
        recommender.recommend([[], []], [3])
    with pytest.raises(ValueError, match="filters has 3 entries for 2 users"):
        recommender.recommend([[], []], 3, filters=[Filters()] * 3)
    with pytest.raises(ValueError, match="filters is of type dict: give Filters"):
        recommender.recommend([[]], 3, filters={"seen": True})
    with pytest.raises(ValueError, match="known has 1 states for 2 histories"):
        recommender.encode([[], []], [None])
    with pytest.raises(ValueError, match="histories is of type str"):
        recommender.recommend("i1")
    for users in ([], [[]] * 4097):
        with pytest.raises(ValueError, match="give 1 to 4096 users a call"):
            recommender.recommend(users)


def test_states_of_another_model_are_not_used(recommender, package) -> None:
    swapped = Recommender.load(package)
    states = recommender.encode([["i1", "i2"]])
    with pytest.raises(ValueError, match="of another model: encode the history again"):
        swapped.decode(states, 3)
    (again,) = swapped.encode([["i1", "i2"]], states)
    assert again is not states[0]
    assert swapped.decode([again], 3) == recommender.decode(states, 3)


def test_states_without_evidence_cannot_be_mixed(recommender) -> None:
    states = recommender.encode([["i1"]], with_evidence=False)
    assert recommender.decode(states, 3, with_evidence=False)[0].item_ids
    with pytest.raises(ValueError, match="encoded without evidence"):
        recommender.decode(states, 3)
    (mixed,) = recommender.encode([["i1"]], states)
    assert mixed.candidates is not None


def test_a_run_that_was_not_evaluated_serves_the_network_alone(
    recommender, served_run: Path
) -> None:
    unknown = replace(recommender.settings, prior_weight=None)
    served = Recommender(replace(recommender.parts, settings=unknown))
    with pytest.raises(ValueError, match="was not evaluated"):
        served.recommend([["i1"]], 3)
    alone = served.recommend([["i1"]], 3, with_evidence=False)
    assert alone == recommender.recommend([["i1"]], 3, with_evidence=False)
    unread = Recommender.load(served_run, with_evidence=False)
    assert unread.parts.evidence is None
    assert unread.recommend([["i1"]], 3) == alone


def test_without_times_nothing_is_known_of_gaps(recommender) -> None:
    timed, plain = (
        check_history(
            History(item_ids=["i1", "i2", "i3"], timestamps=times),
            *(recommender.catalogue, recommender.settings.event_types, "history"),
        )
        for times in ([5, 6, 900], None)
    )
    ids_KT, length_B = feature_ids(recommender.parts, [plain, timed, plain])
    gap_T = ids_KT[feature_names(recommender.settings.num_levels).index("gap")]
    # Begin markers and oldest events have none; 1 s and 894 s lie in octaves 1 and 9.
    assert gap_T.tolist() == [0, 0, 0, 0, 0, 0, 2, 10, 0, 0, 0, 0]
    assert length_B.tolist() == [4, 4, 4]


def test_equal_times_are_one_basket_for_the_evidence(recommender) -> None:
    items = ["i1", "i2", "i3", "i4"]
    apart, together = (
        recommender.encode([History(item_ids=items, timestamps=times)])[0]
        for times in ([1, 2, 3, 4], [4, 4, 4, 4])
    )
    (untimed,) = recommender.encode([items])
    assert np.array_equal(apart.candidates[0], untimed.candidates[0])
    assert np.array_equal(apart.candidates[1], untimed.candidates[1])
    assert not np.array_equal(apart.candidates[1], together.candidates[1])
