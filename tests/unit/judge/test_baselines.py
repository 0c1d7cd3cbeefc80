"""What a judge must beat, by hand."""

import numpy as np
import pytest

from sgrec_torchrec.judge import likeness as module
from sgrec_torchrec.judge.baselines import baseline_scores
from sgrec_torchrec.judge.cases import Case, CaseReader
from sgrec_torchrec.judge.labels import LabelledCase
from sgrec_torchrec.judge.metrics import Judged
from sgrec_torchrec.judge.prompt import PromptSettings


def test_popularity_and_cosine_by_hand(
    make_split, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [[(0, 10), (1, 20), (2, 30)], [(2, 15), (2, 25), (1, 99)]]
    split = make_split(users, [3, 3], ["Lamp", "Desk", "Rug"])
    rows = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    monkeypatch.setattr(module, "text_embedding", lambda texts: rows)
    reader = CaseReader(split, PromptSettings())
    case = Case(user=0, as_of=2, request_timestamp=30, items=(2, 1, 0))
    labelled = LabelledCase(
        case=case,
        sources=("next",) * 3,
        levels_CA=np.ones((3, 4), dtype=np.int8),
        evidence=(("",) * 4,) * 3,
        preferences=(),
        is_held_out=True,
    )
    judged = Judged(
        case=labelled,
        probability_CAS=np.full((3, 4, 5), 0.2, dtype=np.float32),
        weight_A=np.full(4, 0.25, dtype=np.float32),
    )
    scores = baseline_scores(reader)
    # Before second 30: rugs at 15 and 25, a desk at 20, a lamp at 10.
    assert scores["popularity"](judged).tolist() == [2, 1, 1]
    # The past is a lamp and a desk: their mean is (.5, .5).
    np.testing.assert_allclose(scores["text cosine"](judged), [0.7, 0.5, 0.5])
