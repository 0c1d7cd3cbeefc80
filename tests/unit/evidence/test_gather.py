"""Candidates and features against a slow reference of dicts and loops."""

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.evidence import gather as module
from sgrec_torchrec.evidence.gather import (
    Evidence,
    Histories,
    gather,
    histories_of,
    num_features,
)
from sgrec_torchrec.evidence.relations import Relations

History = list[tuple[int, int]]
"""(item, baskets back), oldest first."""


def edges_from(relations: Relations, relation: int, item: int) -> dict[int, float]:
    row = relation * relations.num_items + item
    low, high = relations.indptr_R1[row : row + 2]
    neighbours = relations.neighbours_E[low:high].tolist()
    weights = relations.weights_E[low:high].tolist()
    return dict(zip(neighbours, weights, strict=True))


def slow_votes(
    relations: Relations, history: History, score_history: int, filter_seen: bool
) -> dict[int, float]:
    votes: dict[int, float] = defaultdict(float)
    for relation in range(relations.num_relations):
        share: dict[int, float] = defaultdict(float)
        for item, back in history[-score_history:]:
            for other, weight in edges_from(relations, relation, item).items():
                share[other] += 0.9**back * weight
        for other, weight in share.items():
            votes[other] += weight / sum(share.values())
    for item, back in history:
        votes[item] += 0.98**back / sum(0.98**b for _, b in history)
    seen = {item for item, _ in history} if filter_seen else set()
    return {item: vote for item, vote in votes.items() if item not in seen}


def slow_features(
    relations: Relations, history: History, score_history: int, item: int, vote: float
) -> list[float]:
    features: list[float] = []
    for relation in range(relations.num_relations):
        said = [
            (edges_from(relations, relation, past).get(item, 0.0), back)
            for past, back in history[-score_history:]
        ]
        features.append(sum(weight for weight, back in said if back == 0))
        features.append(max(weight for weight, _ in said))
        for decay in (0.7, 0.9, 0.98):
            features.append(sum(weight * decay**back for weight, back in said))
    backs = [back for past, back in history if past == item]
    features.append(len(backs))
    features.append(sum(0.9**back for back in backs))
    features.append(max((1 / (1 + back) for back in backs), default=0.0))
    features.append(vote)
    features.append(math.log(1 + relations.popularity_N[item]))
    features.append(math.log(1 + relations.recent_N[item]))
    features.append(math.log(1 + len(history)))
    return features


def laid_end_to_end(rows: list[History]) -> Histories:
    flat = [event for row in rows for event in row]
    return Histories(
        indptr_E1=np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64),
        items_H=np.array([item for item, _ in flat], dtype=np.int32),
        baskets_back_H=np.array([back for _, back in flat], dtype=np.int32),
    )


def random_histories(num_rows: int = 40) -> list[History]:
    """0 to 12 events, some of one basket, some repeated."""
    generator = np.random.default_rng(5)
    rows = []
    for length in [0, *generator.integers(0, 13, num_rows - 2), 0]:
        steps = generator.integers(0, 2, length)
        backs = np.cumsum(steps[::-1])[::-1] - (steps[-1] if length else 0)
        items = generator.integers(0, 25, length)
        rows.append(list(zip(items.tolist(), backs.tolist(), strict=True)))
    assert any(back == 0 for row in rows for _, back in row[:-1])
    return rows


def found_by_item(evidence: Evidence, row: int) -> Iterator[tuple[int, np.ndarray]]:
    for item, features_F in zip(
        evidence.item_EM[row], evidence.features_EMF[row], strict=True
    ):
        if item >= 0:
            yield int(item), features_F
        else:
            assert item == -1
            assert not features_F.any()


@pytest.mark.parametrize("filter_seen", [False, True])
@pytest.mark.parametrize(
    ("num_candidates", "score_history"), [(6, 50), (6, 3), (60, 50), (60, 1)]
)
def test_evidence_equals_the_slow_reference(
    random_relations, filter_seen: bool, num_candidates: int, score_history: int
) -> None:
    rows = random_histories()
    evidence = gather(
        random_relations,
        laid_end_to_end(rows),
        EvidenceConfig(num_candidates=num_candidates, score_history=score_history),
        filter_seen=filter_seen,
    )
    assert evidence.item_EM.shape == (40, num_candidates)
    assert evidence.features_EMF.shape == (40, num_candidates, num_features(3))
    for row, history in enumerate(rows):
        votes = slow_votes(random_relations, history, score_history, filter_seen)
        ordered = sorted(votes, key=lambda item: -votes[item])
        if len(votes) > num_candidates:  # no tie at the cut: both must choose alike
            last, next_one = ordered[num_candidates - 1 : num_candidates + 1]
            assert votes[last] > votes[next_one] * (1 + 1e-5)
        found = dict(found_by_item(evidence, row))
        assert set(found) == set(ordered[:num_candidates])
        for item, features_F in found.items():
            expected = slow_features(
                random_relations, history, score_history, item, votes[item]
            )
            np.testing.assert_allclose(features_F, expected, rtol=1e-5, atol=1e-7)


