"""What is refused -> JSON that says what to change."""

import json
from collections.abc import Mapping

from starlette.responses import Response

KINDS = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    415: "wrong_content_type",
    422: "invalid",
    429: "over_capacity",
    431: "too_large",
    500: "internal",
    503: "not_ready",
}


class RequestError(Exception):
    """A request that is not answered: a status, what to change, and headers."""

    def __init__(
        self, status: int, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})

    def response(self) -> Response:
        """As the client gets it."""
        return error_response(self.status, self.message, self.headers)


def error_response(
    status: int, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """``{"error": {"kind": ..., "message": ...}}``."""
    return Response(
        error_body(status, message),
        status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def error_body(status: int, message: str) -> bytes:
    """``error_response`` without its head."""
    kind = KINDS.get(status, "refused")
    return json.dumps({"error": {"kind": kind, "message": message}}).encode()
