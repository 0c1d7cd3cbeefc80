"""A server with tight bounds: too many clients, slow ones, and those that vanish."""

import asyncio
import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from sgrec_torchrec.serving.server import limits
from sgrec_torchrec.serving.server.app import Server, create_app
from sgrec_torchrec.serving.server.errors import RequestError
from sgrec_torchrec.serving.server.limits import Limits
from sgrec_torchrec.serving.server.settings import ServerSettings

NUM_CLIENTS = 40
BEARER = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def tight(start_server: Callable[..., Any], package: Path) -> Any:
    bounds = ("max_queue=1", "max_batch=1", "read_timeout_s=3", "max_body_bytes=4096")
    return start_server(package, *bounds, bearer=None)


def connected(live: Any, content: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", live.port), 120)
    client.sendall(content)
    return client


def posted(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = (
        "POST /recommend HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    )
    return head.encode() + body


def read_all(client: socket.socket) -> tuple[bytes, bytes]:
    """Head and body, up to the end of the connection."""
    content = b""
    with client:
        while part := client.recv(65_536):
            content += part
    head, _, body = content.partition(b"\r\n\r\n")
    return head, body


def test_over_capacity_some_are_told_to_come_back_and_the_others_are_right(
    tight,
) -> None:
    right = tight.ask(history=["i1", "i2"], k=3).json
    body = json.dumps({"history": ["i1", "i2"], "k": 3}).encode()
    # While it stands still all requests arrive, so that they are read together.
    tight.process.send_signal(signal.SIGSTOP)
    try:
        clients = [connected(tight, posted(body)) for _ in range(NUM_CLIENTS)]
    finally:
        tight.process.send_signal(signal.SIGCONT)
    answers = [read_all(client) for client in clients]
    refused = [head for head, _ in answers if head.startswith(b"HTTP/1.1 429")]
    told = [json.loads(body) for head, body in answers if b" 200 OK" in head]
    assert len(refused) + len(told) == NUM_CLIENTS
    assert refused
    assert all(b"\r\nretry-after: " in head.lower() for head in refused)
    assert told
    assert all(one == right for one in told)
    assert tight.ask(history=["i1", "i2"], k=3).json == right


def test_a_full_server_refuses_before_it_reads_what_is_asked(
    served, package, monkeypatch
) -> None:
    server = Server.over(package, served, ServerSettings(bearer=BEARER))
    is_full = False

    def check_room() -> None:
        if is_full:
            raise RequestError(429, "full", {"Retry-After": "1"})

    monkeypatch.setattr(server.batcher, "check_room", check_room)
    kind = {"Content-Type": "application/json"}
    known = kind | {"Authorization": f"Bearer {BEARER}"}
    with TestClient(create_app(server)) as client:
        assert client.post("/recommend", content=b"{", headers=known).status_code == 400
        is_full = True
        answer = client.post("/recommend", content=b"{", headers=known)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
        assert answer.json()["error"]["kind"] == "over_capacity"
        assert len(answer.headers["X-Request-Id"]) == 32
        # Nobody learns that without the token, and all else goes on.
        assert client.post("/recommend", content=b"{", headers=kind).status_code == 401
        assert client.get("/items?query=i1", headers=known).status_code == 200
        counted = client.get("/metrics", headers=known).text
    assert 'sgrec_requests_total{path="/recommend",status="429"} 1.0' in counted


def test_a_refusal_is_told_later_and_holds_up_nobody(monkeypatch) -> None:
    monkeypatch.setattr(limits, "REFUSAL_PAUSE_S", 3600.0)
    settings = ServerSettings(bearer=BEARER)

    def check_room() -> None:
        raise RequestError(429, "full", {"Retry-After": "1"})

    async def app(scope, receive, send) -> None:
        await JSONResponse({})(scope, receive, send)

    bounded = Limits(app, settings, check_room)

    async def ask(path: str) -> int:
        statuses: list[int] = []
        headers = [(b"authorization", f"Bearer {BEARER}".encode())]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}

        async def receive() -> dict:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: dict) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        await bounded(scope, receive, send)
        return statuses[0]

    async def run() -> None:
        refused = asyncio.create_task(ask("/recommend"))
        assert [await ask("/items") for _ in range(3)] == [200] * 3
        assert not refused.done()
        refused.cancel()
        monkeypatch.setattr(limits, "REFUSAL_PAUSE_S", 0.0)
        assert await ask("/recommend") == 429

    asyncio.run(run())


def test_a_slow_body_times_out(tight) -> None:
    head, body = read_all(connected(tight, posted(b'{"k": ', 100)))
    assert head.startswith(b"HTTP/1.1 408")
    assert "the body took longer than 3 s" in json.loads(body)["error"]["message"]
    assert tight.ask(history=["i1"]).status == 200


@pytest.mark.parametrize(
    "content", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: a\r\n"]
)
def test_a_head_that_does_not_end_loses_its_connection(tight, content: bytes) -> None:
    assert read_all(connected(tight, content)) == (b"", b"")
    assert tight.ask(history=["i1"]).status == 200


def test_a_second_request_of_a_connection_may_not_hang_either(tight) -> None:
    whole = b"GET /healthz HTTP/1.1\r\nHost: tests\r\n\r\n"
    head, body = read_all(connected(tight, whole + b"GET /hea"))
    assert head.startswith(b"HTTP/1.1 200")
    assert body == b'{"status":"ok"}'


def test_a_request_that_comes_later_may_not_hang_either(tight) -> None:
    whole = b"GET /healthz HTTP/1.1\r\nHost: tests\r\n\r\n"
    with connected(tight, whole) as client:
        client.settimeout(30)
        got = b""
        while not got.endswith(b'{"status":"ok"}'):
            got += (part := client.recv(65_536))
            assert part
        # Its first bytes stop uvicorn's own clock of idle connections.
        client.sendall(b"GET /hea")
        assert client.recv(65_536) == b""


def test_a_client_that_vanishes_harms_nobody(tight) -> None:
    body = json.dumps({"history": ["i1"]}).encode()
    for _ in range(10):
        connected(tight, posted(body)).close()
        connected(tight, posted(b'{"k": ', 100)).close()
    # Its requests may still be worked on, so that the queue is full for a moment.
    while (answer := tight.ask(history=["i1"])).status == 429:
        assert tight.process.poll() is None
    assert answer.status == 200


def test_the_bound_of_a_body_is_a_setting(tight) -> None:
    answer = tight.ask(history=["i1"] * 1_000)
    assert (answer.status, "4096 bytes" in answer.message) == (413, True)
