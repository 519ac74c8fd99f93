"""HTTP/1.1 and WebSockets: octets on a connection that a listener has accepted, with real sockets."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import trio

from fuzz.target import Target
from mimids.http.server.buffers import Buffers
from mimids.http.server.connection import Receive, Scope, Send, ServerConnection
from mimids.http.server.listener_state import ConnectionLimits, ListenerState

_LIMITS: Final = ConnectionLimits(head_bytes=4096, message_bytes=8192)
_LOG: Final = logging.getLogger("fuzz")
_HOST: Final = b"host: a.example\r\n"
_GET: Final = b"GET / HTTP/1.1\r\n" + _HOST
_POST: Final = b"POST / HTTP/1.1\r\n" + _HOST
_UPGRADE: Final = (
    _GET + b"connection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_FRAMES: Final = (
    b"\x81\x81\0\0\0\0a",  # a text
    b"\x02\x81\0\0\0\0b",  # the first fragment of a binary message
    b"\x89\x80\0\0\0\0",  # a ping
    b"\x80\x80\0\0\0\0",  # the last fragment
    b"\x88\x82\0\0\0\0\3\xe8",  # the end
)


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Read a whole body and answer; send back what comes on a WebSocket."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message["bytes"], "text": message["text"]})
        return
    message = {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        if message["type"] != "http.request":
            return
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _serve(octets: bytes) -> None:
    """Send the octets in pieces as long as the first one says, then end; read until the other side has ended too."""
    shared = ListenerState("fuzz", None, _LIMITS, _LOG, Buffers())
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    size = octets[0] * 16 or len(octets)
    answered = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ServerConnection(_app, shared, ours).run)
        nursery.start_soon(_send, theirs, [octets[at : at + size] for at in range(1, len(octets), size)])
        while piece := await _receive(theirs):
            answered += piece
        nursery.cancel_scope.cancel()
    theirs.close()
    assert shared.tally.failed == 0
    assert not answered or answered.startswith(b"HTTP/1.1 ")


async def _send(theirs: trio.socket.SocketType, pieces: list[bytes]) -> None:
    stream = trio.SocketStream(theirs)
    with suppress(trio.BrokenResourceError):  # the other side has closed
        for piece in pieces:
            await stream.send_all(piece)
        await stream.send_eof()


async def _receive(theirs: trio.socket.SocketType) -> bytes:
    try:
        return await theirs.recv(65536)
    except OSError:
        return b""


def _run(octets: bytes) -> None:
    if octets:
        trio.run(_serve, octets)


def _seeds() -> Iterator[bytes]:
    requests = (
        _GET + b"\r\n",
        _POST + b"content-length: 4\r\n\r\nbody" + _GET + b"\r\n",
        _POST + b"transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\na: b\r\n\r\n",
        _POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\nab",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        _UPGRADE + b"".join(_FRAMES),
    )
    return (bytes([size]) + each for size in (0, 1, 12) for each in requests)


TARGETS: Final = (Target(name="connections", run=_run, seeds=_seeds, most=8192),)
