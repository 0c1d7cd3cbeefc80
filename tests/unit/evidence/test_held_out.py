"""Training rows of the scorer: which events they ask, and by whose relations."""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.distributed import executor as executor_module
from sgrec_torchrec.distributed.executor import HERE, InProcess
from sgrec_torchrec.distributed.tasks import do
from sgrec_torchrec.evidence import cross_fit as cross_fit_module
from sgrec_torchrec.evidence.builders import RelationSource
from sgrec_torchrec.evidence.cross_fit import read_relations
from sgrec_torchrec.evidence.gather import gather, histories_of
from sgrec_torchrec.evidence.held_out import HeldOut, hold_out
from sgrec_torchrec.evidence.relations import Relations, build_relations
from sgrec_torchrec.evidence.train_rows import fold_of_users, train_rows
from sgrec_torchrec.files.sealed_json import DamagedError
from sgrec_torchrec.schema import Sequences

SETTINGS = EvidenceConfig(num_candidates=8, num_folds=3)
ARRAYS = ("item_EM", "features_EMF", "target_place_E")
# Places of features: 6 relations with 5 each, 3 of repeats, the vote, two counts.
REPEATS, EVENTS, RECENT = 30, 34, 35


def no_text(num_items: int) -> sp.csr_matrix:
    return sp.csr_matrix((num_items, num_items))


@pytest.fixture
def held(cross_fit) -> Callable[..., HeldOut]:
    """The rows of a log's train period."""

    def make(
        sequences: Sequences, config: EvidenceConfig = SETTINGS, **given: object
    ) -> HeldOut:
        return hold_out(cross_fit(sequences, config, **given))

    return make


def targets(held_out: HeldOut) -> np.ndarray:
    rows = np.arange(len(held_out.item_EM))
    return held_out.item_EM[rows, held_out.target_place_E]


@pytest.fixture
def private(make_sequences) -> Sequences:
    """User u has a, b, a, and nobody else has a = 2 u or b = 2 u + 1."""
    return make_sequences([[2 * u, 2 * u + 1, 2 * u] for u in range(10)], 20)


@pytest.fixture
def random_log(make_sequences) -> Sequences:
    """20 users, 15 items, one event in four of the basket before; 2 events later."""
    generator = np.random.default_rng(8)
    lengths = generator.integers(2, 15, 20)
    return make_sequences(
        [generator.integers(0, 15, n).tolist() for n in lengths],
        15,
        timestamps=[np.cumsum(generator.random(n) < 0.75).tolist() for n in lengths],
        train_end=(lengths - 2).tolist(),
    )


def test_relations_never_saw_the_user_of_a_row(private, held) -> None:
    held_out = held(private)
    # The second a of every user; b is reached by nothing but its own user's events.
    assert sorted(targets(held_out).tolist()) == list(range(0, 20, 2))
    assert held_out.num_rows == 20
    is_real_EM = held_out.item_EM >= 0
    assert is_real_EM.sum() == 20
    assert not held_out.features_EMF[..., :REPEATS].any()
    assert not held_out.features_EMF[..., EVENTS : EVENTS + 2].any()
    assert (held_out.features_EMF[is_real_EM, REPEATS] == 1).all()
    # The same rows by relations that saw everyone do have such evidence.
    end_U = private.train_end_U
    rows = train_rows(private, end_U, 100, 100, 0).rows
    seen = gather(
        build_relations(private, end_U, no_text(20), SETTINGS),
        histories_of(private, rows),
        SETTINGS,
        filter_seen=False,
    )
    assert seen.features_EMF[..., :REPEATS].any()
    assert seen.features_EMF[..., EVENTS].any()


def test_relations_saw_all_other_folds(make_sequences, held) -> None:
    # All 40 users have 0 then 1; a row's relations know all but those of its fold.
    sequences = make_sequences([[0, 1]] * 40, 2)
    held_out = held(sequences)
    assert targets(held_out).tolist() == [1] * 40
    place = (np.arange(40), held_out.target_place_E)
    others = np.expm1(held_out.features_EMF[place][:, EVENTS].astype(np.float64))
    others = np.round(others).astype(int)
    sizes = 40 - np.unique(others)
    assert len(sizes) <= 3
    assert (sizes > 0).all()
    for size in sizes:
        assert (others == 40 - size).sum() % size == 0
    # Forward: one pair a user, damped by sqrt(1 + others).
    np.testing.assert_allclose(
        held_out.features_EMF[place][:, 0], others / np.sqrt(1 + others), rtol=1e-5
    )


