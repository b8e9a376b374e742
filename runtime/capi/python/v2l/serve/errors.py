"""Answers to requests that are refused."""

from __future__ import annotations

from typing import Any, Dict, Optional


class Refused(Exception):
    """A request that is refused: the HTTP status, why, and the field that it is about."""

    def __init__(self, status: int, message: str, field: Optional[str] = None, code: Optional[str] = None) -> None:
        super().__init__(message)
        self.status, self.message, self.field = status, message, field
        self.code = code or _CODES.get(status, "invalid_request")

    def body(self) -> Dict[str, Any]:
        """The answer, as OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.field, "code": self.code}}


_CODES = {
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    410: "expired",
    413: "too_large",
    415: "unsupported_media_type",
    429: "queue_full",
    500: "internal",
    503: "unavailable",
}

#: HTTP statuses of the library's failures that a request may be at fault for.
OF_LIBRARY = {2: 400, 3: 500, 4: 501, 5: 400, 6: 500, 7: 500, 8: 503, 9: 500, 20: 400, 21: 400, 22: 400, 23: 400, 25: 500}
