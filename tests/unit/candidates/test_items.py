"""Negatives by hand, and what the settings and the folder refuse."""

import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from sgrec_torchrec.candidates.items import (
    SOURCES,
    Candidate,
    ItemPicker,
    limited,
    refuse_foreign,
)
from sgrec_torchrec.config import CandidatesConfig
from sgrec_torchrec.item_graph.graph import ItemGraph
from sgrec_torchrec.logs.split import load_split
from sgrec_torchrec.schema import EvalRows, SplitLog

SMALL = CandidatesConfig(hard=3, easy=3)
NOTHING = np.zeros((200, 0), dtype=np.int32)


@pytest.fixture(scope="module")
def split(finished_run: Path) -> SplitLog:
    return load_split(finished_run / "split")


@pytest.fixture(scope="module")
def graph(finished_run: Path) -> ItemGraph:
    return ItemGraph.load(finished_run / "graph")


@pytest.fixture(scope="module")
def prompts(split: SplitLog) -> EvalRows:
    """Of every user the newest train event."""
    sequences = split.sequences
    row_U = sequences.offsets_U1[:-1] + sequences.train_end_U - 1
    return EvalRows(
        user_E=np.arange(sequences.num_users),
        history_start_E=np.zeros(sequences.num_users, dtype=np.int32),
        history_end_E=sequences.train_end_U - np.int32(1),
        target_E=sequences.items_R[row_U],
        target_timestamp_E=sequences.timestamps_R[row_U],
    )


def picker_of(
    split: SplitLog,
    graph: ItemGraph,
    settings: CandidatesConfig,
    *,
    filter_seen: bool = True,
    seed: int = 0,
) -> ItemPicker:
    return ItemPicker(
        sequences=split.sequences,
        graph=graph,
        settings=settings,
        filter_seen=filter_seen,
        seed=seed,
    )


def graph_scores(graph: ItemGraph, history: list[int]) -> dict[int, float]:
    """sum over d of decay^d A[h_d, j], newest first, edge by edge."""
    scores: dict[int, float] = defaultdict(float)
    for distance, item in enumerate(reversed(history)):
        low, high = graph.indptr_N1[item], graph.indptr_N1[item + 1]
        for edge in range(low, high):
            other = int(graph.neighbours_E[edge])
            scores[other] += graph.decay**distance * float(graph.weights_E[edge])
    return scores


@pytest.mark.parametrize("filter_seen", [True, False])
def test_hard_negatives_are_the_graphs_best_of_what_is_left(
    split, graph, prompts, filter_seen: bool
) -> None:
    sequences = split.sequences
    picker = picker_of(split, graph, SMALL, filter_seen=filter_seen)
    # Every user's beam is items 0 and 1, the group of rollouts 1 and 2.
    beam_BW, rollout_BG = (
        np.tile(np.array([items], dtype=np.int32), (200, 1))
        for items in ((0, 1), (1, 2))
    )
    picked = picker.pick(prompts, np.arange(200), beam_BW, rollout_BG)
    for row, listed in enumerate(picked):
        first = sequences.offsets_U1[row]
        history = sequences.items_R[first : first + prompts.history_end_E[row]].tolist()
        barred = {0, 1, 2, int(prompts.target_E[row])}
        barred |= set(history) if filter_seen else set()
        scores = graph_scores(graph, history)
        left = {item: score for item, score in scores.items() if item not in barred}
        best = sorted(left.values(), reverse=True)[: SMALL.hard]
        hard = [one.item for one in listed if SOURCES[one.source] == "hard_negative"]
        assert len(hard) == len(set(hard)) == SMALL.hard
        np.testing.assert_allclose([left[item] for item in hard], best)


def test_an_item_is_listed_under_its_first_source_with_the_rank_in_it(
    split, graph, prompts
) -> None:
    picker = picker_of(split, graph, dataclasses.replace(SMALL, hard=0, easy=0))
    target = int(prompts.target_E[0])
    a, b, c = (item for item in range(4) if item != target)
    beam_BW, rollout_BG = (
        np.array([items], dtype=np.int32) for items in ([a, target, b], [b, c, a, -1])
    )
    (listed,) = picker.pick(
        prompts.take(np.array([0])), np.array([5]), beam_BW, rollout_BG
    )
    assert [(SOURCES[one.source], one.item, one.rank) for one in listed] == [
        ("next", target, -1),
        ("beam", a, 0),
        ("beam", b, 2),
        ("rollout", c, 1),
    ]


@pytest.mark.parametrize("filter_seen", [True, False])
def test_negatives_leave_out_later_and_seen_items(
    split, graph, prompts, filter_seen: bool
) -> None:
    # Two more events stand between the prompt and the end of the train period.
    sequences = split.sequences
    longer = dataclasses.replace(
        split,
        sequences=dataclasses.replace(
            sequences, train_end_U=sequences.train_end_U + np.int32(2)
        ),
    )
    settings = dataclasses.replace(SMALL, hard=20, easy=20)
    picker = picker_of(longer, graph, settings, filter_seen=filter_seen)
    picked = picker.pick(prompts, np.arange(200), NOTHING, NOTHING)
    num_seen = 0
    for row, listed in enumerate(picked):
        first, as_of = sequences.offsets_U1[row], int(prompts.history_end_E[row])
        events = sequences.items_R[first : first + as_of + 3].tolist()
        negatives = {one.item for one in listed if one.source >= 3}
        assert not negatives & set(events[as_of:])
        num_seen += len(negatives & set(events[:as_of]))
    assert (num_seen > 0) is not filter_seen


def test_easy_negatives_follow_popularity_and_the_seed(split, graph) -> None:
    def draws(seed: int) -> np.ndarray:
        picker = picker_of(split, graph, SMALL, seed=seed)
        return picker.easy_items(np.arange(200), 500)

    sequences = split.sequences
    row = sequences.events_until(sequences.train_end_U)[1]
    share_N = np.bincount(sequences.items_R[row], minlength=60) / len(row)
    got_N = np.bincount(draws(0).ravel(), minlength=60) / 100_000
    # Five standard deviations of a share of 100,000 draws.
    assert (np.abs(got_N - share_N) <= 5 * np.sqrt(share_N / 100_000)).all()
    assert (draws(0) == draws(0)).all()
    assert (draws(0) != draws(1)).any()


def test_limit_takes_from_the_sources_in_turn() -> None:
    listed = [Candidate(source, 0, source, -1) for source in range(5)]
    assert limited(listed, None) == listed
    assert limited(listed, 1) == listed[:1]
    more = [Candidate(1, place, 10 + place, place) for place in range(1, 4)]
    # The second of the beam comes only after the first of each source.
    assert limited(sorted([*listed, *more]), 5) == listed
    assert limited(sorted([*listed, *more]), 6) == sorted([*listed, more[0]])


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"candidates\.share = .*at most 1"):
        CandidatesConfig(share=share)


def test_other_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"candidates\.num_rollouts = 0"):
        CandidatesConfig(num_rollouts=0)
    with pytest.raises(ValueError, match=r"candidates\.max_users = 0"):
        CandidatesConfig(max_users=0)


def test_folder_of_other_files_is_not_replaced(tmp_path) -> None:
    refuse_foreign(tmp_path)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="holds other files, which would be lost"):
        refuse_foreign(tmp_path)
    with pytest.raises(ValueError, match="is a file: name a folder"):
        refuse_foreign(tmp_path / "mine.txt")
    (tmp_path / "candidates.parquet").touch()
    refuse_foreign(tmp_path)
