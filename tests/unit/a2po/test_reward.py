"""Rewards by hand, and over a real table: right values, for the right prefix alone."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sgrec_torchrec.a2po.prompts import Prompts, post_training_prompts
from sgrec_torchrec.a2po.reward import (
    FewerJudgedReward,
    Group,
    JudgedReward,
    ShuffledReward,
    TableReward,
    business_reward,
    finite_groups,
    next_item_reward,
    no_semantics,
    open_business,
    open_table,
    semantic_reward,
)
from sgrec_torchrec.config import AlignConfig, RunConfig
from sgrec_torchrec.logs.judged_users import history_hash
from sgrec_torchrec.reward_table import MissLog, RewardTable, build_reward_table
from sgrec_torchrec.schema import SplitLog

NAN = float("nan")
STEP = 1 / 65535
"""A table keeps rewards in steps of this size."""


def group_of(prompts: list[int], items: list[list[int]], targets: list[int]) -> Group:
    return Group(
        prompt_B=np.array(prompts),
        item_BG=torch.tensor(items),
        target_B=torch.tensor(targets),
    )


def test_next_item_reward_by_hand() -> None:
    # A hit at rank 1. Misses at 0, 2, 3 have 1 / log2(k + 2) = 1, 1/2, 1 / log2(5).
    total = 1 + 1 / 2 + 1 / math.log2(5)
    reward_BG = next_item_reward(group_of([0], [[4, 7, 5, 6]], [7]))
    expected = [-1 / total, 1.0, -0.5 / total, -1 / math.log2(5) / total]
    torch.testing.assert_close(reward_BG, torch.tensor([expected]))
    assert reward_BG.dtype == torch.float32


@pytest.mark.parametrize("place", range(5))
def test_misses_of_a_group_with_a_hit_share_minus_one(place: int) -> None:
    items = [[1, 2, 3, 4, 5]]
    reward_BG = next_item_reward(group_of([0], items, [items[0][place]]))
    assert reward_BG[0, place] == 1.0
    assert reward_BG.sum().item() == pytest.approx(0.0, abs=1e-6)
    misses = [float(r) for r in reward_BG[0] if r != 1.0]
    assert misses == sorted(misses)  # the surest miss is punished most
    assert max(misses) < 0


def test_group_without_a_hit_earns_nothing() -> None:
    reward_BG = next_item_reward(group_of([0, 1], [[1, 2], [3, 4]], [9, 3]))
    assert reward_BG.tolist() == [[0.0, 0.0], [1.0, -1.0]]


def test_empty_slots_earn_nothing_and_take_no_share() -> None:
    items = [[2, 9, -1, -1], [2, -1, -1, -1], [-1] * 4]
    reward_BG = next_item_reward(group_of([0, 1, 2], items, [9, 2, 0]))
    assert reward_BG.tolist() == [[-1.0, 1.0, 0.0, 0.0], [1.0, 0, 0, 0], [0.0] * 4]


@pytest.fixture
def asked(make_log, user_ids) -> tuple[SplitLog, Prompts]:
    """Three users with 5 events of a day each: prompts 0-3, 4-7 and 8-11.

    Prompt 4 u + k is asked after k + 1 events of user u.
    """
    days = [86_400 * day for day in range(5)]
    users = {
        name: [(first + day, time, NAN) for day, time in enumerate(days)]
        for first, name in enumerate(user_ids(3))
    }
    split = make_log(users)
    prompts = post_training_prompts(split, RunConfig(name="x"))
    assert prompts.as_of_E.tolist() == [1, 2, 3, 4] * 3
    return split, prompts


def write_table(folder: Path, rows: list[tuple], *, has_prefix: bool = True) -> Path:
    """(user, item, reward, as_of, hash) rows -> a table in ``folder``."""
    users, items, rewards, as_ofs, hashes = zip(*rows, strict=True)
    columns = {
        "user_id": users,
        "item_id": items,
        "reward": pa.array(rewards, pa.float32()),
    }
    if has_prefix:
        bits = [value & 0xFFFFFFFFFFFFFFFF for value in hashes]
        columns |= {"as_of": as_ofs, "history_hash": pa.array(bits, pa.uint64())}
    path = folder / "judged.parquet"
    pq.write_table(pa.table(columns), path)
    build_reward_table(path, folder / "table")
    return folder / "table"


def prefix_hash(split: SplitLog, user: int, as_of: int) -> int:
    first = int(split.sequences.offsets_U1[user])
    items = split.sequences.items_R[first : first + as_of].tolist()
    return history_hash([f"i{item}" for item in items])


@pytest.fixture
def judged_folder(asked, tmp_path: Path) -> Path:
    """User 0 judged after 2 events (items 0, 5, 6, 7), user 1 after 3 (item 5)."""
    split, _ = asked
    one, other, _ = split.user_ids
    two, three = prefix_hash(split, 0, 2), prefix_hash(split, 1, 3)
    rows = [
        (one, "i0", 0.125, 2, two),  # nothing may stand for an empty slot
        (one, "i5", 0.25, 2, two),
        (one, "i6", 0.5, 2, two),
        (one, "i7", 1.0, 2, two),
        (other, "i5", 0.75, 3, three),
    ]
    return write_table(tmp_path, rows)


def judged_prompts(asked, folder: Path, max_age_events: int) -> list[int]:
    table = RewardTable.open(folder)
    reward = JudgedReward(table, *asked, max_age_events=max_age_events)
    items = [[5, 6]] * 12
    judged_BG = reward(group_of(list(range(12)), items, [0] * 12))[1]
    return judged_BG.any(1).nonzero().flatten().tolist()


def test_judgements_serve_their_own_prefix_alone(asked, judged_folder: Path) -> None:
    # User 0 after 2 events is prompt 1; user 1 after 3 is prompt 4 + 2.
    assert judged_prompts(asked, judged_folder, 0) == [1, 6]


def test_judgements_grow_old_and_never_serve_an_earlier_prompt(
    asked, judged_folder: Path
) -> None:
    assert judged_prompts(asked, judged_folder, 1) == [1, 2, 6, 7]
    assert judged_prompts(asked, judged_folder, 100) == [1, 2, 3, 6, 7]


def test_judged_reward_has_the_table_s_values_at_the_right_places(
    asked, judged_folder: Path
) -> None:
    reward = JudgedReward(RewardTable.open(judged_folder), *asked)
    # Prompts of user 1, of nobody judged, and of user 0, in that order.
    group = group_of([6, 9, 1], [[5, 6, 7], [5, 6, 7], [7, -1, 5]], [0, 0, 0])
    reward_BG, judged_BG = reward(group)
    assert judged_BG.tolist() == [
        [True, False, False],
        [False] * 3,
        [True, False, True],
    ]
    expected = torch.tensor([[0.75, 0, 0], [0, 0, 0], [1.0, 0, 0.25]])
    torch.testing.assert_close(reward_BG, expected, rtol=0, atol=STEP)
    assert reward_BG.dtype == torch.float32


def test_missing_pairs_are_masked_and_logged(asked, judged_folder: Path) -> None:
    split, prompts = asked
    misses = MissLog()
    table = RewardTable.open(judged_folder)
    reward = JudgedReward(table, split, prompts, misses=misses)
    # Of user 0: 5 is judged, 8 and 9 are not; there is no fourth item. Prompt 9 is of
    # a user without judgements, prompt 0 is too early: nobody asks for them.
    items = [[5, 8, 9, -1], [5, 6, 7, 8], [5, 6, 7, 8]]
    group = group_of([1, 9, 0], items, [0, 0, 0])
    reward_BG, judged_BG = reward(group)
    assert judged_BG[0].tolist() == [True, False, False, False]
    assert reward_BG[0, 1:].tolist() == [0.0, 0.0, 0.0]
    assert (misses.num_asked, misses.num_missing, len(misses)) == (3, 2, 2)
    path = judged_folder.parent / "missed.parquet"
    assert misses.write(path) == 2
    rows = pq.read_table(path).select(["user_id", "item_id"]).to_pylist()
    pairs = {(row["user_id"], row["item_id"]) for row in rows}
    assert pairs == {(split.user_ids[0], "i8"), (split.user_ids[0], "i9")}


def test_another_history_than_the_judge_saw_is_refused_by_user(
    asked, tmp_path: Path
) -> None:
    split, prompts = asked
    user = split.user_ids[2]
    folder = write_table(tmp_path, [(user, "i5", 0.5, 3, history_hash(["i1", "i2"]))])
    with pytest.raises(ValueError, match=rf"user '{user}' was judged after 3 events"):
        JudgedReward(RewardTable.open(folder), split, prompts)


def test_a_prefix_longer_than_the_log_is_refused(asked, tmp_path: Path) -> None:
    split, prompts = asked
    rows = [(split.user_ids[0], "i5", 0.5, 9, prefix_hash(split, 0, 5))]
    folder = write_table(tmp_path, rows)
    with pytest.raises(ValueError, match="was judged after 9 events"):
        JudgedReward(RewardTable.open(folder), split, prompts)


def test_table_that_does_not_say_what_was_seen_is_refused(
    asked, tmp_path: Path
) -> None:
    rows = [(asked[0].user_ids[0], "i5", 0.5, 0, 0)]
    folder = write_table(tmp_path, rows, has_prefix=False)
    with pytest.raises(ValueError, match="has no history_hash: build it from"):
        JudgedReward(RewardTable.open(folder), *asked)


def test_a_run_without_a_table_judges_nobody(asked) -> None:
    assert semantic_reward(open_table(None), *asked, max_age_events=0) is no_semantics
    reward_BG, judged_BG = no_semantics(group_of([0], [[1, 2]], [1]))
    assert reward_BG.tolist() == [[0.0, 0.0]]
    assert judged_BG.tolist() == [[False, False]]


def test_opened_table_logs_its_misses(asked, judged_folder: Path) -> None:
    table = open_table(str(judged_folder))
    reward = semantic_reward(table, *asked, max_age_events=0)
    reward(group_of([1], [[5, 9]], [0]))
    assert reward.misses.rate == 0.5


def test_a_table_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_table(str(tmp_path / "nowhere"))


@pytest.fixture
def priced(asked, tmp_path: Path) -> RewardTable:
    """A dense business reward of users 0 and 1: .1 an item number."""
    users = asked[0].user_ids[:2]
    rows = [
        (user, f"i{item}", item / 10 + place / 2, 0, 0)
        for place, user in enumerate(users)
        for item in range(5)
    ]
    return RewardTable.open(write_table(tmp_path, rows, has_prefix=False))


def test_table_reward_has_the_pairs_values_at_any_prompt(asked, priced) -> None:
    reward = TableReward(priced, *asked)
    # Prompts 3 and 0 are of user 0, prompt 5 of user 1; an empty slot earns nothing.
    reward_BG = reward(group_of([3, 5, 0], [[4, 1], [0, 3], [2, -1]], [0, 0, 0]))
    expected = torch.tensor([[0.4, 0.1], [0.5, 0.8], [0.2, 0.0]])
    torch.testing.assert_close(reward_BG, expected, rtol=0, atol=STEP)
    assert reward_BG.dtype == torch.float32


def test_an_empty_slot_does_not_earn_what_item_0_does(asked, priced) -> None:
    reward_BG = TableReward(priced, *asked)(group_of([4], [[3, -1]], [0]))
    assert reward_BG[0, 1] == 0.0


def test_table_reward_names_the_pair_that_is_missing_or_fills_it(asked, priced) -> None:
    user = asked[0].user_ids[0]
    group = group_of([0], [[1, 7]], [0])
    message = f"no business reward for user '{user}' and item 'i7'"
    with pytest.raises(ValueError, match=message):
        TableReward(priced, *asked)(group)
    filled_BG = TableReward(priced, *asked, missing=-2.0)(group)
    torch.testing.assert_close(
        filled_BG, torch.tensor([[0.1, -2.0]]), rtol=0, atol=STEP
    )


def test_without_a_business_table_the_next_item_is_the_reward(asked) -> None:
    assert business_reward(None, *asked, missing=None) is next_item_reward


def test_the_settings_say_which_business_reward(asked, tmp_path: Path) -> None:
    assert open_business(*asked, AlignConfig()) is next_item_reward
    named = AlignConfig(business="next-item")
    assert open_business(*asked, named) is next_item_reward
    nowhere = AlignConfig(business_table=str(tmp_path / "ecpm"))
    with pytest.raises(FileNotFoundError, match="ecpm"):
        open_business(*asked, nowhere)


def test_business_table_without_what_followed_is_refused_before_any_step(
    asked, priced
) -> None:
    # Users 0 and 1 have prices of items 0 to 4: prompt 3 of user 1 is asked for 5.
    message = "no business reward for user .* and item 'i5' in .*align.missing_business"
    with pytest.raises(ValueError, match=message):
        business_reward(priced, *asked, missing=None)
    reward = business_reward(priced, *asked, missing=0.0)
    reward_BG = reward(group_of([0], [[1, 7]], [0]))
    torch.testing.assert_close(reward_BG, torch.tensor([[0.1, 0.0]]), rtol=0, atol=STEP)


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_reward_that_is_not_finite_stops_the_run_by_name_or_drops_its_group(
    asked, value: float
) -> None:
    split, prompts = asked
    group = group_of([0, 5], [[1, 2], [3, 4]], [0, 0])
    good_BG = torch.zeros(2, 2)
    judged_BG = torch.tensor([[True, True], [False, True]])
    bad_BG = good_BG.clone()
    bad_BG[1, 1] = value
    name = rf"user '{split.user_ids[1]}', item 'i4': "
    for rewards, words in (
        ((bad_BG, good_BG), f"business reward {value}, semantic reward 0.0"),
        ((good_BG, bad_BG), f"business reward 0.0, semantic reward {value}"),
    ):
        with pytest.raises(ValueError, match=name + words):
            finite_groups(group, *rewards, judged_BG, split, prompts, drops=False)
        kept_B = finite_groups(group, *rewards, judged_BG, split, prompts, drops=True)
        assert kept_B.tolist() == [True, False]


def test_a_semantic_reward_that_nobody_gave_may_be_anything(asked) -> None:
    bad_BG = torch.tensor([[NAN, 0.0]])
    judged_BG = torch.tensor([[False, True]])
    kept_B = finite_groups(
        group_of([0], [[1, 2]], [0]),
        torch.zeros(1, 2),
        bad_BG,
        judged_BG,
        *asked,
        drops=False,
    )
    assert kept_B.tolist() == [True]


def test_a_shuffled_judge_keeps_the_rewards_of_a_group() -> None:
    reward_BG = torch.arange(12.0).reshape(2, 6)
    judged_BG = torch.tensor([[True] * 6, [True, False] * 3])
    shuffled = ShuffledReward(lambda group: (reward_BG, judged_BG), seed=0)
    group = Group(
        prompt_B=torch.tensor([3, 8]).numpy(),
        item_BG=torch.zeros(2, 6, dtype=torch.int64),
        target_B=torch.zeros(2, dtype=torch.int64),
    )
    mixed_BG, mask_BG = shuffled(group)
    assert torch.equal(mask_BG, judged_BG)
    assert not torch.equal(mixed_BG, reward_BG)
    assert sorted(mixed_BG[0].tolist()) == reward_BG[0].tolist()
    assert torch.equal(mixed_BG[1, 1::2], reward_BG[1, 1::2])
    assert sorted(mixed_BG[1, ::2].tolist()) == reward_BG[1, ::2].tolist()
    again, _ = shuffled(group)
    assert torch.equal(again, mixed_BG)


def test_a_shuffled_judge_knows_and_misses_what_the_judge_does(
    asked, judged_folder: Path
) -> None:
    judged = semantic_reward(open_table(str(judged_folder)), *asked, max_age_events=0)
    shuffled = ShuffledReward(judged, seed=0)
    assert shuffled.is_judged_E is judged.is_judged_E
    shuffled(group_of([1], [[5, 9]], [0]))
    assert shuffled.misses.num_missing == 1


@pytest.mark.parametrize(("share", "left"), [(1.0, 2), (0.51, 2), (0.5, 1), (0.01, 1)])
def test_a_judge_of_fewer_users_says_the_same_of_the_others(
    asked, judged_folder: Path, share: float, left: int
) -> None:
    judged = semantic_reward(open_table(str(judged_folder)), *asked, max_age_events=0)
    group = group_of([1, 6, 2], [[5, 6], [5, 9], [5, 6]], [0, 0, 0])
    all_BG, has_all_BG = judged(group)
    assert has_all_BG.any(1).tolist() == [True, True, False]
    fewer = FewerJudgedReward(judged, share, seed=0)
    reward_BG, judged_BG = fewer(group)
    is_kept_B = judged_BG.any(1)
    assert int(is_kept_B.sum()) == int(fewer.is_judged_E[[1, 6]].sum()) == left
    assert torch.equal(judged_BG[is_kept_B], has_all_BG[is_kept_B])
    assert torch.equal(reward_BG[is_kept_B], all_BG[is_kept_B])
    assert not reward_BG[~is_kept_B].any()
