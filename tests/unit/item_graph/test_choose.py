"""The graph's form is chosen by the valid rows, on a graph of the train period."""

import numpy as np
import pytest
import scipy.sparse as sp

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.item_graph.choose import choose_graph, repeat_share, target_ranks
from sgrec_torchrec.item_graph.graph import build_graph, histories


def textual_log(make_split, *, text_tells: bool):
    """Valid targets are text twins of the last item, or what followed it in train."""
    generator = np.random.default_rng(0)
    users, num_pairs = [], 15
    for _ in range(60):
        start = int(generator.integers(num_pairs))
        noise = int(generator.integers(num_pairs))
        follower = start + num_pairs if text_tells else (start + 1) % num_pairs
        before = [noise, (noise + 1) % num_pairs, start]
        users.append([*before, follower, noise])
    words = [f"word{n}" for n in range(num_pairs)]
    return make_split(
        users, 2 * num_pairs, titles=words * 2, train_end=[len(u) - 2 for u in users]
    )


def test_text_gets_weight_only_where_it_tells_the_next_item(make_split) -> None:
    with_text = choose_graph(textual_log(make_split, text_tells=True), GraphConfig())
    without = choose_graph(textual_log(make_split, text_tells=False), GraphConfig())
    assert with_text.text_weight is not None
    assert with_text.text_weight > 0
    assert without.text_weight == 0


def test_a_given_text_weight_ends_the_choice(random_split) -> None:
    config = GraphConfig(text_weight=0.123, decay=0.33)
    assert choose_graph(random_split, config) is config


def test_the_choice_is_deterministic_and_never_reads_test(random_split) -> None:
    first = choose_graph(random_split, GraphConfig())
    assert choose_graph(random_split, GraphConfig()) == first
    sequences = random_split.sequences
    last = sequences.offsets_U1[1:] - 1
    sequences.items_R[last[np.diff(sequences.offsets_U1) > 0]] = 0
    random_split.test.target_E[:] = 0
    assert choose_graph(random_split, GraphConfig()) == first


def ranks_of(scores: list[list[float]], targets: list[int], **settings) -> np.ndarray:
    """Of histories of one event each, whose visits are the scores."""
    num_rows, num_items = np.shape(scores)
    visits = np.zeros((num_items, num_items))
    visits[:num_rows] = scores
    plain = {"decays": [0.5], "text_weights": [0.0], "score_history": 9}
    return target_ranks(
        (np.arange(num_rows + 1), np.arange(num_rows, dtype=np.int32)),
        np.array(targets, dtype=np.int32),
        settings.pop("popularity_N", np.array([5, 5, 9, 1])),
        (sp.csr_matrix(visits), settings.pop("text", sp.csr_matrix(visits.shape))),
        **{"filter_seen": False, **plain, **settings},
    )


@pytest.mark.parametrize("text_weight", [0.0, 0.4])
@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_target_ranks_equal_places_in_the_graphs_own_lists(
    random_split, text_weight: float, decay: float
) -> None:
    config = GraphConfig(text_weight=text_weight, decay=decay, score_history=4)
    graph = build_graph(random_split, config, "train")
    rows = random_split.valid
    whole = graph.edges_from(np.arange(graph.num_items, dtype=np.int32))
    rank_EDW = target_ranks(
        histories(random_split.sequences, rows),
        rows.target_E,
        graph.popularity_N,
        (whole.astype(np.float64), sp.csr_matrix(whole.shape)),
        decays=[0.1, decay],
        text_weights=[0.0],
        score_history=4,
        filter_seen=False,
    )
    lists = graph.top_items(random_split.sequences, rows, 23, filter_seen=False)
    place_E = (lists == rows.target_E[:, None]).argmax(axis=1) + 1
    rank_E = rank_EDW[:, 1, 0]
    reached = rank_E > 0
    assert reached.sum() > 20
    np.testing.assert_array_equal(rank_E[reached], place_E[reached])


