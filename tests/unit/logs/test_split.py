"""Splits against a slow reference written with dictionaries, and their errors."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from sgrec_torchrec.config import LogConfig
from sgrec_torchrec.files.atomic import write_json
from sgrec_torchrec.logs import split as module
from sgrec_torchrec.logs.canonical import file_facts, parquet_writer, write_parts
from sgrec_torchrec.logs.split import load_split, prepare_split

SEEDS = range(6)


def in_order(row):
    user, item, time, *_ = row
    return user, time, item


def write_log(folder, rows, *, num_items=12, has_clock=True, items=None):
    """rows: (user, item, timestamp[, split]) tuples, in any order."""
    rows = sorted(rows, key=in_order)
    names = ("user_id", "item_id", "timestamp", "split")[: len(rows[0]) if rows else 3]
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    table = (
        pa.table(columns)
        if rows
        else pa.table({name: pa.array([], pa.int64()) for name in names})
    )
    items = items or {
        "item_id": list(range(100, 100 + num_items)),
        "title": [f"item {n}" for n in range(num_items)],
        "brand": [None, *["acme"] * (num_items - 1)],
    }
    folder.mkdir(parents=True)
    write_parts(
        folder / "interactions",
        table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)],
    )
    catalogue = pa.table(items)
    with parquet_writer(folder / "items.parquet", catalogue.schema) as writer:
        writer.write_table(catalogue)
    facts = {
        "format_version": 1,
        "has_clock": has_clock,
        "items": num_items,
        "files": file_facts(folder),
    }
    write_json(folder / "manifest.json", facts)
    return folder


def random_rows(seed, *, with_split=False, num_users=12):
    """Small random log with many ties in time."""
    generator = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        for time in generator.integers(0, 24, generator.integers(1, 25)):
            item = 100 + int(generator.integers(0, 12))
            row = (10 * user + 1, item, int(time))
            if with_split:
                row = (*row, "train" if time < 15 else "valid" if time < 19 else "test")
            rows.append(row)
    return rows


def baskets_of(rows):
    """user -> [(timestamp, sorted items)], by time."""
    users = {}
    for user, item, time, *_ in rows:
        users.setdefault(user, {}).setdefault(time, []).append(item - 100)
    return {
        user: [(time, sorted(items)) for time, items in sorted(baskets.items())]
        for user, baskets in sorted(users.items())
    }


def prepare(tmp_path, rows, *, has_clock=True, **config):
    canonical = write_log(tmp_path / "canonical", rows, has_clock=has_clock)
    return prepare_split(canonical, LogConfig(**config), tmp_path / "split")


def count_of(tmp_path, name):
    manifest = json.loads((tmp_path / "split" / "manifest.json").read_text())
    return manifest["counts"][name]


def user_events(split, user):
    sequences = split.sequences
    first, last = sequences.offsets_U1[user : user + 2]
    return sequences.items_R[first:last], sequences.timestamps_R[first:last]


def check_rows(split, rows, max_history):
    """No history may reach its target's timestamp; it must hold all that is older."""
    for e in range(len(rows)):
        items, times = user_events(split, rows.user_E[e])
        start, end = rows.history_start_E[e], rows.history_end_E[e]
        older = int((times < rows.target_timestamp_E[e]).sum())
        assert end == older
        assert start == max(0, end - max_history)
        at_target = items[times == rows.target_timestamp_E[e]]
        assert rows.target_E[e] in at_target


@pytest.mark.parametrize("seed", SEEDS)
def test_sequences_hold_every_basket_whole_and_in_time_order(tmp_path, seed):
    rows = random_rows(seed)
    split = prepare(tmp_path, rows, protocol="chronological")
    expected = baskets_of(rows)
    assert split.user_ids == [str(user) for user in expected]
    for user, baskets in enumerate(expected.values()):
        items, times = user_events(split, user)
        assert times.tolist() == [t for t, basket in baskets for _ in basket]
        for time, basket in baskets:
            assert sorted(items[times == time].tolist()) == basket


