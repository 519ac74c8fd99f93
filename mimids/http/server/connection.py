"""One accepted connection: handshake, requests, timeouts, and its end.

Plain requests to a `DirectApp` are answered by `direct_path.py` in the connection's task. All others go through
Hypercorn's protocol to a task of the app. Each request may take another path than the previous request.

Neither the octets of a peer nor an exception in the app can end more than this connection. When the peer disconnects,
the app gets `http.disconnect` and its task is cancelled.

The file is a little long because the direct path and Hypercorn's protocol share the state of the connection.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, Final

import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from mimids.http.server.direct_path import DirectPath
from mimids.http.server.exchange import Exchange
from mimids.http.server.holding import Holding
from mimids.http.server.listener_state import ConnectionInfo, ListenerState
from mimids.http.server.messages import DirectApp
from mimids.http.server.peer_watch import PeerWatch
from mimids.http.server.phases import Phase, seconds_allowed
from mimids.http.server.protocols import HttpProtocol, ProtocolSettings, WebSocketProtocol
from mimids.http.server.tls import PeerCertificate, ServerCredentials
from mimids.http.server.transport import (
    FIRST_BYTES,
    RECEIVE_BYTES,
    PeerGone,
    PlainTransport,
    TlsTransport,
    user_of_peer,
)
from mimids.http.server.turns import Turns
from mimids.owners import Owner

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

EXTENSION: Final = "mimids"  # scope["extensions"][EXTENSION] is the ConnectionInfo
LINGER_SECONDS: Final = 2  # how long the peer may take to read the last answer and close, before we close
LINGER_PIECES: Final = 64  # receives discarded while the peer may still read, such as the rest of a refused upload


class ServerConnection:
    """An accepted socket, served by `app` until either side ends it."""

    def __init__(
        self,
        app: ASGIApp,
        shared: ListenerState,
        connected: trio.socket.SocketType,
        owner: Owner = None,
        *,
        refusing: ASGIApp | None = None,
    ) -> None:
        """Take a place in the pool of connections, for `owner`; `run` frees the place at the end.

        If there is no room for `owner`, pass `refusing`: this app answers instead of `app`, unless the peer's
        certificate names a provider for which there is room.
        """
        self._app = app
        self._refusing = refusing
        self._shared = shared
        self.holding = Holding(owner, shared.pool, shared.buffers, shared.waits)
        self._socket = connected
        self._raw = PlainTransport(connected, send_seconds=shared.limits.send_seconds)
        self._transport: PlainTransport | TlsTransport = self._raw
        self._tasks: trio.Nursery
        self._protocol: HttpProtocol
        self._reading = trio.CancelScope()
        self._waiting = trio.CancelScope()  # cancelled to end the reader's wait for the peer
        self._direct: DirectPath | None = None
        self._watch: PeerWatch | None = None  # the task that receives in place of the reader
        self._phase = Phase.HANDSHAKE
        self._pinged = False
        self._exchange: Exchange | None = None
        self._ended = False  # if true, nothing more is sent
        self._credentials: ServerCredentials | None = None  # the credentials that the handshake used
        self._peer: PeerCertificate | None = None

    async def run(self) -> None:
        """Serve until the connection is closed. Raises nothing but cancellation."""
        shared = self._shared
        shared.open.add(self)
        shared.idle[self] = inf
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
            self._release()

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
        """Stop reading and sending; the app may still finish the work that it does after its answer."""
        if self._phase is Phase.HANDSHAKE:
            self._tasks.cancel_scope.cancel()
        else:
            self._ended = True
            self._reading.cancel()

    def _unregister(self) -> None:
        self._shared.idle.pop(self, None)
        self._shared.open.discard(self)
        self.holding.close()
        if not self._shared.open:
            self._shared.all_closed.set()

    def _release(self) -> None:
        """Break the cycles of references at the end, so that memory does not wait for the garbage collector."""
        if self._exchange is not None:
            self._exchange.release()
            self._exchange = None
        self._direct = None
        if hasattr(self, "_protocol"):
            self._protocol.release()
            del self._protocol
        if hasattr(self, "_tasks"):
            del self._tasks

    # --- the reader ---------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        info = await self._open()
        if info is None or self._shared.draining.is_set():
            return
        self._info = info
        if self._refusing is not None and not self.holding.identified:
            self._app = self._refusing
        try:
            client, server = self._socket.getpeername(), self._socket.getsockname()
        except OSError as error:
            raise PeerGone from error
        family = self._socket.family
        address = parse_socket_addr(family, client)
        if isinstance(self._app, DirectApp):
            self._direct = DirectPath(self._app.answer, self, self._shared, info, address[0] if address else "")
        self._protocol = HttpProtocol(
            self._app,
            self._shared.settings,
            self._shared.worker,
            self,
            ConnectionState({}),
            self._shared.tls is not None,
            address,
            parse_socket_addr(family, server),
            self._on_event,
        )
        self._protocol.holding = self.holding
        self._protocol.wait_for_turn = partial(_wait_for_turn, self._shared.turns, self.holding)
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
            user = user_of_peer(self._socket)
            return ConnectionInfo(shared.name, None, None, shared.draining, self.holding, user)
        credentials = shared.tls.current
        self._transport = tls = TlsTransport(
            self._raw, credentials.context, partial(_wait_for_turn, shared.turns, self.holding)
        )
        with trio.move_on_after(shared.limits.handshake_seconds) as time:
            await tls.handshake()
        if time.cancelled_caught:
            shared.tally.timed_out += 1
            return None
        peer = credentials.peer(tls.connection)
        self._credentials, self._peer = credentials, peer
        if peer is None:
            return ConnectionInfo(shared.name, None, None, shared.draining, self.holding)
        if peer.names:
            self.holding.identify(("provider", min(peer.names)))
        return ConnectionInfo(shared.name, peer.der, peer.names, shared.draining, self.holding)

    async def _read(self) -> None:
        seconds = self._shared.limits.head_seconds
        while True:
            if self._phase is Phase.BODY and self._exchange is not None:
                with trio.move_on_after(self._shared.limits.body_seconds):
                    await self._exchange.wait_for_reader()
            began = trio.current_time()
            if self._phase is Phase.IDLE and self._shared.idle.get(self, inf) < inf:  # `close_idle` counts the time
                data = await self.receive()
            else:
                with trio.CancelScope(deadline=began + seconds) as self._waiting:
                    data = await self.receive()
                if self._waiting.cancelled_caught:
                    await self._on_timeout()
                    seconds = self._shared.limits.ping_seconds
                    continue
            waited = self.holding.heard_at - began  # measured before pipelined requests are answered
            if not data:
                raise PeerGone
            if self._direct is not None and self._phase is Phase.IDLE:
                data = await self._direct.serve(data)
                if self._reading.cancel_called:
                    await trio.lowlevel.checkpoint()  # receiving from TLS may not be a checkpoint
                if not data:
                    seconds = self._shared.limits.idle_seconds
                    continue
            before = self._phase
            await self._protocol.handle(RawData(data))
            self._phase = self._next_phase()
            if self._phase is Phase.HEAD and self in self._shared.idle:
                self._shared.idle[self] = inf  # from now on the time limit for a head counts instead
            if isinstance(self._protocol.stream, WebSocketProtocol):
                await self._count_message(self._protocol.stream)
            if self._phase is before:
                seconds -= waited
            self._pinged = self._pinged and self._phase is not Phase.STREAM
            seconds = seconds_allowed(self._phase, before, seconds, len(data), self._shared.limits)

    async def _count_message(self, stream: WebSocketProtocol) -> None:
        """Count what has arrived of a large message; close the WebSocket if there is no room for it."""
        buffered = stream.buffered if stream.buffered > FIRST_BYTES else 0
        if buffered != self.holding.octets and not self.holding.hold(buffered):
            await stream.refuse_message()

    def _next_phase(self) -> Phase:
        protocol = self._protocol
        if isinstance(protocol.stream, WebSocketProtocol):
            return Phase.STREAM if protocol.stream.open else Phase.ANSWER
        if protocol.stream is None:
            return Phase.IDLE if protocol.idle else Phase.HEAD
        return Phase.BODY if protocol.receiving else Phase.ANSWER

    async def _on_timeout(self) -> None:
        """React to a peer that was silent for too long: send a ping and return, or end the reader."""
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
        if self._watch is not None:
            self._watch.stop()
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
        """Wait until the peer has closed: closing a socket with unread bytes would lose answers on their way."""
        with suppress(PeerGone):
            await self._transport.finish()
            for _ in range(LINGER_PIECES):
                if not await self._transport.discard():
                    return

    def _cancel_app(self) -> None:
        if self._exchange is not None:
            self._exchange.scope.cancel()

    # --- what the direct path calls -------------------------------------------------------------------------------

    def begin_request(self) -> bool:
        """See `Carrier`."""
        self._check_trust()
        self._phase = Phase.ANSWER
        self._shared.idle.pop(self, None)
        self._protocol.keep_alive_requests += 1
        return self._protocol.keep_alive_requests >= self._shared.settings.keep_alive_max_requests

    def end_request(self) -> None:
        """See `Carrier`."""
        self._phase = Phase.IDLE
        self._shared.note_idle(self)

    async def receive(self, most: int = RECEIVE_BYTES) -> bytes:
        """See `Carrier`."""
        if self._watch is None:
            data = await self._transport.receive(min(most, max(FIRST_BYTES, self.holding.octets), RECEIVE_BYTES))
        else:
            data = await self._watch.take()
            self._watch = None
        self.holding.heard_at = trio.current_time()
        return data

    async def send(self, data: bytes) -> None:
        """See `Carrier`."""
        if self._ended:
            await trio.lowlevel.checkpoint()  # an app that only sends must notice that it is cancelled
            return
        try:
            await self._transport.send(data)
        except PeerGone:
            self._ended = True
            self._reading.cancel()

    async def refuse(self, status: int) -> None:
        """See `Carrier`."""
        await self._protocol.refuse(status)

    def end_reading(self) -> None:
        """Receive no more; the connection is closed once the peer has read the answer. See also `Carrier`."""
        self._reading.cancel()

    def watch_peer(self) -> None:
        """See `Carrier`."""
        self._watch = PeerWatch(self._transport, self._tasks.cancel_scope, self.holding)
        self._tasks.start_soon(self._watch.run)

    # --- callbacks of Hypercorn's protocol ------------------------------------------------------------------------

    async def _on_event(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self.send(event.data)
        elif isinstance(event, Updated):
            self._on_request(begins=not event.idle)
        elif isinstance(event, Closed):
            self.end_reading()

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
            self._shared.note_idle(self)

    async def spawn_app(self, app: ASGIApp, config: ProtocolSettings, scope: Scope, send: Any) -> Callable[..., Any]:
        """Start the app on one request; return the function that passes messages to it."""
        self._check_trust()
        scope["extensions"][EXTENSION] = self._info
        self._exchange = exchange = Exchange(send)
        self._tasks.start_soon(self._run_app, scope, exchange)
        return exchange.put

    def _check_trust(self) -> None:
        """Raise PeerGone if the client's certificate is not trusted any more: it may have expired, or a file changed.

        To the client it looks as if the connection was closed before the request, so the client connects again.
        """
        peer, tls, credentials = self._peer, self._shared.tls, self._credentials
        if peer is None or tls is None or credentials is None:
            return
        if not tls.still_trusts(peer, credentials, time.time()):
            raise PeerGone

    async def _run_app(self, scope: Scope, exchange: Exchange) -> None:
        with exchange.scope:
            try:
                await self._shared.turns.wait(self.holding.owner)
                await self._app(scope, exchange.receive, exchange.send)
            except* Exception as errors:
                self._shared.log_fault("a handler failed", errors)
        self.holding.give_back()
        await exchange.forward(None)  # Hypercorn sends 500 if the app sent no answer, and goes on to the next request


async def _wait_for_turn(turns: Turns, holding: Holding) -> None:
    """Wait for a turn of the present owner. Not a method, because the connection must not refer to itself."""
    await turns.wait(holding.owner)
