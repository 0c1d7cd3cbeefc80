"""What an arm's rows earn, by hand; the paired tests against slow ones."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.evaluation.compare import compare, write_hits
from sgrec_torchrec.experiments.arm_metrics import (
    METRICS,
    ArmRows,
    arm_rows,
    compare_arms,
    read_arm,
    write_arm,
)
from sgrec_torchrec.logs.prompts import target_values
from sgrec_torchrec.logs.split import load_split
from sgrec_torchrec.reward_table import RewardTable, build_reward_table
from sgrec_torchrec.schema import EvalRows, SplitLog

STEP = 1 / 65535
"""A table keeps rewards in steps of this size."""
NAN = float("nan")


@pytest.fixture(scope="module")
def split(finished_run: Path) -> SplitLog:
    return load_split(finished_run / "split")


def valued(split: SplitLog, values_R: np.ndarray) -> SplitLog:
    sequences = dataclasses.replace(
        split.sequences, values_R=values_R.astype(np.float32), has_value=True
    )
    return dataclasses.replace(split, sequences=sequences)


def first_rows(split: SplitLog, count: int) -> EvalRows:
    return split.test.take(np.arange(count))


def lists_with_target_at(rows: EvalRows, ranks: list[int]) -> np.ndarray:
    """12 items a row, the target at the given rank from 1; 0 leaves it out."""
    lists = []
    for target, rank in zip(rows.target_E.tolist(), ranks, strict=True):
        others = [item for item in range(60) if item != target][:12]
        lists.append([*others[: rank - 1], target, *others[rank - 1 : 11]])
        if rank == 0:
            lists[-1] = others
    return np.array(lists, dtype=np.int32)


def column(arm: ArmRows, name: str) -> list[float]:
    return arm.values_EM[:, METRICS.index(name)].tolist()


def test_without_money_a_hit_is_worth_one_over_its_rank(split) -> None:
    rows = first_rows(split, 4)
    items_EK = lists_with_target_at(rows, [1, 4, 11, 0])
    arm = arm_rows(items_EK, rows, np.arange(4), split, None)
    assert column(arm, "HR@10") == [1, 1, 0, 0]
    assert column(arm, "NDCG@10") == pytest.approx([1, 1 / np.log2(5), 0, 0])
    assert column(arm, "value@10") == [1, 1 / 4, 0, 0]
    assert np.isnan(column(arm, "judged reward@10")).all()
    assert arm.user_id_E.tolist() == [split.user_ids[u] for u in rows.user_E]
    means = arm.means()
    assert means["HR@10"] == 0.5
    assert means["judged reward@10"] is None


def test_with_money_a_hit_is_worth_its_event_whatever_the_rank(split) -> None:
    rows = first_rows(split, 5)
    values_R = np.full(len(split.sequences.items_R), 99.0)
    # The planted log has one event a timestamp: a target is the event after its prefix.
    target_R = split.sequences.offsets_U1[rows.user_E] + rows.history_end_E
    values_R[target_R] = [3.0, 7.0, NAN, -2.0, 5.0]
    money = valued(split, values_R)
    np.testing.assert_array_equal(target_values(rows, money), values_R[target_R])
    items_EK = lists_with_target_at(rows, [9, 0, 1, 1, 1])
    arm = arm_rows(items_EK, rows, np.arange(5), money, None)
    # A miss earns nothing, an unknown value says nothing, a refund earns nothing.
    np.testing.assert_array_equal(column(arm, "value@10"), [3, 0, NAN, 0, 5])
    assert arm.means()["value@10"] == 2.0


def test_value_is_that_of_the_target_among_its_basket(split) -> None:
    # The last three events of user 0 become one basket, and the target its middle.
    sequences, user = split.sequences, 0
    end = int(sequences.offsets_U1[1])
    times_R = sequences.timestamps_R.copy()
    times_R[end - 3 : end] = times_R[end - 1]
    items_R = sequences.items_R.copy()
    items_R[end - 3 : end] = [1, 2, 3]
    values_R = np.zeros(len(items_R), np.float32)
    values_R[end - 3 : end] = [10, 20, 30]
    values_R[end] = 40
    changed = dataclasses.replace(
        sequences, timestamps_R=times_R, items_R=items_R, values_R=values_R
    )
    row = EvalRows(
        user_E=np.array([user, user, user]),
        history_start_E=np.zeros(3, np.int32),
        history_end_E=np.full(3, end - 3, np.int32),
        target_E=np.array([2, 3, 9], np.int32),
        target_timestamp_E=np.full(3, times_R[end - 1]),
    )
    log = dataclasses.replace(split, sequences=changed)
    np.testing.assert_array_equal(target_values(row, log), [20, 30, NAN])


def test_judged_reward_is_over_the_items_that_the_judge_has_seen(
    split, tmp_path: Path
) -> None:
    rows = first_rows(split, 3)
    ids, users = split.catalogue.item_ids, [split.user_ids[u] for u in rows.user_E]
    judged = [(users[0], 1, 0.25), (users[0], 2, 0.75), (users[0], 50, 1.0)]
    judged += [(users[1], 7, 1.0)]
    columns = {
        "user_id": [user for user, _, _ in judged],
        "item_id": [ids[item] for _, item, _ in judged],
        "reward": pa.array([reward for *_, reward in judged], pa.float32()),
        "as_of": [3] * 4,
    }
    pq.write_table(pa.table(columns), tmp_path / "judged.parquet")
    build_reward_table(tmp_path / "judged.parquet", tmp_path / "table")
    items_EK = np.full((3, 12), -1, np.int32)
    # User 0: two of four are judged; item 50 stands below the tenth place.
    items_EK[0] = [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 50, 12]
    items_EK[1, :2] = [1, 2]
    items_EK[2, :2] = [1, 2]
    table = RewardTable.open(tmp_path / "table")
    arm = arm_rows(items_EK, rows, np.arange(3), split, table)
    np.testing.assert_allclose(
        column(arm, "judged reward@10"), [0.5, NAN, NAN], atol=STEP
    )
    # Nobody has judged user 2.
    np.testing.assert_allclose(column(arm, "in table@10"), [0.2, 0.0, NAN])


def arm_of(values: np.ndarray, users: list[str]) -> ArmRows:
    """Rows of the users; every metric is ``values``."""
    num = len(users)
    return ArmRows(
        user_id_E=np.array(users, dtype=object),
        row_E=np.arange(num),
        target_item_id_E=np.array(["i"] * num, dtype=object),
        values_EM=np.repeat(np.asarray(values, float)[:, None], len(METRICS), 1),
    )


@pytest.fixture
def write(tmp_path: Path):
    """write(values, users) -> path of an arm's rows."""

    def write_one(values, users: list[str]) -> Path:
        path = tmp_path / f"rows-{len(list(tmp_path.iterdir()))}.parquet"
        write_arm(path, arm_of(values, users))
        return path

    return write_one


