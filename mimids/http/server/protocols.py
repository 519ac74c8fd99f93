"""Hypercorn's HTTP/1.1 and WebSocket protocols, without the faults by which a peer could block or crash the process.

Hypercorn 0.18 has these faults. Each override has a test in tests/http/server/test_listener.py.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import lru_cache
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, Final, cast
from wsgiref.handlers import format_date_time

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.events import Event as ConnectionEvent
from hypercorn.protocol.events import Body, Data, EndBody, Event, Request, Response, StreamClosed
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol, H11WSConnection
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WSStream
from wsproto.connection import ConnectionState as WebsocketState
from wsproto.events import CloseConnection, Message, Ping
from wsproto.events import Event as WebsocketEvent
from wsproto.frame_protocol import CloseReason

from mimids.http.server.holding import Holding

if TYPE_CHECKING:
    from hypercorn.typing import H11SendableEvent, WebsocketAcceptEvent

JOIN_BYTES: Final = 65536  # a first piece of body up to this size is sent together with the head
HEADER_LINES: Final = 128  # in one head
PARSING_SECONDS: Final = 0.002  # how long to parse without a checkpoint
SMALL_FRAGMENT_OCTETS: Final = 1024  # fragments below this size, and control frames, may come at these rates:
SMALL_FRAMES_BURST: Final = 200
SMALL_FRAMES_PER_SECOND: Final = 20
_FRAMING: Final = (b"content-length", b"transfer-encoding")
INTERNAL_ERROR: Final = b"HTTP/1.1 500 \r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class ProtocolSettings(Config):
    """Hypercorn's settings: no logs, and answers get no header but Date."""

    accesslog = None
    errorlog = None

    def __init__(self, *, head_bytes: int, message_bytes: int) -> None:
        self.flooded = 0  # WebSockets closed for too many small frames
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
        self.holding = Holding()  # what the connection holds of the pools
        self.wait_for_turn: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint  # to go on with a long step
        self._head = b""  # the head of an answer, kept until its body begins
        self._body_left = 0  # of a request's body with a Content-Length
        self._ambiguous = False  # the request has both Content-Length and Transfer-Encoding

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
            if isinstance(event, RawData):
                await self._feed(event.data)
            else:
                await super().handle(event)
        except h11.RemoteProtocolError as error:
            await self.refuse(error.error_status_hint)
            await self.send(Closed())

    async def _feed(self, data: bytes) -> None:
        """Parse octets, a piece at a time, so that h11 never gets a head, trailer or chunk header that is too long."""
        while data:
            connection = self.connection
            if isinstance(connection, H11WSConnection):
                connection.receive_data(data)
                await self._handle_events()
                return
            state, room = connection.their_state, len(data)
            if state is h11.DONE:  # the next request waits until this one is answered
                with self.holding.keep(len(data)) as kept:
                    if not kept:
                        await self.send(Closed())
                        return
                    await self.can_read.clear()
                    await self.can_read.wait()
                if connection.their_state is h11.DONE:
                    return
                continue
            if state in (h11.IDLE, h11.SEND_BODY) and not self._body_left:
                waiting = len(connection.trailing_data[0])
                if state is h11.IDLE and not waiting:
                    data = data.lstrip(b"\r\n")  # RFC 9112 section 2.2: empty lines before a request are ignored
                    if not data:
                        return
                room = self.config.h11_max_incomplete_size - waiting
                if room <= 0:
                    raise h11.RemoteProtocolError("the head is too long", error_status_hint=431)
            elif state is h11.SEND_BODY:
                room = self._body_left
            connection.receive_data(data[:room])
            data = data[room:]
            if state is h11.IDLE:
                _check_lines(connection.trailing_data[0])
            await self._handle_events()

    async def _handle_events(self) -> None:
        """Handle what h11 has parsed; chunks of a body that arrived together are passed on together."""
        pieces: list[bytes] = []
        began = perf_counter()
        while True:
            if self.connection.they_are_waiting_for_100_continue:
                await self._continue()
            event = self.connection.next_event()
            if isinstance(event, h11.Data):
                pieces.append(event.data)
                if perf_counter() - began > PARSING_SECONDS:
                    await self.pause()
                    began = perf_counter()
                continue
            if pieces and self.stream is not None:
                body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                self._body_left = max(0, self._body_left - len(body))
                pieces = []
                await self.stream.handle(Body(STREAM_ID, body))
            if isinstance(event, h11.Request):
                await self.send(Updated(idle=False))
                await self._check_protocol(event)
                await self._create_stream(event)
            elif event is h11.PAUSED:
                await self.can_read.clear()
                await self.can_read.wait()
            elif isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA or self.stream is None:
                return
            elif isinstance(event, h11.EndOfMessage):
                await self.stream.handle(EndBody(STREAM_ID))
            elif isinstance(event, Data):
                await self.stream.handle(event)  # octets of a WebSocket

    async def pause(self) -> None:
        """Let other tasks run in the middle of a long step."""
        await trio.lowlevel.checkpoint()
        await self.wait_for_turn()

    def release(self) -> None:
        """Drop the connection and the app when both are done, so that no cycle of references keeps a body in memory."""
        self.stream = None
        for name in ("app", "connection", "send", "task_group", "can_read", "wait_for_turn"):
            delattr(self, name)

    async def _continue(self) -> None:
        headers = self.config.response_headers("h11")
        await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=headers))

    async def refuse(self, status: int) -> None:
        """Answer with `status` and no body, unless an answer has begun; the caller closes the connection."""
        if self.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._send_error_response(status)

    async def stream_send(self, event: Event) -> None:
        """Send an event of the request's stream."""
        closes = self._ambiguous or self.context.terminated.is_set()
        if isinstance(event, Response) and event.status_code >= 200 and closes:
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
        headers = list(request.headers)  # listed once, because h11 makes each pair anew at every iteration
        framing = {name: value for name, value in headers if name in _FRAMING}
        self._ambiguous = len(framing) == len(_FRAMING)  # RFC 9112 section 6.1: the connection MUST be closed
        self._body_left = 0 if _FRAMING[1] in framing else int(framing.get(_FRAMING[0], b"0"))
        kind: type[HTTPStream] | type[WebSocketProtocol] = HTTPStream
        if _wants_websocket(request.method, headers):
            kind = WebSocketProtocol
            self.connection = H11WSConnection(cast("h11.Connection", self.connection))
        self.stream = stream = kind(
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
        if isinstance(stream, WebSocketProtocol):
            stream.pause = self.pause
        self.keep_alive_requests += 1
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers,
                http_version=request.http_version.decode(),
                method=request.method.decode(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )


def _check_lines(received: bytes) -> None:
    """Refuse a head of very many lines before it is parsed, because parsing it takes long."""
    if len(received) > HEADER_LINES:
        end = received.find(b"\r\n\r\n")
        if received.count(b"\n", 0, end if end >= 0 else len(received)) > HEADER_LINES:
            raise h11.RemoteProtocolError("too many header lines", error_status_hint=431)


class SmallFrames:
    """Limits control frames and small fragments: SMALL_FRAMES_BURST at once, SMALL_FRAMES_PER_SECOND on average."""

    def __init__(self) -> None:
        self._left: float = SMALL_FRAMES_BURST
        self._at = -math.inf

    def take(self, now: float) -> bool:
        """Count one frame at `now`, in seconds; return False if there were too many."""
        since = min(now - self._at, SMALL_FRAMES_BURST)
        self._left = min(self._left + since * SMALL_FRAMES_PER_SECOND, SMALL_FRAMES_BURST) - 1
        self._at = now
        return self._left >= 0


def _is_small_frame(event: WebsocketEvent) -> bool:
    """Tell whether a frame is counted: a control frame, or a small fragment. The app counts whole messages."""
    if isinstance(event, Message):
        return event.frame_finished and not event.message_finished and len(event.data) < SMALL_FRAGMENT_OCTETS
    return not isinstance(event, CloseConnection)


def _wants_websocket(method: bytes, fields: list[tuple[bytes, bytes]]) -> bool:
    """Tell whether a request is an opening handshake (RFC 6455 section 4.1)."""
    headers = dict(fields)
    tokens = [token.strip() for token in headers.get(b"connection", b"").lower().split(b",")]
    return method == b"GET" and headers.get(b"upgrade", b"").lower() == b"websocket" and b"upgrade" in tokens


class WebSocketProtocol(WSStream):
    """A WebSocket without compression.

    Compression would not shrink ciphertext, and would triple the memory of a stream.
    """

    config: ProtocolSettings

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._small_frames = SmallFrames()
        self.pause: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint  # in the middle of a long step

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

    @property
    def buffered(self) -> int:
        """Octets of a message whose end has not arrived."""
        return self.buffer.length

    async def refuse_message(self) -> None:
        """Close with 1013 (try again later), because there is no room for the message that is arriving."""
        await self._close(CloseConnection(CloseReason.TRY_AGAIN_LATER, "too many large messages are arriving"))

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
        began = perf_counter()
        for event in self.connection.events():
            if perf_counter() - began > PARSING_SECONDS:
                await self.pause()
                began = perf_counter()
            if _is_small_frame(event) and not self._small_frames.take(trio.current_time()):
                self.config.flooded += 1
                await self._close(CloseConnection(CloseReason.POLICY_VIOLATION, "too many small frames"))
                return
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
    """Tell whether the headers that Hypercorn decodes without a check in an opening handshake are ASCII."""
    return all(
        value.isascii() for name, value in request.headers if name.startswith((b"connection", b"sec-websocket-"))
    )
