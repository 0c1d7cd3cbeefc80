"""Soft targets: of which events, by whose relations, and which items in what order."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.evidence.cross_fit import read_relations
from sgrec_torchrec.evidence.gather import gather, histories_of, num_features
from sgrec_torchrec.evidence.relations import RELATIONS
from sgrec_torchrec.evidence.scorer import EvidenceScorer, save_scorer
from sgrec_torchrec.evidence.soft_targets import soft_targets
from sgrec_torchrec.evidence.train_rows import fold_of_users, train_rows
from sgrec_torchrec.files.run_folder import SCORER_WEIGHTS
from sgrec_torchrec.logs.sampling import SoftTargets, Teacher
from sgrec_torchrec.schema import Sequences

SETTINGS = EvidenceConfig(
    num_candidates=12, num_folds=3, max_taught=10_000, taught_items=4, hidden=8
)


def untrained() -> EvidenceScorer:
    """Orders candidates by their votes."""
    return EvidenceScorer(num_features(len(RELATIONS)), SETTINGS.hidden).eval()


@pytest.fixture
def scorer_path(tmp_path: Path) -> Path:
    save_scorer(untrained(), tmp_path / SCORER_WEIGHTS)
    return tmp_path / SCORER_WEIGHTS


@pytest.fixture
def taught(cross_fit, scorer_path: Path) -> Callable[..., SoftTargets]:
    """Of a log's train period, by the untrained scorer."""

    def make(
        sequences: Sequences, config: EvidenceConfig = SETTINGS, **given: object
    ) -> SoftTargets:
        return soft_targets(cross_fit(sequences, config, **given), scorer_path)

    return make


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


@pytest.fixture
def private(make_sequences) -> Sequences:
    """User u has a, b, a, and nobody else has a = 2 u or b = 2 u + 1."""
    return make_sequences([[2 * u, 2 * u + 1, 2 * u] for u in range(10)], 20)


def test_events_are_those_of_the_training_rows(random_log, taught) -> None:
    found = taught(random_log)
    asked = train_rows(random_log, random_log.train_end_U, 100, 10_000, 0)
    # Nothing is filtered, so every history's own items are candidates at least.
    np.testing.assert_array_equal(found.row_E, asked.event_E)
    assert (np.diff(found.row_E) > 0).all()
    np.testing.assert_array_equal(random_log.items_R[found.row_E], asked.rows.target_E)
    types = tuple(str(array.dtype) for array in found)
    assert types == ("int64", "int32", "float32")


def test_items_are_the_likeliest_in_order_with_their_shares(
    random_log, cross_fit, scorer_path
) -> None:
    fit = cross_fit(random_log, SETTINGS)
    found = soft_targets(fit, scorer_path)
    place_of = {row: place for place, row in enumerate(found.row_E.tolist())}
    end_U = random_log.train_end_U
    asked = train_rows(random_log, end_U, 100, 10_000, 0)
    num_checked = 0
    fold_U = fold_of_users(random_log.num_users, SETTINGS, 0)
    for fold in range(SETTINGS.num_folds):
        chosen = np.flatnonzero(fold_U[asked.rows.user_E] == fold)
        relations = read_relations(fit.parts / f"relations-{fold}")
        histories = histories_of(random_log, asked.rows.take(chosen))
        evidence = gather(relations, histories, SETTINGS, filter_seen=False)
        probability_EM = untrained().probability(evidence)
        for nth, row in enumerate(asked.event_E[chosen].tolist()):
            likely = {
                item: float(share)
                for item, share in zip(
                    evidence.item_EM[nth].tolist(), probability_EM[nth], strict=True
                )
                if item >= 0
            }
            best = sorted(likely.values(), reverse=True)[:4]
            items = [i for i in found.item_EQ[place_of[row]].tolist() if i >= 0]
            assert len(set(items)) == len(items) == len(best)
            np.testing.assert_allclose([likely[i] for i in items], best, rtol=1e-5)
            shares = np.cumsum(best) / sum(best)
            cumulative = found.cumulative_EQ[place_of[row], : len(best)]
            np.testing.assert_allclose(cumulative, shares, rtol=1e-5)
            num_checked += 1
    assert num_checked == len(found.row_E) > 50


def test_cumulative_shares_rise_to_one(random_log, taught) -> None:
    found = taught(random_log)
    assert (found.cumulative_EQ[:, 0] > 0).all()
    assert (np.diff(found.cumulative_EQ, axis=1) >= 0).all()
    np.testing.assert_allclose(found.cumulative_EQ[:, -1], 1.0, rtol=1e-6)


