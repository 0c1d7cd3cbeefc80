"""Ids of single features; whole histories are checked in test_stream."""

import dataclasses

import numpy as np
import torch

from sgrec_torchrec.config import GeneratorConfig
from sgrec_torchrec.logs.features import (
    EventColumns,
    gap_bucket,
    history_features,
    value_bucket,
)
from sgrec_torchrec.schema import ItemTokens

KEYS = ["item", "code_0", "code_1", "gap", "event", "value"]
CODES = np.array([[0, 1], [3, 2], [1, 1]], np.int32)
TOKENS = ItemTokens(codes_NL=CODES, num_codes=4)
EVENTS = EventColumns(
    items_R=np.array([1, 0, 2], np.int32),
    timestamps_R=np.array([100, 107, 107]),
    events_R=np.array([0, -1, 1], np.int16),
    values_R=np.array([0.5, np.nan, 3.0], np.float32),
    has_clock=True,
    has_value=True,
)


def features_of(events):
    features = history_features(
        events, np.array([0]), np.array([3]), TOKENS, GeneratorConfig()
    )
    return {key: features[key].values().tolist() for key in KEYS}


def test_features_of_a_history_by_hand():
    # codes: level * 4 + code + 1; gaps: 7 s is 1 + log2(8) = 4, 0 s is 1
    assert features_of(EVENTS) == {
        "item": [0, 2, 1, 3],
        "code_0": [0, 4, 1, 2],
        "code_1": [0, 7, 6, 6],
        "gap": [0, 0, 4, 1],
        "event": [0, 1, 0, 2],
        "value": [0, 1, 0, 3],
    }


def test_without_clock_and_value_those_features_are_unknown():
    features = features_of(
        dataclasses.replace(EVENTS, has_clock=False, has_value=False)
    )
    assert features["gap"] == features["value"] == [0] * 4


def test_empty_histories_of_a_log_without_events_are_begin_markers():
    fields = ("items_R", "timestamps_R", "events_R", "values_R")
    events = dataclasses.replace(
        EVENTS, **{name: getattr(EVENTS, name)[:0] for name in fields}
    )
    zeros = np.zeros(2, np.int64)
    features = history_features(events, zeros, zeros, TOKENS, GeneratorConfig())
    assert features.values().tolist() == [0] * 2 * 6
    assert features.lengths().tolist() == [1] * 2 * 6
    assert features.lengths().dtype == torch.int32


def test_gap_buckets_are_powers_of_two_and_bounded():
    seconds = np.array([-5, 0, 1, 2, 3, 6, 7, 2**40])
    # 1 + floor(log2(1 + s)), at most 31
    assert gap_bucket(seconds, 32).tolist() == [1, 1, 2, 2, 3, 3, 4, 31]


def test_value_buckets_are_octaves_and_bounded():
    values = np.array([np.nan, -3, 0, 0.99, 1, 1.99, 2, 4, 1e9], np.float32)
    assert value_bucket(values, 16).tolist() == [0, 1, 1, 1, 2, 2, 3, 4, 15]
