"""Against a real HTTP server in a thread, which answers from a list of replies."""

import email.utils
import functools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from sgrec_torchrec.judge.ask.aspects import LEVELS
from sgrec_torchrec.judge.ask.prompt import SYSTEM, UserPrompt
from sgrec_torchrec.judge.backends.chat_server import ServerCounts
from sgrec_torchrec.judge.backends.open_backend import open_backend

pytest.importorskip("httpx2", reason="the extra [judge] is not installed")
KEY = "sk-very-secret-0123456789"
SCHEMA = {"type": "object"}
Body = dict[str, Any]
Reply = tuple[int, dict[str, str], bytes]


def reply(answer: Any, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, json.dumps(answer).encode()


def choice(text: str | None, top: dict[str, float] | None = None) -> Body:
    """An answer as recorded from a vLLM server; ``top`` token -> probability."""
    first: Body = {"message": {"role": "assistant", "content": text}}
    if top is not None:
        listed = [
            {"token": token, "logprob": math.log(p), "bytes": list(token.encode())}
            for token, p in top.items()
        ]
        content = [{"token": text, "logprob": -0.1, "top_logprobs": listed}]
        first["logprobs"] = {"content": content}
    usage: Body = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
    usage["prompt_tokens_details"] = {"cached_tokens": 64}
    return {"object": "chat.completion", "choices": [first], "usage": usage}


class FakeServer:
    """Answers by ``answer(body, nth request)``; keeps what it was asked."""

    drip_s = 0.0  # between two bytes of an answer

    def __init__(self, answer: Callable[[Body, int], Reply]) -> None:
        self.asked: list[tuple[str, dict[str, str], Body]] = []
        self.most_at_once = self._now = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(size))
                with lock:
                    nth = len(outer.asked)
                    outer.asked.append((self.path, dict(self.headers), body))
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                try:
                    outer.send(self, *answer(body, nth))
                finally:
                    with lock:
                        outer._now -= 1

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        serve = functools.partial(self._server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def send(self, handler: Any, status: int, headers: Any, content: bytes) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        pieces = [content[n : n + 1] for n in range(len(content))]
        try:
            for piece in pieces if self.drip_s else [content]:
                handler.wfile.write(piece)
                time.sleep(self.drip_s)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client had enough

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(autouse=True)
def no_key_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    """serve(reply, reply, ...): the last one for ever; or serve(function)."""
    started = []

    def start(*replies: Any) -> FakeServer:
        def listed(body: Body, nth: int) -> Reply:
            found: Reply = replies[min(nth, len(replies) - 1)]
            return found

        answer = replies[0] if callable(replies[0]) else listed
        started.append(FakeServer(answer))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def connect() -> Callable[..., Any]:
    """connect(server, **settings): a backend that waits next to nothing."""

    def make(server: FakeServer, **settings: Any) -> Any:
        quick = {"first_delay_s": 0.001, "timeout_s": 5.0, "concurrency": 1}
        return open_backend("openai", "some", base_url=server.url, **quick | settings)

    return make


@pytest.fixture
def one(hand_prompt) -> list[UserPrompt]:
    """A single question."""
    return [hand_prompt(candidates=("Candidate: a rug\n",), questions=("Rate.",))]


def rate_one(backend: Any, prompts: list[UserPrompt]) -> list[float]:
    (rated,) = backend.rate(prompts, LEVELS)
    assert rated.shape == (1, 1, 5)
    assert rated.dtype == np.float32
    return [float(value) for value in rated[0, 0]]


def test_asks_as_the_protocol_says(serve, connect, one) -> None:
    server = serve(reply(choice("3", {"3": 1.0})))
    connect(server, extra={"seed": 7}).rate(one, LEVELS)
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert body == {
        "model": "some",
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": one[0].texts()[0]},
        ],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
        "seed": 7,
    }


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_address_may_name_the_version(serve, one, suffix) -> None:
    server = serve(reply(choice("3", {"3": 1.0})))
    open_backend("openai", "m", base_url=server.url + suffix).rate(one, LEVELS)
    assert server.asked[0][0] == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        # all listed: 0.8 in all, so each over 0.8; other tokens do not matter
        (
            {"4": 0.4, "x": 0.1, "1": 0.1, "2": 0.1, "3": 0.1, "5": 0.1},
            [0.125, 0.125, 0.125, 0.5, 0.125],
        ),
        # 1, 2, 3 absent: at most the least listed one, 0.05, and a third of the 0.09
        # left over, which is less: 0.03 each; 0.86 + 0.09 = 0.95
        (
            {"4": 0.6, "5": 0.26, "x": 0.05},
            [0.03 / 0.95, 0.03 / 0.95, 0.03 / 0.95, 0.6 / 0.95, 0.26 / 0.95],
        ),
        # 5 absent, 0.4 left over, the least listed one is 0.1: sums to 0.7
        (
            {"1": 0.1, "2": 0.2, "3": 0.1, "4": 0.2},
            [0.1 / 0.7, 0.2 / 0.7, 0.1 / 0.7, 0.2 / 0.7, 0.1 / 0.7],
        ),
        # of two spellings the likelier one; nothing left over for the absent
        ({"2": 0.5, " 2": 0.3, "3": 0.2}, [0, 0.5 / 0.7, 0.2 / 0.7, 0, 0]),
    ],
)
def test_probabilities_are_the_lists_over_the_levels(
    serve, connect, one, top, expected
) -> None:
    backend = connect(serve(reply(choice("4", top))))
    assert rate_one(backend, one) == pytest.approx(expected, abs=1e-6)
    unlisted = set(LEVELS) - {token.strip() for token in top}
    assert backend.counts == ServerCounts(unlisted_levels=len(unlisted))


