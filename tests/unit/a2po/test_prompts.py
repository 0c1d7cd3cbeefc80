"""Who is asked again, after which prefix, with what weight, and in which order."""

import dataclasses
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.a2po.prompts import post_training_prompts, prompt_batches
from sgrec_torchrec.config import AlignConfig, LogConfig, RunConfig
from sgrec_torchrec.logs.prompts import eligible_prompts
from sgrec_torchrec.reward_table import RewardTable, build_reward_table
from sgrec_torchrec.schema import EvalRows

NAN = float("nan")


def settings(max_history: int = 100, **align: float | str) -> RunConfig:
    return RunConfig(
        name="x",
        seed=3,
        log=LogConfig(max_history=max_history),
        align=AlignConfig(**align),
    )


def days(items: list[int], values: list[float] | None = None) -> list:
    """One event a day."""
    worth = values or [NAN] * len(items)
    return [(item, 86_400 * day, worth[day]) for day, item in enumerate(items)]


@pytest.fixture
def basket_log(make_log, user_ids):
    """One user: baskets {0, 1}, {2}, {3, 4} and, after the train period, {5}."""
    (user,) = user_ids(1)
    times = [1, 1, 2, 3, 3, 9]
    events = [(item, time, NAN) for item, time in enumerate(times)]
    return make_log({user: events}, train_ends=[5])


def test_prompts_end_before_the_basket_of_their_target(basket_log) -> None:
    prompts = post_training_prompts(basket_log, settings())
    # The first basket has nothing before it; 3 and 4 share what came before both.
    assert prompts.rows.target_E.tolist() == [2, 3, 4]
    assert prompts.as_of_E.tolist() == [2, 3, 3]
    assert prompts.rows.history_start_E.tolist() == [0, 0, 0]
    assert prompts.rows.target_timestamp_E.tolist() == [2, 3, 3]
    assert prompts.value_weight_E.tolist() == [1.0, 1.0, 1.0]


def test_history_is_cut_to_its_newest_events_and_as_of_stays(basket_log) -> None:
    prompts = post_training_prompts(basket_log, settings(max_history=2))
    assert prompts.rows.history_start_E.tolist() == [0, 1, 1]
    assert prompts.as_of_E.tolist() == [2, 3, 3]


@pytest.mark.parametrize(("per_user", "targets"), [(1, [4, 8]), (2, [3, 4, 7, 8])])
def test_newest_targets_of_each_user_are_asked(
    make_log, user_ids, per_user: int, targets: list[int]
) -> None:
    one, other = user_ids(2)
    split = make_log({one: days([0, 1, 2, 3, 4]), other: days([5, 6, 7, 8])})
    prompts = post_training_prompts(split, settings(prompts_per_user=per_user))
    assert prompts.rows.target_E.tolist() == targets
    assert prompts.rows.user_E.tolist() == sorted([0, 1] * per_user)


def test_users_of_the_judge_give_no_prompt(make_log, user_ids) -> None:
    (taught,), labels = user_ids(1), user_ids(3, are_labels=True)
    users = {name: days([1, 2, 3]) for name in (*labels[:2], taught, labels[2])}
    prompts = post_training_prompts(make_log(users), settings())
    assert set(prompts.rows.user_E.tolist()) == {2}
    nobody = make_log({name: days([1, 2, 3]) for name in labels})
    with pytest.raises(ValueError, match="no user has a prompt for post-training"):
        post_training_prompts(nobody, settings())


@pytest.mark.parametrize(
    ("largest", "expected"),
    # Worth [1, 3, ?, 20, 0] (negative: 0), mean of the known 24 / 4; unknown weighs 1.
    [
        (5.0, [1 / 5, 15 / 30, 1.0, 100 / 30, 1 / 5]),
        (2.0, [1 / 2, 15 / 30, 1.0, 2.0, 1 / 2]),
        (1.0, [1.0] * 5),
    ],
)
def test_weight_is_value_over_mean_within_bounds(
    make_log, user_ids, largest: float, expected: list[float]
) -> None:
    (user,) = user_ids(1)
    # The first event is nobody's target: its 999 must not count.
    events = days([0, 1, 2, 3, 4, 5], [999.0, 1.0, 3.0, NAN, 20.0, -7.0])
    split = make_log({user: events}, has_value=True)
    prompts = post_training_prompts(split, settings(max_value_weight=largest))
    assert prompts.value_weight_E.tolist() == pytest.approx(expected)
    assert prompts.value_weight_E.dtype == np.float32


def test_log_without_any_worth_weighs_all_alike(make_log, user_ids) -> None:
    (user,) = user_ids(1)
    split = make_log({user: days([0, 1, 2], [0.0, NAN, 0.0])}, has_value=True)
    assert post_training_prompts(split, settings()).value_weight_E.tolist() == [1.0] * 2


def judged_after(folder: Path, prefixes: dict[str, int]) -> RewardTable:
    """A table that has each user after so many events, on one item."""
    columns = {
        "user_id": list(prefixes),
        "item_id": ["i0"] * len(prefixes),
        "reward": pa.array([0.5] * len(prefixes), pa.float32()),
        "as_of": list(prefixes.values()),
    }
    pq.write_table(pa.table(columns), folder / "judged.parquet")
    build_reward_table(folder / "judged.parquet", folder / "table")
    return RewardTable.open(folder / "table")


