"""Prompts -> answers, by any server that speaks OpenAI's chat completions.

The server puts its own chat template around the words. Its failures are retried, its
answers are bounded in size and time, and what it leaves out is counted.

Letters: P prompts, C candidates, Q questions, S levels.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from sgrec_torchrec.judge.ask.prompt import SYSTEM, UserPrompt
from sgrec_torchrec.judge.backends.chat_server import ChatServer, ServerSettings
from sgrec_torchrec.judge.backends.protocol import Usage
from sgrec_torchrec.schema import Float32Array


class OpenAiBackend:
    """A ``Backend`` over HTTP."""

    name = "openai"

    def __init__(
        self, base_url: str, model: str, settings: ServerSettings | None = None
    ) -> None:
        """Args: ``base_url`` as http://localhost:8000, with or without /v1.

        Raises:
            ValueError: for an address that is none, or a named key that is not set.
        """
        self.model = model
        self.usage = Usage()
        self.settings = settings or ServerSettings()
        self._server = ChatServer(base_url, self.settings)
        self.counts = self._server.counts

    def rate(
        self, prompts: Sequence[UserPrompt], levels: Sequence[str]
    ) -> list[Float32Array]:
        """As ``Backend.rate``, from the likeliest tokens that the server lists.

        Raises:
            ValueError: where most answers name no level, or a server's answer is none.
            ConnectionError: where the server gives none after all attempts.
        """
        asked: dict[str, Any] = {"max_tokens": 1}
        if self.settings.top_logprobs:
            asked |= {"logprobs": True, "top_logprobs": self.settings.top_logprobs}
        off_before = self.counts.off_scale
        rated = []
        for prompt, choices in zip(prompts, self._ask(prompts, asked), strict=True):
            rows = [self._rating(choice, levels) for choice in choices]
            shape = (len(prompt.candidates), len(prompt.questions), len(levels))
            rated.append(np.array(rows, dtype=np.float32).reshape(shape))
        off = self.counts.off_scale - off_before
        if 2 * off > sum(len(one.texts()) for one in prompts):
            raise ValueError(
                f"{off} answers of {self.model} name no level of {tuple(levels)}: "
                "name an instruct model, or keep it from thinking first (extra)"
            )
        return rated

    def write(
        self, prompts: Sequence[UserPrompt], schema: dict[str, Any], max_tokens: int
    ) -> list[list[str]]:
        """As ``Backend.write``; an answer that the server withholds is empty.

        Raises:
            ValueError: where a server's answer is none.
            ConnectionError: where the server gives none after all attempts.
        """
        form = {"name": "answer", "strict": True, "schema": schema}
        asked = {
            "max_tokens": max_tokens,
            "response_format": {"type": "json_schema", "json_schema": form},
        }
        return [[_content(one) for one in some] for some in self._ask(prompts, asked)]

    def _ask(
        self, prompts: Sequence[UserPrompt], asked: dict[str, Any]
    ) -> list[list[dict[str, Any]]]:
        """The first choice of each answer, prompt by prompt."""
        begin = time.perf_counter()
        bodies = []
        for text in (text for prompt in prompts for text in prompt.texts()):
            turns = [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": text},
            ]
            body = {"model": self.model, "messages": turns, "temperature": 0}
            bodies.append(body | asked | dict(self.settings.extra))
        answers = self._server.post_all(bodies)
        for answer in answers:
            self._count(answer.get("usage"))
        self.usage.seconds += time.perf_counter() - begin
        choices = iter([self._server.choice(answer) for answer in answers])
        return [[next(choices) for _ in prompt.texts()] for prompt in prompts]

    def _count(self, usage: Any) -> None:
        """What the server says it has cost, the token of a rating included."""
        if not isinstance(usage, dict):
            return
        details = usage.get("prompt_tokens_details")
        self.usage.prompt_tokens += _number(usage, "prompt_tokens")
        self.usage.cached_tokens += _number(details, "cached_tokens")
        self.usage.written_tokens += _number(usage, "completion_tokens")

    def _rating(self, choice: dict[str, Any], levels: Sequence[str]) -> list[float]:
        top = _top_logprobs(choice)
        if top:
            found = level_probabilities(top, levels)
            words = {token.strip() for token, _ in top}
            self.counts.unlisted_levels += sum(one not in words for one in levels)
        else:
            self.counts.without_logprobs += 1
            said = _content(choice).strip()
            found = [float(level == said) for level in levels]
        if not any(found):
            self.counts.off_scale += 1
            return [math.nan] * len(levels)
        return found


def level_probabilities(
    top: Sequence[tuple[str, float]], levels: Sequence[str]
) -> list[float]:
    """Listed (token, natural logprob) -> probabilities of S levels, summing to 1.

    A level that is not listed is at most as likely as the least likely token of the
    list, and than what the list leaves over together with the other absent ones: it
    gets that bound. All zeros where no level is listed. Of several spellings (" 3",
    "3") the likeliest counts.
    """
    listed = [(token, math.exp(min(logprob, 0.0))) for token, logprob in top]
    likeliest: dict[str, float] = {}
    for token, probability in listed:
        word = token.strip()
        likeliest[word] = max(probability, likeliest.get(word, 0.0))
    known = [likeliest.get(level) for level in levels]
    num_absent = known.count(None)
    if num_absent == len(levels):
        return [0.0] * len(levels)
    each = [probability for _, probability in listed]
    left = max(0.0, 1.0 - sum(each))
    bound = min(*each, left / max(num_absent, 1))
    filled = [bound if one is None else one for one in known]
    total = sum(filled)
    return [one / total for one in filled] if total else [0.0] * len(levels)


def _number(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else 0


def _content(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else ""


def _top_logprobs(choice: dict[str, Any]) -> list[tuple[str, float]]:
    """(token, logprob) of the first answered token; empty where there are none."""
    try:
        listed = choice["logprobs"]["content"][0]["top_logprobs"]
        found = [(str(one["token"]), float(one["logprob"])) for one in listed]
    except (KeyError, IndexError, TypeError, ValueError):
        return []
    return [(token, logprob) for token, logprob in found if not math.isnan(logprob)]
