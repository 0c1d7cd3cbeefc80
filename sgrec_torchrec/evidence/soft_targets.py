"""Train events -> what the evidence would have expected: the network's teacher.

Asked of relations that have not seen the event's user, as in ``held_out``: else the
answer would mostly repeat the event itself. Letters: E events, M candidates, Q items.
"""

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.evidence.gather import Evidence, gather, histories_of
from sgrec_torchrec.evidence.held_out import folds, train_rows
from sgrec_torchrec.evidence.scorer import EvidenceScorer
from sgrec_torchrec.evidence.texts import Texts
from sgrec_torchrec.item_graph.pair_counts import PairCounts
from sgrec_torchrec.logs.sampling import SoftTargets
from sgrec_torchrec.schema import (
    Catalogue,
    Float32Array,
    Int32Array,
    Sequences,
)

BLOCK_ROWS = 4096


def soft_targets(
    sequences: Sequences,
    end_U: Int32Array,
    text: Texts | sp.csr_matrix,
    scorer: EvidenceScorer,
    config: EvidenceConfig,
    *,
    max_history: int,
    filter_seen: bool,
    seed: int,
    catalogue: Catalogue | None = None,
    counts: PairCounts | None = None,
    place: Path | None = None,
) -> SoftTargets:
    """The likeliest items of the newest events; events without any are left out.

    Ranks do not communicate. Weighs the counted pairs once a fold, and then grows with
    ``config.max_taught``, 8 bytes for each of its ``taught_items``.

    Args:
        seed: the one that dealt the scorer's training rows into folds.
        counts, place: as ``folds`` takes them.
    """
    asked = train_rows(sequences, end_U, max_history, config.max_taught, seed)
    shape = (len(asked.event_E), config.taught_items)
    item_EQ = np.full(shape, -1, dtype=np.int32)
    cumulative_EQ = np.zeros(shape, dtype=np.float32)
    for chosen, relations in folds(
        sequences, end_U, text, config, asked.rows, seed, catalogue, counts, place
    ):
        for start in range(0, len(chosen), BLOCK_ROWS):
            block = chosen[start : start + BLOCK_ROWS]
            histories = histories_of(sequences, asked.rows.take(block))
            evidence = gather(relations, histories, config, filter_seen=filter_seen)
            item_EQ[block], cumulative_EQ[block] = _likeliest(
                evidence, scorer.probability(evidence), config.taught_items
            )
    taught = cumulative_EQ[:, -1] > 0
    return SoftTargets(
        row_E=asked.event_E[taught],
        item_EQ=item_EQ[taught],
        cumulative_EQ=cumulative_EQ[taught],
    )


def _likeliest(
    evidence: Evidence, probability_EM: Float32Array, count: int
) -> tuple[Int32Array, Float32Array]:
    """The ``count`` likeliest items [E, Q], and their cumulative share [E, Q]."""
    order_EQ = np.argsort(-probability_EM, axis=1, kind="stable")[:, :count]
    item_EQ = np.take_along_axis(evidence.item_EM, order_EQ, axis=1)
    share_EQ = np.take_along_axis(probability_EM, order_EQ, axis=1)
    missing = ((0, 0), (0, count - order_EQ.shape[1]))
    item_EQ = np.pad(item_EQ, missing, constant_values=-1)
    cumulative_EQ = np.pad(share_EQ, missing).cumsum(axis=1)
    total_E1 = cumulative_EQ[:, -1:]
    scale_E1 = np.divide(1.0, total_E1, out=np.zeros_like(total_E1), where=total_E1 > 0)
    return item_EQ, (cumulative_EQ * scale_E1).astype(np.float32)
