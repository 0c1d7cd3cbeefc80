"""What a judge must beat, by hand."""

import numpy as np
import pytest

from sgrec_torchrec.judge.ask import likeness as module
from sgrec_torchrec.judge.ask.cases import Case, CaseReader
from sgrec_torchrec.judge.ask.prompt import PromptSettings
from sgrec_torchrec.judge.learn.labels import LabelledCase
from sgrec_torchrec.judge.learn.metrics import Judged, baseline_scores


def judged_of(case: Case) -> Judged:
    num_items = len(case.items)
    labelled = LabelledCase(
        case=case,
        sources=("next",) * num_items,
        levels_CA=np.ones((num_items, 4), dtype=np.int8),
        evidence=(("",) * 4,) * num_items,
        preferences=(),
        is_held_out=True,
    )
    return Judged(
        case=labelled,
        probability_CAS=np.full((num_items, 4, 5), 0.2, dtype=np.float32),
        weight_A=np.full(4, 0.25, dtype=np.float32),
    )


def test_popularity_and_cosine_by_hand(
    make_split, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [[(0, 10), (1, 20), (2, 30)], [(2, 15), (2, 25), (1, 99)]]
    split = make_split(users, [3, 3], ["Lamp", "Desk", "Rug"])
    rows = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    monkeypatch.setattr(module, "text_embedding", lambda texts: rows)
    reader = CaseReader(split, PromptSettings(max_history=20))
    case = Case(user=0, as_of=2, request_timestamp=30, items=(2, 1, 0))
    judged = judged_of(case)
    scores = baseline_scores(reader)
    # Before second 30: rugs at 15 and 25, a desk at 20, a lamp at 10.
    assert scores["popularity"](judged).tolist() == [2, 1, 1]
    # The past is a lamp and a desk: their mean is (.5, .5).
    np.testing.assert_allclose(scores["text cosine"](judged), [0.7, 0.5, 0.5])


def test_joint_choices_by_hand(make_split) -> None:
    # Four of 33 users chose the lamp and the rug, 28 the desk alone.
    users = [[(0, 10), (1, 30)], *[[(0, 5), (2, 6)]] * 4, *[[(1, 7)]] * 28]
    split = make_split(users, [len(u) for u in users], ["Lamp", "Desk", "Rug"])
    case = Case(user=0, as_of=1, request_timestamp=20, items=(2, 1))
    together = baseline_scores(CaseReader(split, PromptSettings(max_history=20)))[
        "chosen together"
    ]
    # 4.5 / (4 * 4 / 33 + .5) = 4.6, and 2 log2 of it 4.4; the desk has less than one.
    assert together(judged_of(case)).tolist() == [4, 0]
