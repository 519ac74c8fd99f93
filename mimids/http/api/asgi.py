"""A `Table` as an ASGI application, without a framework (docs/decisions/0002)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from mimids.http.api.admission import SUBPROTOCOL
from mimids.http.api.bodies import StreamClosed
from mimids.http.api.messages import HttpReply, HttpRequest
from mimids.http.api.table import Table
from mimids.http.server.listener import connection_info

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_INTERNAL_ERROR: Final = 1011  # RFC 6455 section 7.4.1
_POLICY_VIOLATION: Final = 1008
_UNSUPPORTED_DATA: Final = 1003


def application(table: Table) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Return the ASGI application that serves `table`: HTTP and WebSockets, no lifespan."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            reply = await table.answer(request(scope, receive))
            await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
            await send({"type": "http.response.body", "body": reply.body, "more_body": False})
        else:
            stream = _WebSocket(scope, receive, send)
            refusal = await table.stream(request(scope, receive), stream)
            if refusal is not None:
                await stream.refuse(refusal)

    return serve


def request(scope: Scope, receive: Receive) -> HttpRequest:
    """Return the request of an ASGI scope."""
    headers: dict[str, str] = {}
    for name_, value_ in scope["headers"]:
        name, value = name_.decode("latin-1"), value_.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value

    async def piece() -> tuple[bytes, bool]:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise StreamClosed  # an incomplete body is not decoded
        return message.get("body", b""), message.get("more_body", False)

    path: bytes = scope["raw_path"]
    if not path.startswith(b"/"):  # the absolute form: RFC 9112 section 3.2.2, MUST
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    return HttpRequest(
        scope.get("method", "GET"),
        path,
        scope["query_string"],
        headers,
        connection_info(scope).names,
        piece,
    )


class _WebSocket:
    """A `WebSocketStream`. The first use accepts the handshake, so that a handler can refuse it before."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._offered: list[str] = scope.get("subprotocols") or []
        self._receive = receive
        self._send = send
        self._accepted = False
        self._closed = False

    async def receive(self) -> bytes:
        """Wait for the next binary message; a text message closes the WebSocket, since our protocol has none."""
        await self._accept()
        message = await self._receive()
        if message["type"] == "websocket.disconnect" or self._closed:
            self._closed = True
            raise StreamClosed
        octets = message.get("bytes")
        if octets is None:
            await self.close(_UNSUPPORTED_DATA)
            raise StreamClosed
        return bytes(octets)

    async def send(self, message: bytes) -> None:
        """Send one binary message."""
        await self._accept()
        if self._closed:
            raise StreamClosed
        await self._send({"type": "websocket.send", "bytes": message, "text": None})

    async def close(self, code: int = 1000) -> None:
        """Close the WebSocket; doing it again does nothing."""
        await self._accept()
        if not self._closed:
            self._closed = True
            await self._send({"type": "websocket.close", "code": code, "reason": ""})

    async def refuse(self, reply: HttpReply) -> None:
        """Answer the handshake with a problem document; if it was accepted already, close the WebSocket."""
        if self._accepted:
            await self.close(_INTERNAL_ERROR if reply.status >= 500 else _POLICY_VIOLATION)
            return
        headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
        await self._send({"type": "websocket.http.response.start", "status": reply.status, "headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": reply.body, "more_body": False})

    async def _accept(self) -> None:
        if self._accepted:
            return
        if (await self._receive())["type"] != "websocket.connect":
            self._closed = True
            raise StreamClosed
        self._accepted = True
        # A browser that offered subprotocols fails unless we choose one; prefer one that does not hold the token.
        others = [name for name in self._offered if not name.startswith(SUBPROTOCOL)]
        chosen = next(iter(others or self._offered), None)
        await self._send({"type": "websocket.accept", "subprotocol": chosen, "headers": []})
