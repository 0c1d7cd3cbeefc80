"""How alike a candidate's text is to what a user chose, in grades that a prompt shows.

A small model reads "likeness 7" where it could not compare twenty titles; the grades
are retrieval for the judge, as a searcher would put the closest past choices beside a
question. Letters: N items, C candidates, P past choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sgrec_torchrec.item_graph.covisitation import fit_ends
from sgrec_torchrec.item_tokens.text_embedding import text_embedding
from sgrec_torchrec.logs.hashing import CANDIDATE, hash64
from sgrec_torchrec.schema import Float32Array, Int64Array, Sequences

GRADES = 10
"""0 to 9: deciles of the likeness between random users and random train events."""
NEWEST = 20
"""Choices that stand for the user."""
LATEST = 5
"""Choices that make the context."""
SAMPLED_USERS, SAMPLED_ITEMS = 512, 16


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

    The cuts follow from the log's train period alone, so they are the same for every
    run on it. Memory: the embedding is a memory map of 4 N D bytes.
    """

    def __init__(self, texts: Sequence[str], sequences: Sequences) -> None:
        self._embedding_ND = text_embedding(texts)
        ranges = self._sample(sequences)
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

    def _sample(self, sequences: Sequences) -> list[Likeness]:
        end_U = fit_ends(sequences, "train")
        _, row_F = sequences.events_until(end_U)
        users = np.flatnonzero(end_U > 0)
        order = np.argsort(hash64(0, CANDIDATE, users), kind="stable")
        found = []
        for user in users[order[:SAMPLED_USERS]].tolist():
            first = int(sequences.offsets_U1[user])
            past = sequences.items_R[first : first + int(end_U[user])].tolist()
            drawn = hash64(0, CANDIDATE, user, np.arange(SAMPLED_ITEMS))
            place = (drawn % np.uint64(len(row_F))).astype(np.int64)
            items = sequences.items_R[row_F[place]]
            found.append(self.likeness(items.tolist(), past))
        return found