def test_answers_keep_their_places_and_usage_adds_up(
    serve, connect, hand_prompt
) -> None:
    prompts = [hand_prompt(), hand_prompt("-\n", ("",), ("Rate.",))]
    texts = [text for prompt in prompts for text in prompt.texts()]

    def answer(body: Body, nth: int) -> Reply:
        place = texts.index(body["messages"][1]["content"])
        time.sleep(0.02 * (len(texts) - place))  # the last one is ready first
        return reply(choice("x", {str(place + 1): 1.0}))

    backend = connect(serve(answer), concurrency=5)
    first, second = backend.rate(prompts, LEVELS)
    assert first.argmax(-1).tolist() == [[0, 1], [2, 3]]
    assert second.argmax(-1).tolist() == [[4]]
    usage = backend.usage
    counted = (usage.prompt_tokens, usage.cached_tokens, usage.written_tokens)
    assert counted == (500, 320, 5)


def test_no_more_requests_at_once_than_allowed(serve, connect, hand_prompt) -> None:
    def answer(body: Body, nth: int) -> Reply:
        time.sleep(0.05)
        return reply(choice("3", {"3": 1.0}))

    server = serve(answer)
    connect(server, concurrency=3).rate([hand_prompt()] * 3, LEVELS)
    assert 1 < server.most_at_once <= 3
    assert len(server.asked) == 12


def test_without_logprobs_the_answered_level_is_certain_and_counted(
    serve, connect, one
) -> None:
    server = serve(reply(choice(" 2\n")))
    backend = connect(server, top_logprobs=0)
    assert rate_one(backend, one) == [0, 1, 0, 0, 0]
    assert backend.counts.without_logprobs == 1
    assert "logprobs" not in server.asked[0][2]


def test_answers_off_the_scale_are_counted_and_most_of_them_refused(
    serve, connect, one, hand_prompt
) -> None:
    off = reply(choice("Sure", {"Sure": 0.9, "I": 0.1}))
    good = reply(choice("3", {"3": 1.0}))
    backend = connect(serve(good, off, good, good))
    (rated,) = backend.rate([hand_prompt()], LEVELS)
    assert np.isnan(rated.reshape(4, 5)).all(1).tolist() == [False, True, False, False]
    assert backend.counts.off_scale == 1
    with pytest.raises(ValueError, match=r"1 answers of some name no level .*instruct"):
        connect(serve(off)).rate(one, LEVELS)
    with pytest.raises(ValueError, match="name no level"):
        connect(serve(reply(choice("Sure")))).rate(one, LEVELS)


def test_written_answers_are_asked_with_the_schema(serve, connect, one) -> None:
    server = serve(reply(choice('{"a": 1}')), reply(choice(None)))
    backend = connect(server)
    assert backend.write(one, SCHEMA, 77) == [['{"a": 1}']]
    form = {"name": "answer", "strict": True, "schema": SCHEMA}
    body = server.asked[0][2]
    assert body["max_tokens"] == 77
    assert body["response_format"] == {"type": "json_schema", "json_schema": form}
    assert backend.write(one, SCHEMA, 77) == [[""]]  # a refusal


@pytest.mark.parametrize("status", [429, 500, 503])
def test_asks_again_after_a_passing_failure(serve, connect, one, status) -> None:
    server = serve(reply("busy", status), reply(choice("5", {"5": 1.0})))
    backend = connect(server)
    assert rate_one(backend, one)[4] == 1
    assert len(server.asked) == 2
    assert backend.counts.retries == 1


