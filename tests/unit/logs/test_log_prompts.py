"""Prefixes of the train period: where they end, and what they ask for."""

from types import SimpleNamespace

import numpy as np

from sgrec_torchrec.logs import prompts as prompts_of_log
from sgrec_torchrec.logs.prompts import eligible_prompts
from sgrec_torchrec.schema import Sequences


def sequences_of(*users: tuple[list[int], int]) -> Sequences:
    """Users as (timestamps, train_end); items count 0, 1, ... over all events."""
    times = [time for stamps, _ in users for time in stamps]
    ends = np.array([end for _, end in users], dtype=np.int32)
    return Sequences(
        offsets_U1=np.cumsum([0, *(len(stamps) for stamps, _ in users)]),
        items_R=np.arange(len(times), dtype=np.int32),
        timestamps_R=np.array(times, dtype=np.int64),
        events_R=np.full(len(times), -1, dtype=np.int16),
        values_R=np.full(len(times), np.nan, dtype=np.float32),
        train_end_U=ends,
        valid_end_U=ends,
        num_items=len(times),
        num_event_types=0,
        has_clock=True,
        has_value=False,
    )


def test_a_prompt_ends_before_its_targets_basket(monkeypatch) -> None:
    nobody = lambda ids, seed: np.zeros(len(ids), dtype=bool)  # noqa: E731
    monkeypatch.setattr(prompts_of_log, "is_label_user", nobody)
    sequences = sequences_of(
        ([5, 5, 5, 9], 3),  # one train basket only
        ([1, 2, 2, 7, 7, 7, 8], 6),  # newest train basket: events 3, 4 and 5
        ([], 0),
        ([4, 6], 0),  # no train event; event 6 of the log is another user's
        ([4, 6, 6], 2),  # the valid event of the same time is not looked at
        ([3], 1),
    )
    split = SimpleNamespace(sequences=sequences, user_ids=["u"] * 6)
    rows = eligible_prompts(split, seed=0, max_history=2)
    assert rows.user_E.tolist() == [1, 4]
    assert rows.history_end_E.tolist() == [3, 1]
    assert rows.history_start_E.tolist() == [1, 0]
    assert rows.target_E.tolist() == [4 + 5, 13 + 1]
    assert rows.target_timestamp_E.tolist() == [7, 6]
