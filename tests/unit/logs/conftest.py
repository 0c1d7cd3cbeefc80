"""A random log, cut at random, for the tests of samples and batches."""

from collections.abc import Callable

import numpy as np
import pytest

from sgrec_torchrec.logs.sampling import SoftTargets
from sgrec_torchrec.schema import Catalogue, EvalRows, Sequences, SplitLog

NUM_ITEMS = 7


def random_split(seed: int = 0, num_users: int = 20, longest: int = 30) -> SplitLog:
    """A random log with baskets; user 0 has no train event."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest, num_users)
    times = [
        np.sort(generator.integers(0, 1000 if u % 2 else 2 * n, n))
        for u, n in enumerate(lengths)
    ]
    cuts = []
    for stamps in times:
        starts = [0, *(np.flatnonzero(np.diff(stamps)) + 1).tolist(), len(stamps)]
        cuts.append(sorted(generator.choice(starts, 2).tolist()))
    cuts[0][0] = 0
    total = int(lengths.sum())
    values = generator.exponential(10, total).astype(np.float32)
    values[::5] = np.nan
    sequences = Sequences(
        offsets_U1=np.append(0, np.cumsum(lengths)),
        items_R=generator.integers(0, NUM_ITEMS, total, dtype=np.int32),
        timestamps_R=np.concatenate(times),
        events_R=generator.integers(-1, 2, total).astype(np.int16),
        values_R=values,
        train_end_U=np.array([cut[0] for cut in cuts], np.int32),
        valid_end_U=np.array([cut[1] for cut in cuts], np.int32),
        num_items=NUM_ITEMS,
        num_event_types=2,
        has_clock=True,
        has_value=True,
    )
    empty = EvalRows(
        user_E=np.zeros(0, np.int64),
        history_start_E=np.zeros(0, np.int32),
        history_end_E=np.zeros(0, np.int32),
        target_E=np.zeros(0, np.int32),
        target_timestamp_E=np.zeros(0, np.int64),
    )
    catalogue = Catalogue(
        item_ids=[],
        titles=[],
        brands=[],
        categories=[],
        texts=[],
        embedding_ND=None,
        sid_NL=None,
    )
    return SplitLog(
        sequences=sequences,
        valid=empty,
        test=empty,
        catalogue=catalogue,
        user_ids=[],
        protocol="chronological",
    )


def soft_targets_of(split: SplitLog) -> SoftTargets:
    """One or two items for every second event of the log, whatever its period."""
    row_E = np.arange(0, len(split.sequences.items_R), 2)
    one_E, other_E = row_E % NUM_ITEMS, (row_E + 1) % NUM_ITEMS
    has_two_E = row_E % 3 > 0
    return SoftTargets(
        row_E=row_E,
        item_EQ=np.stack([one_E, np.where(has_two_E, other_E, -1)], 1).astype(np.int32),
        cumulative_EQ=np.stack(
            [np.where(has_two_E, 0.25, 1.0), np.ones(len(row_E))], 1
        ).astype(np.float32),
    )


@pytest.fixture
def make_split() -> Callable[..., SplitLog]:
    """make_split(seed=0, num_users=20, longest=30): 7 items, two kinds of event."""
    return random_split


@pytest.fixture
def make_soft_targets() -> Callable[[SplitLog], SoftTargets]:
    """make_soft_targets(split): of every second event."""
    return soft_targets_of