def test_evidence_of_a_fold_is_that_of_a_log_without_it(random_log, cross_fit) -> None:
    """Whole relations of a log in which the fold's users have no events."""
    near = np.zeros((15, 15))
    near[2, 3] = near[3, 2] = 0.5
    end_U, text = random_log.train_end_U, sp.csr_matrix(near)
    asked = train_rows(random_log, end_U, 100, 1000, 0).rows
    fold_U = fold_of_users(random_log.num_users, SETTINGS, 4)
    fit = cross_fit(random_log, SETTINGS, text=text, seed=4)
    hold_out(fit)
    num_rows = 0
    for fold in range(SETTINGS.num_folds):
        chosen = np.flatnonzero(fold_U[asked.user_E] == fold)
        relations = read_relations(fit.parts / f"relations-{fold}")
        others_U = np.where(fold_U == fold, 0, end_U).astype(np.int32)
        alone = build_relations(random_log, others_U, text, SETTINGS)
        histories = histories_of(random_log, asked.take(chosen))
        found, expected = (
            gather(one, histories, SETTINGS, filter_seen=False)
            for one in (relations, alone)
        )
        np.testing.assert_array_equal(found.item_EM, expected.item_EM)
        # The newest 20 % are those of the whole period.
        found.features_EMF[..., RECENT] = expected.features_EMF[..., RECENT] = 0.0
        np.testing.assert_array_equal(found.features_EMF, expected.features_EMF)
        num_rows += len(chosen)
    assert num_rows == len(asked) > 50


def test_rows_whose_target_is_no_candidate_are_left_out_and_counted(
    random_log, held
) -> None:
    few = dataclasses.replace(SETTINGS, num_candidates=2)
    held_out = held(random_log, few)
    rows = train_rows(random_log, random_log.train_end_U, 100, few.max_rows, 0).rows
    assert held_out.num_rows == len(rows)
    assert 0 < len(held_out.item_EM) < len(rows)
    assert held_out.target_place_E.dtype == np.int64
    assert {len(getattr(held_out, name)) for name in ARRAYS} == {len(held_out.item_EM)}
    assert (targets(held_out) >= 0).all()


def test_targets_are_those_of_the_rows(random_log, held) -> None:
    wide = dataclasses.replace(SETTINGS, num_candidates=15)
    held_out = held(random_log, wide)
    rows = train_rows(random_log, random_log.train_end_U, 100, 10**6, 0).rows
    asked = Counter(
        zip(rows.target_E.tolist(), rows.history_end_E.tolist(), strict=True)
    )
    lengths = np.expm1(held_out.features_EMF[:, 0, -1]).round().astype(int).tolist()
    found = Counter(zip(targets(held_out).tolist(), lengths, strict=True))
    # Row by row, a target that is no candidate of its row at most leaves it out.
    assert not found - asked
    assert asked.total() - found.total() < 5


def test_filtered_rows_never_have_a_repeat_as_target(private, random_log, held) -> None:
    assert len(held(private, filter_seen=True).item_EM) == 0
    held_out = held(random_log, filter_seen=True)
    assert len(held_out.item_EM) > 0
    assert not held_out.features_EMF[..., REPEATS].any()


def test_same_seed_same_rows_other_seed_other_folds(random_log, held) -> None:
    first, again, other = held(random_log), held(random_log), held(random_log, seed=1)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.features_EMF, other.features_EMF)


def test_events_after_the_period_change_nothing(random_log, held) -> None:
    items_R = random_log.items_R.copy()
    place_R = np.arange(len(items_R))
    first_U, end_U = random_log.offsets_U1[:-1], random_log.train_end_U
    later = place_R >= np.repeat(first_U + end_U, np.diff(random_log.offsets_U1))
    assert later.any()
    items_R[later] = 14 - items_R[later]
    other = held(dataclasses.replace(random_log, items_R=items_R))
    first = held(random_log)
    assert first.num_rows == other.num_rows
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(other, name))


def test_no_event_after_the_period_is_asked(random_log) -> None:
    end_U = random_log.train_end_U
    rows = train_rows(random_log, end_U, 100, 10**6, 0).rows
    asked = set()
    for row in range(len(rows)):
        user, end = int(rows.user_E[row]), int(rows.history_end_E[row])
        first = random_log.offsets_U1[user]
        learned = slice(first, first + end_U[user])
        times = random_log.timestamps_R[learned]
        assert 0 < end < end_U[user]
        assert (times[:end] < rows.target_timestamp_E[row]).all()
        assert times[end] == rows.target_timestamp_E[row]
        basket = random_log.items_R[learned][times == rows.target_timestamp_E[row]]
        assert rows.target_E[row] in basket
        asked.add((user, end))
    # Every basket but a user's first one, and each of its events.
    assert len(asked) > 20
    assert len(rows) > len(asked)


def test_event_of_a_row_is_its_target(random_log) -> None:
    asked = train_rows(random_log, random_log.train_end_U, 100, 30, 0)
    assert len(asked.rows) == 30
    assert (np.diff(asked.event_E) > 0).all()
    items_E, times_E = (
        column[asked.event_E]
        for column in (random_log.items_R, random_log.timestamps_R)
    )
    np.testing.assert_array_equal(items_E, asked.rows.target_E)
    np.testing.assert_array_equal(times_E, asked.rows.target_timestamp_E)
    first_E = random_log.offsets_U1[asked.rows.user_E]
    assert (asked.event_E >= first_E + asked.rows.history_end_E).all()


