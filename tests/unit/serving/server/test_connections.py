"""Clients that split their bodies, that hold connections, and that come at the end."""

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h11
import pytest
import uvicorn
from uvicorn.server import ServerState

from sgrec_torchrec.serving.server import connections
from sgrec_torchrec.serving.server.connections import (
    CHUNKS_A_TURN,
    MAX_CHUNKS,
    MAX_HEADERS,
    BoundedProtocol,
    Parser,
    bounded,
)

HEAD = (
    b"POST /recommend HTTP/1.1\r\nHost: tests\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
WELL = b"GET /readyz HTTP/1.1\r\nHost: tests\r\n\r\n"
ASKED = json.dumps({"history": ["i1"], "k": 2}).encode()
LAST = b"0\r\n\r\n"


@pytest.fixture(scope="module")
def small(start_server: Callable[..., Any], package: Path) -> Any:
    """A server that takes three connections."""
    bounds = ("max_connections=3", "read_timeout_s=3600", "keep_alive_s=3600")
    return start_server(package, *bounds, bearer=None)


def connected(live: Any, content: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", live.port), 120)
    client.sendall(content)
    return client


def split(body: bytes) -> bytes:
    """A byte a chunk."""
    return b"".join(b"1\r\n%c\r\n" % byte for byte in body)


def answered(client: socket.socket) -> tuple[int, bytes]:
    """Status and body of one answer, or 0 where the connection was closed."""
    content = b""
    while part := client.recv(65_536):
        content += part
        head, end, body = content.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if end and length and len(body) == int(length):
            break
    head, _, body = content.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


def test_a_body_in_some_chunks_is_taken(small: Any) -> None:
    padded = ASKED.ljust(MAX_CHUNKS)
    with connected(small, HEAD + split(padded) + LAST) as client:
        status, body = answered(client)
    assert (status, len(json.loads(body)["items"])) == (200, 2)


def test_a_body_in_too_many_chunks_is_refused_and_the_connection_ends(
    small: Any,
) -> None:
    # More than a socket holds: it goes on sending while it is answered.
    with connected(small, HEAD + split(ASKED.ljust(500_000)) + LAST) as client:
        content = b""
        while part := client.recv(65_536):
            content += part
    head, _, body = content.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in head.lower()
    message = "the body has more than 4096 chunks: send it in larger ones"
    assert json.loads(body) == {"error": {"kind": "too_large", "message": message}}
    assert small.ask(history=["i1"]).status == 200


def test_a_head_of_too_many_headers_is_refused_before_it_is_parsed(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, more = (
        b"GET /readyz HTTP/1.1\r\nHost: tests\r\n"
        + b"".join(b"X-%d: y\r\n" % nth for nth in range(1, count))
        + b"\r\n"
        for count in (MAX_HEADERS, MAX_HEADERS + 1)
    )
    # Lines of the body, and of what comes after it, are not those of a head.
    lines = ASKED.replace(b" ", b"\n" * MAX_HEADERS)
    body = WELL.replace(b"GET /readyz", b"POST /recommend").replace(
        b"\r\n\r\n",
        b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (len(lines), lines),
    )
    with connected(small, some) as client:
        assert answered(client)[0] == 200
        client.sendall(body)
        assert answered(client)[0] == 200
        client.sendall(more)
        status, told = answered(client)
        assert client.recv(1) == b""
    assert status == 431
    message = "the head has more than 100 headers: send fewer"
    assert json.loads(told) == {"error": {"kind": "too_large", "message": message}}
    monkeypatch.setattr(h11.Connection, "next_event", Mock(side_effect=AssertionError))
    parser = Parser(1 << 20)
    parser.receive_data(more)
    with pytest.raises(h11.RemoteProtocolError, match="more than 100 headers"):
        parser.next_event()


@pytest.mark.parametrize("end", [b"\r\n\r\n", b""])
def test_a_whole_head_is_as_bounded_as_one_that_is_not_whole(end: bytes) -> None:
    for size, taken in ((900, h11.Request if end else h11.NEED_DATA), (1_100, None)):
        parser = Parser(1_000)
        head = b"GET /%s HTTP/1.1\r\nHost: tests" % (b"a" * size)
        parser.receive_data(head + end)
        if taken is not None:
            assert taken in (event := parser.next_event(), type(event))
            continue
        with pytest.raises(h11.RemoteProtocolError, match="more than 1000 bytes"):
            parser.next_event()


def test_a_new_client_takes_the_place_of_the_longest_idle_one(small: Any) -> None:
    idle = [connected(small) for _ in range(3)]
    with connected(small, WELL) as client:
        assert answered(client)[0] == 200
        assert idle[0].recv(1) == b""
        for one in idle[1:]:
            one.sendall(WELL)
            assert answered(one)[0] == 200
    for one in idle:
        one.close()


def test_many_idle_connections_do_not_make_a_server_unready(small: Any) -> None:
    idle = [connected(small, b"GET /hea") for _ in range(20)]
    assert small.send("GET", "/readyz").status == 200
    assert small.ask(history=["i1"], k=2).status == 200
    for one in idle:
        one.close()


def test_where_nobody_is_idle_health_alone_is_told(small: Any) -> None:
    busy = [connected(small, HEAD + b"1\r\n{\r\n") for _ in range(3)]
    try:
        # Once all three are read: until then one of them counts as idle.
        while (refused := small.ask(history=["i1"])).status == 200:
            assert small.process.poll() is None
            for one in busy:
                one.close()
            busy = [connected(small, HEAD + b"1\r\n{\r\n") for _ in range(3)]
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert refused.headers["connection"] == "close"
        assert "as many connections as it takes" in refused.message
        assert small.send("GET", "/readyz").status == 200
        assert small.send("GET", "/metrics").status == 200
    finally:
        for one in busy:
            one.close()


async def never(scope: Any, receive: Any, send: Any) -> None:
    """An application that does not answer."""
    del scope, receive, send
    await asyncio.sleep(3600)


def opened() -> tuple[BoundedProtocol, Mock]:
    """A connection of its own, and its transport."""
    config = uvicorn.Config(never, h11_max_incomplete_event_size=1024, lifespan="off")
    made = bounded(3600, 8)(config, ServerState(), {})
    assert isinstance(made, BoundedProtocol)
    transport = Mock()
    transport.is_closing.return_value = False
    made.connection_made(transport)
    return made, transport


def test_chunks_are_parsed_a_few_at_a_time_so_that_others_get_their_turn() -> None:
    async def run() -> list[int]:
        protocol, transport = opened()
        protocol.data_received(HEAD + split(b"x" * 1_000))
        sizes = [len(protocol.cycle.body)]
        transport.pause_reading.assert_called()
        while sizes[-1] < 1_000:
            await asyncio.sleep(0)
            sizes.append(len(protocol.cycle.body))
        # What came before the last turn ended is not lost.
        protocol.data_received(split(b"y" * 5) + LAST)
        assert protocol.cycle.body == b"x" * 1_000 + b"y" * 5
        assert not protocol.cycle.more_body
        return sizes

    sizes = asyncio.run(run())
    assert all(
        after - before <= CHUNKS_A_TURN
        for before, after in zip([0, *sizes], sizes, strict=False)
    )


def test_a_request_that_meets_the_end_is_answered_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "LAST_WORD_S", 0.01)

    async def run() -> None:
        protocol, transport = opened()
        protocol.shutdown()
        protocol.data_received(WELL)
        await asyncio.sleep(0.05)
        transport.close.assert_not_called()
        assert not protocol.cycle.keep_alive
        idle, closed = opened()
        idle.shutdown()
        closed.close.assert_not_called()
        await asyncio.sleep(0.05)
        closed.close.assert_called()

    asyncio.run(run())
