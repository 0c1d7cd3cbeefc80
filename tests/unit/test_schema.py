"""Records that cross stages say what is wrong with them, by user, row or item."""

from typing import Any

import numpy as np
import pytest

from sgrec_torchrec.schema import ItemTokens, Sequences


def sequences_of(**changes: Any) -> Sequences:
    """Two users of three events and one, of two items."""
    fields: dict[str, Any] = {
        "offsets_U1": np.array([0, 3, 4]),
        "items_R": np.array([0, 1, 0, 1], np.int32),
        "timestamps_R": np.arange(4),
        "events_R": np.zeros(4, np.int16),
        "values_R": np.zeros(4, np.float32),
        "train_end_U": np.array([1, 0], np.int32),
        "valid_end_U": np.array([3, 1], np.int32),
        "num_items": 2,
        "num_event_types": 1,
        "has_clock": True,
        "has_value": False,
    }
    return Sequences(**(fields | changes))


def test_sequences_within_bounds_are_let_in() -> None:
    sequences_of().validate()
    nothing = np.zeros(0, np.int32)
    sequences_of(
        offsets_U1=np.zeros(1, np.int64),
        items_R=nothing,
        train_end_U=nothing,
        valid_end_U=nothing,
    ).validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets_U1": np.array([1, 3, 4])}, "must start at 0 and never fall"),
        ({"offsets_U1": np.array([0, 5, 4])}, "must start at 0 and never fall"),
        ({"offsets_U1": np.array([0, 3, 3])}, "ends at 3, items_R has 4 rows"),
        ({"items_R": np.array([0, 2, 0, 1])}, r"items_R\[1\] = 2 is outside \[0, 2\)"),
        ({"items_R": np.array([0, 1, 0, -1])}, r"items_R\[3\] = -1 is outside"),
        ({"train_end_U": np.array([4, 0])}, r"train_end_U\[0\] = 4 .* \[0, 3\]"),
        ({"train_end_U": np.array([1, -1])}, r"train_end_U\[1\] = -1 .* \[0, 1\]"),
        ({"valid_end_U": np.array([3, 2])}, r"valid_end_U\[1\] = 2 .* \[0, 1\]"),
        ({"valid_end_U": np.array([-1, 1])}, r"valid_end_U\[0\] = -1 .* \[0, 3\]"),
    ],
)
def test_sequences_out_of_bounds_name_the_first_place(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sequences_of(**changes).validate()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 1], [1, 4]], r"item 1: code 4 at level 1 is outside \[0, 4\)"),
        ([[-1, 1], [1, 3]], r"item 0: code -1 at level 0 is outside \[0, 4\)"),
        ([[0, 1], [2, 3], [0, 1]], r"items 0 and 2 share the codes \[0, 1\]"),
    ],
)
def test_item_tokens_name_the_first_bad_item(
    codes: list[list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ItemTokens(codes_NL=np.array(codes, np.int32), num_codes=4).validate()
