"""From Parquet to a table: values, conflicts, ids, sizes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.reward_table import RewardTable, build, build_reward_table

RANGES = [(0.0, 1.0), (-2.0, 5.0), (0.0, 0.1), (-1e-6, 1e9)]


@pytest.mark.parametrize("low_high", RANGES)
def test_rewards_are_off_by_at_most_half_a_step(write_pairs, tmp_path, low_high):
    low, high = low_high
    rewards = np.linspace(low, high, 3001).astype(np.float32)
    file = write_pairs([(7, nth, one) for nth, one in enumerate(rewards)])
    build_reward_table(file, tmp_path / "table", reward_range=low_high)
    users = np.full(len(rewards), 7)
    got, found = RewardTable.open(tmp_path / "table").lookup(users, np.arange(3001))
    assert found.all()
    # half of 1/65535 of the range, and half a unit in the last place of float32
    bound = (high - low) / 131070 + np.abs(rewards) * 2.0**-24
    assert (np.abs(got.astype(np.float64) - rewards) <= bound * 1.0001).all()
    assert got[0] == np.float32(low)
    assert got[-1] == np.float32(high)


def test_equal_rewards_stay_equal(write_pairs, tmp_path: Path) -> None:
    file = write_pairs([(nth % 5, nth, 0.3337) for nth in range(50)])
    build_reward_table(file, tmp_path / "table")
    table = RewardTable.open(tmp_path / "table")
    rewards, _ = table.lookup([nth % 5 for nth in range(50)], range(50))
    assert np.ptp(rewards) == 0


@pytest.mark.parametrize("max_memory_gib", [4.0, 0.0005])
def test_many_buckets_and_batches_equal_one(
    tmp_path: Path, monkeypatch, max_memory_gib: float
) -> None:
    """With runs in memory, and with runs of 320 kB that spill beyond 268."""
    noise = np.random.default_rng(0)
    users, items = noise.integers(-50, 50, (2, 20_000)) * 2**55
    rewards = noise.random(20_000, dtype=np.float32)
    columns = {"user_id": users, "item_id": items, "reward": rewards}
    pq.write_table(pa.table(columns), tmp_path / "judged.parquet")
    wanted = {}
    for user, item, reward in zip(users, items, rewards, strict=True):
        wanted[user, item] = reward
    monkeypatch.setattr(build, "PAIRS_PER_BUCKET", 1000)
    monkeypatch.setattr("sgrec_torchrec.reward_table.judged_files.BATCH_ROWS", 777)
    report = build_reward_table(
        *(tmp_path / "judged.parquet", tmp_path / "table"),
        on_conflict="last",
        max_memory_gib=max_memory_gib,
    )
    assert (report.peak_disk_bytes > report.num_bytes) == (max_memory_gib < 1)
    assert report.num_pairs == len(wanted)
    assert report.num_duplicates == 20_000 - len(wanted)
    table = RewardTable.open(tmp_path / "table")
    asked_users, asked_items = np.array(list(wanted)).T
    got, found = table.lookup(asked_users, asked_items)
    assert found.all()
    np.testing.assert_allclose(got, list(wanted.values()), atol=1e-5)
    segment = table.manifest.segments[0]
    counts = np.unique(asked_users, return_counts=True)[1]
    assert segment.pairs_per_user == (counts.min(), counts.max())
    counts = np.unique(asked_items, return_counts=True)[1]
    assert segment.pairs_per_item == (counts.min(), counts.max())


@pytest.mark.parametrize(("policy", "wanted"), [("last", 0.75), ("mean", 0.5)])
def test_a_conflict_is_settled_as_asked(write_pairs, tmp_path, policy, wanted):
    rows = [(1, 5, 0.5), (1, 4, 0.125), (1, 5, 0.25), (1, 5, 0.75)]
    report = build_reward_table(
        write_pairs(rows), tmp_path / "table", on_conflict=policy
    )
    assert (report.num_rows, report.num_pairs, report.num_duplicates) == (4, 2, 2)
    rewards, _ = RewardTable.open(tmp_path / "table").lookup([1, 1], [5, 4])
    np.testing.assert_allclose(rewards, [wanted, 0.125], atol=1e-5)


def test_equal_duplicates_are_no_conflict(write_pairs, tmp_path: Path) -> None:
    rows = [(1, 5, 0.3), (2, 5, 0.4), (1, 5, 0.3)]
    report = build_reward_table(write_pairs(rows), tmp_path / "table")
    assert (report.num_pairs, report.num_duplicates) == (2, 1)


def test_files_come_in_the_order_given(write_pairs, tmp_path: Path) -> None:
    old, new = write_pairs([(1, 5, 0.25)]), write_pairs([(1, 5, 0.75)])
    for files, wanted in (([old, new], 0.75), ([new, old], 0.25)):
        build_reward_table(files, tmp_path / "table", on_conflict="last")
        rewards, _ = RewardTable.open(tmp_path / "table").lookup([1], [5])
        assert rewards[0] == pytest.approx(wanted, abs=1e-5)


def test_a_folder_means_its_parquet_files(write_pairs, tmp_path: Path) -> None:
    (tmp_path / "shards" / "deep").mkdir(parents=True)
    write_pairs([(1, 5, 0.25)]).rename(tmp_path / "shards" / "a.parquet")
    write_pairs([(2, 5, 0.75)]).rename(tmp_path / "shards" / "deep" / "b.parquet")
    (tmp_path / "shards" / "notes.txt").write_text("no Parquet")
    report = build_reward_table(tmp_path / "shards", tmp_path / "table")
    assert report.num_users == 2


ODD_IDS = ["", "a", "a\0", "u" * 8, "u" * 9, "\u00fc\u4e2d\U0001f600", "-1", " "]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), "dictionary"])
def test_any_strings_are_ids(tmp_path: Path, kind) -> None:
    ids = pa.array(ODD_IDS)
    ids = ids.dictionary_encode() if kind == "dictionary" else ids.cast(kind)
    rewards = np.arange(len(ODD_IDS)) / 10
    columns = {"user_id": ids, "item_id": np.arange(len(ODD_IDS)), "reward": rewards}
    pq.write_table(pa.table(columns), tmp_path / "judged.parquet")
    build_reward_table(tmp_path / "judged.parquet", tmp_path / "table")
    table = RewardTable.open(tmp_path / "table")
    for asked in (ODD_IDS, np.array(ODD_IDS, object), pa.array(ODD_IDS)):
        got, found = table.lookup(asked, range(len(ODD_IDS)))
        assert found.all()
        np.testing.assert_allclose(got, rewards, atol=1e-5)
    assert not table.lookup(["b", "a\0\0"], [1, 2])[1].any()


def test_many_strings_keep_apart(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(build, "PAIRS_PER_BUCKET", 5000)
    users = [f"user-{nth}" for nth in range(30_000)]
    items = [f"{nth % 9000}-item" for nth in range(30_000)]
    rewards = np.arange(30_000) / 30_000
    columns = {"user_id": users, "item_id": items, "reward": rewards}
    pq.write_table(pa.table(columns), tmp_path / "judged.parquet")
    report = build_reward_table(tmp_path / "judged.parquet", tmp_path / "table")
    assert (report.num_users, report.num_items) == (30_000, 9000)
    got, found = RewardTable.open(tmp_path / "table").lookup(users, items)
    assert found.all()
    np.testing.assert_allclose(got, rewards, atol=1e-5)


def test_extreme_integers_are_ids(write_pairs, tmp_path: Path) -> None:
    ids = [0, -1, 2**63 - 1, -(2**63), 2**32, -(2**32)]
    rows = [(one, other, 0.5) for one in ids for other in ids]
    build_reward_table(write_pairs(rows), tmp_path / "table")
    users, items = np.array([row[:2] for row in rows]).T
    table = RewardTable.open(tmp_path / "table")
    assert table.lookup(users, items)[1].all()
    assert not table.lookup(users, items ^ 1)[1].any()


def test_aspects_come_by_prefix_or_by_metadata(tmp_path: Path) -> None:
    columns = {
        "user_id": [1],
        "item_id": [2],
        "reward": [0.5],
        "novelty": [3.0],
        "aspect_profile": [1.0],
        "remark": ["ignored"],
    }
    judged = pa.table(columns).replace_schema_metadata({"aspects": '["novelty"]'})
    pq.write_table(judged, tmp_path / "judged.parquet")
    build_reward_table(
        tmp_path / "judged.parquet", tmp_path / "table", aspect_range=(1, 5)
    )
    table = RewardTable.open(tmp_path / "table")
    assert table.aspect_names == ("novelty", "profile")
    _, _, aspects = table.lookup([1, 1], [2, 3], aspects=True)
    # 3 lies in the middle of [1, 5]: 32767.5 steps of 4 / 65535, half of one away
    np.testing.assert_allclose(aspects[0], [3.0, 1.0], atol=4 / 131070)
    assert np.isnan(aspects[1]).all()


def test_versions_and_cost_reach_the_manifest(write_pairs, tmp_path: Path) -> None:
    rows = [(1, 1, 0.5), (1, 2, 0.5)]
    file = write_pairs(rows, judge_version=["b", "a"], prompt_version=["p", "p"])
    build_reward_table(file, tmp_path / "table", token_cost={"usd": 1.5})
    (segment,) = RewardTable.open(tmp_path / "table").info()["segments"]
    assert segment["judge_versions"] == ("a", "b")
    assert segment["prompt_versions"] == ("p",)
    assert segment["token_cost"] == {"usd": 1.5}
    assert segment["sources"] == (str(file),)


def test_the_same_input_gives_the_same_bytes(write_pairs, tmp_path: Path) -> None:
    file = write_pairs([(nth % 7, nth % 11, nth % 2) for nth in range(77)])
    for name in ("one", "two"):
        build_reward_table(file, tmp_path / name, on_conflict="mean")
    one, two = ((tmp_path / name / "manifest.json") for name in ("one", "two"))
    assert one.read_text() == two.read_text()


def test_pairs_take_six_bytes(tmp_path: Path) -> None:
    users, items = np.repeat(np.arange(100), 200), np.tile(np.arange(200), 100)
    columns = {"user_id": users, "item_id": items, "reward": np.full(20_000, 0.5)}
    pq.write_table(pa.table(columns), tmp_path / "judged.parquet")
    build_reward_table(tmp_path / "judged.parquet", tmp_path / "table")
    (segment,) = RewardTable.open(tmp_path / "table").info()["segments"]
    sizes = segment["num_bytes"]
    assert sizes["rows"] == 6 * 20_000
    assert sizes["offsets"] == 8 * 101
    # two slots of 32 bytes a user, one free at the end, and the ids of items
    assert sizes["user_slots"] <= 32 * (2 * 100 + 64)
    assert sizes["item_ids"] == 8 * 200
    assert "item_slots" not in sizes


@pytest.mark.parametrize("span", [2**32 - 2, 2**32 - 1, 2**63])
def test_items_near_each_other_need_no_map(write_pairs, tmp_path, span: int) -> None:
    base = -5
    items = [base, base + 7, base + span - 1 if span == 2**63 else base + span]
    file = write_pairs([(1, item, nth / 4) for nth, item in enumerate(items)])
    build_reward_table(file, tmp_path / "table")
    table = RewardTable.open(tmp_path / "table")
    (segment,) = table.manifest.segments
    assert ("item_slots" in segment.files) == (span > 2**32 - 2)
    rewards, found = table.lookup([1] * 4, [*items, base + 1])
    assert found.tolist() == [True, True, True, False]
    np.testing.assert_allclose(rewards[:3], [0, 0.25, 0.5], atol=1e-5)


@pytest.mark.parametrize("told", [range(3, 5), range(0)])
def test_statistics_that_are_wrong_do_no_harm(
    write_pairs, tmp_path, monkeypatch, told: range
) -> None:
    """Files may declare another range of items than they hold."""
    rows = [(user, item, item / 8) for item in (2, 3, 4, 7) for user in (1, 2)]
    file = write_pairs(rows)
    build_reward_table(file, tmp_path / "right")
    columns, num_rows, item_range = build.read_columns([file])
    assert item_range == range(2, 8)
    monkeypatch.setattr(build, "read_columns", lambda _: (columns, num_rows, told))
    build_reward_table(file, tmp_path / "table")
    one, two = ((tmp_path / name / "manifest.json") for name in ("right", "table"))
    assert one.read_text() == two.read_text()


@pytest.mark.parametrize("max_memory_gib", [4.0, 0.0005])
def test_aspects_and_prefixes_survive_many_runs(
    tmp_path: Path, monkeypatch, max_memory_gib: float
) -> None:
    """In memory, and with runs that spill, of records longer than a pair."""
    monkeypatch.setattr(build, "PAIRS_PER_BUCKET", 500)
    noise = np.random.default_rng(1)
    users = noise.integers(0, 300, 10_000)
    rewards, aspects = noise.integers(0, 256, (2, 10_000)) / np.float32(255)
    columns = {
        **{"user_id": users, "item_id": np.arange(10_000) % 9973, "reward": rewards},
        **{"aspect_one": aspects, "as_of": users * 3, "history_hash": users * 5},
    }
    pq.write_table(pa.table(columns), tmp_path / "judged.parquet")
    build_reward_table(
        *(tmp_path / "judged.parquet", tmp_path / "table"),
        on_conflict="last",
        max_memory_gib=max_memory_gib,
    )
    table = RewardTable.open(tmp_path / "table")
    got, found, scores = table.lookup(users, columns["item_id"], aspects=True)
    assert found.all()
    last = {
        pair: at for at, pair in enumerate(zip(users, columns["item_id"], strict=True))
    }
    at = [last[pair] for pair in zip(users, columns["item_id"], strict=True)]
    np.testing.assert_allclose(got, rewards[at], atol=1e-5)
    np.testing.assert_allclose(scores[:, 0], aspects[at], atol=1e-5)
    as_of, hashes, _ = table.as_of(np.arange(300))
    assert as_of.tolist() == [3 * user for user in range(300)]
    assert hashes.tolist() == [5 * user for user in range(300)]
