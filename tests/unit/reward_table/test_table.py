"""Questions to a table: kinds of input and output, rows of all lengths, processes."""

import multiprocessing
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_torchrec.reward_table import RewardTable, build_reward_table
from sgrec_torchrec.reward_table.lookup import BLOCK, SHORT_ROW, search
from sgrec_torchrec.reward_table.row_layout import pack_rows


@pytest.fixture
def small(write_pairs, tmp_path: Path) -> RewardTable:
    """Users 1 and 2, three pairs, judged after 4 and 5 events."""
    file = write_pairs(
        [(1, 10, 0.0), (1, 20, 1.0), (2, 10, 0.5)],
        aspect_a=[0.0, 0.5, 1.0],
        as_of=[4, 4, 5],
        history_hash=pa.array([3, 3, 2**64 - 1], pa.uint64()),
    )
    build_reward_table(file, tmp_path / "table")
    return RewardTable.open(tmp_path / "table")


def test_a_missing_pair_is_nan_and_not_found(small: RewardTable) -> None:
    rewards, found = small.lookup([1, 1, 2, 3, 1], [10, 20, 20, 10, 30])
    assert found.tolist() == [True, True, False, False, False]
    np.testing.assert_array_equal(rewards, [0.0, 1.0, np.nan, np.nan, np.nan])
    assert rewards.dtype == np.float32


def test_tensors_are_answered_by_tensors(small: RewardTable) -> None:
    users, items = torch.tensor([1, 2]), torch.tensor([20, 20])
    rewards, found, aspects = small.lookup(users, items, aspects=True)
    assert (rewards.dtype, found.dtype) == (torch.float32, torch.bool)
    assert found.tolist() == [True, False]
    assert rewards[0] == 1.0
    assert aspects.shape == (2, 1)
    assert aspects[0, 0] == pytest.approx(0.5, abs=1e-5)
    assert torch.isnan(aspects[1, 0])
    position, history_hash, is_user = small.as_of(torch.tensor([2, 7]))
    assert position.tolist() == [5, -1]
    assert history_hash.tolist() == [-1, 0]
    assert history_hash.dtype == torch.int64
    assert is_user.tolist() == [True, False]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_any_integers_may_ask(small: RewardTable, dtype) -> None:
    users, items = np.array([1, 2], dtype), np.array([20, 10], dtype)
    assert small.lookup(users, items)[1].all()
    both = np.stack([users, items], axis=1)
    assert small.lookup(both[:, 0], both[:, 1])[1].all()


def test_no_question_has_an_empty_answer(small: RewardTable) -> None:
    for none in ([], np.zeros(0, np.int64), torch.zeros(0, dtype=torch.int64)):
        rewards, found, aspects = small.lookup(none, none, aspects=True)
        assert (len(rewards), len(found), aspects.shape) == (0, 0, (0, 1))
        assert all(len(answer) == 0 for answer in small.as_of(none))


def test_as_of_gives_the_judged_prefix(small: RewardTable) -> None:
    position, history_hash, found = small.as_of([2, 1, 9])
    assert position.tolist() == [5, 4, -1]
    assert history_hash.tolist() == [2**64 - 1, 3, 0]
    assert history_hash.dtype == np.uint64
    assert found.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("users", "items", "match"),
    [
        ([1, 2], [10], r"2 user_ids, 1 item_ids: give one item a user"),
        (
            np.array([1 << 63], np.uint64),
            [10],
            r"user_ids\[0\] = 9223372036854775808 is beyond int64",
        ),
        ([1.5], [10], r"user_ids are float64 of shape \(1,\), the table's are int64"),
        ([1], np.array([[10]]), r"item_ids are int64 of shape \(1, 1\)"),
        (["a"], [10], r"user_ids are <U1 of shape"),
        (torch.tensor([True]), [10], r"user_ids are bool of shape"),
        (torch.zeros(1, device="meta"), [1], r"are on meta: ask table.to\('meta'\)"),
    ],
)
def test_a_wrong_question_is_named(small: RewardTable, users, items, match) -> None:
    with pytest.raises(ValueError, match=match):
        small.lookup(users, items)


def test_a_table_of_integers_knows_them_as_a_log_writes_them(
    small: RewardTable,
) -> None:
    users, items = [1, 2, 9], [10, 11, 10]
    expected = small.lookup(users, items)
    got = small.lookup([str(one) for one in users], [str(one) for one in items])
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_array_equal(one, other)
    assert expected[1].any()
    small.check_ids(["1", "-7"], ["10"])


@pytest.mark.parametrize("odd", ["u7", "", "07", "+7", " 7", "1_0", "7.0", "9" * 30])
def test_a_string_that_is_no_integer_is_named(small: RewardTable, odd: str) -> None:
    message = re.escape(f"and {odd!r} is no such number")
    with pytest.raises(ValueError, match=message):
        small.lookup(["1", odd], ["10", "10"])
    with pytest.raises(ValueError, match=f"item_ids are .*{message}"):
        small.check_ids(["1"], ["10", odd])


