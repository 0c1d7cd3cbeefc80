"""Train rows with relations that have not seen them: what the scorer learns from.

Relations made from a row's own user know its target: a scorer trained on them would
trust them too much. So users are put into folds, and a fold's rows ask relations made
without that fold (cross-fitting; Wolpert 1992, "Stacked generalization"). Nothing of
the valid and test periods takes part.

Scale: ``max_rows`` bounds the rows, and a fold's relations hold what its rows ask for,
so beyond that the cost is weighing the counted pairs once a fold, and picking the rows,
which holds 70 bytes an event of the period for a moment.
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.evidence.builders import MAX_DISTANCE
from sgrec_torchrec.evidence.gather import Evidence, gather, histories_of
from sgrec_torchrec.evidence.relations import Relations, build_relations
from sgrec_torchrec.evidence.texts import Texts
from sgrec_torchrec.files.growing_array import forget
from sgrec_torchrec.hashing import FOLD, fold_of, hash64
from sgrec_torchrec.item_graph.pair_counts import PairCounts, counted
from sgrec_torchrec.item_graph.row_order import BoolArray, spans
from sgrec_torchrec.schema import (
    Catalogue,
    EvalRows,
    Float32Array,
    Int32Array,
    Int64Array,
    Sequences,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Rows whose target is among their candidates; the others teach nothing."""

    item_EM: Int32Array
    features_EMF: Float32Array
    target_place_E: Int64Array
    """Which candidate is the target."""
    num_rows: int
    """Rows asked, with those whose target was not found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRows:
    """Rows of the training period, by rising event."""

    rows: EvalRows
    event_E: Int64Array
    """The target's row in ``Sequences``."""


def hold_out(
    sequences: Sequences,
    end_U: Int32Array,
    text: Texts | sp.csr_matrix,
    config: EvidenceConfig,
    *,
    max_history: int,
    filter_seen: bool,
    seed: int,
    catalogue: Catalogue | None = None,
    counts: PairCounts | None = None,
    place: Path | None = None,
) -> HeldOut:
    """Evidence of train rows, each from relations made without its user's fold.

    Deterministic in ``seed``, which deals users into folds. Ranks do not communicate.

    Args:
        counts, place: as ``folds`` takes them.
    """
    asked = train_rows(sequences, end_U, max_history, config.max_rows, seed)
    parts = []
    for chosen, relations in folds(
        sequences, end_U, text, config, asked.rows, seed, catalogue, counts, place
    ):
        rows = asked.rows.take(chosen)
        histories = histories_of(sequences, rows)
        evidence = gather(relations, histories, config, filter_seen=filter_seen)
        parts.append(_with_target(evidence, rows.target_E))
    return _joined(parts, len(asked.event_E))


def fold_of_users(num_users: int, config: EvidenceConfig, seed: int) -> Int64Array:
    """Which fold each user is dealt into, int64 [U]."""
    return fold_of(seed, np.arange(num_users), config.num_folds)


def folds(
    sequences: Sequences,
    end_U: Int32Array,
    text: Texts | sp.csr_matrix,
    config: EvidenceConfig,
    rows: EvalRows,
    seed: int,
    catalogue: Catalogue | None = None,
    counts: PairCounts | None = None,
    place: Path | None = None,
) -> Iterator[tuple[Int64Array, Relations]]:
    """Yield, fold by fold, its rows and relations made without its users.

    The relations hold what these rows' histories ask for.

    Args:
        counts: of this period by these folds, where they are there; counted else.
        place: where a fold's relations are written, to go with the next one.
            None: where temporary files go.
    """
    texts = text if isinstance(text, Texts) else Texts.of(text)
    fold_U = fold_of_users(sequences.num_users, config, seed)
    fold_E = fold_U[rows.user_E]
    with (
        counted(
            sequences,
            end_U,
            max_distance=MAX_DISTANCE,
            fold_U=fold_U,
            num_folds=config.num_folds,
            given=counts,
        ) as known,
        tempfile.TemporaryDirectory(prefix="folds-", dir=place) as work,
    ):
        assert known.layout.num_folds == config.num_folds, "counted by other folds"
        for fold in progress(
            range(config.num_folds), description="held-out evidence", unit="fold"
        ):
            chosen = np.flatnonzero(fold_E == fold)
            relations = build_relations(
                sequences,
                np.where(fold_U == fold, 0, end_U).astype(np.int32),
                texts,
                config,
                catalogue,
                counts=known,
                without=fold,
                wanted_N=_asked_items(sequences, rows.take(chosen), config),
                folder=Path(work) / str(fold),
            )
            yield chosen, relations
            forget(relations.neighbours_E, relations.weights_E)
            shutil.rmtree(Path(work) / str(fold))


def _asked_items(
    sequences: Sequences, rows: EvalRows, config: EvidenceConfig
) -> BoolArray:
    """The items whose neighbours are looked up for these rows, bool [N]."""
    stop_E = sequences.offsets_U1[rows.user_E] + rows.history_end_E
    length_E = rows.history_end_E - rows.history_start_E
    start_E = stop_E - np.minimum(length_E, config.score_history)
    is_asked_N = np.zeros(sequences.num_items, dtype=np.bool_)
    is_asked_N[sequences.items_R[spans(start_E, stop_E)]] = True
    return is_asked_N


def train_rows(
    sequences: Sequences,
    end_U: Int32Array,
    max_history: int,
    max_rows: int,
    seed: int,
) -> TrainRows:
    """At most ``max_rows`` events of the period that have a history.

    Newest of each user first; which users give the last round is drawn by ``seed``.
    """
    user_R, place_R = sequences.events_until(end_U)
    local_R = place_R - sequences.offsets_U1[user_R]
    times_R = sequences.timestamps_R[place_R]
    is_first_R = np.append(
        True, (user_R[1:] != user_R[:-1]) | (times_R[1:] != times_R[:-1])
    )[: len(user_R)]
    basket_R = np.maximum.accumulate(np.where(is_first_R, np.arange(len(user_R)), 0))
    history_end_R = local_R[basket_R]
    asked = np.flatnonzero(history_end_R > 0)
    if len(asked) > max_rows:
        back = end_U[user_R[asked]] - local_R[asked]
        noise = hash64(seed, FOLD, user_R[asked], local_R[asked])
        asked = np.sort(asked[np.lexsort((noise, back))[:max_rows]])
    end = history_end_R[asked]
    rows = EvalRows(
        user_E=user_R[asked],
        history_start_E=np.maximum(end - max_history, 0).astype(np.int32),
        history_end_E=end.astype(np.int32),
        target_E=sequences.items_R[place_R[asked]],
        target_timestamp_E=times_R[asked],
    )
    return TrainRows(rows=rows, event_E=place_R[asked])


def _with_target(evidence: Evidence, target_E: Int32Array) -> HeldOut:
    """A fold's rows, without those whose target is no candidate."""
    is_target_EM = evidence.item_EM == target_E[:, None]
    found = np.flatnonzero(is_target_EM.any(axis=1))
    return HeldOut(
        item_EM=evidence.item_EM[found],
        features_EMF=evidence.features_EMF[found],
        target_place_E=is_target_EM[found].argmax(axis=1).astype(np.int64),
        num_rows=len(target_E),
    )


def _joined(parts: list[HeldOut], num_rows: int) -> HeldOut:
    """All folds' rows together."""
    return HeldOut(
        item_EM=np.concatenate([part.item_EM for part in parts]),
        features_EMF=np.concatenate([part.features_EMF for part in parts]),
        target_place_E=np.concatenate([part.target_place_E for part in parts]),
        num_rows=num_rows,
    )
