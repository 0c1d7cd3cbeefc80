"""Connections that send no request in time are closed: uvicorn bounds only later ones.

From uvicorn's own HTTP/1.1 protocol; only the clock before a whole head is added.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedProtocol(H11Protocol):
    """``head_timeout_s`` is set by ``timed``."""

    head_timeout_s = 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The clock starts with the connection."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._check_head)

    def data_received(self, data: bytes) -> None:
        """Each request's head gets the whole time, from its first byte on."""
        before = self.scope
        super().data_received(data)
        is_head_whole = self.scope is not before
        if is_head_whole:
            self._head_timer.cancel()
        elif self._is_idle() and self._head_timer.cancelled():
            self._head_timer = self.loop.call_later(
                self.head_timeout_s, self._check_head
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """No clock outlives its connection."""
        self._head_timer.cancel()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def _check_head(self) -> None:
        if self._is_idle():
            self.transport.close()


def timed(seconds: float) -> type[H11Protocol]:
    """A protocol with this bound, for ``uvicorn.Config(http=...)``."""
    fields: dict[str, Any] = {"head_timeout_s": seconds}
    return type("Timed", (TimedProtocol,), fields)
