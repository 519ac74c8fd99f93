"""One connection, from its first byte to its last.

Whatever a peer does, and whatever fails in an app for its sake, ends this connection and nothing else. A peer that
is gone takes its handler with it: the app is told (`http.disconnect`) and cancelled.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from enum import Enum, auto
from math import inf
from typing import Any, Final, cast

import attrs
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from mimids.http.server.protocols import HttpProtocol, ProtocolSettings, WebSocketProtocol
from mimids.http.server.tls import ServerTls
from mimids.http.server.transport import PeerGone, Plain, Tls
from mimids.wire.ids import ProviderId

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

EXTENSION: Final = "mimids"  # scope["extensions"][EXTENSION] is the ConnectionInfo
LINGER_SECONDS: Final = 2  # to let the last answer arrive before the socket is closed
LINGER_PIECES: Final = 64  # receives, of what a refused upload still had on its way
INBOX_MESSAGES: Final = 2  # a body and its end; a WebSocket's peer waits in TCP


@attrs.frozen
class ConnectionLimits:
    """What a listener bears. All seconds but the last are of waiting for the peer, none for an app's answer."""

    connections: int = 1000
    head_bytes: int = 16 * 1024
    message_bytes: int = 1024 * 1024  # of a WebSocket message
    handshake_seconds: float = 10  # TLS
    head_seconds: float = 10  # for the whole head of a request
    body_seconds: float = 20  # without a byte of the body ...
    body_bytes_per_second: float = 4096  # ... or slower than this for long
    idle_seconds: float = 60  # between requests
    ping_seconds: float = 30  # of silence on a WebSocket: a ping; as much again: the end
    send_seconds: float = 20  # for 32 KiB to leave
    tail_seconds: float = 5  # for what an app does after its answer, or after its WebSocket was closed in order


@attrs.frozen
class ConnectionInfo:
    """What a handler may know of the connection: `scope["extensions"]["mimids"]`."""

    listener: str
    certificate: bytes | None  # DER of the client's certificate, verified
    names: frozenset[ProviderId] | None  # the providers it was vouched for; None without a certificate
    draining: trio.Event  # set at shutdown: a long wait answers now


@attrs.define
class Tally:
    """What happened on a listener so far."""

    accepted: int = 0
    refused: int = 0  # over Limits.connections
    timed_out: int = 0  # handshake, head, body or pong did not come
    forced: int = 0  # closed under a peer that did not read, or at the end of the drain
    failed: int = 0  # a fault of ours, in the log with its traceback


class Phase(Enum):
    """What a connection is waiting for."""

    HANDSHAKE = auto()
    IDLE = auto()  # the next request
    HEAD = auto()  # the rest of a head
    BODY = auto()
    ANSWER = auto()  # the app's
    STREAM = auto()  # whatever either side of a WebSocket says


class ListenerState:
    """What the connections of one listener have in common."""

    def __init__(self, name: str, tls: ServerTls | None, limits: ConnectionLimits, log: logging.Logger) -> None:
        self.name = name
        self.tls = tls
        self.limits = limits
        self.log = log
        self.settings = ProtocolSettings(head_bytes=limits.head_bytes, message_bytes=limits.message_bytes)
        self.worker = WorkerContext(None)  # `terminated` tells Hypercorn's protocols that we drain
        self.draining = trio.Event()
        self.all_gone = trio.Event()
        self.tally = Tally()
        self.open: set[ServerConnection] = set()
        self.quiet: dict[ServerConnection, None] = {}  # those without a request, longest first

    async def drain(self, seconds: float) -> None:
        """Take no further request, and wait until all connections have ended, for `seconds` at most."""
        self.draining.set()
        await self.worker.terminated.set()
        for connection in tuple(self.open):
            connection.drain()
        if self.open:
            self.all_gone = trio.Event()
            with trio.move_on_after(seconds):
                await self.all_gone.wait()

    def fault(self, what: str, errors: BaseExceptionGroup[Exception]) -> None:
        """Log a fault of ours, with its traceback."""
        self.tally.failed += 1
        error = errors.exceptions[0] if len(errors.exceptions) == 1 else errors
        self.log.error("%s on the %s listener", what, self.name, exc_info=error)