@pytest.mark.parametrize("seed", SEEDS)
def test_leave_last_out_equals_the_reference(tmp_path, seed):
    rows = random_rows(seed)
    split = prepare(tmp_path, rows, max_history=3)
    expected = [], []
    for user, baskets in enumerate(baskets_of(rows).values()):
        items, _ = user_events(split, user)
        sizes = [len(basket) for _, basket in baskets]
        ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
        if len(baskets) < 3:
            assert split.sequences.train_end_U[user] == ends[-1]
            assert split.sequences.valid_end_U[user] == ends[-1]
            continue
        assert split.sequences.train_end_U[user] == ends[-3]
        assert split.sequences.valid_end_U[user] == ends[-2]
        expected[0].append((user, ends[-3], items[ends[-2] - 1], baskets[-2][0]))
        expected[1].append((user, ends[-2], items[ends[-1] - 1], baskets[-1][0]))
    for asked, wanted in zip((split.valid, split.test), expected, strict=True):
        found = zip(
            asked.user_E,
            asked.history_end_E,
            asked.target_E,
            asked.target_timestamp_E,
            strict=True,
        )
        assert [tuple(map(int, row)) for row in found] == [
            tuple(map(int, row)) for row in wanted
        ]
        check_rows(split, asked, max_history=3)


def test_users_of_one_and_two_baskets_only_train(tmp_path):
    # The first has a basket of one event, then one of two; the second one basket.
    rows = [(1, 100, 1), (1, 101, 2), (1, 102, 2), (2, 100, 5), (2, 101, 5)]
    split = prepare(tmp_path, [*rows, (3, 103, 1), (3, 104, 2), (3, 105, 3)])
    assert split.sequences.train_end_U.tolist() == [3, 2, 1]
    assert split.sequences.valid_end_U.tolist() == [3, 2, 2]
    assert (split.valid.target_E.tolist(), split.test.target_E.tolist()) == ([4], [5])
    assert count_of(tmp_path, "users_train_only") == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_chronological_equals_the_reference(tmp_path, seed):
    rows = random_rows(seed)
    split = prepare(tmp_path, rows, protocol="chronological")
    times = sorted(row[2] for row in rows)
    cuts = times[int(len(times) * 0.8)], times[int(len(times) * 0.9)]
    asked = {"valid": [], "test": []}
    dropped = 0
    for user, baskets in enumerate(baskets_of(rows).values()):
        count = [sum(len(b) for t, b in baskets if t < cut) for cut in cuts]
        assert split.sequences.train_end_U[user] == count[0]
        assert split.sequences.valid_end_U[user] == count[1]
        for nth, (time, basket) in enumerate(baskets):
            if time < cuts[0]:
                continue
            name = "valid" if time < cuts[1] else "test"
            if nth:
                asked[name] += [(user, time, item) for item in basket]
            else:
                dropped += len(basket)
    for name, found in (("valid", split.valid), ("test", split.test)):
        triples = zip(
            found.user_E, found.target_timestamp_E, found.target_E, strict=True
        )
        assert sorted(tuple(map(int, row)) for row in triples) == sorted(asked[name])
        check_rows(split, found, max_history=200)
    assert count_of(tmp_path, "targets_dropped_no_history") == dropped


@pytest.mark.parametrize("seed", SEEDS)
def test_given_asks_every_valid_and_test_row(tmp_path, seed):
    rows = random_rows(seed, with_split=True)
    split = prepare(tmp_path, rows, protocol="given", max_history=4, has_clock=False)
    for name, found in (("valid", split.valid), ("test", split.test)):
        wanted = sorted(row[:3] for row in rows if row[3] == name)
        triples = [
            (int(split.user_ids[u]), 100 + int(item), int(time))
            for u, item, time in zip(
                found.user_E, found.target_E, found.target_timestamp_E, strict=True
            )
        ]
        assert sorted(triples) == wanted
        check_rows(split, found, max_history=4)
    train_rows = sum(row[3] == "train" for row in rows)
    assert split.sequences.train_end_U.sum() == train_rows


def test_given_keeps_and_counts_targets_without_a_history(tmp_path):
    rows = [(1, 100, 1, "valid"), (1, 101, 1, "valid"), (1, 102, 2, "test")]
    rows += [(2, 103, 5, "train"), (2, 104, 6, "test"), (3, 105, 4, "test")]
    split = prepare(tmp_path, rows, protocol="given")
    assert split.sequences.train_end_U.tolist() == [0, 1, 0]
    assert split.sequences.valid_end_U.tolist() == [2, 1, 0]
    assert split.valid.history_end_E.tolist() == [0, 0]
    assert split.test.history_end_E.tolist() == [2, 1, 0]
    # Both of user 1's first basket, and user 3's.
    assert count_of(tmp_path, "targets_kept_no_history") == 3


