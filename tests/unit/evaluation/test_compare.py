"""Paired tests refuse other rows, know equal runs, and see real differences."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.evaluation.compare import (
    compare,
    compare_seeds,
    hits_path,
    read_hits,
    render,
    sign_flip_p_values,
    write_hits,
)
from sgrec_torchrec.schema import Catalogue, EvalRows, SplitLog

NUM_ROWS = 300


def write(path, rank_E, **changes) -> None:
    """A hits file: 100 users of 3 rows each."""
    columns = {
        "user_id": [f"u{row // 3}" for row in range(len(rank_E))],
        "row": np.arange(len(rank_E)),
        "target_item_id": [f"i{row % 7}" for row in range(len(rank_E))],
        "rank": np.asarray(rank_E, dtype=np.int32),
        **changes,
    }
    pq.write_table(pa.table(columns), path, write_page_checksum=True)


@pytest.fixture
def ranks() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 30, size=NUM_ROWS)


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "a.parquet", tmp_path / "b.parquet"


def test_equal_runs_have_no_difference_and_p_one(paths, ranks) -> None:
    for path in paths:
        write(path, ranks)
    found = compare(*paths, num_sign_flips=200)
    assert (found.num_rows, found.num_users) == (NUM_ROWS, 100)
    for line in found.differences:
        assert (line.difference, line.low, line.high, line.p_value) == (0, 0, 0, 1)


def test_difference_is_b_minus_a_with_an_interval_and_small_p(paths, ranks) -> None:
    write(paths[0], ranks)
    better = np.where(np.arange(NUM_ROWS) % 3 == 0, 1, ranks)
    write(paths[1], better)
    found = {line.metric: line for line in compare(*paths).differences}
    line = found["HR@10"]
    hits_a = ((ranks > 0) & (ranks <= 10)).mean()
    hits_b = ((better > 0) & (better <= 10)).mean()
    assert line.difference == pytest.approx(hits_b - hits_a)
    assert (line.value_a, line.value_b) == pytest.approx((hits_a, hits_b))
    assert 0 < line.low < line.difference < line.high
    assert line.p_value < 0.001
    back = {line.metric: line for line in compare(*reversed(paths)).differences}
    assert back["HR@10"].difference == -line.difference
    assert back["HR@10"].high < 0


def test_noise_alone_is_not_significant(paths) -> None:
    generator = np.random.default_rng(4)
    for path in paths:
        write(path, generator.integers(0, 30, size=NUM_ROWS))
    found = {line.metric: line for line in compare(*paths).differences}
    assert found["HR@10"].low < 0 < found["HR@10"].high
    assert found["HR@10"].p_value > 0.05


def test_p_value_is_that_of_all_sign_patterns() -> None:
    sums = np.array([3.0, -1.0, 2.0, 2.0, 0.0, 1.0, -2.0, 4.0])
    patterns = np.array(list(itertools.product([-1, 1], repeat=len(sums))))
    exact = (np.abs(patterns @ sums) >= abs(sums.sum()) - 1e-9).mean()
    found = sign_flip_p_values(sums[:, None], seed=0, num_flips=40_000)
    assert found[0] == pytest.approx(exact, abs=0.01)


def test_p_value_counts_the_observed_signs_and_so_is_never_zero(paths) -> None:
    # 100 users gain alike: of 9 flips none is as extreme, and p is (1 + 0) / (1 + 9).
    write(paths[0], np.zeros(NUM_ROWS))
    write(paths[1], np.ones(NUM_ROWS))
    for line in compare(*paths, num_sign_flips=9).differences:
        assert line.p_value == pytest.approx(0.1)


def test_users_not_rows_are_the_unit(paths) -> None:
    # One user gains in all of 30 rows: a test over rows would call it significant.
    ranks = np.zeros(60, dtype=np.int32)
    user = ["u0"] * 30 + [f"u{n}" for n in range(1, 31)]
    write(paths[0], ranks, user_id=user)
    write(paths[1], np.where(np.arange(60) < 30, 1, 0), user_id=user)
    line = compare(*paths).differences[0]
    assert line.difference == 0.5
    assert line.p_value == 1.0


def test_rendered_table_holds_every_metric(paths, ranks, capsys) -> None:
    write(paths[0], ranks)
    write(paths[1], ranks[::-1])
    found = compare(*paths, num_sign_flips=50)
    render(found)
    shown = capsys.readouterr().out
    for line in found.differences:
        assert line.metric in shown
        assert f"{line.value_a:.4f}" in shown


def test_each_system_has_a_file_name_without_blanks(tmp_path) -> None:
    names = {hits_path(tmp_path, system).name for system in ("item graph", "generator")}
    assert len(names) == 2
    assert not any(" " in name for name in names)


def test_same_seed_same_figures(paths, ranks) -> None:
    write(paths[0], ranks)
    write(paths[1], ranks[::-1])
    assert compare(*paths, seed=5) == compare(*paths, seed=5)
    assert compare(*paths, seed=5) != compare(*paths, seed=6)


def test_order_of_rows_in_the_file_does_not_matter(paths, ranks) -> None:
    write(paths[0], ranks)
    write(paths[1], ranks)
    table = pq.read_table(paths[1])
    pq.write_table(table.take(list(range(NUM_ROWS))[::-1]), paths[1])
    assert compare(*paths, num_sign_flips=50).differences[0].difference == 0


@pytest.mark.parametrize(
    ("changes", "length", "message"),
    [
        ({"row": np.arange(NUM_ROWS) + (np.arange(NUM_ROWS) > 4)}, NUM_ROWS,
         r"row 5 \(user u1, target i5\) against row 6 \(user u1, target i5\)"),
        ({"user_id": ["u0"] * 9 + ["x"] * (NUM_ROWS - 9)}, NUM_ROWS,
         r"row 3 \(user u1, target i3\) against row 3 \(user u0, target i3\)"),
        ({"target_item_id": ["i0"] * NUM_ROWS}, NUM_ROWS,
         r"row 1 \(user u0, target i1\) against row 1 \(user u0, target i0\)"),
        ({}, NUM_ROWS - 2, r"row 298 \(user u99, target i4\) against no further row"),
    ],
)  # fmt: skip
def test_runs_of_other_rows_are_refused(paths, ranks, changes, length, message) -> None:
    write(paths[0], ranks)
    write(paths[1], ranks[:length], **changes)
    with pytest.raises(ValueError, match=message):
        compare(*paths)


def test_empty_runs_are_refused(paths) -> None:
    for path in paths:
        empty = np.empty(0, dtype=np.int32)
        write(path, empty, user_id=pa.array([], pa.string()),
              target_item_id=pa.array([], pa.string()))  # fmt: skip
    with pytest.raises(ValueError, match=r"a.parquet has no rows"):
        compare(*paths)


def split_of_two() -> SplitLog:
    rows = EvalRows(
        user_E=np.array([1, 0]),
        history_start_E=np.zeros(2, dtype=np.int32),
        history_end_E=np.ones(2, dtype=np.int32),
        target_E=np.array([2, 0], dtype=np.int32),
        target_timestamp_E=np.zeros(2, dtype=np.int64),
    )
    names = ["x", "y", "z"]
    catalogue = Catalogue(
        item_ids=names, titles=names, brands=names, categories=names, texts=names,
        embedding_ND=None, sid_NL=None,
    )  # fmt: skip
    return SplitLog(
        sequences=None, valid=rows, test=rows, catalogue=catalogue,  # type: ignore[arg-type]
        user_ids=["anna", "ben"], protocol="given",
    )  # fmt: skip


def test_hits_come_back_with_the_logs_own_ids(tmp_path) -> None:
    split = split_of_two()
    path = tmp_path / "hits.parquet"
    write_hits(path, split, split.test, np.array([8, 3]), np.array([0, 4], np.int32))
    found = read_hits(path)
    assert found.row_E.tolist() == [3, 8]
    assert found.user_id_E.tolist() == ["anna", "ben"]
    assert found.target_item_id_E.tolist() == ["x", "z"]
    assert found.rank_E.tolist() == [4, 0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["hits.parquet"]


def test_hits_of_unequal_lengths_are_refused(tmp_path) -> None:
    split = split_of_two()
    with pytest.raises(ValueError, match="2 rows, 2 row numbers and 1 ranks"):
        write_hits(
            tmp_path / "x", split, split.test, np.arange(2), np.ones(1, np.int32)
        )
    assert not list(tmp_path.iterdir())


def test_flipped_bits_of_a_page_are_found(paths, ranks) -> None:
    write(paths[0], ranks)
    chunk = pq.ParquetFile(paths[0]).metadata.row_group(0).column(3)
    content = bytearray(paths[0].read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 4
    paths[0].write_bytes(content)
    with pytest.raises(ValueError, match=r"a.parquet is damaged"):
        read_hits(paths[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": ["1"] * NUM_ROWS}, "column rank is string, not int32"),
        ({"user_id": [None] * NUM_ROWS}, "column user_id is null, not string"),
        ({"rank": pa.array([None] * NUM_ROWS, pa.int32())}, "column rank has nulls"),
        ({"row": np.zeros(NUM_ROWS, dtype=np.int64)}, "row 0 occurs twice"),
        ({"rank": np.full(NUM_ROWS, -1, np.int32)}, "row 0 has a negative rank"),
    ],
)
def test_wrong_columns_are_named(paths, ranks, changes, message) -> None:
    write(paths[0], ranks, **changes)
    with pytest.raises(ValueError, match=message):
        read_hits(paths[0])


def test_absent_columns_and_files_are_named(paths) -> None:
    with pytest.raises(FileNotFoundError, match=r"a.parquet is missing: evaluate"):
        read_hits(paths[0])
    pq.write_table(pa.table({"user_id": ["x"]}), paths[0])
    with pytest.raises(ValueError, match="column row is absent, not int64"):
        read_hits(paths[0])
    paths[0].write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match="is damaged"):
        read_hits(paths[0])


def test_seeds_are_averaged_row_by_row_and_then_over_rows(tmp_path) -> None:
    # Ranks of two rows, of one user each; A has two runs, B three.
    runs_a, runs_b = [[1, 0], [2, 4]], [[1, 1], [1, 0], [3, 1]]
    paths = {"a": [], "b": []}
    for name, runs in (("a", runs_a), ("b", runs_b)):
        for nth, ranks in enumerate(runs):
            paths[name].append(tmp_path / f"{name}{nth}.parquet")
            write(paths[name][-1], ranks, user_id=["anna", "ben"])
    found = compare_seeds(
        paths["a"], paths["b"], ks=(1, 3), num_bootstrap=500, num_sign_flips=200
    )
    assert (found.num_rows, found.num_users) == (2, 2)
    lines = {line.metric: line for line in found.differences}
    # HR@1: A's rows have 1/2 (rank 1, then 2) and 0; B's 2/3 and 2/3.
    line = lines["HR@1"]
    assert line.value_a == pytest.approx((1 / 2 + 0) / 2)
    assert line.value_b == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert line.difference == pytest.approx(2 / 3 - 1 / 4)
    # Users gain 1/6 and 2/3: no resample goes beyond either.
    assert (line.low, line.high) == pytest.approx((1 / 6, 2 / 3))
    # NDCG@3: 1 at rank 1, 1 / log2(3) at 2, 1 / 2 at 3, and 0 at 4 or not found.
    second = 1 / np.log2(3)
    line = lines["NDCG@3"]
    assert line.value_a == pytest.approx(((1 + second) / 2 + 0) / 2)
    assert line.value_b == pytest.approx(((1 + 1 + 1 / 2) / 3 + (1 + 0 + 1) / 3) / 2)


def test_one_run_each_is_the_plain_comparison(paths, ranks) -> None:
    write(paths[0], ranks)
    write(paths[1], ranks[::-1])
    counts = {"seed": 3, "num_bootstrap": 50, "num_sign_flips": 50}
    one, other = ([path] for path in paths)
    assert compare_seeds(one, other, **counts) == compare(*paths, **counts)


def test_a_run_twice_says_no_more_than_once(paths, ranks) -> None:
    write(paths[0], ranks)
    write(paths[1], ranks[::-1])
    once = compare(*paths, num_sign_flips=50)
    twice = compare_seeds([paths[0]] * 2, [paths[1]] * 4, num_sign_flips=50)
    for one, two in zip(once.differences, twice.differences, strict=True):
        assert two.p_value == one.p_value
        for name in ("value_a", "value_b", "difference", "low", "high"):
            assert getattr(two, name) == pytest.approx(getattr(one, name))


@pytest.mark.parametrize("odd", ["a1", "b0", "b1"])
def test_every_run_must_be_of_the_same_rows(tmp_path, ranks, odd) -> None:
    paths = {name: tmp_path / f"{name}.parquet" for name in ("a0", "a1", "b0", "b1")}
    for name, path in paths.items():
        users = ["x"] * NUM_ROWS if name == odd else None
        write(path, ranks, **({"user_id": users} if users else {}))
    both = ([paths["a0"], paths["a1"]], [paths["b0"], paths["b1"]])
    message = rf"a0\.parquet and .*{odd}\.parquet are not of the same rows"
    with pytest.raises(ValueError, match=message):
        compare_seeds(*both)
    paths[odd].unlink()
    with pytest.raises(FileNotFoundError, match=rf"{odd}\.parquet is missing"):
        compare_seeds(*both)