def test_fewer_candidates_than_asked_leave_places_without_share(
    random_log, taught
) -> None:
    # 12 candidates at most: from there on every place is empty.
    found = taught(random_log, dataclasses.replace(SETTINGS, taught_items=20))
    assert found.item_EQ.shape == found.cumulative_EQ.shape == (len(found.row_E), 20)
    assert (found.item_EQ[:, 12:] == -1).all()
    for items, cumulative in zip(found.item_EQ, found.cumulative_EQ, strict=True):
        count = int((items >= 0).sum())
        assert 1 <= count <= 12
        assert (items[:count] >= 0).all()
        share = np.diff(cumulative, prepend=0.0)
        assert (share[:count] > 0).all()
        assert (share[count:] == 0).all()


def test_a_teacher_never_draws_an_empty_place(random_log, monkeypatch, taught) -> None:
    found = taught(random_log, dataclasses.replace(SETTINGS, taught_items=20))
    # The largest noise that there is.
    monkeypatch.setattr(
        "sgrec_torchrec.logs.sampling.uniform",
        lambda hashed: np.full(hashed.shape, 1 - 2.0**-53),
    )
    teacher = Teacher(found, num_draws=1, seed=0)
    zero_S = np.zeros(len(found.row_E), dtype=np.int64)
    drawn_SD, is_taught_S = teacher.draw(found.row_E, (0, zero_S, zero_S))
    assert is_taught_S.all()
    assert (drawn_SD >= 0).all()


def test_relations_never_saw_the_user_of_an_event(private, taught) -> None:
    found = taught(private)
    # By relations that saw the user, a's history would reach b and the reverse.
    assert len(found.row_E) == 20
    for row, items in zip(found.row_E.tolist(), found.item_EQ.tolist(), strict=True):
        user, place = divmod(row, 3)
        history = {2 * user} if place == 1 else {2 * user, 2 * user + 1}
        assert set(items) - {-1} == history


def test_relations_saw_everyone_elses_events(make_sequences, taught) -> None:
    # All have 0 then 1: filtered, the others' 1 is the only answer.
    found = taught(make_sequences([[0, 1]] * 40, 2), filter_seen=True)
    assert found.row_E.tolist() == list(range(1, 80, 2))
    assert found.item_EQ.tolist() == [[1, -1, -1, -1]] * 40


def test_events_without_candidates_are_left_out(
    private, make_sequences, taught
) -> None:
    assert len(taught(private, filter_seen=True).row_E) == 0
    # Users 0 to 39 lead from 0 to 1; the last one's items are nobody else's.
    mixed = make_sequences([*([[0, 1]] * 40), [2, 3]], 4)
    found = taught(mixed, filter_seen=True)
    assert found.row_E.tolist() == list(range(1, 80, 2))


@pytest.mark.parametrize("users", [[[0], [1]], [[], []]])
def test_a_log_without_histories_teaches_nothing(make_sequences, users, taught) -> None:
    found = taught(make_sequences(users, 2))
    assert found.row_E.shape == (0,)
    assert found.item_EQ.shape == found.cumulative_EQ.shape == (0, 4)


def test_newest_events_are_taught_where_not_all_may_be(make_sequences, taught) -> None:
    sequences = make_sequences([[0, 1, 0, 1, 0], [1, 0, 1]], 2)
    few = dataclasses.replace(SETTINGS, max_taught=3)
    # Rows 0 to 4 and 5 to 7: the newest of both, then the older one of either.
    assert set(taught(sequences, few).row_E.tolist()) in ({3, 4, 7}, {4, 6, 7})
    none = dataclasses.replace(SETTINGS, max_taught=0)
    assert len(taught(sequences, none).row_E) == 0


def test_blocks_of_rows_change_nothing(random_log, monkeypatch, taught) -> None:
    whole = taught(random_log)
    monkeypatch.setattr("sgrec_torchrec.evidence.cross_fit.ROWS_PER_TASK", 7)
    for one, other in zip(whole, taught(random_log), strict=True):
        np.testing.assert_array_equal(one, other)


def test_same_seed_same_targets_other_seed_other_folds(random_log, taught) -> None:
    first, again, other = (taught(random_log, seed=seed) for seed in (0, 0, 1))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(first.row_E, other.row_E)
    assert not np.array_equal(first.cumulative_EQ, other.cumulative_EQ)


def test_events_after_the_period_change_nothing(random_log, taught) -> None:
    items_R = random_log.items_R.copy()
    end_U = random_log.offsets_U1[:-1] + random_log.train_end_U
    later = np.arange(len(items_R)) >= np.repeat(end_U, np.diff(random_log.offsets_U1))
    assert later.any()
    items_R[later] = 14 - items_R[later]
    other = taught(dataclasses.replace(random_log, items_R=items_R))
    for one, two in zip(taught(random_log), other, strict=True):
        np.testing.assert_array_equal(one, two)
