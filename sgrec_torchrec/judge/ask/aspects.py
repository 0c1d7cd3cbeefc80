"""What the judge is asked: aspects, the scale, the schema of an answer.

Letters: Q questions (one an aspect), S levels of the scale.
"""

import json
from dataclasses import dataclass
from typing import Any

import jsonschema
import numpy as np

from sgrec_torchrec.schema import Float32Array

LEVELS = ("1", "2", "3", "4", "5")
"""The scale of every answer, lowest first; each level must be one token."""
MAX_EVIDENCE_CHARS = 240
CONTEXT = "context"


@dataclass(frozen=True, slots=True)
class Aspect:
    """One thing that is judged of a candidate (S-GRec, Part A)."""

    name: str
    words: str
    """As the question names it."""
    meaning: str
    """What a high level says."""


ASPECTS = (
    Aspect("profile", "profile relevance", "it suits the lasting tastes"),
    Aspect("future_interest", "future interest", "this person would choose it soon"),
    Aspect("novelty", "novelty", "it is new and unlike what was chosen before"),
    Aspect(CONTEXT, "contextual relevance", "it suits the latest choices and the time"),
)


def asked_aspects(has_clock: bool) -> tuple[Aspect, ...]:
    """All aspects, or all but context where the log knows no time."""
    return ASPECTS if has_clock else tuple(a for a in ASPECTS if a.name != CONTEXT)


def answer_schema(aspects: tuple[Aspect, ...]) -> dict[str, Any]:
    """JSON schema of a written answer: evidence, then level, for each aspect.

    Evidence stands first, so that a causal model reasons before it decides.
    """
    part = {
        "type": "object",
        "properties": {
            "evidence": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_EVIDENCE_CHARS,
            },
            "level": {"type": "integer", "minimum": 1, "maximum": len(LEVELS)},
        },
        "required": ["evidence", "level"],
        "additionalProperties": False,
    }
    names = [aspect.name for aspect in aspects]
    return {
        "type": "object",
        "properties": dict.fromkeys(names, part),
        "required": names,
        "additionalProperties": False,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenAnswer:
    """A schema-checked answer, in the order of the aspects."""

    levels: tuple[int, ...]
    evidence: tuple[str, ...]

    def to_json(self, aspects: tuple[Aspect, ...]) -> str:
        """The text that a model is trained to write."""
        parts = zip(aspects, self.evidence, self.levels, strict=True)
        answer = {a.name: {"evidence": said, "level": n} for a, said, n in parts}
        return json.dumps(answer, ensure_ascii=False)


def read_answer(text: str, aspects: tuple[Aspect, ...]) -> WrittenAnswer:
    """Parse and check what a model wrote.

    Raises:
        ValueError: saying what is wrong, where the text is no JSON of the schema.
    """
    try:
        answer = json.loads(text)
        jsonschema.validate(answer, answer_schema(aspects))
        json.dumps(answer, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at {error.pos})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair: no file could hold it") from None
    except jsonschema.ValidationError as error:
        where = "/".join(map(str, error.absolute_path)) or "the answer"
        raise ValueError(f"{where}: {error.message[:120]}") from None
    parts = [answer[aspect.name] for aspect in aspects]
    return WrittenAnswer(
        levels=tuple(int(part["level"]) for part in parts),
        evidence=tuple(part["evidence"] for part in parts),
    )


def expected_score(probability: Float32Array) -> Float32Array:
    """Mean level of distributions float32 [..., S] as a score float32 [...] in [0, 1].

    The lowest level is 0, the highest 1.
    """
    places = np.linspace(0.0, 1.0, probability.shape[-1], dtype=np.float32)
    score: Float32Array = (probability @ places).astype(np.float32)
    return score
