"""Measures counted by hand, and the rules that turn them into settings."""

import dataclasses
import math

import numpy as np
import pytest

from sgrec_torchrec.config import LogConfig, RunConfig, TokenConfig
from sgrec_torchrec.config.arguments import override
from sgrec_torchrec.logs.measure import LogMeasures, measure_log, resolve
from sgrec_torchrec.schema import Catalogue, EvalRows, Sequences, SplitLog


def targets(*items):
    zeros = np.zeros(len(items), np.int32)
    return EvalRows(
        user_E=zeros.astype(np.int64),
        history_start_E=zeros,
        history_end_E=zeros,
        target_E=np.array(items, np.int32),
        target_timestamp_E=zeros.astype(np.int64),
    )


def make_split(sid=None):
    """Two users of 6 and 3 events; the last two and the last one are not train."""
    items = [0, 1, 0, 0, 4, 0, 1, 1, 2]
    times = [1, 1, 2, 2, 3, 4, 1, 1, 2]
    sequences = Sequences(
        offsets_U1=np.array([0, 6, 9]),
        items_R=np.array(items, np.int32),
        timestamps_R=np.array(times),
        events_R=np.full(9, -1, np.int16),
        values_R=np.full(9, np.nan, np.float32),
        train_end_U=np.array([4, 2], np.int32),
        valid_end_U=np.array([5, 2], np.int32),
        num_items=5,
        num_event_types=0,
        has_clock=True,
        has_value=False,
    )
    names = [str(n) for n in range(5)]
    catalogue = Catalogue(
        item_ids=names,
        titles=[""] * 5,
        brands=[""] * 5,
        categories=[""] * 5,
        texts=["", "", "", "", "x"],
        embedding_ND=None,
        sid_NL=sid,
    )
    return SplitLog(
        sequences=sequences,
        valid=targets(4),
        test=targets(0, 2),
        catalogue=catalogue,
        user_ids=["a", "b"],
        protocol="leave-last-out",
    )


def test_measures_count_the_train_period_only():
    measures = measure_log(make_split())
    # train: user a has 0 1 | 0 0, user b has 1 1 (one basket)
    assert measures == LogMeasures(
        num_users=2,
        num_items=5,
        num_events=6,
        events_per_item=6 / 5,
        median_length=3.0,
        p90_length=3.8,  # 2 + 0.9 * (4 - 2)
        repeat_share=2 / 6,  # a's 0 0 at time 2; b's second 1 shares its timestamp
        basket_share=1.0,
        unseen_share=2 / 3,  # 4 and 2 of the targets 4, 0, 2
        has_clock=True,
        has_text=True,
        has_value=False,
        sid_codes=0,
    )


def test_basket_share_leaves_lone_events_out():
    split = make_split()
    times = np.array([1, 2, 3, 3, 3, 4, 3, 5, 6])
    sequences = dataclasses.replace(split.sequences, timestamps_R=times)
    measures = measure_log(dataclasses.replace(split, sequences=sequences))
    # a's third and fourth share a timestamp; b's 3 is another user's
    assert measures.basket_share == 2 / 6


def with_(**changes):
    return dataclasses.replace(measure_log(make_split()), **changes)


@pytest.mark.parametrize(("share", "expected"), [(0.0099, True), (0.01, False)])
def test_seen_items_are_filtered_where_the_log_hardly_repeats(share, expected):
    config = resolve(RunConfig(name="x"), with_(repeat_share=share))
    assert config.log.filter_seen is expected


@pytest.mark.parametrize(
    ("share", "log_history", "expected"),
    [(0.0999, 200, 200), (0.1, 200, 2_000), (0.1, 5_000, 5_000)],
)
def test_evidence_remembers_longer_where_items_are_bought_again(
    share, log_history, expected
):
    log = LogConfig(max_history=log_history)
    config = dataclasses.replace(RunConfig(name="x"), log=log)
    resolved = resolve(config, with_(repeat_share=share))
    assert resolved.evidence.max_history == expected
    assert resolved.log.max_history == log_history


@pytest.mark.parametrize(
    ("num_items", "expected"),
    [(100, 256), (2_000_000, 256), (2_100_000, 1024), (100_000_000, 1024)],
)
def test_codes_leave_eight_sids_per_item(num_items, expected):
    config = resolve(RunConfig(name="x"), with_(num_items=num_items))
    assert config.tokens.num_codes == expected


def test_codes_cover_the_users_own_sids():
    sid_NL = np.array([[300, 2]] * 5, np.int32)
    measures = measure_log(make_split(sid=sid_NL))
    config = RunConfig(name="x", tokens=TokenConfig(source="sid"))
    assert measures.sid_codes == 301
    assert resolve(config, measures).tokens.num_codes == 301


def test_too_few_levels_for_the_catalogue_are_an_error():
    config = override(RunConfig(name="x"), ["tokens.num_levels=1"])
    with pytest.raises(ValueError, match=r"tokens\.num_levels = 1: 1024 codes"):
        resolve(config, with_(num_items=1_000))


@pytest.mark.parametrize(
    ("density", "expected"),
    # half way between 5 and 100 on a log scale is sqrt(500); (0.8 + 0.1) / 2 = 0.45
    [(0.5, 0.8), (5, 0.8), (math.sqrt(500), 0.45), (100, 0.1), (1e6, 0.1)],
)
def test_teacher_weight_falls_with_density(density, expected):
    config = resolve(RunConfig(name="x"), with_(events_per_item=density))
    assert config.pretrain.teacher_weight == pytest.approx(expected)


@pytest.mark.parametrize(
    ("num_users", "num_events", "expected"),
    # windows: the users, or events / 100 (max_history 200); / 48 steps, as a power of 2
    [(100, 1_000, 16), (4_800, 9_000, 64), (10, 480_000, 64), (10**7, 10**9, 1024)],
)
def test_batch_grows_with_the_log(num_users, num_events, expected):
    measures = with_(num_users=num_users, num_events=num_events)
    config = resolve(RunConfig(name="x"), measures)
    assert config.pretrain.global_batch_size == expected


@pytest.mark.parametrize(
    ("num_events", "expected"), [(1_000, 8), (25_000, 4), (10**9, 1)]
)
def test_teacher_draws_fall_with_the_size_of_the_log(num_events, expected):
    config = resolve(RunConfig(name="x"), with_(num_events=num_events))
    assert config.pretrain.teacher_samples == expected


@pytest.mark.parametrize(
    ("num_events", "expected"),
    # 2.5e6 / events, rounded: 25 and 15.6 of at most 16, 10, 2.94, 1.56, 0
    [
        (0, 16),
        (100_000, 16),
        (160_000, 16),
        (250_000, 10),
        (850_000, 3),
        (1_600_000, 2),
        (10**9, 2),
    ],
)
def test_epochs_fall_with_the_size_of_the_log(num_events, expected):
    config = resolve(RunConfig(name="x"), with_(num_events=num_events))
    assert config.pretrain.num_epochs == expected


def test_settings_of_the_user_stay():
    mine = [
        "log.filter_seen=false",
        "tokens.num_codes=77",
        "pretrain.teacher_weight=0.25",
        "pretrain.teacher_samples=3",
        "pretrain.global_batch_size=7",
        "pretrain.num_epochs=40",
        "evidence.max_history=9",
    ]
    config = override(RunConfig(name="x"), mine)
    assert resolve(config, with_(repeat_share=0.0)) == config


def test_text_weight_is_left_to_the_item_graph():
    assert resolve(RunConfig(name="x"), with_()).graph.text_weight is None
