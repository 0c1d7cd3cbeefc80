"""Train events -> what the evidence would have expected: the network's teacher.

Asked of relations that have not seen the event's user, as in ``held_out``: else the
answer would mostly repeat the event itself. Letters: E events, M candidates, Q items.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sgrec_torchrec.distributed.tasks import checked_file
from sgrec_torchrec.evidence.cross_fit import AskRows, CrossFit
from sgrec_torchrec.evidence.gather import Evidence, num_features
from sgrec_torchrec.evidence.scorer import load_scorer
from sgrec_torchrec.files.growing_array import mapped
from sgrec_torchrec.logs.sampling import SoftTargets
from sgrec_torchrec.schema import Float32Array, Int32Array

ITEMS, CUMULATIVE = "item_EQ.npy", "cumulative_EQ.npy"


def soft_targets(fit: CrossFit, scorer_path: Path) -> SoftTargets:
    """The likeliest items of the newest events; events without any are left out.

    Ranks do not communicate. Beside what ``cross_fit`` says it grows with
    ``evidence.max_taught``, 8 bytes for each of its ``taught_items``.

    Args:
        scorer_path: its weights, fitted on rows dealt into folds by the same seed.
    """
    asked = fit.rows(fit.config.max_taught)
    shape = (len(asked.event_E), fit.config.taught_items)
    item_EQ = np.full(shape, -1, dtype=np.int32)
    cumulative_EQ = np.zeros(shape, dtype=np.float32)
    for rows, folder in fit.ask(
        asked, teach_rows, more=(scorer_path,), description="soft targets"
    ):
        item_EQ[rows] = mapped(checked_file(folder, ITEMS))
        cumulative_EQ[rows] = mapped(checked_file(folder, CUMULATIVE))
    taught = cumulative_EQ[:, -1] > 0
    return SoftTargets(
        row_E=asked.event_E[taught],
        item_EQ=item_EQ[taught],
        cumulative_EQ=cumulative_EQ[taught],
    )


def teach_rows(task: AskRows, folder: Path) -> Mapping[str, object]:
    """The likeliest items of a block of events."""
    config, scorer_path = task.config, task.inputs[-1]
    width = num_features(len(config.relation_names()))
    scorer = load_scorer(scorer_path, config, width)
    evidence, _ = task.asked()
    item_EQ, cumulative_EQ = _likeliest(
        evidence, scorer.probability(evidence), config.taught_items
    )
    np.save(folder / ITEMS, item_EQ)
    np.save(folder / CUMULATIVE, cumulative_EQ)
    return {}


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