def test_tied_targets_stand_behind_more_popular_then_smaller_items() -> None:
    scores = [[2.0, 2.0, 2.0, 3.0], [2.0, 2.0, 2.0, 0.0]]
    # Row 0: 3 leads, then 2 (popularity 9), 0, 1: place 4. Row 1: 2, 0: place 2.
    assert ranks_of(scores, [1, 0])[:, 0, 0].tolist() == [4, 2]
    assert ranks_of(scores, [1, 3])[1, 0, 0] == 0


def test_all_text_weights_are_asked_with_all_decays() -> None:
    # History 0: by visits 1 leads 2; a text weight of 2 puts 2 first. 3 by text alone.
    text = sp.csr_matrix(np.array([[0, 0, 1.0, 0.5], *[[0.0] * 4] * 3]))
    visits = [[0.0, 2.0, 1.0, 0.0]]
    found = ranks_of(visits, [2], text=text, decays=[0.2, 0.9], text_weights=[0.0, 2.0])
    assert found.tolist() == [[[2, 1], [2, 1]]]
    found = ranks_of(visits, [3], text=text, text_weights=[0.0, 2.0, 8.0])
    assert found.tolist() == [[[0, 3, 2]]]


@pytest.mark.parametrize("decays", [[0.0], [0.0, 0.9], [1e-5, 0.9]])
def test_an_event_that_counts_for_nothing_reaches_an_item_once(decays) -> None:
    # Item 3 is reached by all of 300 events; the older ones' shares are 0 by decay.
    visits = sp.csr_matrix(np.array([[0, 1.0, 0.5, 2.0], *[[0.0] * 4] * 3]))
    ranks = target_ranks(
        (np.array([0, 300]), np.zeros(300, dtype=np.int32)),
        np.array([2], dtype=np.int32),
        np.array([5, 5, 9, 1]),
        (visits, sp.csr_matrix((4, 4))),
        decays=decays,
        text_weights=[0.0],
        score_history=300,
        filter_seen=False,
    )
    assert ranks[0, :, 0].tolist() == [3] * len(decays)


def test_a_row_leaves_nothing_to_the_next() -> None:
    alone = ranks_of([[0.0, 1.0, 0.0, 0.0]], [1])
    after = ranks_of([[9.0, 0.0, 9.0, 9.0], [0.0, 1.0, 0.0, 0.0]], [1, 1])
    assert after[1].tolist() == alone[0].tolist()


def test_seen_items_count_only_where_they_can_be_listed(make_split) -> None:
    # The last user's valid row: history 1, 3, target 2. Visits put 4 before 2. Text of
    # weight 2 lifts 2 over 4, and the seen item 1 over both.
    split = make_split(
        [[3, 4], [3, 4], [3, 2], [1, 3, 2, 0]],
        5,
        titles=["qux", "foo bar baz", "foo bar", "foo bar baz", "quux"],
        train_end=[2, 2, 2, 2],
    )
    grid = (("text_weight", (0.0, 2.0)),)
    hidden = choose_graph(split, GraphConfig(), filter_seen=True, grid=grid)
    listed = choose_graph(split, GraphConfig(), filter_seen=False, grid=grid)
    assert (hidden.text_weight, listed.text_weight) == (2.0, 0.0)
    # No valid target repeats here, so that hiding them is the default.
    assert choose_graph(split, GraphConfig(), grid=grid) == hidden


def test_repeat_share_counts_targets_of_their_own_history(make_split) -> None:
    # Valid targets: 1 (history [0]) and 3 (history [3]); the test items follow.
    split = make_split([[0, 1, 2], [3, 3, 4]], 5)
    assert repeat_share(split, split.valid) == 0.5


def test_a_log_without_valid_rows_needs_a_text_weight(make_split) -> None:
    split = make_split([[0, 1]], 2)
    with pytest.raises(ValueError, match="no valid rows to choose it by: set graph"):
        choose_graph(split, GraphConfig())
