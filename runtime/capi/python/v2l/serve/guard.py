"""What stands before the application: size of bodies, the key, and pages of other origins."""

from __future__ import annotations

import json
from typing import Any, Awaitable, Callable, Dict, MutableMapping
from urllib.parse import urlsplit

from .config import Config
from .errors import Refused

_Scope = MutableMapping[str, Any]
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

#: Headers that one reader takes from their first line and another from their last.
_SINGLE = (b"content-type", b"content-length", b"authorization", b"origin", b"host")
#: The most headers of a request, and the most bytes of them.
_MOST_HEADERS = 100
_MOST_HEADER_BYTES = 32 * 1024


class Guard:
    """ASGI middleware that answers what must not reach the application, before anything of a body is read."""

    def __init__(self, app: _App, config: Config) -> None:
        self._app, self._config = app, config

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        began = whole = False
        left = 0

        async def counted() -> _Message:
            nonlocal left, whole
            message = await receive()
            if message["type"] == "http.request":
                whole = not message.get("more_body")
                left -= len(message.get("body") or b"")
                if left < 0:
                    raise Refused(413, "the body is too large; the server's operator can allow more")
            return message

        async def answered(message: _Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                if not whole and _has_body(scope):
                    # What is left of the body must not be taken for the next request.
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        try:
            left = self._check(scope)
            await self._app(scope, counted, answered)
        except Refused as refused:
            if began:
                raise
            await _answer(send, refused)

    def _check(self, scope: _Scope) -> int:
        """Refuses by the headers alone; gives how large the body may be."""
        pairs = scope["headers"]
        if len(pairs) > _MOST_HEADERS or sum(len(name) + len(value) for name, value in pairs) > _MOST_HEADER_BYTES:
            raise Refused(431, f"the request has more than {_MOST_HEADERS} headers, or more than {_MOST_HEADER_BYTES} bytes of them")
        names = [name for name, _ in pairs]
        if any(names.count(name) > 1 for name in _SINGLE):
            raise Refused(400, "a header that may be given once is given twice")
        headers: Dict[str, str] = {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}
        if scope["path"] != "/health" and not self._config.authorised(headers.get("authorization", "")):
            raise Refused(401, "the key is missing or wrong; send it as Authorization: Bearer KEY")
        # A page in a browser must not use its visitor's way to this server.
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            raise Refused(403, "pages of other origins may not use this server")
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        most = self._config.max_upload if kind == "multipart/form-data" else self._config.max_json
        length = headers.get("content-length")
        if length is not None and (not length.isdigit() or int(length[:20]) > most):
            raise Refused(413, f"the body has {length[:20]} bytes; expected at most {most}")
        return most


def _has_body(scope: _Scope) -> bool:
    headers = dict(scope["headers"])
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


async def _answer(send: _Send, refused: Refused) -> None:
    body = json.dumps(refused.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
