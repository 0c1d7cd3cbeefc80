"""How alike a candidate's text is to what a user chose, in grades that a prompt shows.

A small model reads "likeness 7" where it could not compare twenty titles; the grades
are retrieval for the judge, as a searcher would put the closest past choices beside a
question. Letters: N items, C candidates, P past choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sgrec_torchrec.hashing import CANDIDATE, hash64
from sgrec_torchrec.item_tokens.text_embedding import text_embedding
from sgrec_torchrec.schema import Float32Array, Int64Array

GRADES = 10
"""0 to 9: deciles of the likeness of random items to random sets of items."""
NEWEST = 20
"""Choices that stand for the user."""
LATEST = 5
"""Choices that make the context."""
NUM_DRAWS, SAMPLED_ITEMS = 512, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """Mean cosine of each candidate to the newest and latest choices, and the nearest.

    ``newest_C``, ``latest_C``, ``nearest_C`` float32; ``nearest_item_C`` int64.
    """

    newest_C: Float32Array
    latest_C: Float32Array
    nearest_C: Float32Array
    nearest_item_C: Int64Array


class LikenessGrader:
    """Text embeddings of a catalogue, and the cuts between grades.

    The cuts follow from the catalogue alone: no choice of anybody can move a grade.
    Memory: the embedding is a memory map of 4 N D bytes.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._embedding_ND = text_embedding(texts)
        ranges = self._sample()
        shares = np.arange(1, GRADES) / GRADES
        self._cuts = {
            name: np.quantile(
                np.concatenate([getattr(one, name) for one in ranges]), shares
            )
            for name in ("newest_C", "latest_C", "nearest_C")
        }

    def likeness(self, items: Sequence[int], past: Sequence[int]) -> Likeness:
        """Of the candidates to the choices, oldest first; at least one choice."""
        newest = np.array(past[-NEWEST:], dtype=np.int64)
        cosine_CP = self._embedding_ND[list(items)] @ self._embedding_ND[newest].T
        return Likeness(
            newest_C=cosine_CP.mean(1),
            latest_C=cosine_CP[:, -LATEST:].mean(1),
            nearest_C=cosine_CP.max(1),
            nearest_item_C=newest[cosine_CP.argmax(1)],
        )

    def grade(self, name: str, value: float) -> int:
        """0 to 9 for one of ``Likeness``' cosines."""
        return int(np.searchsorted(self._cuts[name], value, "right"))

    def _sample(self) -> list[Likeness]:
        """Random items against random "users" of ``NEWEST`` random items."""
        num_items = len(self._embedding_ND)
        places = np.arange(NEWEST + SAMPLED_ITEMS)
        found = []
        for draw in range(NUM_DRAWS):
            drawn = hash64(0, CANDIDATE, draw, places) % np.uint64(num_items)
            items = drawn.astype(np.int64).tolist()
            found.append(self.likeness(items[NEWEST:], items[:NEWEST]))
        return found