def test_rows_come_back_as_they_were_written(write) -> None:
    arm = read_arm(write([0.5, NAN], ["a", "b"]))
    assert arm.user_id_E.tolist() == ["a", "b"]
    np.testing.assert_array_equal(arm.values_EM[:, 0], [0.5, NAN])


def test_damaged_missing_and_foreign_files_are_named(tmp_path, write) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.parquet is missing: run the"):
        read_arm(tmp_path / "none.parquet")
    path = write([1.0] * 500, ["a"] * 500)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"rows-0\.parquet is damaged"):
        read_arm(path)
    pq.write_table(pa.table({"row": [1]}), path)
    with pytest.raises(ValueError, match=r"rows-0\.parquet (is damaged|lacks some)"):
        read_arm(path)


def test_arms_of_one_seed_are_tested_as_runs_are(split, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    rows = split.test
    ranks = [noise.integers(0, 14, len(rows)).astype(np.int32) for _ in range(2)]
    ours, theirs = [], []
    for place, rank_E in enumerate(ranks):
        hits, path = tmp_path / f"hits-{place}", tmp_path / f"rows-{place}"
        write_hits(hits, split, rows, np.arange(len(rows)), rank_E)
        items_EK = lists_with_target_at(rows, np.where(rank_E > 12, 0, rank_E))
        write_arm(path, arm_rows(items_EK, rows, np.arange(len(rows)), split, None))
        ours.append(path)
        theirs.append(hits)
    expected = {one.metric: one for one in compare(*theirs).differences}
    found = compare_arms(ours[:1], ours[1:])
    assert [one.metric for one in found] == ["HR@10", "NDCG@10", "value@10"]
    for one in found[:2]:
        same = expected[one.metric]
        assert one.difference == pytest.approx(same.difference)
        # Other draws of the same bootstrap and of the same signs.
        width = same.high - same.low
        assert one.low == pytest.approx(same.low, abs=0.1 * width)
        assert one.high == pytest.approx(same.high, abs=0.1 * width)
        assert one.p_value == pytest.approx(same.p_value, abs=0.05)


def test_rows_that_one_arm_cannot_speak_of_count_in_neither(write) -> None:
    users = ["a", "a", "b", "c"]
    a = write([0.0, 0.5, NAN, 0.25], users)
    b = write([1.0, NAN, 1.0, 0.75], users)
    one = compare_arms([a], [b])[0]
    assert (one.value_a, one.value_b) == (0.125, 0.875)
    assert one.difference == 0.75
    nothing = write([NAN] * 4, users)
    assert compare_arms([a], [nothing]) == []


def test_seeds_that_disagree_widen_the_interval(write) -> None:
    users = [f"u{number}" for number in range(200)]
    zero = write(np.zeros(200), users)
    agreeing = [write(np.full(200, 0.5), users) for _ in range(4)]
    disagreeing = [write(np.full(200, lead), users) for lead in (0.0, 0.0, 1.0, 1.0)]
    tight = compare_arms([zero] * 4, agreeing)[0]
    wide = compare_arms([zero] * 4, disagreeing)[0]
    assert tight.difference == wide.difference == 0.5
    assert (tight.low, tight.high) == (0.5, 0.5)
    # Of four seeds drawn anew all are of one kind once in 16 draws, each way.
    assert wide.low < 0.05 < 0.95 < wide.high


def test_users_are_the_unit(write) -> None:
    # One user has all the rows: no sign of another can be flipped.
    lead = compare_arms(
        [write(np.zeros(50), ["a"] * 50)], [write(np.ones(50), ["a"] * 50)]
    )
    assert lead[0].p_value == 1.0


def test_other_rows_are_refused(write) -> None:
    with pytest.raises(ValueError, match="are not of the same rows"):
        compare_arms([write([1.0], ["a"])], [write([1.0], ["b"])])