def test_judged_prompts_are_the_judged_prefixes_of_post_training_users(
    make_log, user_ids, tmp_path
) -> None:
    one, other, late, inside, nobody = user_ids(5)
    (label,) = user_ids(1, are_labels=True)
    times = [1, 1, 2, 3, 3, 9]
    events = [(item, time, NAN) for item, time in enumerate(times)]
    users = dict.fromkeys((one, other, late, inside, nobody, label), events)
    split = make_log(users, train_ends=[5] * 6)
    # late: after the train period; inside: in the midst of a basket.
    prefixes = {one: 3, other: 2, late: 5, inside: 4, label: 3, "stranger": 1}
    table = judged_after(tmp_path, prefixes)
    prompts = post_training_prompts(split, settings(2, prompts="judged"), table)
    assert prompts.rows.user_E.tolist() == [0, 1]
    assert prompts.as_of_E.tolist() == [3, 2]
    # Of the basket {3, 4} the last is the target, as where candidates are made.
    assert prompts.rows.target_E.tolist() == [4, 2]
    assert prompts.rows.target_timestamp_E.tolist() == [3, 2]
    assert prompts.rows.history_start_E.tolist() == [1, 0]
    newest = eligible_prompts(split, 0, 2)
    assert newest.user_E[0] == 0
    assert newest.target_E[0] == prompts.rows.target_E[0]
    assert newest.history_end_E[0] == prompts.as_of_E[0]


def test_fresh_prompts_are_the_newest_valid_rows_of_those_asked(
    make_log, user_ids
) -> None:
    one, other = user_ids(2)
    (label,) = user_ids(1, are_labels=True)
    events = days([4, 5, 6, 7, 8], [1.0, 1.0, 2.0, 6.0, 4.0])
    users = dict.fromkeys((other, label, one), events)
    split = make_log(users, train_ends=[2] * 3, has_value=True)
    # User 0: events 2 and 4, user 1 (of the judge): 3, user 2: 2, 3, and the first.
    user_E, place_E = np.array([2, 0, 1, 2, 0, 2]), np.array([3, 4, 3, 2, 2, 0])
    valid = EvalRows(
        user_E=user_E,
        history_start_E=np.zeros(6, np.int32),
        history_end_E=place_E.astype(np.int32),
        target_E=(4 + place_E).astype(np.int32),
        target_timestamp_E=86_400 * place_E,
    )
    split = dataclasses.replace(split, valid=valid)
    config = settings(3, prompts="fresh", max_value_weight=10)
    prompts = post_training_prompts(split, config)
    assert prompts.rows.user_E.tolist() == [2, 0, 2, 0]
    assert prompts.rows.target_E.tolist() == [7, 8, 6, 6]
    assert prompts.as_of_E.tolist() == [3, 4, 2, 2]
    assert prompts.rows.history_start_E.tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(
        prompts.value_weight_E, np.array([6, 4, 2, 2]) / 3.5, rtol=1e-6
    )
    few = settings(3, prompts="fresh", prompts_per_user=1)
    assert post_training_prompts(split, few).rows.target_E.tolist() == [7, 8]


def test_fresh_prompts_need_rows_that_nothing_has_learned_from(basket_log) -> None:
    fresh = settings(prompts="fresh")
    with pytest.raises(ValueError, match=r"has a prompt.* a valid row of a user"):
        post_training_prompts(basket_log, fresh)
    log = dataclasses.replace(fresh.log, fit_on="train+valid")
    with pytest.raises(ValueError, match=r"fit_on = train\+valid learns from them"):
        post_training_prompts(basket_log, dataclasses.replace(fresh, log=log))


def test_judged_prompts_need_a_table_that_has_some(
    basket_log, user_ids, tmp_path
) -> None:
    judged = settings(prompts="judged")
    with pytest.raises(ValueError, match=r"= judged needs .*align\.table"):
        post_training_prompts(basket_log, judged)
    table = judged_after(tmp_path, {"stranger": 3})
    with pytest.raises(ValueError, match="none of the users in align"):
        post_training_prompts(basket_log, judged, table)


def test_judged_prompts_weigh_what_their_targets_were_worth(
    make_log, user_ids, tmp_path
) -> None:
    one, other = user_ids(2)
    split = make_log(
        {
            one: days([0, 1, 2], [9.0, 1.0, 9.0]),
            other: days([0, 1, 2], [9.0, 9.0, 3.0]),
        },
        has_value=True,
    )
    table = judged_after(tmp_path, {one: 1, other: 2})
    prompts = post_training_prompts(split, settings(prompts="judged"), table)
    assert prompts.value_weight_E.tolist() == [0.5, 1.5]


def first_batches(count: int, **changes: int) -> list[list[int]]:
    asked = {"num_prompts": 10, "batch_size": 4, "seed": 0, "first_step": 0} | changes
    stream = prompt_batches(**asked)
    return [next(stream).tolist() for _ in range(count)]


def test_every_epoch_asks_each_prompt_once_in_an_order_of_its_own() -> None:
    batches = first_batches(9)
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [list(chain(*batches[start : start + 3])) for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert first_batches(3, seed=1) != batches[:3]


@pytest.mark.parametrize("first_step", range(8))
def test_batches_go_on_from_any_step(first_step: int) -> None:
    whole = first_batches(12)
    assert first_batches(4, first_step=first_step) == whole[first_step : first_step + 4]


def test_batch_larger_than_all_prompts_is_one_epoch() -> None:
    batches = first_batches(2, batch_size=64)
    assert [sorted(batch) for batch in batches] == [list(range(10))] * 2
