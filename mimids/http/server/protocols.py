"""Hypercorn's HTTP/1.1 and WebSocket protocols, without the faults by which a peer could block or crash the process.

The faults are those of Hypercorn 0.18. Each override has a test in tests/http/server/test_listener.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from time import time
from typing import TYPE_CHECKING, Any, Final, cast
from wsgiref.handlers import format_date_time

import h11
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.events import Event as ConnectionEvent
from hypercorn.protocol.events import Data, Event, Request, Response, StreamClosed
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol, H11WSConnection
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WSStream
from wsproto.connection import ConnectionState as WebsocketState
from wsproto.events import CloseConnection, Message, Ping
from wsproto.frame_protocol import CloseReason

if TYPE_CHECKING:
    from hypercorn.typing import H11SendableEvent, WebsocketAcceptEvent

JOIN_BYTES: Final = 65536  # a first piece of body up to this size is sent together with the head
INTERNAL_ERROR: Final = b"HTTP/1.1 500 \r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class ProtocolSettings(Config):
    """Hypercorn's settings: no logs, and answers get no header but Date."""

    accesslog = None
    errorlog = None

    def __init__(self, *, head_bytes: int, message_bytes: int) -> None:
        self.h11_max_incomplete_size = head_bytes
        self.websocket_max_message_size = message_bytes

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """Return the headers of every answer: RFC 9110 section 6.6.1 requires Date."""
        return [_date(int(time()))]


@lru_cache(maxsize=1)
def _date(now: int) -> tuple[bytes, bytes]:
    return b"date", format_date_time(now).encode()


class Accepted(Event):
    """The opening handshake of a WebSocket has succeeded."""


class HttpProtocol(H11Protocol):
    """HTTP/1.1 on one connection, without an upgrade to HTTP/2; a small answer is sent in one write."""

    stream: HTTPStream | WebSocketProtocol | None
    connection: h11.Connection | H11WSConnection

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._head = b""  # the head of an answer, kept until its body begins

    @property
    def idle(self) -> bool:
        """Whether no request has begun."""
        return self.stream is None and not self.connection.trailing_data[0]

    @property
    def receiving(self) -> bool:
        """Whether the body of a request is still incomplete."""
        return self.connection.their_state is h11.SEND_BODY

    async def handle(self, event: ConnectionEvent) -> None:
        """Handle bytes from the connection, or its end."""
        try:
            await super().handle(event)
        except h11.RemoteProtocolError as error:
            await self.refuse(error.error_status_hint)
            await self.send(Closed())

    async def refuse(self, status: int) -> None:
        """Answer with `status` and no body, unless an answer has begun; the caller closes the connection."""
        if self.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._send_error_response(status)

    async def stream_send(self, event: Event) -> None:
        """Send an event of the request's stream."""
        if isinstance(event, Response) and event.status_code >= 200 and self.context.terminated.is_set():
            event = Response(STREAM_ID, [*event.headers, (b"connection", b"close")], event.status_code)
        elif isinstance(event, StreamClosed) and self._head:
            self._head = b""  # the app failed between head and body, and nothing was sent yet
            await self.send(RawData(INTERNAL_ERROR))
        elif isinstance(event, Accepted):
            await self.send(Updated(idle=False))
        await super().stream_send(event)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        try:
            data = self.connection.send(event) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state is h11.ERROR:
                return  # the request broke off while it was answered; the connection is closed anyway
            raise
        if isinstance(event, h11.Response):
            self._head = data
            return
        if self._head:
            if len(data) > JOIN_BYTES:
                await self.send(RawData(self._head))
            else:
                data = self._head + data
            self._head = b""
        if data:
            await self.send(RawData(data))

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.http_version not in (b"1.0", b"1.1"):  # "PRI * HTTP/2.0" among others
            raise h11.RemoteProtocolError("not HTTP/1", error_status_hint=505)

    async def _create_stream(self, request: h11.Request) -> None:
        kind: type[HTTPStream] | type[WebSocketProtocol] = HTTPStream
        if _wants_websocket(request):
            kind = WebSocketProtocol
            self.connection = H11WSConnection(cast("h11.Connection", self.connection))
        self.stream = kind(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        self.keep_alive_requests += 1
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )


def _wants_websocket(request: h11.Request) -> bool:
    """Tell whether a request is an opening handshake (RFC 6455 section 4.1)."""
    headers = dict(request.headers)
    tokens = [token.strip() for token in headers.get(b"connection", b"").lower().split(b",")]
    return request.method == b"GET" and headers.get(b"upgrade", b"").lower() == b"websocket" and b"upgrade" in tokens


class WebSocketProtocol(WSStream):
    """A WebSocket without compression: ciphertext does not compress, and the buffers triple the memory of a stream."""

    @property
    def open(self) -> bool:
        """Whether the handshake has succeeded and neither side has closed."""
        return self.state is ASGIWebsocketState.CONNECTED and not self.closed

    async def handle(self, event: Event) -> None:
        """Handle an event of the connection for this stream."""
        if isinstance(event, Request) and not _is_readable(event):
            event = Request(STREAM_ID, [], event.http_version, event.method, event.raw_path, event.state)  # 400
        if isinstance(event, Data) and not self.closed and not self.handshake.accepted:
            # RFC 6455 section 4.1: the client must wait for the answer. Hypercorn would leave the app waiting forever.
            if self.state is ASGIWebsocketState.HANDSHAKE:
                await self._send_error_response(400)
            await self.send(StreamClosed(STREAM_ID))
        else:
            await super().handle(event)
            if isinstance(event, Request) and self.closed:
                await self.send(StreamClosed(STREAM_ID))  # Hypercorn refused it, and would not close the connection

    async def ping(self) -> None:
        """Send a ping, to learn whether the peer is still there."""
        await self._send_wsproto_event(Ping())

    async def go_away(self) -> None:
        """Close with 1001 (going away), towards the app and the peer."""
        if self.open:
            self.state = ASGIWebsocketState.CLOSED
            await self._put({"type": "websocket.disconnect", "code": CloseReason.GOING_AWAY, "reason": None})
            await self._send_wsproto_event(CloseConnection(CloseReason.GOING_AWAY, "the server is restarting"))

    async def _accept(self, message: WebsocketAcceptEvent) -> None:
        self.handshake.extensions = None
        await super()._accept(message)
        await self.send(Accepted(STREAM_ID))
        if self.context.terminated.is_set():
            await self.go_away()

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            if isinstance(event, Message):
                try:
                    self.buffer.extend(event)
                except FrameTooLargeError:
                    # Hypercorn would keep collecting what such a peer sends.
                    await self._close(CloseConnection(CloseReason.MESSAGE_TOO_BIG))
                    return
                if event.message_finished:
                    await self._put(self.buffer.to_message())
                    self.buffer.clear()
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                # If the state is still open, the peer has not closed: wsproto reports a malformed frame.
                await self._close(event.response() if self.connection.state is WebsocketState.REMOTE_CLOSING else event)
                return

    async def _put(self, message: dict[str, Any]) -> None:
        await cast("Callable[[dict[str, Any]], Awaitable[None]]", self.app_put)(message)

    async def _close(self, event: CloseConnection) -> None:
        self.buffer.clear()
        await self._send_wsproto_event(event)
        await self.send(StreamClosed(STREAM_ID))


def _is_readable(request: Request) -> bool:
    """Tell whether these headers of an opening handshake are ASCII: Hypercorn decodes them without a check."""
    return all(
        value.isascii() for name, value in request.headers if name.startswith((b"connection", b"sec-websocket-"))
    )
