"""What a judge must beat on pairs: popularity, likeness of texts, joint choices."""

from collections.abc import Callable

import numpy as np

from sgrec_torchrec.judge.ask.cases import CaseReader
from sgrec_torchrec.judge.metrics import Judged
from sgrec_torchrec.schema import Float32Array


def baseline_scores(reader: CaseReader) -> dict[str, Callable[[Judged], Float32Array]]:
    """Name -> score float32 [C] of a case's candidates; chance is .5 by itself."""

    def popularity(judged: Judged) -> Float32Array:
        case = judged.case.case
        counts = [
            reader.popularity(item, case.request_timestamp) for item in case.items
        ]
        return np.array(counts, dtype=np.float32)

    def cosine(judged: Judged) -> Float32Array:
        case = judged.case.case
        past = reader.history(case)[0]
        return reader.grader.likeness(case.items, past).newest_C

    def together(judged: Judged) -> Float32Array:
        return np.array(reader.together(judged.case.case), dtype=np.float32)

    return {
        "popularity": popularity,
        "text cosine": cosine,
        "chosen together": together,
    }
