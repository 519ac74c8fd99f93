"""A `Table` as an ASGI application, without a framework (docs/decisions/0002)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from mimids.http.api.admission import SUBPROTOCOL
from mimids.http.api.table import Table
from mimids.http.server.listener import connection_info
from mimids.http.server.messages import DirectApp, HttpReply, HttpRequest, StreamClosed, join_headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_INTERNAL_ERROR: Final = 1011  # RFC 6455 section 7.4.1
_POLICY_VIOLATION: Final = 1008
_UNSUPPORTED_DATA: Final = 1003
_TRY_AGAIN_LATER: Final = 1013


def application(table: Table) -> DirectApp:
    """Return the application that serves `table`: HTTP and WebSockets, no lifespan."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(table.answer, scope, receive, send)
        else:
            stream = _WebSocket(scope, receive, send)
            refusal = await table.stream(request(scope, receive), stream)
            if stream.is_unread:  # close now, when the handler has freed its message: closing may take long
                await stream.close(_TRY_AGAIN_LATER)
            elif refusal is not None:
                await stream.refuse(refusal)

    return DirectApp(serve, table.answer, table.cors.headers)


async def respond(
    answer: Callable[[HttpRequest], Awaitable[HttpReply]], scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer an HTTP request of ASGI with the result of `answer`."""
    reply = await answer(request(scope, receive))
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": False})


def request(scope: Scope, receive: Receive) -> HttpRequest:
    """Return the request of an ASGI scope."""
    headers = join_headers(scope["headers"])

    async def piece() -> tuple[bytes, bool]:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise StreamClosed  # an incomplete body is not decoded
        return message.get("body", b""), message.get("more_body", False)

    path: bytes = scope["raw_path"]
    if not path.startswith(b"/"):  # the absolute form: RFC 9112 section 3.2.2, MUST
        authority, _, rest = path.partition(b"://")[2].partition(b"/")
        path, headers["host"] = b"/" + rest, authority.rpartition(b"@")[2].decode("latin-1")
    connection = connection_info(scope)
    return HttpRequest(
        scope.get("method", "GET"),
        path,
        scope["query_string"],
        headers,
        connection.names,
        piece,
        (scope.get("client") or ("",))[0],
        connection.holding,
        connection.user,
    )


class _WebSocket:
    """A `WebSocketStream`. Its first use accepts the handshake; before that, a handler can refuse the handshake."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._offered: list[str] = scope.get("subprotocols") or []
        self._receive = receive
        self._send = send
        self._holding = connection_info(scope).holding
        self._accepted = False
        self._closed = False
        self.is_unread = False  # there was no room for a message, because peers do not read

    @property
    def heard_at(self) -> float:
        """The time, by trio's clock, when anything was last received; an answer to a ping counts, too."""
        return self._holding.heard_at

    async def receive(self) -> bytes:
        """Wait for the next binary message.

        Our protocol has no text messages: if the peer sends one, the WebSocket is closed.
        """
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
        """Send one binary message; raise `StreamClosed` if too much is unread by this peer, or by all peers."""
        await self._accept()
        if self._closed:
            raise StreamClosed
        with self._holding.keep(len(message)) as kept:
            if not kept:
                self.is_unread = True
                raise StreamClosed
            await self._send({"type": "websocket.send", "bytes": message, "text": None})

    async def close(self, code: int = 1000) -> None:
        """Close the WebSocket; a second call does nothing."""
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
        # A subprotocol that holds the token is never chosen: answers are logged, and stay in the memory of browsers.
        chosen = next((name for name in self._offered if not name.startswith(SUBPROTOCOL)), None)
        await self._send({"type": "websocket.accept", "subprotocol": chosen, "headers": []})