@pytest.mark.parametrize("as_date", [False, True])
def test_waits_as_long_as_the_server_says(serve, connect, one, as_date) -> None:
    # A date has whole seconds: 2 s from now may be little over 1 s.
    said = email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "0.4"
    server = serve(reply("busy", 429, Retry_After=said), reply(choice("5", {"5": 1.0})))
    begin = time.monotonic()
    connect(server).rate(one, LEVELS)
    assert time.monotonic() - begin >= (0.9 if as_date else 0.4)


def test_waits_longer_before_each_attempt(serve, connect, one) -> None:
    server = serve(reply("no", 500))
    begin = time.monotonic()
    with pytest.raises(ConnectionError):
        connect(server, first_delay_s=0.1, max_attempts=4).rate(one, LEVELS)
    # 0.1, 0.2 and 0.4 s, each less up to half
    assert 0.35 <= time.monotonic() - begin < 5


def test_a_failure_for_ever_names_the_address_and_a_way_out(
    serve, connect, one
) -> None:
    server = serve(reply({"error": "out of memory"}, 500))
    with pytest.raises(ConnectionError, match="out of memory") as failed:
        connect(server, max_attempts=3).rate(one, LEVELS)
    assert len(server.asked) == 3
    for said in (server.url, "3 attempts", "HTTP 500", "Call again"):
        assert said in str(failed.value)


def test_a_wait_that_is_too_long_ends_it_at_once(serve, connect, one) -> None:
    server = serve(reply("come back", 429, Retry_After="86400"))
    with pytest.raises(ConnectionError, match="asks to wait 86400 s"):
        connect(server).rate(one, LEVELS)
    assert len(server.asked) == 1


def test_nobody_listens(serve, connect, one) -> None:
    server = serve(reply("unused"))
    server.close()
    with pytest.raises(ConnectionError, match=r"2 attempts.*ConnectError"):
        connect(server, max_attempts=2).rate(one, LEVELS)


def test_the_first_failure_ends_the_other_requests(serve, connect, hand_prompt) -> None:
    server = serve(reply("wrong model", 404))
    with pytest.raises(ValueError, match="HTTP 404"):
        connect(server).rate([hand_prompt()] * 50, LEVELS)
    assert len(server.asked) < 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>hello</html>", "no JSON object.*hello.*OpenAI's protocol"),
        (b"\xff\xfe\x00", "no JSON object"),
        (b"[1, 2]", "no JSON object"),
        (b'{"choices": []}', "without choices"),
        (b'{"error": {"message": "what?"}}', "without choices.*what"),
    ],
)
def test_garbage_is_refused(serve, connect, one, content, message) -> None:
    server = serve((200, {}, content))
    with pytest.raises(ValueError, match=message) as failed:
        connect(server).rate(one, LEVELS)
    assert server.url in str(failed.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": "many"}, "none"])
def test_a_server_may_say_nothing_sane_of_what_it_cost(
    serve, connect, one, usage
) -> None:
    backend = connect(serve(reply(choice("3", {"3": 1.0}) | {"usage": usage})))
    assert rate_one(backend, one)[2] == 1
    assert backend.usage.prompt_tokens == 0


def test_a_huge_answer_is_not_read_to_its_end(serve, connect, one) -> None:
    server = serve((200, {}, b" " * 3_000_000))
    with pytest.raises(ValueError, match="over 100000 bytes"):
        connect(server, max_answer_bytes=100_000).rate(one, LEVELS)


def test_a_server_that_drips_is_left_in_time(serve, connect, one) -> None:
    server = serve(reply(choice("3", {"3": 1.0})))
    server.drip_s = 0.05  # some 300 bytes: 15 s, never 0.3 s without one
    begin = time.monotonic()
    with pytest.raises(ConnectionError, match="too slowly"):
        connect(server, timeout_s=0.3, max_attempts=2).rate(one, LEVELS)
    assert time.monotonic() - begin < 5


def test_a_server_that_says_nothing_is_left_in_time(serve, connect, one) -> None:
    def answer(body: Body, nth: int) -> Reply:
        time.sleep(1.0)
        return reply(choice("3"))

    begin = time.monotonic()
    with pytest.raises(ConnectionError, match="ReadTimeout"):
        connect(serve(answer), timeout_s=0.2, max_attempts=2).rate(one, LEVELS)
    assert time.monotonic() - begin < 3


def test_the_key_goes_to_the_server_and_nowhere_else(
    serve, connect, one, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server = serve(reply({"error": f"wrong key {KEY}"}, 401))
    backend = connect(server, key_variable="MY_KEY")
    with pytest.raises(ValueError, match=r"HTTP 401.*set the key in \$MY_KEY") as no:
        backend.rate(one, LEVELS)
    assert server.asked[0][1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(no.value) + repr(backend) + repr(backend.settings)
