"""The graph's weights, scores and lists are the plain formulas; its file is safe."""

import dataclasses
import json

import numpy as np
import pytest

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.item_graph.graph import (
    ARRAYS,
    ItemGraph,
    build_graph,
    histories,
)
from sgrec_torchrec.item_graph.row_order import spans
from sgrec_torchrec.schema import SplitLog


def dense(graph: ItemGraph) -> np.ndarray:
    return graph.edges_from(np.arange(graph.num_items, dtype=np.int32)).toarray()


def graph_of_rows(rows: list[list[float]], popularity: list[int], **fields):
    matrix = np.array(rows, dtype=np.float32)
    settings = {"decay": 0.5, "score_history": 50, **fields}
    return ItemGraph(
        indptr_N1=np.concatenate([[0], np.cumsum((matrix > 0).sum(axis=1))]),
        neighbours_E=np.nonzero(matrix)[1].astype(np.int32),
        weights_E=matrix[matrix > 0],
        popularity_N=np.array(popularity),
        **settings,
    )


def slow_lists(
    graph: ItemGraph, split: SplitLog, k: int, filter_seen: bool
) -> list[list[int]]:
    weights = dense(graph).astype(np.float64)
    indptr, items = histories(split.sequences, split.test)
    lists = []
    for e in range(len(split.test)):
        history = items[indptr[e] : indptr[e + 1]].tolist()
        score = np.zeros(graph.num_items)
        for distance, item in enumerate(history[::-1][: graph.score_history]):
            score += graph.decay**distance * weights[item]
        allowed = set(range(graph.num_items)) - set(history if filter_seen else [])
        order = sorted(
            allowed, key=lambda j: (-round(score[j], 12), -graph.popularity_N[j], j)
        )
        lists.append((order + [-1] * k)[:k])
    return lists


def test_weights_are_covisits_plus_weighted_squared_similarity(make_split) -> None:
    titles = ["red pen", "red box", "blue"]
    split = make_split([[0, 1], [2, 0]], 3, titles=titles)
    graph = build_graph(split, GraphConfig(text_weight=2.0), "train")
    graph.validate()
    # Popularity 2, 1, 1. red: df 2, ln 1.5; pen, box: df 1, ln 3.
    cosine = np.log(1.5) ** 2 / (np.log(1.5) ** 2 + np.log(3) ** 2)
    expected = np.zeros((3, 3))
    expected[0, 1] = 1 / np.sqrt(3) + 2 * cosine**2
    expected[1, 0] = 0.3 / np.sqrt(2) + 2 * cosine**2
    expected[2, 0] = 1 / np.sqrt(2)
    expected[0, 2] = 0.3 / np.sqrt(3)
    np.testing.assert_allclose(dense(graph), expected, rtol=1e-6)


def test_at_most_max_neighbours_per_item_are_kept_sorted(random_split) -> None:
    config = GraphConfig(text_weight=1.0, max_neighbours=4)
    graph = build_graph(random_split, config, "train")
    graph.validate()
    assert np.diff(graph.indptr_N1).max() == 4


def test_the_fitted_period_decides_what_is_learned(make_split) -> None:
    split = make_split([[0, 1, 2]], 3, train_end=[2])
    config = GraphConfig(text_weight=0.0)
    assert build_graph(split, config, "train").popularity_N.tolist() == [1, 1, 0]
    assert len(build_graph(split, config, "train+valid").neighbours_E) == 6


def test_text_weight_must_be_chosen_before_building(random_split) -> None:
    with pytest.raises(ValueError, match="text_weight is None: set it, or let choose"):
        build_graph(random_split, GraphConfig(), "train")


def test_score_sums_decayed_rows_newest_first() -> None:
    graph = graph_of_rows([[0, 4, 0], [0, 0, 2], [1, 0, 0]], [1, 1, 1])
    # Oldest first [0, 1, 0]: item 1 has 4 (1 + .25) = 5, item 2 has .5 * 2 = 1.
    scores = graph.score(np.array([0, 3, 3]), np.array([0, 1, 0], dtype=np.int32))
    np.testing.assert_allclose(scores.toarray(), [[0, 5, 1], [0, 0, 0]])


