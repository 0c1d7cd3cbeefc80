"""Relations and a scorer as one thing that answers: who might come next, how likely.

Reads and writes both; the answer is what ``generator.prior`` mixes into the beam.
Letters: E rows, M candidates.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.distributed.main_rank import verifies_files
from sgrec_torchrec.evidence.gather import Histories, gather
from sgrec_torchrec.evidence.held_out import HELD_ARRAYS, HeldOut
from sgrec_torchrec.evidence.relations import RELATION_ARRAYS, Relations
from sgrec_torchrec.evidence.scorer import EvidenceScorer
from sgrec_torchrec.files.array_folder import Array, read_arrays, write_arrays
from sgrec_torchrec.schema import Float32Array, Int32Array

FORMAT_VERSION = 2
MANIFEST = "evidence.json"
FIRST_RELATIONS = (
    "forward",
    "backward",
    "around",
    "text",
    "text-visits",
    "visits-text",
)
"""Of evidence whose manifest names none: it is older than these names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidencePrior:
    """Answers for any history; knows nothing of users."""

    relations: Relations
    scorer: EvidenceScorer
    config: EvidenceConfig
    filter_seen: bool

    def candidates(self, histories: Histories) -> tuple[Int32Array, Float32Array]:
        """Items [E, M], -1 at unused places, and probabilities float32 [E, M].

        A row's probabilities sum to 1, or to 0 where nothing is known of its history.
        On the CPU; ranks do not communicate.
        """
        evidence = gather(
            self.relations, histories, self.config, filter_seen=self.filter_seen
        )
        return evidence.item_EM, self.scorer.probability(evidence)


def save_evidence(
    folder: Path, relations: Relations, held_out: HeldOut, config: EvidenceConfig
) -> None:
    """Write both, all or none."""
    arrays = {name: getattr(relations, name) for name in RELATION_ARRAYS}
    arrays |= {name: getattr(held_out, name) for name in HELD_ARRAYS}
    facts = {
        "format_version": FORMAT_VERSION,
        "num_rows": held_out.num_rows,
        "num_found": len(held_out.item_EM),
        "relations": config.relation_names(),
        "made_from": dataclasses.asdict(config),
    }
    write_arrays(folder / MANIFEST, arrays, facts)


def load_relations(folder: Path, names: Sequence[str] | None = None) -> Relations:
    """Map what ``save_evidence`` wrote; see ``read_arrays`` for errors.

    One process of a host reads it whole, to check it (``verifies_files``).

    Args:
        names: of the relations that must be there, in order. None takes any.

    Raises:
        ValueError: where the evidence is of other relations.
    """
    arrays, facts = _read(folder, RELATION_ARRAYS)
    held = facts["relations"] or FIRST_RELATIONS
    if names is not None and list(names) != list(held):
        raise ValueError(
            f"{folder} holds evidence of the item relations {', '.join(held)}, but "
            f"evidence.relations asks for {', '.join(names)}: train the run again, or "
            "set evidence.relations to those that are there"
        )
    relations = Relations(**arrays)
    if verifies_files():
        relations.validate()
    return relations


def load_held_out(folder: Path) -> HeldOut:
    """The scorer's training rows; see ``read_arrays`` for errors."""
    arrays, facts = _read(folder, HELD_ARRAYS)
    return HeldOut(**arrays, num_rows=facts["num_rows"])


def _read(
    folder: Path, names: tuple[str, ...]
) -> tuple[dict[str, Array], dict[str, Any]]:
    return read_arrays(
        folder / MANIFEST,
        names,
        {"num_rows": int, "relations": (list, NoneType)},
        format_version=FORMAT_VERSION,
        what="the evidence",
        verify=verifies_files(),
    )
