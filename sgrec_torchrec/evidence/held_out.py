"""Train rows with relations that have not seen them: what the scorer learns from.

Scale: ``max_rows`` bounds the rows; beside what ``cross_fit`` says, memory holds their
candidates and features at the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from sgrec_torchrec.distributed.tasks import checked_file
from sgrec_torchrec.evidence.cross_fit import AskRows, CrossFit
from sgrec_torchrec.evidence.gather import Evidence
from sgrec_torchrec.files.growing_array import mapped
from sgrec_torchrec.schema import Float32Array, Int32Array, Int64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Rows whose target is among their candidates; the others teach nothing."""

    item_EM: Int32Array
    features_EMF: Float32Array
    target_place_E: Int64Array
    """Which candidate is the target."""
    num_rows: int
    """Rows asked, with those whose target was not found."""


HELD_ARRAYS = tuple(field.name for field in fields(HeldOut) if field.name != "num_rows")


def hold_out(fit: CrossFit, *, with_whole: bool = False) -> HeldOut:
    """Evidence of train rows, each from relations made without its user's fold.

    Deterministic, whoever does the tasks. Ranks do not communicate.

    Args:
        with_whole: as ``CrossFit.ask``.
    """
    asked = fit.rows(fit.config.max_rows)
    parts = [
        {name: mapped(checked_file(folder, f"{name}.npy")) for name in HELD_ARRAYS}
        for _, folder in fit.ask(
            asked,
            gather_rows,
            with_whole=with_whole,
            description="held-out evidence",
        )
    ]
    joined = {
        name: np.concatenate([part[name] for part in parts]) for name in HELD_ARRAYS
    }
    return HeldOut(**joined, num_rows=len(asked.event_E))


def gather_rows(task: AskRows, folder: Path) -> Mapping[str, object]:
    """The evidence of a block of rows."""
    held = _with_target(*task.asked())
    for name in HELD_ARRAYS:
        np.save(folder / f"{name}.npy", getattr(held, name))
    return {}


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
