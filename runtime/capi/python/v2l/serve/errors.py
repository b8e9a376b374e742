"""Answers to requests that are refused."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

import v2l


def _said(text: str) -> str:
    """Text that UTF-8 can say: a client's words may hold half a character."""
    return text.encode("utf-8", "backslashreplace").decode()


class Refused(Exception):
    """A request that is refused: the HTTP status, why, and the field that it is about."""

    def __init__(self, status: int, message: str, field: Optional[str] = None, code: Optional[str] = None) -> None:
        super().__init__(message)
        self.status, self.message, self.field = status, _said(message), None if field is None else _said(field)
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

#: HTTP statuses of the library's failures while a request is looked at: of its arguments, its text, its tensors and its numbers it is the
#: client's, of a lack of memory or of a program it is the machine's.
_OF_LIBRARY = {2: 400, 4: 400, 5: 400, 6: 503, 7: 400, 8: 503, 9: 503, 21: 400, 23: 400}
#: What the dialect calls what the library's requests call otherwise.
_WORDS = {"shift": "flow_shift", "image": "input_reference", "width": "size", "height": "size"}


def of_library(error: v2l.Error, files: Mapping[str, str]) -> Refused:
    """What the library says of a request that it cannot carry out, in the words of the dialect. ``files`` are uploads and their fields."""
    message = str(error)
    field = next((name for file, name in files.items() if file in message), None)
    code = _OF_LIBRARY.get(error.status, 500) if field is None else 400
    for file, name in files.items():
        message = message.replace(file, name)
    for own, word in _WORDS.items():
        message = message.replace(f"`{own}`", f"`{word}`")
    return Refused(code, message, field or _WORDS.get(error.field, error.field) or None)
