"""What guards every request before the application sees it.

The body is read here, whole, under a bound of bytes and of time, whether its length was
announced or not; the application then gets it from memory.
"""

import asyncio
import hmac
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgrec_torchrec.serving.server.errors import RequestError
from sgrec_torchrec.serving.server.settings import ServerSettings

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/examples"})
"""Served without the token: the page, and what tells that the server lives."""
RECOMMEND = "/recommend"
ADMIN = "/admin"
"""Paths that begin so take the admin token alone."""
DISCARDED = 16 << 20
"""Bytes beyond the bound that are read and dropped: a client that is still sending
would lose the answer with its connection."""
REFUSAL_PAUSE_S = 0.1
"""A full server says so a little later: clients that ask again at once, whatever
Retry-After says, would else take the processors from those who are served."""
CLOSE = {"Connection": "close"}


class Limits:
    """Token, then size and time, then room.

    Under overload most requests are refused, and what that costs is taken from those
    that are not: so the application does not see them, and nothing parses them. Their
    bodies are read as any others, so that the connection stays in use.
    """

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, check_room: Callable[[], None]
    ) -> None:
        self.app, self.settings, self._check_room = app, settings, check_room
        self._bearer = settings.bearer.encode() if settings.bearer else None
        admin = settings.admin_bearer
        self._admin = admin.encode() if admin else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI asks."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check_token(scope)
            body = await self._read(scope, receive)
            if scope["path"] == RECOMMEND and scope["method"] == "POST":
                await self._check_room_for_one()
        except RequestError as error:
            await error.response()(scope, receive, self._bounded(send))
            return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, self._bounded(send))

    def _bounded(self, send: Send) -> Send:
        """A client that does not read its answer loses the connection."""

        async def bounded(message: Message) -> None:
            async with asyncio.timeout(self.settings.read_timeout_s):
                await send(message)

        return bounded

    async def _check_room_for_one(self) -> None:
        try:
            self._check_room()
        except RequestError:
            await asyncio.sleep(REFUSAL_PAUSE_S)
            raise

    def _check_token(self, scope: Scope) -> None:
        # Without an admin token /admin is off, and asked as any other path.
        is_admin = self._admin is not None and scope["path"].startswith(ADMIN)
        wanted = self._admin if is_admin else self._bearer
        if wanted is None or scope["path"] in OPEN_PATHS:
            return
        given = _header(scope, b"authorization") or b""
        scheme, _, credentials = given.partition(b" ")
        is_known = hmac.compare_digest(credentials.strip(), wanted)
        if scheme.lower() != b"bearer" or not is_known:
            raise RequestError(
                401,
                "send the header `Authorization: Bearer TOKEN` with the server's "
                f"{'admin ' if is_admin else ''}token",
                CLOSE | {"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        most = self.settings.max_body_bytes
        announced = _header(scope, b"content-length") or b"0"
        # What is not a number the protocol has refused already. Beyond the bound an
        # announced body is dropped as any other: so that the client gets its answer.
        if int(announced) > most + DISCARDED:
            raise self._too_large()
        body, num_bytes = bytearray(), 0
        try:
            async with asyncio.timeout(self.settings.read_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise RequestError(400, "the body ended early", CLOSE)
                    num_bytes += len(message.get("body", b""))
                    if num_bytes <= most:
                        body += message.get("body", b"")
                    is_whole = not message.get("more_body", False)
                    if num_bytes > most and (is_whole or num_bytes > most + DISCARDED):
                        raise self._too_large()
                    if is_whole:
                        return bytes(body)
        except TimeoutError:
            raise RequestError(
                408,
                f"the body took longer than {self.settings.read_timeout_s:g} s: send "
                "it faster, or a smaller one",
                CLOSE,
            ) from None

    def _too_large(self) -> RequestError:
        return RequestError(
            413,
            f"the body has more than {self.settings.max_body_bytes} bytes: send the "
            "newest events alone, and shorter lists",
            CLOSE,
        )


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None
