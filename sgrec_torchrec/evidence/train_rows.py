"""Events of the training period as questions: which of them, and of which fold.

Nothing of the valid and test periods takes part. Picking the rows holds 70 bytes an
event of the period for a moment.
"""

from dataclasses import dataclass

import numpy as np

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.hashing import FOLD, fold_of, hash64
from sgrec_torchrec.item_graph.row_order import BoolArray, spans
from sgrec_torchrec.schema import EvalRows, Int32Array, Int64Array, Sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRows:
    """Rows of the training period, by rising event."""

    rows: EvalRows
    event_E: Int64Array
    """The target's row in ``Sequences``."""


def fold_of_users(num_users: int, config: EvidenceConfig, seed: int) -> Int64Array:
    """Which fold each user is dealt into, int64 [U]."""
    return fold_of(seed, np.arange(num_users), config.num_folds)


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


def asked_items(
    sequences: Sequences, rows: EvalRows, config: EvidenceConfig
) -> BoolArray:
    """The items whose neighbours are looked up for these rows, bool [N]."""
    stop_E = sequences.offsets_U1[rows.user_E] + rows.history_end_E
    length_E = rows.history_end_E - rows.history_start_E
    start_E = stop_E - np.minimum(length_E, config.score_history)
    is_asked_N = np.zeros(sequences.num_items, dtype=np.bool_)
    is_asked_N[sequences.items_R[spans(start_E, stop_E)]] = True
    return is_asked_N
