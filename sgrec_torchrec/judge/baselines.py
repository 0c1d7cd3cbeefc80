"""What a judge must beat on pairs: popularity, and likeness of text embeddings."""

from collections.abc import Callable

import numpy as np

from sgrec_torchrec.item_tokens.text_embedding import text_embedding
from sgrec_torchrec.judge.cases import CaseReader
from sgrec_torchrec.judge.metrics import Judged
from sgrec_torchrec.schema import Float32Array

NEWEST = 20
"""Choices whose mean embedding stands for the user."""


def baseline_scores(reader: CaseReader) -> dict[str, Callable[[Judged], Float32Array]]:
    """Name -> score float32 [C] of a case's candidates; chance is .5 by itself."""
    embedding_ND = text_embedding(reader.split.catalogue.texts)

    def popularity(judged: Judged) -> Float32Array:
        case = judged.case.case
        counts = [
            reader.popularity(item, case.request_timestamp) for item in case.items
        ]
        return np.array(counts, dtype=np.float32)

    def cosine(judged: Judged) -> Float32Array:
        case = judged.case.case
        newest = np.array(reader.history(case)[0][-NEWEST:], dtype=np.int64)
        # Rows have length 1, so of one user the product orders as the cosine does.
        score: Float32Array = embedding_ND[list(case.items)] @ embedding_ND[
            newest
        ].mean(0)
        return score

    return {"popularity": popularity, "text cosine": cosine}
