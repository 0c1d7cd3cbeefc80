"""Small logs and random relations for the evidence's tests."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.evidence.builders import MAX_DISTANCE
from sgrec_torchrec.evidence.cross_fit import CrossFit
from sgrec_torchrec.evidence.relations import Relations
from sgrec_torchrec.evidence.texts import Texts
from sgrec_torchrec.evidence.train_rows import fold_of_users
from sgrec_torchrec.files.run_folder import MANIFEST
from sgrec_torchrec.item_graph.pair_counts import count_pairs
from sgrec_torchrec.schema import EvalRows, Sequences

MakeFit = Callable[..., CrossFit]
MakeSequences = Callable[..., Sequences]
MakeRelations = Callable[..., Relations]


def _make_sequences(
    user_items: list[list[int]],
    num_items: int,
    *,
    timestamps: list[list[int]] | None = None,
    train_end: list[int] | None = None,
) -> Sequences:
    """One event a second by default, all of them in the train period."""
    lengths = np.array([len(items) for items in user_items], dtype=np.int64)
    times = timestamps or [list(range(n)) for n in lengths]
    count = int(lengths.sum())
    sequences = Sequences(
        offsets_U1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items_R=np.array([i for user in user_items for i in user], dtype=np.int32),
        timestamps_R=np.array([t for user in times for t in user], dtype=np.int64),
        events_R=np.zeros(count, dtype=np.int16),
        values_R=np.zeros(count, dtype=np.float32),
        train_end_U=np.array(lengths if train_end is None else train_end, np.int32),
        valid_end_U=lengths.astype(np.int32),
        num_items=num_items,
        num_event_types=1,
        has_clock=True,
        has_value=False,
    )
    sequences.validate()
    return sequences


def _make_relations(dense_RNN: np.ndarray, popularity: list[int]) -> Relations:
    """The given weights; an item is recent half as often as it is popular."""
    rows = dense_RNN.reshape(-1, dense_RNN.shape[-1])
    relations = Relations(
        indptr_R1=np.concatenate([[0], np.cumsum((rows > 0).sum(axis=1))]),
        neighbours_E=np.nonzero(rows)[1].astype(np.int32),
        weights_E=rows[rows > 0].astype(np.float32),
        popularity_N=np.array(popularity, dtype=np.int64),
        recent_N=np.array(popularity, dtype=np.int64) // 2,
    )
    relations.validate()
    return relations


def _make_rows(user: list[int], start: list[int], end: list[int]) -> EvalRows:
    """Rows of these histories; targets play no part."""
    return EvalRows(
        user_E=np.array(user, dtype=np.int64),
        history_start_E=np.array(start, dtype=np.int32),
        history_end_E=np.array(end, dtype=np.int32),
        target_E=np.zeros(len(user), dtype=np.int32),
        target_timestamp_E=np.zeros(len(user), dtype=np.int64),
    )


@pytest.fixture
def make_sequences() -> MakeSequences:
    return _make_sequences


@pytest.fixture
def make_relations() -> MakeRelations:
    return _make_relations


@pytest.fixture
def make_rows() -> Callable[..., EvalRows]:
    return _make_rows


@pytest.fixture
def random_relations() -> Relations:
    """3 relations of 25 items: dense, sparse, and one without a single edge."""
    generator = np.random.default_rng(11)
    weights = generator.random((3, 25, 25)) + 0.01
    kept = generator.random((3, 25, 25)) < np.array([0.5, 0.15, 0.0])[:, None, None]
    return _make_relations(weights * kept, generator.integers(0, 90, 25).tolist())


@pytest.fixture
def cross_fit(tmp_path: Path) -> MakeFit:
    """Counts of the train period by folds, texts (none by default), an empty folder."""
    numbers = itertools.count()

    def make(
        sequences: Sequences,
        config: EvidenceConfig,
        *,
        text: sp.csr_matrix | None = None,
        seed: int = 0,
        filter_seen: bool = False,
        **given: object,
    ) -> CrossFit:
        place = tmp_path / f"fit-{next(numbers)}"
        (place / "parts").mkdir(parents=True)
        # Only a relation of a package would read the split.
        (place / "split").mkdir()
        (place / "split" / MANIFEST).write_text("{}", encoding="ascii")
        if text is None:
            text = sp.csr_matrix((sequences.num_items, sequences.num_items))
        Texts.of(text).save(place / "texts")
        counts = count_pairs(
            sequences,
            sequences.train_end_U,
            place / "counts",
            max_distance=MAX_DISTANCE,
            fold_U=fold_of_users(sequences.num_users, config, seed),
            num_folds=config.num_folds,
        )
        return CrossFit(
            sequences=sequences,
            fit_on="train",
            split_dir=place / "split",
            counts=counts,
            texts=Texts.load(place / "texts"),
            config=config,
            max_history=100,
            filter_seen=filter_seen,
            seed=seed,
            parts=place / "parts",
            **given,
        )

    return make
