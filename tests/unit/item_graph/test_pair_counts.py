"""Pairs are counted once: no cut, order or fold changes a bit; damage is refused."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.item_graph import pair_runs
from sgrec_torchrec.item_graph.covisitation import covisitation_edges
from sgrec_torchrec.item_graph.pair_counts import MANIFEST, PairCounts, count_pairs
from sgrec_torchrec.item_graph.pair_layout import Layout
from sgrec_torchrec.item_graph.pair_runs import item_ranges, join_runs
from sgrec_torchrec.schema import Sequences

FORMS = (
    GraphConfig(max_neighbours=5),
    GraphConfig(max_distance=3, distance_exponent=0.0, backward_weight=1.0),
)


@pytest.fixture
def log(make_split) -> Sequences:
    """30 users, 15 items, about every third event of the basket before."""
    generator = np.random.default_rng(8)
    lengths = generator.integers(0, 30, 30)
    sequences: Sequences = make_split(
        [generator.integers(0, 15, n).tolist() for n in lengths],
        15,
        timestamps=[np.cumsum(generator.random(n) < 0.7).tolist() for n in lengths],
    ).sequences
    return sequences


def counted(
    sequences: Sequences, folder: Path, end_U: np.ndarray | None = None, **settings
) -> PairCounts:
    end_U = sequences.train_end_U if end_U is None else end_U
    return count_pairs(sequences, end_U, folder, max_distance=5, **settings)


def words(counts: PairCounts) -> np.ndarray:
    """Word and number of all pairs, [W, 2]."""
    runs = [np.stack(run, axis=1) for _, _, run in counts.blocks()]
    return np.concatenate(runs)


@pytest.mark.parametrize("max_pairs", [1, 50, 700, 10**9])
@pytest.mark.parametrize("group_rows", [7, 1 << 24])
def test_runs_and_ranges_change_nothing(
    log, tmp_path, monkeypatch: pytest.MonkeyPatch, max_pairs: int, group_rows: int
) -> None:
    whole = counted(log, tmp_path / "whole")
    monkeypatch.setattr(pair_runs, "GROUP_ROWS", group_rows)
    cut = counted(log, tmp_path / "cut", max_pairs=max_pairs)
    np.testing.assert_array_equal(words(cut), words(whole))
    for ours, theirs in zip(
        covisitation_edges(cut, FORMS), covisitation_edges(whole, FORMS), strict=True
    ):
        for name in ("indptr", "indices", "data"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    spans = list(cut.ranges)
    assert spans[0][0] == 0
    assert spans[-1][1] == 15
    assert all(one[1] == two[0] for one, two in pairwise(spans))


def test_a_word_stands_once_and_its_number_beside(make_split, tmp_path) -> None:
    # 0 then 1, three times by users of one fold, once by one of the other.
    sequences = make_split([[0, 1]] * 4, 2).sequences
    fold_U = np.array([0, 0, 1, 0])
    counts = counted(sequences, tmp_path / "pairs", fold_U=fold_U, num_folds=2)
    found = words(counts)
    assert sorted(found[:, 1].tolist()) == [1, 1, 3, 3]
    assert (np.diff(found[:, 0].astype(np.int64)) > 0).all()


def test_a_fold_that_is_left_out_was_never_there(log, tmp_path) -> None:
    fold_U = np.arange(log.num_users) % 3
    counts = counted(log, tmp_path / "pairs", fold_U=fold_U, num_folds=3)
    for fold in range(3):
        end_U = np.where(fold_U == fold, 0, log.train_end_U).astype(np.int32)
        others = counted(log, tmp_path / f"without-{fold}", end_U)
        np.testing.assert_array_equal(counts.popularity(fold), others.popularity())
        for ours, theirs in zip(
            covisitation_edges(counts, FORMS, without=fold),
            covisitation_edges(others, FORMS),
            strict=True,
        ):
            assert ours.nnz > 0
            np.testing.assert_array_equal(ours.toarray(), theirs.toarray())


def test_the_heaviest_stay_and_of_equal_ones_the_smaller_items(
    make_split, tmp_path
) -> None:
    # From 0: thrice to 4, twice to 3, once each to 1 and 2.
    users = [[0, 4]] * 3 + [[0, 3]] * 2 + [[0, 2], [0, 1]]
    counts = counted(make_split(users, 5).sequences, tmp_path / "pairs")
    plain = {"row_exponent": 0.0, "backward_weight": 0.0}
    form = GraphConfig(max_neighbours=3, **plain)  # type: ignore[arg-type]
    (edges,) = covisitation_edges(counts, [form])
    assert edges.indices.tolist() == [1, 3, 4]
    assert edges.data.tolist() == [1.0, 2.0, 3.0]


def test_recent_events_are_the_newest_fifth_of_the_whole_period(
    make_split, tmp_path
) -> None:
    # Seconds 0 to 9; the quantile .8 is 7.2: 8 and 9 are recent, one in each fold.
    sequences = make_split(
        [[0, 1, 2, 0, 1], [2, 0, 3, 3, 1]],
        4,
        timestamps=[[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]],
    ).sequences
    counts = counted(
        sequences, tmp_path / "pairs", fold_U=np.array([0, 1]), num_folds=2
    )
    assert counts.recent().tolist() == [0, 2, 0, 0]
    assert counts.recent(0).tolist() == counts.recent(1).tolist() == [0, 1, 0, 0]
    assert counts.popularity(0).tolist() == [1, 1, 1, 2]


def test_what_is_written_is_read_again(log, tmp_path) -> None:
    made = counted(log, tmp_path / "pairs")
    read = PairCounts.load(tmp_path / "pairs")
    assert (read.layout, read.ranges) == (made.layout, made.ranges)
    np.testing.assert_array_equal(words(read), words(made))
    assert not [path for path in tmp_path.iterdir() if path.name != "pairs"]
    assert len(list((tmp_path / "pairs").iterdir())) == 4


@pytest.mark.parametrize(
    "name", ["covisits-00000.parquet", "popularity_FN.npy", MANIFEST]
)
def test_a_flipped_bit_is_refused_by_name(log, tmp_path, name: str) -> None:
    counted(log, tmp_path / "pairs")
    path = tmp_path / "pairs" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.* damaged"):
        PairCounts.load(tmp_path / "pairs")


def test_a_log_without_pairs_has_no_row(make_split, tmp_path) -> None:
    counts = counted(make_split([[], [1]], 3).sequences, tmp_path / "pairs")
    assert counts.popularity().tolist() == [0, 1, 0]
    (edges,) = covisitation_edges(counts, FORMS[:1])
    assert edges.shape == (3, 3)
    assert edges.nnz == 0


def test_words_of_too_many_items_are_refused_by_the_setting() -> None:
    Layout(num_items=1 << 27, num_folds=5, max_distance=20)
    with pytest.raises(ValueError, match="take 65 bits, more than 64: lower graph"):
        Layout(num_items=1 << 28, num_folds=5, max_distance=20)


def test_weights_under_a_unit_are_refused_and_no_edge_weighs_nothing(
    log, tmp_path
) -> None:
    counts = counted(log, tmp_path / "pairs")
    light = GraphConfig(forward_weight=4e-7, backward_weight=0.0)
    with pytest.raises(ValueError, match="weights under 1e-06 count as nothing"):
        covisitation_edges(counts, [light])
    assert covisitation_edges(counts, [replace(light, forward_weight=0.0)])[0].nnz == 0


def test_edges_that_are_damped_to_nothing_are_none(make_split, tmp_path) -> None:
    # Popularities of 11 and 1: 12^-10 stays, its product with 12^-300 does not.
    users = [[0, 1], *[[0]] * 10]
    counts = counted(make_split(users, 2).sequences, tmp_path / "pairs")
    object.__setattr__(counts, "popularity_FN", np.full((1, 2), 1e40))
    form = GraphConfig(row_exponent=9.0, column_exponent=9.0)
    assert covisitation_edges(counts, [form])[0].nnz == 0


def test_any_number_of_runs_holds_few_files(
    log, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def spy(runs, *arguments):
        opened.append((len(runs), len(list(Path("/proc/self/fd").iterdir()))))
        return join_runs(runs, *arguments)

    monkeypatch.setattr("sgrec_torchrec.item_graph.pair_counts.join_runs", spy)
    counted(log, tmp_path / "few")
    counted(log, tmp_path / "many", max_pairs=1)
    (few, fewest), (many, most) = opened
    assert few == 1
    assert many > 20
    assert most <= fewest + 2


def test_a_form_that_reaches_farther_than_the_counts_is_refused(log, tmp_path) -> None:
    counts = counted(log, tmp_path / "pairs")
    with pytest.raises(ValueError, match="counted up to distance 5, not 6"):
        covisitation_edges(counts, [GraphConfig(max_distance=6)])


def test_item_ranges_hold_the_bound_or_a_single_item() -> None:
    # 4 + 4 fit in 9; 20 alone; 1 + 8 fit; the empty item goes with its neighbours.
    pairs_N = np.array([4, 4, 20, 1, 0, 8])
    assert item_ranges(pairs_N, 9) == [(0, 2), (2, 3), (3, 6)]
