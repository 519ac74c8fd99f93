"""Listeners: accept connections within limits, and serve an ASGI application on them.

`serve` runs one listener until `drain` is set. Each connection is a task that ends with the call.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, cast

import attrs
import trio

from mimids.http.server.buffers import Buffers
from mimids.http.server.connection import (
    EXTENSION,
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    ServerConnection,
)
from mimids.http.server.listener_state import ConnectionInfo, ConnectionLimits, ListenerState
from mimids.http.server.messages import DirectApp, join_headers
from mimids.http.server.shares import owner_of_address
from mimids.http.server.tls import ServerTls
from mimids.owners import FairQueue, Owner

DRAIN_SECONDS: Final = 6
BACKLOG: Final = 1024
ACCEPTED_AT_ONCE: Final = 256  # in one round of the event loop: accepting takes about 20 microseconds
SERVED_AT_ONCE: Final = 16  # connections that a server begins to serve in one round
NO_CAPACITY: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
CAPACITY_SECONDS: Final = 0.1
REFUSALS: Final = 16  # connections over the limit that get a 503 at one time; others are closed without an answer
_LOG: Final = logging.getLogger(__name__)


@attrs.frozen
class Bind:
    """Where to listen: `HOST:PORT` (`[HOST]:PORT` for IPv6; port 0 takes a free one) or `unix:PATH`.

    Without `tls` the address must be loopback or a Unix socket. A Unix socket gets `unix_mode`, whatever the umask.
    """

    name: str
    address: str
    tls: ServerTls | None = None
    limits: ConnectionLimits = attrs.field(factory=ConnectionLimits)
    unix_mode: int = 0o600
    buffers: Buffers = attrs.field(factory=Buffers)  # a budget that listeners may share


@attrs.frozen
class ListenerStatistics:
    """The connections of a listener: `open`, `idle` and `waiting` count now, all other fields count since the start."""

    open: int
    idle: int  # open connections without a request
    waiting: int  # requests that wait for news
    accepted: int
    refused: int
    evicted: int
    timed_out: int
    flooded: int
    delayed: int  # requests and handshakes that waited, because their caller had many at once
    forced: int
    failed: int


@attrs.frozen
class OpenListener:
    """A listener that accepts connections. Its address is written as in `Bind`, and has the port that was chosen."""

    name: str
    address: str
    statistics: Callable[[], ListenerStatistics]


def connection_info(scope: Scope) -> ConnectionInfo:
    """Return the connection of an ASGI scope."""
    return cast("ConnectionInfo", scope["extensions"][EXTENSION])


async def serve(
    app: ASGIApp,
    bind: Bind,
    *,
    drain: trio.Event,
    drain_seconds: float = DRAIN_SECONDS,
    log: logging.Logger = _LOG,
    task_status: trio.TaskStatus[OpenListener] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` at `bind` until `drain` is set, then finish within `drain_seconds`.

    Draining answers the requests in flight, closes WebSockets with 1001, and at the end closes the remaining
    connections by force. Cancelling closes everything at once. Raises `OSError` or `ValueError` if it cannot listen at
    `bind`. Exceptions of the app are logged and answered with a 500 without a body.
    """
    shared = ListenerState(bind.name, bind.tls, bind.limits, log, bind.buffers)
    listeners = await _listen(bind)
    try:
        async with trio.open_nursery() as connections:
            connections.start_soon(shared.turns.run)
            try:
                async with trio.open_nursery() as accepting:
                    handler = partial(_handle, app, shared)
                    accepting.start_soon(shared.busy.watch)
                    accepting.start_soon(shared.close_idle)
                    for listener in listeners:
                        accepting.start_soon(_accept, listener, shared, handler, connections)
                    task_status.started(OpenListener(bind.name, _address(listeners[0]), partial(_statistics, shared)))
                    await drain.wait()
                    accepting.cancel_scope.cancel()
                _close(listeners)
                await shared.drain(drain_seconds)
            finally:
                connections.cancel_scope.cancel()
                for connection in tuple(shared.open):
                    connection.abort()  # a send is shielded from cancellation and ends only with its socket
    finally:
        _close(listeners)
        _remove(bind)


