"""The listeners: Hypercorn's protocols inside our nursery, bounded in every direction.

`serve` runs one listener until `drain` is set. Each connection is a task; none outlives the call.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, cast

import attrs
import trio

from mimids.http.server.connection import (
    EXTENSION,
    ASGIApp,
    ConnectionInfo,
    ConnectionLimits,
    ListenerState,
    Message,
    Receive,
    Scope,
    Send,
    ServerConnection,
)
from mimids.http.server.tls import ServerTls

DRAIN_SECONDS: Final = 6
BACKLOG: Final = 1024
REFUSALS: Final = 16  # connections over the limit that are told so at one time; more are closed unheard
_LOG: Final = logging.getLogger(__name__)


@attrs.frozen
class Bind:
    """Where to listen: `HOST:PORT` (`[HOST]:PORT` for IPv6; port 0 takes a free one) or `unix:PATH`.

    Without `tls` only loopback and Unix sockets are taken. A Unix socket gets `unix_mode`, whatever the umask.
    """

    name: str
    address: str
    tls: ServerTls | None = None
    limits: ConnectionLimits = attrs.field(factory=ConnectionLimits)
    unix_mode: int = 0o600


@attrs.frozen
class Statistics:
    """A listener at one moment; all but the first two since it began."""

    open: int
    quiet: int  # of these, without a request
    accepted: int
    refused: int
    timed_out: int
    forced: int
    failed: int


@attrs.frozen
class OpenListener:
    """A listener that accepts connections: its address as in `Bind`, with the port that was taken."""

    name: str
    address: str
    statistics: Callable[[], Statistics]


def connection_info(scope: Scope) -> ConnectionInfo:
    """Return what is known of the connection that an ASGI scope came by."""
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
    """Serve `app` at `bind` until `drain` is set, and then what is still in flight for `drain_seconds`.

    Requests in flight are answered, WebSockets closed with 1001; what is left at the end is closed by force. When
    cancelled, everything is closed at once. Raises `OSError` or `ValueError` where it cannot listen; the app's
    faults are logged and answered with a bare 500.
    """
    shared = ListenerState(bind.name, bind.tls, bind.limits, log)
    listeners = await _listen(bind)
    try:
        async with trio.open_nursery() as connections:
            try:
                async with trio.open_nursery() as accepting:
                    handler = partial(_handle, app, shared)
                    accepting.start_soon(partial(trio.serve_listeners, handler, listeners, handler_nursery=connections))
                    task_status.started(OpenListener(bind.name, _address(listeners[0]), partial(_statistics, shared)))
                    await drain.wait()
                    accepting.cancel_scope.cancel()
                await shared.drain(drain_seconds)
            finally:
                connections.cancel_scope.cancel()
                for connection in tuple(shared.open):
                    connection.abort()  # a send is shielded, and ends only with its socket
    finally:
        _remove(bind)


async def _handle(app: ASGIApp, shared: ListenerState, stream: trio.SocketStream) -> None:
    open_, most = len(shared.open), shared.limits.connections
    if open_ >= most and shared.quiet:
        next(iter(shared.quiet)).evict()
    elif open_ >= most:
        shared.tally.refused += 1
        if open_ >= most + REFUSALS:
            return
        app = _no_room
    await ServerConnection(app, shared, stream.socket).run()


async def _no_room(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 503: every connection that a listener may have is at work."""
    kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
    headers = [(b"retry-after", b"2"), (b"content-length", b"0"), (b"connection", b"close")]
    start: Message = {"type": f"{kind}.start", "status": 503, "headers": headers}
    await send(start)
    await send({"type": f"{kind}.body", "body": b"", "more_body": False})


def _statistics(shared: ListenerState) -> Statistics:
    tally = shared.tally
    return Statistics(
        open=len(shared.open),
        quiet=len(shared.quiet),
        accepted=tally.accepted,
        refused=tally.refused,
        timed_out=tally.timed_out,
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
        raise ValueError(f"{bind.address}: not HOST:PORT, and not unix:PATH")
    try:
        listeners = await trio.open_tcp_listeners(int(port), host=host.strip("[]"), backlog=BACKLOG)
    except OSError as error:
        error.filename = bind.address  # so that it says which address is taken
        raise
    for listener in listeners:
        _keep_alive(listener.socket)
        if bind.tls is None and not ipaddress.ip_address(listener.socket.getsockname()[0]).is_loopback:
            for each in listeners:
                each.socket.close()
            raise ValueError(f"{bind.address}: without TLS only loopback and Unix sockets are served")
    return listeners


def _keep_alive(listening: trio.socket.SocketType) -> None:
    """Let the kernel find peers that vanished while an app makes them wait; accepted sockets inherit it."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _listen_at_path(path: Path, mode: int) -> trio.SocketListener:
    listening = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        umask = os.umask(0o777 & ~mode)  # the file must not be open to others for a moment
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
    """Remove the socket of a process that ended without doing so; raise `OSError` if somebody answers there."""
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
