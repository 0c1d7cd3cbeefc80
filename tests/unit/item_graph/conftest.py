"""Small logs for the item graph's tests."""

from collections.abc import Callable

import numpy as np
import pytest

from sgrec_torchrec.schema import Catalogue, EvalRows, Sequences, SplitLog

MakeSplit = Callable[..., SplitLog]


def _eval_rows(lengths: np.ndarray, offsets: np.ndarray, items: np.ndarray, back: int):
    users = np.flatnonzero(lengths > back)
    end = (lengths[users] - back).astype(np.int32)
    return EvalRows(
        user_E=users.astype(np.int64),
        history_start_E=np.zeros(len(users), dtype=np.int32),
        history_end_E=end,
        target_E=items[offsets[users] + end].astype(np.int32),
        target_timestamp_E=end.astype(np.int64),
    )


def _make_split(
    user_items: list[list[int]],
    num_items: int,
    *,
    timestamps: list[list[int]] | None = None,
    titles: list[str] | None = None,
    brands: list[str] | None = None,
    train_end: list[int] | None = None,
) -> SplitLog:
    """Leave-last-out over the given sequences; all of them train by default."""
    lengths = np.array([len(items) for items in user_items], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.array([item for user in user_items for item in user], dtype=np.int32)
    times = timestamps or [list(range(n)) for n in lengths]
    train = lengths if train_end is None else np.array(train_end)
    names = titles or [""] * num_items
    sequences = Sequences(
        offsets_U1=offsets,
        items_R=items,
        timestamps_R=np.array([t for user in times for t in user], dtype=np.int64),
        events_R=np.zeros(len(items), dtype=np.int16),
        values_R=np.zeros(len(items), dtype=np.float32),
        train_end_U=train.astype(np.int32),
        valid_end_U=lengths.astype(np.int32),
        num_items=num_items,
        num_event_types=1,
        has_clock=True,
        has_value=False,
    )
    sequences.validate()
    catalogue = Catalogue(
        item_ids=[f"item-{n}" for n in range(num_items)],
        titles=names,
        brands=brands or [""] * num_items,
        categories=[""] * num_items,
        texts=names,
        embedding_ND=None,
        sid_NL=None,
    )
    return SplitLog(
        sequences=sequences,
        valid=_eval_rows(lengths, offsets, items, 2),
        test=_eval_rows(lengths, offsets, items, 1),
        catalogue=catalogue,
        user_ids=[f"user-{n}" for n in range(len(user_items))],
        protocol="leave-last-out",
    )


@pytest.fixture
def make_split() -> MakeSplit:
    return _make_split


@pytest.fixture
def random_split() -> SplitLog:
    """40 users, 23 items, lengths 0 to 30, popular items often, titles of few words."""
    generator = np.random.default_rng(7)
    users = [
        np.minimum(generator.geometric(0.15, size=n) - 1, 22).tolist()
        for n in generator.integers(0, 31, size=40)
    ]
    words = ["red", "blue", "pen", "paper", "box", "A4", "ink-jet", "7"]
    titles = [
        " ".join(generator.choice(words, size=n)) for n in generator.integers(0, 5, 23)
    ]
    return _make_split(
        users,
        23,
        titles=titles,
        brands=generator.choice(["", "Acme", "Zed"], size=23).tolist(),
        train_end=[max(len(user) - 2, 0) for user in users],
    )