def test_basket_order_is_a_seeded_shuffle_free_of_item_order(tmp_path):
    rows = [(1, 100 + item, time) for time in range(300) for item in range(4)]
    first = [
        user_events(prepare(tmp_path / name, rows, seed=seed), 0)[0].reshape(-1, 4)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])
    # Each item comes last in about a quarter of 300 baskets: s.d. 7.5.
    counts = np.bincount(first[0][:, -1], minlength=4)
    assert abs(counts - 75).max() < 35


def test_equal_rows_stay_apart_and_are_all_kept(tmp_path):
    rows = [(1, 100, 5)] * 3 + [(1, 101, 5), (1, 102, 1), (1, 103, 2)]
    split = prepare(tmp_path, rows)
    items, _ = user_events(split, 0)
    assert sorted(items[2:].tolist()) == [0, 0, 0, 1]


def test_equal_rows_are_shuffled_apart(tmp_path):
    rows = [(1, 100 + item, t) for t in range(300) for item in (0, 0, 1)]
    items, _ = user_events(prepare(tmp_path, rows), 0)
    # The lone item stands between the equal two in a third of 300 baskets: s.d. 8.
    assert 60 < (items.reshape(-1, 3)[:, 1] == 1).sum() < 140


def test_equal_timestamps_of_two_users_are_no_basket(tmp_path):
    # user u buys item u only, at times 2u, 2u + 1, 2u + 2: the last one is shared
    rows = [(u, 100 + u, 2 * u + t) for u in range(12) for t in range(3)]
    split = prepare(tmp_path, rows)
    assert split.sequences.items_R.tolist() == [u for u in range(12) for _ in range(3)]
    assert split.test.history_end_E.tolist() == [2] * 12


def test_blank_text_fields_leave_no_gap_in_the_joined_text(tmp_path):
    split = prepare(tmp_path, random_rows(0))
    assert split.catalogue.texts[:2] == ["item 0", "item 1 acme"]


def test_large_logs_are_read_in_blocks_with_the_same_result(tmp_path, monkeypatch):
    rows = random_rows(3)
    whole = prepare(tmp_path / "a", rows)
    monkeypatch.setattr("sgrec_torchrec.logs.ordering.BLOCK_ROWS", 1)
    monkeypatch.setattr("sgrec_torchrec.logs.canonical.ROWS_PER_GROUP", 5)
    monkeypatch.setattr("sgrec_torchrec.logs.split_store.EVENTS_PER_GROUP", 8)
    folder = tmp_path / "b" / "canonical"
    write_many_batches(folder, rows)
    blocks = prepare_split(folder, LogConfig(), tmp_path / "b" / "split")
    for field in dataclasses.fields(whole.sequences):
        np.testing.assert_array_equal(
            getattr(whole.sequences, field.name), getattr(blocks.sequences, field.name)
        )
    assert whole.user_ids == blocks.user_ids


def write_many_batches(folder, rows):
    """The same log in parts of about 5 rows, so that users straddle blocks."""
    write_log(folder, rows)
    rows = sorted(rows, key=in_order)
    for part in (folder / "interactions").iterdir():
        part.unlink()
    (folder / "interactions").rmdir()
    batches = [
        pa.RecordBatch.from_pydict(
            {
                name: [row[i] for row in rows[first : first + 5]]
                for i, name in enumerate(("user_id", "item_id", "timestamp"))
            }
        )
        for first in range(0, len(rows), 5)
    ]
    write_parts(folder / "interactions", batches, rows_per_part=5)
    facts = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", {**facts, "files": file_facts(folder)})


def test_chronological_without_a_clock_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="timestamps are ordinals"):
        prepare(tmp_path, random_rows(0), protocol="chronological", has_clock=False)


def test_leave_last_out_without_a_user_of_three_baskets_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no user has 3 baskets"):
        prepare(tmp_path, [(1, 100, 1), (1, 101, 2), (2, 100, 3), (2, 101, 3)])