def test_score_takes_only_the_newest_events() -> None:
    graph = graph_of_rows([[0, 4], [2, 0]], [1, 1], score_history=1)
    scores = graph.score(np.array([0, 2]), np.array([0, 1], dtype=np.int32))
    np.testing.assert_allclose(scores.toarray(), [[2, 0]])


@pytest.mark.parametrize("filter_seen", [False, True])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_lists_equal_a_full_sort_of_the_catalogue(random_split, k, filter_seen) -> None:
    config = GraphConfig(text_weight=0.3, score_history=8, max_neighbours=6)
    graph = build_graph(random_split, config, "train")
    found = graph.top_items(
        random_split.sequences, random_split.test, k, filter_seen=filter_seen
    )
    assert found.dtype == np.int32
    assert found.tolist() == slow_lists(graph, random_split, k, filter_seen)


def test_batches_do_not_change_lists(random_split, monkeypatch) -> None:
    graph = build_graph(random_split, GraphConfig(text_weight=0.3), "train")
    arguments = (random_split.sequences, random_split.test, 7, True)
    whole = graph.top_items(*arguments)
    monkeypatch.setattr("sgrec_torchrec.item_graph.graph.BATCH_ROWS", 3)
    np.testing.assert_array_equal(graph.top_items(*arguments), whole)


def test_unreached_items_rank_by_popularity_then_index(make_split) -> None:
    split = make_split([[0, 0]], 4)
    graph = graph_of_rows([[0, 0, 0, 0.1]] + [[0] * 4] * 3, [5, 7, 7, 1])
    found = graph.top_items(split.sequences, split.test, 4, filter_seen=False)
    assert found.tolist() == [[3, 1, 2, 0]]
    found = graph.top_items(split.sequences, split.test, 4, filter_seen=True)
    assert found.tolist() == [[3, 1, 2, -1]]


def test_a_log_of_another_size_is_refused(make_split, random_split) -> None:
    graph = build_graph(make_split([[0, 1]], 2), GraphConfig(text_weight=0.0), "train")
    with pytest.raises(ValueError, match="the log has 23 items, the graph 2"):
        graph.top_items(random_split.sequences, random_split.test, 3, filter_seen=False)


def test_saved_graph_comes_back_with_its_settings(random_split, tmp_path) -> None:
    config = GraphConfig(text_weight=0.5, decay=0.9, score_history=4)
    graph = build_graph(random_split, config, "train", tmp_path / "graph")
    loaded = ItemGraph.load(tmp_path / "graph")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(graph, name))
    assert (loaded.decay, loaded.score_history) == (0.9, 4)
    manifest = json.loads((tmp_path / "graph" / "graph.json").read_text())
    assert manifest["made_from"]["text_weight"] == 0.5
    assert manifest["made_from"]["fit_on"] == "train"


def test_building_twice_writes_the_same_bytes(random_split, tmp_path) -> None:
    config = GraphConfig(text_weight=0.5)
    for name in ("a", "b"):
        build_graph(random_split, config, "train", tmp_path / name)
    for name in ("graph.json", *(f"{array}.npy" for array in ARRAYS)):
        first, second = tmp_path / "a" / name, tmp_path / "b" / name
        assert first.read_bytes() == second.read_bytes()


