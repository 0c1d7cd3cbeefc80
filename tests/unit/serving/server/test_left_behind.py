"""What requests leave in the process: nothing, however odd they are, and no pauses."""

import asyncio
import gc
import logging
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from sgrec_torchrec.serving.server import process
from sgrec_torchrec.serving.server.app import Server, create_app
from sgrec_torchrec.serving.server.connections import bounded
from sgrec_torchrec.serving.server.served_model import ServedModel, load_model
from sgrec_torchrec.serving.server.settings import ServerSettings

ROUNDS = 30
CUT = b'{"history": ["'
"""A body that ends before its announced end."""


@pytest.fixture
def unlogged() -> Iterator[None]:
    """pytest keeps each line of the log."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def odd_requests(nth: int) -> Iterator[bytes]:
    """No two rounds are alike: what is kept by path, id, method or client adds up."""
    host = b"Host: tests-%d\r\nX-Request-Id: id-%d\r\n" % (nth, nth)
    host += b"Connection: close\r\n"
    yield b"\x00\xff no HTTP %d\r\n\r\n" % nth
    yield b"GET /nowhere-%d HTTP/1.1\r\n%s\r\n" % (nth, host)
    yield b"GET /%s HTTP/1.1\r\n%s\r\n" % (b"a" * (16_000 + nth), host)
    yield b"GET / HTTP/1.1\r\n%s%s\r\n" % (host, b"X: y\r\n" * 200)
    yield b"VERB%d / HTTP/1.1\r\n%s\r\n" % (nth, host)
    yield b"GET /items?query=q%d HTTP/1.1\r\n%s\r\n" % (nth, host)
    post = b"POST /recommend HTTP/1.1\r\n%sContent-Type: application/json\r\n" % host
    yield post + b"Content-Length: -%d\r\n\r\n" % nth
    yield post + b"Transfer-Encoding: chunked\r\n\r\nzz%d\r\n" % nth
    yield post + b"Content-Length: 1000\r\n\r\n" + CUT
    for body in (
        b"no JSON %d" % nth,
        b'{"history": ' + b"[" * (nth + 1) + b"]" * (nth + 1) + b"}",
        b'{"odd-%d": 1}' % nth,
        b'{"history": ["unknown-%d"], "user": "u%d"}' % (nth, nth),
        b'{"history": ["i1"], "k": -%d}' % (nth + 1),
    ):
        yield post + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


async def statuses_of(port: int, rounds: range) -> Counter[bytes]:
    """How often each status came; b"" where the connection was closed without."""
    found: Counter[bytes] = Counter()
    for nth in rounds:
        for data in odd_requests(nth):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            if data.endswith(CUT):
                writer.write_eof()
            answer = await reader.read()
            found[answer[9:12]] += 1
            writer.close()
            await writer.wait_closed()
    return found


def living() -> Counter[str]:
    """Objects that the collector knows, by type; no timers.

    A cancelled one, which holds nothing, stays with its loop for a while.
    """
    gc.collect()
    found = Counter(type(one).__qualname__ for one in gc.get_objects())
    for timer in ("TimerHandle", "Context"):
        del found[timer]
    return found


@pytest.mark.usefixtures("unlogged")
def test_odd_requests_leave_nothing_behind(served: ServedModel, package: Path) -> None:
    settings = ServerSettings(state_cache_mib=0, latency_ms=3_600_000)
    server = Server.over(package, served, settings)
    config = uvicorn.Config(
        create_app(server),
        http=bounded(settings.read_timeout_s, settings.max_connections),
        ws="none",
        log_config=None,
        access_log=False,
        h11_max_incomplete_event_size=process.MAX_HEAD_BYTES,
    )

    async def grown() -> tuple[Counter[bytes], Counter[str]]:
        listener = process._bind("127.0.0.1", 0)
        listener.listen()
        port = listener.getsockname()[1]
        running = uvicorn.Server(config)
        task = asyncio.create_task(running.serve(sockets=[listener]))
        # Until all that is made on first use has been made.
        await statuses_of(port, range(1, 6))
        # Of this count, too.
        living()
        before = living()
        told = await statuses_of(port, range(6, 6 + ROUNDS))
        after = living()
        running.should_exit = True
        await task
        listener.close()
        return told, after - before

    told, more = asyncio.run(grown())
    assert told.keys() <= {b"", b"200", b"400", b"404", b"405", b"422", b"431"}, told
    assert told[b"200"] == 2 * ROUNDS
    # One a round would be ROUNDS.
    assert {name: count for name, count in more.items() if count >= ROUNDS // 2} == {}


def test_what_lives_as_long_as_the_server_is_not_collected(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a full collection holds up all requests for .6 s and more."""
    found: list[tuple[int, int]] = []

    def run(_: object) -> None:
        found.append((gc.get_freeze_count(), len(gc.get_objects())))

    monkeypatch.setattr(process, "log_as_json", lambda _: None)
    monkeypatch.setattr(process._Process, "run", run)
    try:
        process.serve(package, ServerSettings(port=0))
    finally:
        gc.unfreeze()
    ((spared, looked_at),) = found
    assert spared > 100_000
    assert looked_at < spared / 100


def test_a_model_that_is_spared_is_freed_once_it_is_replaced(package: Path) -> None:
    """By its references alone: no collection would find it."""
    model = load_model(package, generation=1)
    network = weakref.ref(model.recommender.parts.network)
    titles = weakref.ref(model.titles)
    gc.collect()
    gc.freeze()
    try:
        del model
        assert (network(), titles()) == (None, None)
    finally:
        gc.unfreeze()