class ServerConnection:
    """An accepted socket, served by `app` until either side ends it."""

    def __init__(self, app: ASGIApp, shared: ListenerState, connected: trio.socket.SocketType) -> None:
        self._app = app
        self._shared = shared
        self._socket = connected
        self._plain = Plain(connected, send_seconds=shared.limits.send_seconds)
        self._transport: Plain | Tls = self._plain
        self._tasks: trio.Nursery
        self._reading = trio.CancelScope()
        self._waiting = trio.CancelScope()  # of the reader, for the peer
        self._phase = Phase.HANDSHAKE
        self._pinged = False
        self._exchange: Exchange | None = None
        self._ended = False  # nothing more is sent

    async def run(self) -> None:
        """Serve until the connection is closed; raises nothing but cancellation."""
        shared = self._shared
        shared.open.add(self)
        shared.quiet[self] = None
        shared.tally.accepted += 1
        try:
            async with trio.open_nursery() as self._tasks:
                await self._serve()
        except* PeerGone:
            pass
        except* Exception as errors:
            shared.fault("a connection failed", errors)
        finally:
            self._leave()
            self._plain.close()
            shared.tally.forced += self._plain.aborted

    def evict(self) -> None:
        """End a connection that has no request, for another that needs the place."""
        self._leave()
        self._drop()

    def abort(self) -> None:
        """End it now, whoever is sending."""
        self._plain.abort()
        self._tasks.cancel_scope.cancel()

    def drain(self) -> None:
        """Take no further request: an idle connection ends, others do after their answer, a WebSocket by 1001."""
        if self._phase in (Phase.HANDSHAKE, Phase.IDLE):
            self._drop()
        elif self._phase is Phase.STREAM and isinstance(self._protocol.stream, WebSocketProtocol):
            self._tasks.start_soon(self._protocol.stream.leave)

    def _drop(self) -> None:
        """End it without a word; what an app still does after its answer goes on."""
        if self._phase is Phase.HANDSHAKE:
            self._tasks.cancel_scope.cancel()
        else:
            self._ended = True
            self._reading.cancel()

    def _leave(self) -> None:
        self._shared.quiet.pop(self, None)
        self._shared.open.discard(self)
        if not self._shared.open:
            self._shared.all_gone.set()

    # --- the reader ---------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        info = await self._open()
        if info is None or self._shared.draining.is_set():
            return
        self._info = info
        try:
            client, server = self._socket.getpeername(), self._socket.getsockname()
        except OSError as error:
            raise PeerGone from error
        family = self._socket.family
        self._protocol = HttpProtocol(
            self._app,
            self._shared.settings,
            self._shared.worker,
            self,
            ConnectionState({}),
            self._shared.tls is not None,
            parse_socket_addr(family, client),
            parse_socket_addr(family, server),
            self._on_event,
        )
        self._phase = Phase.IDLE
        with self._reading:
            try:
                await self._read()
            except PeerGone:
                self._ended = True
        await self._part()

    async def _open(self) -> ConnectionInfo | None:
        """Do the handshake; None if it took too long."""
        shared = self._shared
        if shared.tls is None:
            return ConnectionInfo(shared.name, None, None, shared.draining)
        credentials = shared.tls.current
        self._transport = tls = Tls(self._plain, credentials.context)
        with trio.move_on_after(shared.limits.handshake_seconds) as time:
            await tls.handshake()
        if time.cancelled_caught:
            shared.tally.timed_out += 1
            return None
        peer = credentials.peer(tls.connection)
        if peer is None:
            return ConnectionInfo(shared.name, None, None, shared.draining)
        return ConnectionInfo(shared.name, peer.der, peer.names, shared.draining)

    async def _read(self) -> None:
        patience = self._shared.limits.head_seconds
        while True:
            began = trio.current_time()
            with trio.CancelScope(deadline=began + patience) as self._waiting:
                data = await self._transport.receive()
            if self._waiting.cancelled_caught:
                await self._lose_patience()
                patience = self._shared.limits.ping_seconds
                continue
            if not data:
                raise PeerGone
            before = self._phase
            await self._protocol.handle(RawData(data))
            self._phase = self._what_now()
            if self._phase is before:
                patience -= trio.current_time() - began
            patience = self._patience(before, patience, len(data))

    def _what_now(self) -> Phase:
        protocol = self._protocol
        if isinstance(protocol.stream, WebSocketProtocol):
            return Phase.STREAM if protocol.stream.open else Phase.ANSWER
        if protocol.stream is None:
            return Phase.IDLE if protocol.idle else Phase.HEAD
        return Phase.BODY if protocol.receiving else Phase.ANSWER

    def _patience(self, before: Phase, left: float, received: int) -> float:
        """Return for how many seconds the peer may be silent now."""
        limits = self._shared.limits
        if self._phase is Phase.IDLE:
            return limits.idle_seconds
        if self._phase is Phase.HEAD:  # the time is for all of it: a trickle gains nothing
            return left if before is Phase.HEAD else limits.head_seconds
        if self._phase is Phase.BODY:
            return min(left + received / limits.body_bytes_per_second, limits.body_seconds)
        if self._phase is Phase.STREAM:
            self._pinged = False
            return limits.ping_seconds
        return inf

    async def _lose_patience(self) -> None:
        """Return if the peer gets another chance, else end the reader."""
        stream = self._protocol.stream
        if isinstance(stream, WebSocketProtocol) and not self._pinged:
            self._pinged = True
            await stream.ping()
            return
        if self._phase is not Phase.IDLE:
            self._shared.tally.timed_out += 1
        if isinstance(stream, WebSocketProtocol):
            raise PeerGone
        if self._phase in (Phase.HEAD, Phase.BODY):
            self._dismiss()
            await self._protocol.handle(Closed())
            await self._protocol.refuse(408)
        self._reading.cancel()
        await trio.lowlevel.checkpoint()

    async def _part(self) -> None:
        """Tell the app that it is over, let a last answer arrive, close."""
        stream = self._protocol.stream
        if stream is not None and (self._ended or isinstance(stream, HTTPStream)):
            self._dismiss()
        await self._protocol.handle(Closed())
        if not self._ended:
            self._ended = True
            with trio.move_on_after(LINGER_SECONDS):
                await self._linger()
        self._plain.close()
        self._tasks.cancel_scope.deadline = trio.current_time() + self._shared.limits.tail_seconds

    async def _linger(self) -> None:
        """Wait until the peer has closed too: closing over bytes not read would reset what it has not read yet."""
        with suppress(PeerGone):
            await self._transport.finish()
            for _ in range(LINGER_PIECES):
                if not await self._transport.discard():
                    return

    def _dismiss(self) -> None:
        if self._exchange is not None:
            self._exchange.scope.cancel()

    # --- what Hypercorn's protocol asks for -----------------------------------------------------------------------

    async def _on_event(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._send(event.data)
        elif isinstance(event, Updated):
            self._on_request(begins=not event.idle)
        elif isinstance(event, Closed):
            self._reading.cancel()

    async def _send(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            await self._transport.send(data)
        except PeerGone:
            self._ended = True
            self._reading.cancel()

    def _on_request(self, *, begins: bool) -> None:
        """Note that a request begins, that one is answered, or that a WebSocket is accepted."""
        limits = self._shared.limits
        if isinstance(self._protocol.stream, WebSocketProtocol):
            self._phase = Phase.STREAM
            self._waiting.deadline = trio.current_time() + limits.ping_seconds
        elif begins:
            self._phase = Phase.BODY
            self._shared.quiet.pop(self, None)
        else:
            self._phase = Phase.IDLE
            self._shared.quiet[self] = None
            self._waiting.deadline = trio.current_time() + limits.idle_seconds

    async def spawn_app(self, app: ASGIApp, config: ProtocolSettings, scope: Scope, send: Any) -> Callable[..., Any]:
        """Start the app on one request; return where its messages go."""
        scope["extensions"][EXTENSION] = self._info
        self._exchange = exchange = Exchange(send)
        self._tasks.start_soon(self._run_app, scope, exchange)
        return exchange.put

    async def _run_app(self, scope: Scope, exchange: Exchange) -> None:
        with exchange.scope:
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except* Exception as errors:
                self._shared.fault("a handler failed", errors)
        await exchange.forward(None)  # Hypercorn answers 500 if nothing was, and goes on to the next request


class Exchange:
    """A request or WebSocket as the app sees it: messages in, messages out, until it is over."""

    def __init__(self, forward: Callable[[Message | None], Awaitable[None]]) -> None:
        self.forward = forward
        self.scope = trio.CancelScope()
        self._inbox: deque[Message] = deque()  # at most INBOX_MESSAGES
        self._news = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._farewell: Message | None = None

    async def put(self, message: Message) -> None:
        """Hand `message` to the app, when it has room; a disconnect never waits."""
        if message["type"] in ("http.disconnect", "websocket.disconnect"):
            self._farewell = self._farewell or message
        else:
            while len(self._inbox) >= INBOX_MESSAGES:
                await self._room.park()
            self._inbox.append(message)
        self._news.unpark()

    async def receive(self) -> Message:
        """ASGI's receive; after the end it says so again, however often it is called."""
        while not self._inbox and self._farewell is None:
            await self._news.park()
        if self._inbox:
            self._room.unpark()
            return self._inbox.popleft()
        return cast("Message", self._farewell)

    async def send(self, message: Message) -> None:
        """ASGI's send; what comes after the end is dropped."""
        if self._farewell is None:
            await self.forward(message)