def test_a_protocol_that_leaves_no_target_is_an_error(tmp_path):
    rows = [(user, 100, user) for user in range(20)]
    with pytest.raises(ValueError, match="no target with a history in valid"):
        prepare(tmp_path, rows, protocol="chronological")


def test_given_without_a_split_column_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="needs a column split"):
        prepare(tmp_path, random_rows(0), protocol="given")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([(1, "train"), (2, "test"), (3, "valid")], "earlier split follows"),
        ([(1, "train"), (2, "valid"), (2, "test")], "in different splits"),
        ([(1, "train"), (2, "tset"), (3, "test")], "row 1: split = 'tset' is none"),
    ],
)
def test_a_given_split_that_mixes_times_is_an_error(tmp_path, splits, message):
    rows = [(1, 100 + n, time, name) for n, (time, name) in enumerate(splits)]
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, rows, protocol="given")


def test_a_cut_outside_a_sequence_is_not_written(tmp_path, monkeypatch):
    cut_last = module.PROTOCOLS["leave-last-out"]

    def too_far(rows, log):
        cut = cut_last(rows, log)
        return dataclasses.replace(cut, train_end_U=cut.valid_end_U + 100)

    monkeypatch.setitem(module.PROTOCOLS, "leave-last-out", too_far)
    with pytest.raises(ValueError, match=r"train_end_U\[0\] = .* is outside \[0, "):
        prepare(tmp_path, random_rows(0))
    assert not (tmp_path / "split").exists()


def test_the_first_row_that_mixes_times_is_named(tmp_path):
    rows = [(3, 100, 1, "test"), (8, 101, 5, "test"), (8, 102, 6, "valid")]
    rows += [(8, 103, 7, "train"), (9, 104, 1, "test"), (9, 105, 2, "train")]
    with pytest.raises(ValueError, match="user '8', timestamp 6: an event of an ear"):
        prepare(tmp_path / "a", rows, protocol="given")
    rows += [(9, 106, 2, "valid"), (9, 107, 3, "test"), (9, 108, 3, "train")]
    with pytest.raises(ValueError, match="user '9', timestamp 2: events at one time"):
        prepare(tmp_path / "b", rows, protocol="given")


def test_an_unknown_protocol_is_an_error(tmp_path):
    config = LogConfig()
    object.__setattr__(config, "protocol", "weekly")
    canonical = write_log(tmp_path / "canonical", random_rows(0))
    with pytest.raises(ValueError, match=r"log\.protocol = 'weekly'"):
        prepare_split(canonical, config, tmp_path / "split")


def test_an_item_outside_the_catalogue_is_an_error_naming_it(tmp_path):
    rows = [*random_rows(0), (500, 999, 1)]
    with pytest.raises(ValueError, match=r"item_id = 999 is not in items\.parquet"):
        prepare(tmp_path, rows)


def test_an_empty_log_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="the log is empty"):
        prepare(tmp_path, [])


def test_rows_that_are_not_sorted_are_an_error(tmp_path):
    folder = write_log(tmp_path / "canonical", random_rows(0))
    for users, times, message in (
        ([1, 2, 1], [1, 1, 2], "not together"),
        ([1, 1, 2], [2, 1, 1], "timestamp falls"),
    ):
        part = folder / "interactions" / "part-00000.parquet"
        table = pa.table({"user_id": users, "item_id": [100] * 3, "timestamp": times})
        with parquet_writer(part, table.schema) as writer:
            writer.write_table(table)
        facts = json.loads((folder / "manifest.json").read_text())
        write_json(folder / "manifest.json", {**facts, "files": file_facts(folder)})
        with pytest.raises(ValueError, match=message):
            prepare_split(folder, LogConfig(), tmp_path / "split")


def test_a_failed_preparation_leaves_the_older_split_whole(tmp_path):
    prepare(tmp_path, random_rows(0))
    with pytest.raises(ValueError, match="needs a column split"):
        prepare_split(
            tmp_path / "canonical", LogConfig(protocol="given"), tmp_path / "split"
        )
    assert load_split(tmp_path / "split").protocol == "leave-last-out"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canonical", "split"]
