"""Answers to requests that are refused."""

from __future__ import annotations

import re
from typing import Any, Dict, Mapping, Optional


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
#: How the library's messages about a request begin, and the fields of the dialect that they are about.
_ABOUT = (
    ("the image", "input_reference"),
    ("the last image", "last_image"),
    ("the size", "size"),
    ("the width", "width"),
    ("the height", "height"),
    ("the number of frames", "num_frames"),
    ("the length in seconds", "seconds"),
    ("the frame rate", "fps"),
    ("the guidance scale", "guidance_scale"),
    ("the second guidance scale", "guidance_scale_2"),
    ("the boundary", "boundary_ratio"),
    ("a control", "controls"),
    ("there is no scheduler", "scheduler"),
    ("this model's scheduler has no shift", "flow_shift"),
    ("`shift", "flow_shift"),
)
#: What the library calls fields that the dialect calls otherwise.
_WORDS = (("`image`", "`input_reference`"), ("`shift`", "`flow_shift`"))


def of_library(status: int, message: str, files: Mapping[str, str]) -> Refused:
    """What the library says of a request that it cannot carry out, in the words of the dialect. ``files`` are uploads and their fields."""
    field = next((name for file, name in files.items() if file in message), None)
    code = _OF_LIBRARY.get(status, 500) if field is None else 400
    for file, name in files.items():
        message = message.replace(file, name)
    if field is None:
        sizes = re.match(r"\d+x\d+ pixels do not divide", message)
        steps = re.match(r"\d+ inference steps", message)
        field = "size" if sizes else "num_inference_steps" if steps else None
        field = field or next((name for start, name in _ABOUT if re.match(rf"{start}\b", message)), None)
    for own, word in _WORDS:
        message = message.replace(own, word)
    return Refused(code, message, field)