def test_history_ends_before_the_targets_basket(make_sequences) -> None:
    sequences = make_sequences([[0, 1, 2, 3, 4]], 5, timestamps=[[1, 1, 2, 2, 7]])
    rows = train_rows(sequences, sequences.train_end_U, 3, 100, 0).rows
    assert rows.target_E.tolist() == [2, 3, 4]
    assert rows.history_end_E.tolist() == [2, 2, 4]
    assert rows.history_start_E.tolist() == [0, 0, 1]  # max_history is 3
    assert rows.target_timestamp_E.tolist() == [2, 2, 7]


@pytest.mark.parametrize(
    ("max_rows", "expected"),
    [
        (3, [(0, 4), (1, 2), (2, 1)]),
        (5, [(0, 3), (0, 4), (1, 1), (1, 2), (2, 1)]),
        (6, [(0, 2), (0, 3), (0, 4), (1, 1), (1, 2), (2, 1)]),
        (7, [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2), (2, 1)]),
        (99, [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2), (2, 1)]),
    ],
)
def test_newest_rows_of_each_user_come_first(
    make_sequences, max_rows: int, expected: list[tuple[int, int]]
) -> None:
    # Users of 5, 3 and 2 events; an event without a history asks nothing.
    sequences = make_sequences([[0] * 5, [1] * 3, [2] * 2], 3)
    rows = train_rows(sequences, sequences.train_end_U, 100, max_rows, 0).rows
    found = zip(rows.user_E.tolist(), rows.history_end_E.tolist(), strict=True)
    assert list(found) == expected


def test_seed_draws_who_gives_the_last_round(make_sequences) -> None:
    sequences = make_sequences([[0, 1]] * 50, 2)
    drawn = [
        train_rows(sequences, sequences.train_end_U, 100, 20, seed).rows.user_E.tolist()
        for seed in (0, 0, 1)
    ]
    assert [len(users) for users in drawn] == [20, 20, 20]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("users", [[[0], [1]], [[], []]])
def test_a_log_without_histories_has_no_rows(make_sequences, users, held) -> None:
    held_out = held(make_sequences(users, 2))
    assert held_out.num_rows == 0
    assert held_out.item_EM.shape == (0, 8)
    assert held_out.features_EMF.shape == (0, 8, 37)


def test_blocks_of_rows_and_workers_change_nothing(
    random_log, held, monkeypatch
) -> None:
    whole = held(random_log)
    monkeypatch.setattr(cross_fit_module, "ROWS_PER_TASK", 7)
    for executor in (HERE, InProcess(2)):
        found = held(random_log, executor=executor)
        assert found.num_rows == whole.num_rows
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def test_relations_of_the_whole_period_are_made_beside(random_log, cross_fit) -> None:
    fit = cross_fit(random_log, SETTINGS)
    hold_out(fit, with_whole=True)
    end_U, text = random_log.train_end_U, no_text(15)
    alone = build_relations(random_log, end_U, text, SETTINGS)
    for field in dataclasses.fields(alone):
        one, other = (getattr(made, field.name) for made in (fit.whole(), alone))
        np.testing.assert_array_equal(one, other)


def test_a_relation_of_a_package_may_read_all_events_but_the_folds(
    random_log, cross_fit, monkeypatch
) -> None:
    split = SimpleNamespace(sequences=random_log, catalogue=None)
    monkeypatch.setattr(cross_fit_module, "load_split", lambda _: split)
    write, read = cross_fit_module.write_relations, {}

    def spied(source: RelationSource, *folders: Path) -> Relations:
        read[source.without] = source.end_U
        return write(source, *folders)

    monkeypatch.setattr(cross_fit_module, "write_relations", spied)
    hold_out(cross_fit(random_log, SETTINGS), with_whole=True)
    fold_U = fold_of_users(random_log.num_users, SETTINGS, 0)
    np.testing.assert_array_equal(read.pop(None), random_log.train_end_U)
    assert sorted(read) == [0, 1, 2]
    for fold, end_U in read.items():
        expected_U = np.where(fold_U == fold, 0, random_log.train_end_U)
        np.testing.assert_array_equal(end_U, expected_U)


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_relations_that_are_damaged_are_named(random_log, cross_fit, how: str) -> None:
    fit = cross_fit(random_log, SETTINGS)
    hold_out(fit)
    path = fit.parts / "relations-1" / "weights_E.npy"
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        path.unlink()
    with pytest.raises((DamagedError, FileNotFoundError), match=r"weights_E\.npy is"):
        read_relations(path.parent)


def test_an_ended_call_goes_on_from_what_is_done(
    random_log, cross_fit, monkeypatch
) -> None:
    fit = cross_fit(random_log, SETTINGS)
    whole = hold_out(fit)
    (gone,) = fit.parts.glob("asked-2-*")
    shutil.rmtree(gone)
    done = []
    monkeypatch.setattr(
        executor_module,
        "do",
        lambda function, task, code: (
            done.append(task.out.name),
            do(function, task, code),
        ),
    )
    again = hold_out(fit)
    assert done == [gone.name]
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
