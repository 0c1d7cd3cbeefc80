"""Around every request: an id, one line of log, and the metrics."""

import datetime
import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgrec_torchrec.serving.server.errors import error_response
from sgrec_torchrec.serving.server.metrics import Metrics

logger = logging.getLogger(__name__)
GOOD_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
PATHS = frozenset(
    {
        *("/", "/recommend", "/items", "/examples", "/healthz", "/readyz", "/metrics"),
        *("/admin/reload", "/openapi.json", "/docs"),
    }
)
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds: logged only where they fail."""
MAX_LOGGED = 200


class JsonLines(logging.Formatter):
    """A record as one line of JSON; ``extra={"fields": {...}}`` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        """Time in UTC, level, logger, event, fields, traceback."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json(level: str) -> None:
    """Send all logs to stderr, a line of JSON each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


class Observe:
    """Outermost. A failure of the application itself becomes JSON with status 500."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, is_closing: Callable[[], bool]
    ) -> None:
        self.app, self.metrics, self.is_closing = app, metrics, is_closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI asks."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        status, start = 0, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                if self.is_closing():
                    # Else a client would send its next request into the end.
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except TimeoutError:
            logger.warning("answer not read", extra=_fields(request_id, scope))
            raise
        # The last resort: whatever failed, the client gets JSON and the log the cause.
        except Exception:
            logger.exception("request failed", extra=_fields(request_id, scope))
            if not status:
                told = f"the server failed; its log has request id {request_id}"
                await error_response(500, told)(scope, receive, watched)
        finally:
            self._count(scope, status, time.perf_counter() - start, request_id)

    def _count(
        self, scope: Scope, status: int, seconds: float, request_id: str
    ) -> None:
        path = scope["path"] if scope["path"] in PATHS else "other"
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        is_told = logger.isEnabledFor(logging.INFO)
        if is_told and (path not in QUIET or status >= 400):
            fields = _fields(request_id, scope)["fields"]
            fields |= {"status": status, "ms": round(1000 * seconds, 2)}
            logger.info("request", extra={"fields": fields})


def _request_id(scope: Scope) -> str:
    """The client's, where it is harmless; else a new one."""
    for key, value in scope["headers"]:
        if key == b"x-request-id" and GOOD_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex


def _fields(request_id: str, scope: Scope) -> dict[str, dict[str, object]]:
    client = scope.get("client") or ("", 0)
    return {
        "fields": {
            "request_id": request_id,
            "method": scope["method"][:MAX_LOGGED],
            "path": scope["path"][:MAX_LOGGED],
            "client": client[0][:MAX_LOGGED],
        }
    }
