"""The scale and the schema: what is taken as an answer, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest

from sgrec_torchrec.judge.ask.aspects import (
    ASPECTS,
    LEVELS,
    MAX_EVIDENCE_CHARS,
    WrittenAnswer,
    answer_schema,
    asked_aspects,
    expected_score,
    read_answer,
)

TWO = ASPECTS[:2]


def said(**changes: Any) -> dict[str, Any]:
    """A good answer about two aspects, with parts replaced."""
    answer: dict[str, Any] = {
        "profile": {"evidence": "Four lamps before.", "level": 4},
        "future_interest": {"evidence": "No rug yet.", "level": 1},
    }
    return answer | changes


def test_context_is_asked_only_where_there_is_a_clock() -> None:
    names = [aspect.name for aspect in asked_aspects(has_clock=True)]
    assert names == ["profile", "future_interest", "novelty", "context"]
    names = [aspect.name for aspect in asked_aspects(has_clock=False)]
    assert names == ["profile", "future_interest", "novelty"]


def test_a_good_answer_is_read_in_the_order_of_the_aspects() -> None:
    turned = dict(reversed(said().items()))
    read = read_answer(json.dumps(turned), TWO)
    assert read.levels == (4, 1)
    assert read.evidence == ("Four lamps before.", "No rug yet.")


def test_answers_survive_writing_and_reading() -> None:
    hostile = 'Says "5}" \\ \n <|im_end|> \u202e\u05d0 \U0001f600'
    answer = WrittenAnswer(levels=(5, 1), evidence=(hostile, "x"))
    assert read_answer(answer.to_json(TWO), TWO) == answer


def test_evidence_stands_before_the_level() -> None:
    part = answer_schema(TWO)["properties"]["profile"]
    assert list(part["properties"]) == ["evidence", "level"]
    text = WrittenAnswer(levels=(5, 1), evidence=("a", "b")).to_json(TWO)
    assert text.index('"evidence": "a"') < text.index('"level": 5')


@pytest.mark.parametrize("level", [1, 5])
@pytest.mark.parametrize("length", [1, MAX_EVIDENCE_CHARS])
def test_bounds_of_an_answer_are_allowed(level: int, length: int) -> None:
    answer = said(profile={"evidence": "x" * length, "level": level})
    assert read_answer(json.dumps(answer), TWO).levels == (level, 1)


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"evidence": "x", "level": 0}, "profile/level"),
        ({"evidence": "x", "level": len(LEVELS) + 1}, "profile/level"),
        ({"evidence": "x", "level": 2.5}, "profile/level"),
        ({"evidence": "x", "level": "3"}, "profile/level"),
        ({"evidence": "x", "level": True}, "profile/level"),
        ({"evidence": "x", "level": None}, "profile/level"),
        ({"evidence": "", "level": 3}, "profile/evidence"),
        ({"evidence": "x" * (MAX_EVIDENCE_CHARS + 1), "level": 3}, "profile/evidence"),
        ({"evidence": None, "level": 3}, "profile/evidence"),
        ({"evidence": ["x"], "level": 3}, "profile/evidence"),
        ({"level": 3}, "profile: 'evidence' is a required property"),
        ({"evidence": "x"}, "profile: 'level' is a required property"),
        ({"evidence": "x", "level": 3, "reward": 1}, "profile: Additional properties"),
        (3, "profile: 3 is not of type 'object'"),
    ],
)
def test_a_bad_part_is_refused_and_named(part: Any, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        read_answer(json.dumps(said(profile=part)), TWO)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ("Sure! {}", "not JSON"),
        (json.dumps(said())[:-1], "not JSON"),
        (json.dumps(said()) + " Done.", "not JSON"),
        ("[]", "the answer: "),
        ("null", "the answer: "),
        ('{"profile": {"evidence": "x", "level": 3}}', "the answer: 'future_interest'"),
        (json.dumps(said(novelty={"evidence": "x", "level": 3})), "the answer: Addit"),
        ("[" * 100_000, "nested"),
        (json.dumps(said(profile={"evidence": "\ud83d", "level": 3})), "surrogate"),
    ],
)
def test_a_text_off_the_schema_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_answer(text, TWO)


def test_levels_are_whole_numbers_however_they_are_spelt() -> None:
    text = json.dumps(said(profile={"evidence": "x", "level": 3.0}))
    (level, _) = read_answer(text, TWO).levels
    assert isinstance(level, int)


def test_expected_score_by_hand() -> None:
    probability_QS = np.array(
        [
            [1, 0, 0, 0, 0],
            [0, 0, 0, 0, 1],
            [0.2, 0.2, 0.2, 0.2, 0.2],
            [0.5, 0.25, 0, 0, 0.25],
        ],
        dtype=np.float32,
    )
    score_Q = expected_score(probability_QS)
    assert score_Q.dtype == np.float32
    # Level 2 of 5 is a quarter of the way up: .25 x .25 + .25 x 1.
    np.testing.assert_allclose(score_Q, [0, 1, 0.5, 0.3125], rtol=1e-6)
    nested = expected_score(probability_QS.reshape(2, 2, 5))
    np.testing.assert_array_equal(nested, score_Q.reshape(2, 2))