def test_absent_and_damaged_files_are_named(random_split, tmp_path) -> None:
    folder = tmp_path / "graph"
    with pytest.raises(FileNotFoundError, match=r"graph.json is missing: build"):
        ItemGraph.load(folder)
    build_graph(random_split, GraphConfig(text_weight=0.5), "train", folder)
    path = folder / "weights_E.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights_E.npy is damaged"):
        ItemGraph.load(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"weights_E.npy is missing"):
        ItemGraph.load(folder)
    (folder / "graph.json").write_text("{")
    with pytest.raises(ValueError, match=r"graph.json is damaged"):
        ItemGraph.load(folder)
    (folder / "graph.json").write_text(
        '{"format_version": 0, "decay": 1, "score_history": 1, "sha256": {}}'
    )
    with pytest.raises(ValueError, match=r"format_version 0, this program reads 2"):
        ItemGraph.load(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("indptr_N1", np.array([0, 3, 2, 4]), "must start at 0 and never fall"),
        ("indptr_N1", np.array([0, 1, 2, 3]), "indptr_N1 ends at 3"),
        ("neighbours_E", np.array([1, 2, 0, 3], np.int32), r"\[3\] is outside \[0, 3"),
        ("neighbours_E", np.array([2, 1, 0, 0], np.int32), r"\[0\] is not smaller"),
        ("weights_E", np.array([1, 1, 0, 1], np.float32), r"\[2\] is not > 0"),
        ("weights_E", np.ones(4), "weights_E is float64, not float32"),
        ("popularity_N", np.array([1]), "popularity_N has 1 items, indptr_N1 3"),
    ],
)
def test_a_broken_graph_is_refused(field, value, message) -> None:
    graph = graph_of_rows([[0, 1, 1], [1, 0, 0], [1, 0, 0]], [1, 1, 1])
    graph.validate()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(graph, **{field: value}).validate()


def test_a_broken_graph_is_refused_on_load(tmp_path) -> None:
    graph = graph_of_rows([[0, 4], [2, 0]], [1, 1])
    dataclasses.replace(graph, weights_E=-graph.weights_E).save(tmp_path / "graph")
    with pytest.raises(ValueError, match=r"weights_E\[0\] .*is not > 0"):
        ItemGraph.load(tmp_path / "graph")


def test_spans_lists_ranges_end_to_end() -> None:
    assert spans(np.array([5, 9, 0]), np.array([7, 9, 2])).tolist() == [5, 6, 0, 1]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_graph_is_checked_part_by_part(monkeypatch, size: int) -> None:
    monkeypatch.setattr("sgrec_torchrec.item_graph.graph.BLOCK_ENTRIES", size)
    rows = [[0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]]
    graph = graph_of_rows(rows, [1] * 4)
    graph.validate()
    neighbours = graph.neighbours_E
    for edge in range(len(neighbours)):
        wrong = neighbours.copy()
        wrong[edge] = 4
        with pytest.raises(ValueError, match=rf"neighbours_E\[{edge}\] is outside"):
            dataclasses.replace(graph, neighbours_E=wrong).validate()
        weights = graph.weights_E.copy()
        weights[edge] = 0
        with pytest.raises(ValueError, match=rf"weights_E\[{edge}\] is not > 0"):
            dataclasses.replace(graph, weights_E=weights).validate()
        wrong = neighbours.copy()
        wrong[edge - 1 : edge + 1] = wrong[edge]
        starts = edge in graph.indptr_N1
        if edge and not starts:
            said = rf"neighbours_E\[{edge - 1}\] is not smaller"
            with pytest.raises(ValueError, match=said):
                dataclasses.replace(graph, neighbours_E=wrong).validate()


@pytest.mark.parametrize("block_entries", [1, 40, 1 << 20])
def test_the_graph_does_not_depend_on_ranges_or_files(
    random_split, monkeypatch, tmp_path, block_entries: int
) -> None:
    config = GraphConfig(text_weight=0.5, max_neighbours=7)
    expected = build_graph(random_split, config, "train")
    monkeypatch.setattr("sgrec_torchrec.item_graph.graph.BLOCK_ENTRIES", block_entries)
    found = build_graph(random_split, config, "train", tmp_path / "runs" / "graph")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["graph"]
    assert not isinstance(expected.weights_E, np.memmap)
