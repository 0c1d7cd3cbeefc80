"""JSON posted to a chat server: retried, bounded, its key kept quiet."""

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATH = "/v1/chat/completions"
DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
RETRIED = {408, 409, 425, 429}
"""And all of 500 and above."""
MAX_QUOTED_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How a server is asked."""

    key_variable: str = DEFAULT_KEY_VARIABLE
    """The environment variable that holds the API key."""
    concurrency: int = 8
    """Requests under way at once."""
    timeout_s: float = 120.0
    """Of one attempt, from the first byte sent to the last one read."""
    max_attempts: int = 6
    first_delay_s: float = 0.5
    """Before the second attempt; doubles with each, less up to half by chance."""
    max_delay_s: float = 60.0
    """A server that asks to wait longer counts as out of order."""
    max_answer_bytes: int = 4 << 20
    top_logprobs: int = 20
    """Likeliest tokens asked for; 0 for a server that refuses to give any."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Goes into every request: ``{"chat_template_kwargs": {"enable_thinking":
    False}}`` for a model that would think first."""

    def __post_init__(self) -> None:
        """Check what would otherwise fail later, or never end."""
        for name in ("concurrency", "timeout_s", "max_attempts", "max_answer_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")


@dataclass(slots=True, kw_only=True)
class ServerCounts:
    """What the server did not do as asked, for the manifest."""

    retries: int = 0
    without_logprobs: int = 0
    """Ratings by the answered level alone: probability 1."""
    unlisted_levels: int = 0
    """Levels that were not among the listed tokens: their probability is a bound. A
    model trained to judge has next to none; SmolLM2 as it comes, two of five."""
    off_scale: int = 0
    """Ratings that named no level: all equally likely."""


class ChatServer:
    """JSON posted to one address, again where that may help."""

    def __init__(self, base_url: str, settings: ServerSettings) -> None:
        """Args: ``base_url`` with or without /v1.

        Raises:
            ValueError: for an address that is none, or a named key that is not set.
        """
        import httpx2

        self.url = _endpoint(base_url)
        self.counts = ServerCounts()
        self._settings = settings
        self._key = _key(settings.key_variable)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        # Packed answers could unpack to any size.
        headers = {"Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=settings.concurrency)
        self._client = httpx2.Client(
            headers=headers, timeout=settings.timeout_s, limits=limits
        )

    def post_all(self, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The answers, in order; the first failure ends the others.

        Raises:
            ValueError, ConnectionError: as ``post``.
        """
        self._stop.clear()
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            running = [pool.submit(self.post, body) for body in bodies]
            try:
                return [one.result() for one in running]
            finally:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def post(self, body: dict[str, Any]) -> dict[str, Any]:
        """One answer.

        Raises:
            ValueError: where asking again would not help.
            ConnectionError: after the last attempt.
        """
        import httpx2

        last = self._settings.max_attempts
        for attempt in range(1, last + 1):
            wait_s = self._delay_s(attempt)
            try:
                status, headers, content = self._send(body)
            except (httpx2.RequestError, TimeoutError) as error:
                trouble = f"{type(error).__name__}: {error}"
            else:
                if not (status in RETRIED or status >= 500):
                    return self._read(status, content)
                trouble = f"HTTP {status}: {self._quote(content)}"
                asked_s = _retry_after_s(headers.get("retry-after"))
                wait_s = max(wait_s, asked_s)
                if wait_s > self._settings.max_delay_s:
                    trouble += f" (asks to wait {asked_s:.0f} s)"
                    break
            if attempt == last or self._stop.wait(wait_s):
                break
            with self._lock:
                self.counts.retries += 1
        raise ConnectionError(
            f"{self.url} gave no answer in {attempt} attempts, the last one "
            f"{trouble}. Is the server up, and does it allow so many requests "
            "(concurrency, timeout_s)? Call again to go on."
        )

    def choice(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The first choice of an answer.

        Raises:
            ValueError: where it has none.
        """
        choices = answer.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            first: dict[str, Any] = choices[0]
            return first
        raise ValueError(
            f"{self.url} answered without choices: "
            f"{self._quote(json.dumps(answer).encode())}"
        )

    def _send(self, body: dict[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content, bounded in time and size."""
        deadline = time.monotonic() + self._settings.timeout_s
        content = bytearray()
        with self._client.stream("POST", self.url, json=body) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > self._settings.max_answer_bytes:
                    raise ValueError(
                        f"{self.url} sent over {self._settings.max_answer_bytes} "
                        "bytes (max_answer_bytes): is this the right address?"
                    )
                # The client's own limit is on the time between two chunks.
                if time.monotonic() > deadline or self._stop.is_set():
                    raise TimeoutError("the answer came too slowly")
            return response.status_code, response.headers, bytes(content)

    def _read(self, status: int, content: bytes) -> dict[str, Any]:
        if status != 200:
            hint = ""
            if status in (401, 403):
                hint = f"; set the key in ${self._settings.key_variable}"
            raise ValueError(
                f"{self.url} refused: HTTP {status}: {self._quote(content)}{hint}"
            )
        try:
            answer = json.loads(content)
        except (json.JSONDecodeError, UnicodeDecodeError):
            answer = None
        if not isinstance(answer, dict):
            raise ValueError(
                f"{self.url} answered no JSON object: {self._quote(content)}; is it "
                "the address of a server that speaks OpenAI's protocol?"
            )
        return answer

    def _delay_s(self, attempt: int) -> float:
        longest = self._settings.first_delay_s * 2 ** (attempt - 1)
        # By chance, so that many clients do not come back all at once.
        chosen: float = min(longest, self._settings.max_delay_s)
        return chosen * random.uniform(0.5, 1.0)

    def _quote(self, content: bytes) -> str:
        """The beginning of an answer, without the key if the server repeats it."""
        text = content[: 4 * MAX_QUOTED_CHARS].decode("utf-8", errors="replace")
        if self._key:
            text = text.replace(self._key, "***")
        return repr(text[:MAX_QUOTED_CHARS])


def _endpoint(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.username or parts.password:
        raise ValueError("base_url holds a password: put the key in the environment")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(f"base_url {base_url!r} is no address: http://localhost:8000")
    return base_url.rstrip("/").removesuffix("/v1") + PATH


def _key(variable: str) -> str | None:
    key = os.environ.get(variable, "").strip()
    if not key and variable != DEFAULT_KEY_VARIABLE:
        raise ValueError(f"the environment variable {variable} (key_variable) is empty")
    return key or None


def _retry_after_s(header: str | None) -> float:
    """Seconds that a server asks to wait (a number, or a date); 0 where it does not."""
    if header is None:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        until_s = email.utils.parsedate_to_datetime(header).timestamp()
    except ValueError:
        return 0.0
    return max(0.0, until_s - time.time())
