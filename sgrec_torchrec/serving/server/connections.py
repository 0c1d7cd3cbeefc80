"""uvicorn's own HTTP/1.1 protocol under bounds that it lacks.

A head that does not come in time loses its connection; one of very many headers is
refused before it is parsed. A body in very many chunks is
refused, and parsed a few chunks at a time, so that others get their turn. A new client
takes the place of one that is idle. Whoever is idle when the server stops may still
have sent a request, which is answered.
"""

import asyncio
import re
from collections import Counter
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sgrec_torchrec.serving.server.errors import error_body, error_response
from sgrec_torchrec.serving.server.observe import QUIET

MAX_HEADERS = 100
"""Of a request, as gunicorn and Apache have it. Each costs h11 and what follows some
13 us, and a head that comes in one read may have ten thousand."""
END_OF_HEAD = re.compile(rb"\n\r?\n")
"""As h11 finds it."""
MAX_CHUNKS = 4_096
"""Of a body. Each costs h11 some 8 us, however few bytes it has."""
CHUNKS_A_TURN = 32
"""Parsed before the event loop does what else is due."""
DISCARDED = 16 << 20
"""Bytes of a refused body that are dropped: a client that is still sending would lose
the answer with its connection."""
LAST_WORD_S = 0.25
"""From the end of lingering to the end of an idle connection: a request may be under
way."""


class Parser(h11.Connection):
    """Stops for the others after some chunks, and for good after too many."""

    def __init__(self, max_head_bytes: int) -> None:
        super().__init__(h11.SERVER, max_head_bytes)
        self._max_head_bytes = max_head_bytes
        self.num_left = CHUNKS_A_TURN
        self.num_chunks = 0
        self.refusal: tuple[int, str] | None = None
        """Status and message of what is HTTP, and more than is taken."""

    def next_event(self) -> Any:
        """As h11; ``NEED_DATA`` also where the turn is over.

        Raises:
            h11.RemoteProtocolError: for what is no HTTP, or has too many chunks or
                headers.
        """
        if not self.num_left:
            return h11.NEED_DATA
        if self.their_state is h11.IDLE:
            self._check_head()
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.num_chunks = 0
        elif isinstance(event, h11.Data):
            self.num_left -= 1
            self.num_chunks += event.chunk_start
            if self.num_chunks > MAX_CHUNKS:
                raise self._refused(
                    413,
                    f"the body has more than {MAX_CHUNKS} chunks: send it in larger "
                    "ones",
                )
        return event

    def _check_head(self) -> None:
        """h11 bounds neither the headers nor the bytes of a head that came whole."""
        data, _ = self.trailing_data
        found = END_OF_HEAD.search(data)
        size = found.start() if found else len(data)
        if size > self._max_head_bytes:
            told = f"the head has more than {self._max_head_bytes} bytes: send less"
            raise self._refused(431, told)
        # The first line is the request's own.
        if data.count(b"\n", 0, size) > MAX_HEADERS:
            told = f"the head has more than {MAX_HEADERS} headers: send fewer"
            raise self._refused(431, told)

    def _refused(self, status: int, message: str) -> h11.RemoteProtocolError:
        self.refusal = status, message
        return h11.RemoteProtocolError(message, status)


class BoundedProtocol(H11Protocol):
    """The settings are set by ``bounded``."""

    head_timeout_s = 10.0
    max_connections = 512
    conn: Parser
    _head_timer: asyncio.TimerHandle

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        most = self.config.h11_max_incomplete_event_size
        assert most is not None
        self.conn = Parser(most)
        self._has_turn_coming = False
        self._num_dropped: int | None = None
        """Bytes; None before a refusal."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The clock starts with the connection."""
        super().connection_made(transport)
        self._idle_since_s = self.loop.time()
        self._start_clock()
        if len(self.connections) > self.max_connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Each request's head gets the whole time, from its first byte on."""
        if self._num_dropped is not None:
            self._num_dropped += len(data)
            if self._num_dropped > DISCARDED:
                self.transport.close()
            return
        before = self.scope
        super().data_received(data)
        is_head_whole = self.scope is not before
        if is_head_whole:
            self._head_timer.cancel()
        elif self._is_idle() and self._head_timer.cancelled():
            self._start_clock()

    def handle_events(self) -> None:
        """A turn; where more is there to parse, the next one is taken later."""
        if self._has_turn_coming:
            return
        self.conn.num_left = CHUNKS_A_TURN
        super().handle_events()
        is_over = self._num_dropped is not None or self.transport.is_closing()
        if is_over or self.conn.num_left:
            return
        self._has_turn_coming = True
        self.transport.pause_reading()
        self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._has_turn_coming = False
        if self.transport.is_closing():
            return
        if not self.flow.read_paused:
            self.transport.resume_reading()
        self.handle_events()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or more of it than is taken; then close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        if self.conn.refusal is None:
            super().send_400_response(msg)
            return
        status, message = self.conn.refusal
        told = error_body(status, message)
        head = {
            "Content-Type": "application/json",
            "Content-Length": str(len(told)),
            "Connection": "close",
        }
        for event in (
            h11.Response(
                status_code=status, headers=[*head.items()], reason="Too Large"
            ),
            h11.Data(data=told),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        if not self._is_idle():
            # The application waits for the rest of the body.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._num_dropped = 0
        self.transport.write_eof()
        self.transport.resume_reading()
        self._head_timer.cancel()
        self._head_timer = self.loop.call_later(
            self.head_timeout_s, self.transport.close
        )

    def on_response_complete(self) -> None:
        """From now on idle, unless the next head has begun already."""
        self._idle_since_s = self.loop.time()
        super().on_response_complete()
        if self._is_idle() and self.conn.trailing_data[0]:
            self._start_clock()

    def shutdown(self) -> None:
        """A request that is under way to an idle connection is answered, too."""
        if self._is_idle():
            self.loop.call_later(LAST_WORD_S, self._end)
        else:
            self._end()

    def _end(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """No clock outlives its connection."""
        self._head_timer.cancel()
        super().connection_lost(exc)

    def _start_clock(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._check_head)

    def _is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def _check_head(self) -> None:
        if self._is_idle():
            self.transport.close()

    def _make_room(self) -> None:
        """Close the longest idle connection of who has most; else serve health alone.

        A client that opens very many takes them from itself.
        """
        others = [one for one in self.connections if isinstance(one, BoundedProtocol)]
        counts = Counter(one._host() for one in others)
        idle = [one for one in others if one is not self and one._is_idle()]
        if not idle:
            self.app = _Crowded(self)
            return
        given_up = max(idle, key=lambda one: (counts[one._host()], -one._idle_since_s))
        given_up.transport.close()
        self.connections.discard(given_up)

    def _host(self) -> str:
        return self.client[0] if self.client else ""


class _Crowded:
    """The application for a connection beyond the bound, while the others are busy."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        self._app: Any = protocol.app
        self._protocol = protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI asks: health is told to everyone."""
        app: ASGIApp = self._app
        is_full = len(self._protocol.connections) > self._protocol.max_connections
        if is_full and scope["path"] not in QUIET:
            app = error_response(
                503,
                "the server has as many connections as it takes: try again later",
                {"Retry-After": "1", "Connection": "close"},
            )
        await app(scope, receive, send)


def bounded(head_timeout_s: float, max_connections: int) -> type[H11Protocol]:
    """A protocol with these bounds, for ``uvicorn.Config(http=...)``."""
    fields: dict[str, Any] = {
        "head_timeout_s": head_timeout_s,
        "max_connections": max_connections,
    }
    return type("Bounded", (BoundedProtocol,), fields)
