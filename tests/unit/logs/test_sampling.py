"""Windows, the order of an epoch, and the teacher's draws."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_torchrec.logs.sampling import (
    GraphRows,
    Teacher,
    cut_windows,
    epoch_order,
    search_cells,
)

NUM_ITEMS = 7


def make_graph(decay=0.7):
    """Rows of 0 to 3 neighbours; items 2 and 3 have none."""
    rows = [[(1, 0.5)], [(2, 1.0), (4, 3.0)], [], [], [(5, 2.0), (6, 1.0), (0, 1.0)]]
    rows += [[(0, 4.0)], [(3, 0.25), (1, 0.75)]]
    return GraphRows(
        indptr_N1=np.cumsum([0, *(len(row) for row in rows)]),
        neighbours_E=np.array([j for row in rows for j, _ in row], np.int32),
        weights_E=np.array([w for row in rows for _, w in row], np.float32),
        decay=decay,
    )


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


def test_an_epochs_order_is_a_permutation_of_its_own():
    assert sorted(epoch_order(50, 0, 1)) == list(range(50))
    assert not np.array_equal(epoch_order(50, 0, 0), epoch_order(50, 0, 1))
    assert not np.array_equal(epoch_order(50, 0, 0), epoch_order(50, 1, 0))


@pytest.mark.parametrize("history", [1, 2, 50])
@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_draws_follow_the_graphs_normalised_score(history, decay):
    graph = make_graph(decay)
    dense = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for item in range(NUM_ITEMS):
        row = slice(graph.indptr_N1[item], graph.indptr_N1[item + 1])
        dense[item, graph.neighbours_E[row]] = graph.weights_E[row]
    items = np.array([-1, 4, 1, 3, 6, -1, 2, 3])
    draws = 20_000
    teacher = Teacher(graph, score_history=history, num_draws=draws, seed=1)
    contexts, depths = np.array([2, 4, 7]), np.array([2, 4, 2])
    drawn, has_mass = teacher.draw(
        items, contexts, depths, (0, np.array([0, 0, 1]), np.array([2, 4, 2]))
    )
    assert has_mass.tolist() == [True, True, False]
    for row, newest_first in ((0, [1, 4]), (1, [6, 3, 1, 4])):
        score = np.zeros(NUM_ITEMS)
        for back, item in enumerate(newest_first[:history]):
            score += decay**back * dense[item]
        share = np.bincount(drawn[row], minlength=NUM_ITEMS) / draws
        # s.d. of a share is at most sqrt(.25 / 20000) = .0035
        np.testing.assert_allclose(share, score / score.sum(), atol=0.018)
        assert not share[score == 0].any()


def test_a_draw_never_leaves_its_row_nor_takes_a_weightless_cell():
    # cells 0 | 1 2 3 | 4 with weights 1 | 0 1 0 | 1: row two is [1, 2)
    total = np.array([0.0, 1.0, 1.0, 2.0, 2.0, 3.0])
    noise = np.array([0.0, 0.5, 1.0 - 2.0**-53])
    low, high = np.full(3, 1.0), np.full(3, 2.0)
    assert search_cells(total, low, high, noise).tolist() == [2, 2, 2]