async def _accept(
    listener: trio.SocketListener,
    shared: ListenerState,
    handler: Callable[[trio.SocketStream, Owner], Awaitable[None]],
    connections: trio.Nursery,
) -> None:
    """Accept connections forever; `handler` serves each in a task of `connections`.

    The kernel queues connections in the order in which they came. So somebody who opens a thousand at once would make
    the next client wait until the server had begun to serve all of them. Accepting costs little, so many are accepted
    in one round of the event loop. In each round a few of them are served, one of each address in turn.
    """
    listening = socket.socket(fileno=listener.socket.fileno())  # its `accept` does not wait
    accepted: FairQueue[socket.socket] = FairQueue()
    try:
        while True:
            if accepted:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(listening)
            try:
                _accept_nowait(listening, shared, accepted)
            except OSError as error:
                if error.errno in NO_CAPACITY and not accepted:
                    shared.log.error("a connection cannot be accepted: %s", error.strerror)
                    await trio.sleep(CAPACITY_SECONDS)  # connections that end meanwhile make room
            for _ in range(min(SERVED_AT_ONCE, len(accepted))):
                owner = accepted.owners()[0]
                connected = trio.socket.from_stdlib_socket(accepted.pop())
                connections.start_soon(handler, trio.SocketStream(connected), owner)  # sets the socket's options
    finally:
        listening.detach()  # `listener` closes it
        while accepted:
            accepted.pop().close()


def _accept_nowait(listening: socket.socket, shared: ListenerState, accepted: FairQueue[socket.socket]) -> None:
    """Accept connections until none has come, which raises `BlockingIOError`, or enough wait to be served.

    If more wait than one address may have, the one that came first is closed.
    """
    for _ in range(min(ACCEPTED_AT_ONCE, BACKLOG - len(accepted))):
        connected, address = listening.accept()
        owner = None if shared.tls is None else owner_of_address(address[0])
        if owner is not None and accepted.count(owner) >= shared.most_of_an_address:
            shared.tally.evicted += 1
            accepted.pop_of(owner).close()
        accepted.add(owner, connected)


async def _handle(app: ASGIApp, shared: ListenerState, stream: trio.SocketStream, owner: Owner) -> None:
    """Serve a connection; its owner is its address, or None without TLS: then all peers come through one proxy."""
    with stream.socket:
        refusing = None if shared.make_room(owner) else partial(_refuse, app)
        if refusing is None or shared.may_refuse(owner, REFUSALS):
            await ServerConnection(app, shared, stream.socket, owner, refusing=refusing).run()


async def _refuse(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 503: the listener has as many busy connections as it may have."""
    kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
    headers = [(b"retry-after", b"2"), (b"content-length", b"0"), (b"connection", b"close")]
    if isinstance(app, DirectApp):
        headers += app.headers(join_headers(scope["headers"]))
    start: Message = {"type": f"{kind}.start", "status": 503, "headers": headers}
    await send(start)
    await send({"type": f"{kind}.body", "body": b"", "more_body": False})


def _statistics(shared: ListenerState) -> ListenerStatistics:
    tally = shared.tally
    return ListenerStatistics(
        open=len(shared.open),
        idle=len(shared.idle),
        waiting=shared.waits.waiting,
        accepted=tally.accepted,
        refused=tally.refused,
        evicted=tally.evicted,
        timed_out=tally.timed_out,
        flooded=shared.settings.flooded,
        delayed=shared.turns.delayed,
        forced=tally.forced,
        failed=tally.failed,
    )


# --- addresses --------------------------------------------------------------------------------------------------


async def _listen(bind: Bind) -> list[trio.SocketListener]:
    kind, _, path = bind.address.partition(":")
    if kind == "unix":
        return [_listen_at_path(Path(path), bind.unix_mode)]
    host, _, port = bind.address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{bind.address}: write HOST:PORT or unix:PATH")
    try:
        listeners = await trio.open_tcp_listeners(int(port), host=host.strip("[]"), backlog=BACKLOG)
    except OSError as error:
        error.filename = bind.address  # so that the message names the address
        raise
    for listener in listeners:
        _keep_alive(listener.socket)
        if bind.tls is None and not ipaddress.ip_address(listener.socket.getsockname()[0]).is_loopback:
            for each in listeners:
                each.socket.close()
            raise ValueError(f"{bind.address}: without TLS, only loopback addresses and Unix sockets are allowed")
    return listeners


def _close(listeners: Sequence[trio.SocketListener]) -> None:
    for listener in listeners:
        listener.socket.close()


def _keep_alive(listening: trio.socket.SocketType) -> None:
    """Make the kernel detect peers that vanish while the app makes them wait; accepted sockets inherit the options."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _listen_at_path(path: Path, mode: int) -> trio.SocketListener:
    listening = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        umask = os.umask(0o777 & ~mode)  # so that the file is not open to others even for a moment
        try:
            listening.bind(os.fspath(path))
        finally:
            os.umask(umask)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening))


def _remove_stale(path: Path) -> None:
    """Remove the socket file of a process that crashed; raise `FileExistsError` if a process listens there."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        else:
            raise FileExistsError(f"unix:{path}: another process listens there")


def _remove(bind: Bind) -> None:
    if bind.address.startswith("unix:"):
        Path(bind.address.removeprefix("unix:")).unlink(missing_ok=True)


def _address(listener: trio.SocketListener) -> str:
    name = listener.socket.getsockname()
    if listener.socket.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if listener.socket.family == socket.AF_INET6 else f"{host}:{port}"