def test_a_table_of_strings_wants_strings(write_pairs, tmp_path: Path) -> None:
    build_reward_table(write_pairs([("a", "x", 0.5)]), tmp_path / "table")
    table = RewardTable.open(tmp_path / "table")
    with pytest.raises(ValueError, match="user_ids are int64, the table's are strings"):
        table.lookup(np.array([1]), ["x"])
    with pytest.raises(ValueError, match="user_ids are no strings, the table's are"):
        table.lookup([1], ["x"])
    with pytest.raises(ValueError, match="item_ids hold a null: ask for strings only"):
        table.lookup(["a"], [None])
    with pytest.raises(ValueError, match="has no aspects: build it from a file with"):
        table.lookup(["a"], ["x"], aspects=True)
    with pytest.raises(ValueError, match="has no as_of: build it from a file with"):
        table.as_of(["a"])


def test_info_tells_coverage(small: RewardTable) -> None:
    info = small.info()
    assert (info["num_users"], info["num_items"], info["num_pairs_stored"]) == (2, 2, 3)
    assert info["aspect_names"] == small.aspect_names == ("a",)
    assert (info["has_as_of"], info["has_history_hash"]) == (True, True)
    (segment,) = info["segments"]
    assert segment["pairs_per_user"] == (1, 2)
    assert segment["pairs_per_item"] == (1, 2)
    assert len(small) == 3


rows = st.lists(
    st.integers(0, 3 * SHORT_ROW), min_size=1, max_size=3 * SHORT_ROW, unique=True
)


@given(st.lists(rows, min_size=1, max_size=6), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_kernel_finds_what_a_scan_finds(rows: list[list[int]], seed: int) -> None:
    """Rows short and long, keys in any order, users and items that are not there."""
    items = [sorted(row) for row in rows]
    codes = np.arange(sum(map(len, rows))).astype(np.uint16)
    ends = np.cumsum([len(row) for row in rows])
    lengths = np.diff(ends, prepend=0)
    words, places = pack_rows(
        np.concatenate(items).astype(np.uint32), codes, lengths.astype(np.int64)
    )
    first = np.cumsum(places) - places
    slots = np.stack([first, first + 1, first, places], axis=1).reshape(-1)
    noise = np.random.default_rng(seed)
    num_keys = 2 * BLOCK + 5
    asked = np.sort(noise.integers(-1, len(rows), num_keys))
    asked[:BLOCK] = noise.permutation(asked[:BLOCK])
    wanted = noise.integers(-1, 3 * SHORT_ROW + 2, num_keys)
    is_open = noise.random(num_keys) < 0.9
    was_open = is_open.copy()
    answers: Any = (
        np.full(num_keys, np.nan, np.float32),
        np.zeros(num_keys, np.bool_),
        np.full(num_keys, -1),
    )
    search(
        *(asked, wanted, slots, words, words.view(np.uint16), (0.0, 65535.0)),
        *(is_open, answers),
    )
    for nth in range(num_keys):
        row = items[asked[nth]] if asked[nth] >= 0 else []
        is_hit = wanted[nth] in row and was_open[nth]
        assert answers[1][nth] == is_hit
        assert is_open[nth] == (was_open[nth] and not is_hit)
        if is_hit:
            nth_in_row = row.index(wanted[nth])
            start = ends[asked[nth]] - len(row)
            assert answers[0][nth] == codes[start + nth_in_row]
            assert answers[2][nth] == first[asked[nth]] + nth_in_row
        else:
            assert np.isnan(answers[0][nth])
            assert answers[2][nth] == -1


@pytest.mark.long
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_get_the_table_by_its_path(small: RewardTable, method: str) -> None:
    asked = ([1, 2], [20, 10])
    with multiprocessing.get_context(method).Pool(1) as pool:
        rewards, found = pool.apply_async(small.lookup, asked).get(timeout=60)
    assert found.all()
    np.testing.assert_array_equal(rewards, small.lookup(*asked)[0])


def test_a_sent_table_is_its_path(small: RewardTable) -> None:
    function, arguments = small.__reduce__()
    assert arguments == (small.folder,)
    assert len(function(*arguments)) == len(small)


def test_opening_reads_no_data(small: RewardTable, monkeypatch) -> None:
    """Content that is wrong opens, and is found by verify alone."""
    for path in small.folder.glob("segments/*/*.bin"):
        path.write_bytes(bytes(len(path.read_bytes())))
    opened = RewardTable.open(small.folder)
    with pytest.raises(ValueError, match="damaged"):
        opened.verify()


def test_prefaulting_changes_no_answer(small: RewardTable) -> None:
    small.prefault()
    assert small.lookup([1], [20])[0][0] == 1.0


def test_rows_of_every_length_are_searched(tmp_path: Path) -> None:
    lengths = [1, 2, 15, 16, 17, SHORT_ROW, SHORT_ROW + 1, 1000, 5000]
    users = np.repeat(np.arange(len(lengths)), lengths)
    items = np.concatenate([np.arange(length) * 3 for length in lengths])
    rewards = np.arange(len(users)) / len(users)
    columns = {"user_id": users, "item_id": items, "reward": rewards}
    pq.write_table(pa.table(columns), tmp_path / "judged.parquet")
    build_reward_table(tmp_path / "judged.parquet", tmp_path / "table")
    table = RewardTable.open(tmp_path / "table")
    order = np.random.default_rng(0).permutation(len(users))
    got, found = table.lookup(users[order], items[order])
    assert found.all()
    np.testing.assert_allclose(got, rewards[order], atol=1e-5)
    assert not table.lookup(users, items + 1)[1].any()
