"""Small logs written out by hand, for the tests of prompts, rewards and rollouts."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from sgrec_torchrec.logs.judged_users import is_label_user
from sgrec_torchrec.schema import Catalogue, EvalRows, Sequences, SplitLog

NUM_ITEMS = 12
LOG_SEED = 0
Event = tuple[int, int, float]
"""(item, second, value)"""


def ids_of(count: int, *, are_labels: bool = False) -> list[str]:
    """User ids whom post-training has, or else whom the judge learns from."""
    names = [f"u{number}" for number in range(20 * count + 20)]
    is_label = is_label_user(names, LOG_SEED)
    chosen = [
        n for n, label in zip(names, is_label, strict=True) if label == are_labels
    ]
    return chosen[:count]


def log_of(
    users: dict[str, Sequence[Event]],
    train_ends: Sequence[int] | None = None,
    *,
    has_value: bool = False,
) -> SplitLog:
    """The users' events; all of them are train events unless ``train_ends`` says."""
    lengths = [len(events) for events in users.values()]
    rows = [event for events in users.values() for event in events]
    items, times, values = zip(*rows, strict=True)
    ends = np.array(lengths if train_ends is None else train_ends, np.int32)
    none = np.zeros(0, np.int64)
    nothing = EvalRows(
        user_E=none,
        history_start_E=none.astype(np.int32),
        history_end_E=none.astype(np.int32),
        target_E=none.astype(np.int32),
        target_timestamp_E=none,
    )
    names = [f"i{number}" for number in range(NUM_ITEMS)]
    return SplitLog(
        sequences=Sequences(
            offsets_U1=np.append(0, np.cumsum(lengths)),
            items_R=np.array(items, np.int32),
            timestamps_R=np.array(times, np.int64),
            events_R=np.zeros(len(rows), np.int16),
            values_R=np.array(values, np.float32),
            train_end_U=ends,
            valid_end_U=ends,
            num_items=NUM_ITEMS,
            num_event_types=1,
            has_clock=True,
            has_value=has_value,
        ),
        valid=nothing,
        test=nothing,
        catalogue=Catalogue(
            item_ids=names,
            titles=names,
            brands=names,
            categories=names,
            texts=names,
            embedding_ND=None,
            sid_NL=None,
        ),
        user_ids=list(users),
        protocol="chronological",
    )


@pytest.fixture
def make_log() -> Callable[..., SplitLog]:
    """make_log({user: [(item, second, value)]}, train_ends=None, has_value=False)."""
    return log_of


@pytest.fixture
def user_ids() -> Callable[..., list[str]]:
    """user_ids(count, are_labels=False)."""
    return ids_of