def test_tiny_case_by_hand(make_relations) -> None:
    dense = np.zeros((1, 4, 4))
    dense[0, 0, 2], dense[0, 0, 3], dense[0, 1, 2] = 3.0, 1.0, 2.0
    relations = make_relations(dense, [5, 2, 9, 4])
    evidence = gather(
        relations,
        laid_end_to_end([[(0, 1), (1, 0)]]),
        EvidenceConfig(num_candidates=4, score_history=50),
        filter_seen=False,
    )
    found = dict(found_by_item(evidence, 0))
    # All weights, decayed by .9 a basket: .9 (3 + 1) + 2 = 5.6; repeats .98 + 1.
    ln = math.log
    expected = {
        0: [0, 0, 0, 0, 0, 1, 0.9, 1 / 2, 0.98 / 1.98, ln(6), ln(3), ln(3)],
        1: [0, 0, 0, 0, 0, 1, 1, 1, 1 / 1.98, ln(3), ln(2), ln(3)],
        2: [2, 3, 4.1, 4.7, 4.94, 0, 0, 0, 4.7 / 5.6, ln(10), ln(5), ln(3)],
        3: [0, 1, 0.7, 0.9, 0.98, 0, 0, 0, 0.9 / 5.6, ln(5), ln(3), ln(3)],
    }
    assert set(found) == set(expected)
    for item, features_F in found.items():
        np.testing.assert_allclose(features_F, expected[item], rtol=1e-6)


def test_of_equal_votes_those_reached_first_are_taken(make_relations) -> None:
    dense = np.zeros((1, 6, 6))
    dense[0, 0, [1, 2, 3, 4]] = 0.5, 2.0, 0.5, 0.5
    relations = make_relations(dense, [1] * 6)
    evidence = gather(
        relations,
        laid_end_to_end([[(0, 0)]]),
        EvidenceConfig(num_candidates=3, score_history=50),
        filter_seen=True,
    )
    assert set(evidence.item_EM[0].tolist()) == {2, 1, 3}


def test_seen_items_are_no_candidates_even_where_nothing_else_is(
    make_relations,
) -> None:
    dense = np.zeros((1, 3, 3))
    dense[0, 0, 1] = dense[0, 1, 0] = 1.0
    evidence = gather(
        make_relations(dense, [1] * 3),
        laid_end_to_end([[(0, 1), (1, 0)], []]),
        EvidenceConfig(num_candidates=2, score_history=50),
        filter_seen=True,
    )
    assert (evidence.item_EM == -1).all()
    assert not evidence.features_EMF.any()


@pytest.mark.parametrize("rows_per_task", [1, 7, 512])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_threads_and_tasks_change_nothing(
    random_relations, monkeypatch: pytest.MonkeyPatch, rows_per_task, num_threads
) -> None:
    histories = laid_end_to_end(random_histories())
    config = EvidenceConfig(num_candidates=6, score_history=4)
    expected = gather(random_relations, histories, config, filter_seen=False)
    monkeypatch.setattr(module, "ROWS_PER_TASK", rows_per_task)
    monkeypatch.setattr(module.torch, "get_num_threads", lambda: num_threads)
    found = gather(random_relations, histories, config, filter_seen=False)
    np.testing.assert_array_equal(found.item_EM, expected.item_EM)
    np.testing.assert_array_equal(found.features_EMF, expected.features_EMF)


def test_scratch_of_one_call_says_nothing_in_the_next(
    random_relations, make_relations
) -> None:
    histories = laid_end_to_end(random_histories())
    config = EvidenceConfig(num_candidates=6, score_history=4)
    expected = gather(random_relations, histories, config, filter_seen=True)
    other = make_relations(np.ones((1, 4, 4)), [1, 2, 3, 4])
    small = laid_end_to_end([[(0, 1), (1, 0)], [(3, 0)]])
    alone = gather(other, small, config, filter_seen=False)
    module._SPARE.clear()
    for relations, asked, seen, answer in (
        (random_relations, histories, True, expected),
        (random_relations, histories, True, expected),
        (other, small, False, alone),
        (random_relations, histories, True, expected),
    ):
        found = gather(relations, asked, config, filter_seen=seen)
        np.testing.assert_array_equal(found.item_EM, answer.item_EM)
        np.testing.assert_array_equal(found.features_EMF, answer.features_EMF)


def test_no_rows_have_no_evidence(random_relations) -> None:
    evidence = gather(
        random_relations,
        laid_end_to_end([]),
        EvidenceConfig(num_candidates=6, score_history=4),
        filter_seen=False,
    )
    assert evidence.item_EM.shape == (0, 6)


def test_baskets_are_counted_from_the_end_of_each_history(
    make_sequences, make_rows
) -> None:
    sequences = make_sequences(
        [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]],
        10,
        timestamps=[[3, 3, 5, 9, 9], [9, 9], [9, 9, 12]],
    )
    # The newest basket of user 0 and both others' first ones share one timestamp.
    rows = make_rows([0, 1, 0, 2, 0, 1], [0, 0, 2, 0, 1, 1], [5, 2, 2, 3, 4, 1])
    histories = histories_of(sequences, rows)
    assert histories.indptr_E1.tolist() == [0, 5, 7, 7, 10, 13, 13]
    assert histories.items_H.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]
    expected = [*(2, 2, 1, 0, 0), *(0, 0), *(1, 1, 0), *(2, 1, 0)]
    assert histories.baskets_back_H.tolist() == expected


def test_rows_without_any_event_have_empty_histories(make_sequences, make_rows) -> None:
    sequences = make_sequences([[0, 1]], 2)
    histories = histories_of(sequences, make_rows([0, 0], [0, 1], [0, 1]))
    assert histories.indptr_E1.tolist() == [0, 0, 0]
    assert len(histories.items_H) == len(histories.baskets_back_H) == 0


def test_width_is_five_a_relation_and_seven() -> None:
    # 6 relations: 6 * 5 + 7.
    assert num_features(6) == 37
