"""One accepted connection: handshake, requests, timeouts, and its end.

What a peer sends, and an exception in the app while it handles a request, ends at most this connection. When the peer
disconnects, the app gets `http.disconnect` and its task is cancelled.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from enum import Enum, auto
from math import inf
from typing import Any, Final

import attrs
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from mimids.http.server.exchange import Exchange
from mimids.http.server.protocols import HttpProtocol, ProtocolSettings, WebSocketProtocol
from mimids.http.server.tls import ServerTls
from mimids.http.server.transport import PeerGone, PlainTransport, TlsTransport
from mimids.wire.ids import ProviderId

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

EXTENSION: Final = "mimids"  # scope["extensions"][EXTENSION] is the ConnectionInfo
LINGER_SECONDS: Final = 2  # for the peer to read the last answer and close, before the socket is closed
LINGER_PIECES: Final = 64  # receives discarded meanwhile: the rest of a refused upload


@attrs.frozen
class ConnectionLimits:
    """Limits of a listener's connections. All times but the last are for the peer; the app's answer has no limit."""

    connections: int = 1000
    head_bytes: int = 16 * 1024
    message_bytes: int = 1024 * 1024  # of a WebSocket message
    handshake_seconds: float = 10  # TLS
    head_seconds: float = 10  # for the whole head of a request, however slowly it arrives
    body_seconds: float = 20  # without any byte of the body ...
    body_bytes_per_second: float = 4096  # ... or while bytes arrive so much slower than this that these seconds run out
    idle_seconds: float = 60  # between requests
    ping_seconds: float = 30  # of silence on a WebSocket until a ping, and from the ping until it is closed
    send_seconds: float = 20  # for the peer to take 32 KiB
    tail_seconds: float = 5  # for the app to return after its answer, or after its WebSocket was closed cleanly


@attrs.frozen
class ConnectionInfo:
    """The connection of a request, in `scope["extensions"]["mimids"]`."""

    listener: str
    certificate: bytes | None  # the client's verified certificate, DER
    names: frozenset[ProviderId] | None  # the providers it is valid for; None without a certificate
    draining: trio.Event  # set at shutdown: a handler that waits should answer now


@attrs.define
class Tally:
    """Counts of a listener since it started."""

    accepted: int = 0
    refused: int = 0  # over ConnectionLimits.connections
    timed_out: int = 0  # handshake, head, body or pong did not come
    forced: int = 0  # closed by force: the peer did not read, or the drain was over
    failed: int = 0  # ended by an exception of this server, logged with its traceback


class Phase(Enum):
    """What a connection is waiting for."""

    HANDSHAKE = auto()
    IDLE = auto()  # for the next request
    HEAD = auto()  # for the rest of a head
    BODY = auto()  # for the rest of a body
    ANSWER = auto()  # for the app's answer
    STREAM = auto()  # for messages of either side of a WebSocket


class ListenerState:
    """What the connections of one listener share: settings, counts, and the set of open connections."""

    def __init__(self, name: str, tls: ServerTls | None, limits: ConnectionLimits, log: logging.Logger) -> None:
        self.name = name
        self.tls = tls
        self.limits = limits
        self.log = log
        self.settings = ProtocolSettings(head_bytes=limits.head_bytes, message_bytes=limits.message_bytes)
        self.worker = WorkerContext(None)  # Hypercorn's protocols close connections once `terminated` is set
        self.draining = trio.Event()
        self.all_closed = trio.Event()
        self.tally = Tally()
        self.open: set[ServerConnection] = set()
        self.idle: dict[ServerConnection, None] = {}  # connections without a request, the longest idle first

    async def drain(self, seconds: float) -> None:
        """Accept no further requests, and wait until all connections have closed, for at most `seconds`."""
        self.draining.set()
        await self.worker.terminated.set()
        for connection in tuple(self.open):
            connection.drain()
        if self.open:
            self.all_closed = trio.Event()
            with trio.move_on_after(seconds):
                await self.all_closed.wait()

    def log_fault(self, what: str, errors: BaseExceptionGroup[Exception]) -> None:
        """Count and log an exception of this server, with its traceback."""
        self.tally.failed += 1
        error = errors.exceptions[0] if len(errors.exceptions) == 1 else errors
        self.log.error("%s on the %s listener", what, self.name, exc_info=error)


class ServerConnection:
    """An accepted socket, served by `app` until either side ends it."""

    def __init__(self, app: ASGIApp, shared: ListenerState, connected: trio.socket.SocketType) -> None:
        self._app = app
        self._shared = shared
        self._socket = connected
        self._raw = PlainTransport(connected, send_seconds=shared.limits.send_seconds)
        self._transport: PlainTransport | TlsTransport = self._raw
        self._tasks: trio.Nursery
        self._reading = trio.CancelScope()
        self._waiting = trio.CancelScope()  # the reader's wait for the peer
        self._phase = Phase.HANDSHAKE
        self._pinged = False
        self._exchange: Exchange | None = None
        self._ended = False  # then nothing more is sent

    async def run(self) -> None:
        """Serve until the connection is closed. Raises nothing but cancellation."""
        shared = self._shared
        shared.open.add(self)
        shared.idle[self] = None
        shared.tally.accepted += 1
        try:
            async with trio.open_nursery() as self._tasks:
                await self._serve()
        except* PeerGone:
            pass
        except* Exception as errors:
            shared.log_fault("a connection failed", errors)
        finally:
            self._unregister()
            self._raw.close()
            shared.tally.forced += self._raw.aborted

    def evict(self) -> None:
        """Close a connection without a request, to make room for another one."""
        self._unregister()
        self._drop()

    def abort(self) -> None:
        """Close at once, even if a task is sending."""
        self._raw.abort()
        self._tasks.cancel_scope.cancel()

    def drain(self) -> None:
        """Accept no further requests: close now if idle, else after the answer; close a WebSocket with 1001."""
        if self._phase in (Phase.HANDSHAKE, Phase.IDLE):
            self._drop()
        elif self._phase is Phase.STREAM and isinstance(self._protocol.stream, WebSocketProtocol):
            self._tasks.start_soon(self._protocol.stream.go_away)

    def _drop(self) -> None:
        """Stop reading and sending; the app may still finish what it does after its answer."""
        if self._phase is Phase.HANDSHAKE:
            self._tasks.cancel_scope.cancel()
        else:
            self._ended = True
            self._reading.cancel()

    def _unregister(self) -> None:
        self._shared.idle.pop(self, None)
        self._shared.open.discard(self)
        if not self._shared.open:
            self._shared.all_closed.set()

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
        await self._finish()

    async def _open(self) -> ConnectionInfo | None:
        """Do the TLS handshake and return the connection's properties; None if it took too long."""
        shared = self._shared
        if shared.tls is None:
            return ConnectionInfo(shared.name, None, None, shared.draining)
        credentials = shared.tls.current
        self._transport = tls = TlsTransport(self._raw, credentials.context)
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
        seconds = self._shared.limits.head_seconds
        while True:
            began = trio.current_time()
            with trio.CancelScope(deadline=began + seconds) as self._waiting:
                data = await self._transport.receive()
            if self._waiting.cancelled_caught:
                await self._on_timeout()
                seconds = self._shared.limits.ping_seconds
                continue
            if not data:
                raise PeerGone
            before = self._phase
            await self._protocol.handle(RawData(data))
            self._phase = self._next_phase()
            if self._phase is before:
                seconds -= trio.current_time() - began
            seconds = self._seconds_allowed(before, seconds, len(data))

    def _next_phase(self) -> Phase:
        protocol = self._protocol
        if isinstance(protocol.stream, WebSocketProtocol):
            return Phase.STREAM if protocol.stream.open else Phase.ANSWER
        if protocol.stream is None:
            return Phase.IDLE if protocol.idle else Phase.HEAD
        return Phase.BODY if protocol.receiving else Phase.ANSWER

    def _seconds_allowed(self, before: Phase, left: float, received: int) -> float:
        """Return how long the peer may be silent now; `left` is what remains of the time allowed before."""
        limits = self._shared.limits
        if self._phase is Phase.IDLE:
            return limits.idle_seconds
        if self._phase is Phase.HEAD:  # one deadline for the whole head, so sending it byte by byte gains no time
            return left if before is Phase.HEAD else limits.head_seconds
        if self._phase is Phase.BODY:
            return min(left + received / limits.body_bytes_per_second, limits.body_seconds)
        if self._phase is Phase.STREAM:
            self._pinged = False
            return limits.ping_seconds
        return inf

    async def _on_timeout(self) -> None:
        """React to a peer that was silent for too long: return after a ping, else end the reader."""
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
            self._cancel_app()
            await self._protocol.handle(Closed())
            await self._protocol.refuse(408)
        self._reading.cancel()
        await trio.lowlevel.checkpoint()

    async def _finish(self) -> None:
        """Notify the app of the end, let the peer read the last answer, close."""
        stream = self._protocol.stream
        if stream is not None and (self._ended or isinstance(stream, HTTPStream)):
            self._cancel_app()
        await self._protocol.handle(Closed())
        if not self._ended:
            self._ended = True
            with trio.move_on_after(LINGER_SECONDS):
                await self._linger()
        self._raw.close()
        self._tasks.cancel_scope.deadline = trio.current_time() + self._shared.limits.tail_seconds

    async def _linger(self) -> None:
        """Wait until the peer has closed: closing a socket with unread bytes would reset answers still on their way."""
        with suppress(PeerGone):
            await self._transport.finish()
            for _ in range(LINGER_PIECES):
                if not await self._transport.discard():
                    return

    def _cancel_app(self) -> None:
        if self._exchange is not None:
            self._exchange.scope.cancel()

    # --- callbacks of Hypercorn's protocol ------------------------------------------------------------------------

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
        """Update the phase: a request begins or is answered, or a WebSocket is accepted."""
        limits = self._shared.limits
        if isinstance(self._protocol.stream, WebSocketProtocol):
            self._phase = Phase.STREAM
            self._waiting.deadline = trio.current_time() + limits.ping_seconds
        elif begins:
            self._phase = Phase.BODY
            self._shared.idle.pop(self, None)
        else:
            self._phase = Phase.IDLE
            self._shared.idle[self] = None
            self._waiting.deadline = trio.current_time() + limits.idle_seconds

    async def spawn_app(self, app: ASGIApp, config: ProtocolSettings, scope: Scope, send: Any) -> Callable[..., Any]:
        """Start the app on one request; return the function that passes messages to it."""
        scope["extensions"][EXTENSION] = self._info
        self._exchange = exchange = Exchange(send)
        self._tasks.start_soon(self._run_app, scope, exchange)
        return exchange.put

    async def _run_app(self, scope: Scope, exchange: Exchange) -> None:
        with exchange.scope:
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except* Exception as errors:
                self._shared.log_fault("a handler failed", errors)
        await exchange.forward(None)  # without an answer Hypercorn sends 500; then it goes on to the next request
