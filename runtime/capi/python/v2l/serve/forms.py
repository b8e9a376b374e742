"""Forms as they come: their texts and files, and nothing guessed where a form is damaged."""

from __future__ import annotations

import re
from typing import List, Tuple, Union
from urllib.parse import parse_qsl

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from .errors import Refused

_MOST_FILES = 4
_MOST_FIELDS = 64
#: Encodings that a form may name; UTF-8 is the only one that browsers and clients still send.
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")

#: A parameter of a header of a part, and the header that names its field.
_PARAMETER = re.compile(rb"""\s*;\s*([\w!#$%&'*+.^`|~-]+)=("(?:\\.|[^"\\])*"|[^\s";]*)""")
_DISPOSITION = re.compile(rb"\s*form-data(?:" + _PARAMETER.pattern + rb")+(?:\s*;)?\s*", re.IGNORECASE)

Item = Tuple[str, Union[str, UploadFile]]


class _Parser(MultiPartParser):
    """A parser that knows whether it has seen the end of the form, and takes no part that says twice what it is."""

    ended = False
    _header = _value = b""

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._dispositions: List[bytes] = []

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        super().on_header_field(data, start, end)
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        super().on_header_value(data, start, end)
        self._value += data[start:end]

    def on_header_end(self) -> None:
        super().on_header_end()
        if self._header.lower() == b"content-disposition":
            self._dispositions.append(self._value)
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        if len(self._dispositions) != 1 or _DISPOSITION.fullmatch(self._dispositions[0]) is None:
            raise MultiPartException("a part has no header Content-Disposition, several, or one that cannot be read")
        names = [name.lower() for name, _ in _PARAMETER.findall(self._dispositions[0])]
        if len(set(names)) != len(names):
            raise MultiPartException("a part's Content-Disposition says something twice")
        super().on_headers_finished()

    def on_end(self) -> None:
        super().on_end()
        self.ended = True


def _text(encoded: bytes, what: str) -> str:
    try:
        return encoded.decode("utf-8")
    except UnicodeDecodeError as wrong:
        raise Refused(400, f"{what} is no UTF-8 from byte {wrong.start} on; send text as UTF-8", what) from None


async def _multipart(request: Request, most: int) -> List[Item]:
    kind, options = parse_options_header(request.headers["content-type"])
    charset = options.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in _CHARSETS:
        raise Refused(400, f"the form's charset is {charset[:40]!r}; expected utf-8")
    # The parser takes Latin-1 for what is no UTF-8. It is told Latin-1, in which every byte comes through, and the bytes are read here.
    boundary = options.get(b"boundary", b"")
    if not boundary or b'"' in boundary or b"\\" in boundary:
        raise Refused(400, "the form is malformed: its Content-Type has no boundary that can be used")
    headers = Headers({"content-type": f'{kind.decode("latin-1")}; boundary="{boundary.decode("latin-1")}"; charset=latin-1'})
    stream = request.stream()
    parser = _Parser(headers, stream, max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=most)
    try:
        form = await parser.parse()
    except (MultiPartException, HTTPException) as error:
        told = getattr(error, "detail", None) or getattr(error, "message", "")
        raise Refused(400, f"the form is malformed: {told}"[:200]) from None
    except OSError:
        # There is no room for it. The answer would not arrive while the client still sends.
        async for _ in stream:
            pass
        raise
    items: List[Item] = []
    try:
        if not parser.ended:
            raise Refused(400, "the form is cut off: its closing boundary is missing")
        for name, value in form.multi_items():
            field = _text(name.encode("latin-1"), "the name of a field")
            items.append((field, value if isinstance(value, UploadFile) else _text(value.encode("latin-1"), field[:80])))
    except BaseException:
        await form.close()
        raise
    return items


async def read(request: Request, kind: str, most: int) -> List[Item]:
    """The fields of a form in their order: texts, and files, which the caller closes. ``most`` bounds a text, in bytes.

    A form that is cut off, and text that is no UTF-8, are refused.
    """
    if kind == "multipart/form-data":
        return await _multipart(request, most)
    text = _text(await request.body(), "the form")
    try:
        return list(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS))
    except UnicodeDecodeError:
        raise Refused(400, "the form is no UTF-8; send text as UTF-8") from None
    except ValueError as error:
        raise Refused(400, f"the form is malformed: {error}"[:200]) from None
