"""A started listener and its clients, on real sockets with or without TLS, and apps for it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
import trio
import trustme
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    Event,
    Request,
)

from mimids.http.server.buffers import Buffers
from mimids.http.server.connection import (
    ASGIApp,
    Receive,
    Scope,
    Send,
)
from mimids.http.server.listener import Bind, OpenListener, serve
from mimids.http.server.listener_state import ConnectionLimits
from mimids.http.server.tls import Pair, ServerTls, Trust
from tests.support.direct import as_direct
from tests.support.patience import patience

GET = b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n"
HUGE = b"x" * 30_000_000  # more than the kernel buffers for one connection


async def read_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        body += cast("bytes", message["body"])
        if not message["more_body"]:
            return body


async def answer(send: Send, body: bytes = b"", status: int = 200) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await answer(send, await read_body(receive))
        return
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": message["bytes"], "text": message["text"]})


class Held:
    """An app that holds each request until the test sets `release`, and records how its handlers end."""

    def __init__(self, body: bytes = b"done", *, reads: bool = False) -> None:
        self.body = body
        self.reads = reads
        self.began = trio.Event()
        self.release = trio.Event()
        self.ended = trio.Event()
        self.cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.accept"})
            self.began.set()
            if self.reads:
                await read_body(receive)
            await self.release.wait()
            if scope["type"] == "websocket":
                await send({"type": "websocket.send", "bytes": self.body, "text": None})
                await receive()
            else:
                await answer(send, self.body)
                await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.cancelled = True
            raise
        finally:
            self.ended.set()


@attrs.frozen
class Authority:
    """A throw-away certificate authority with its files in `directory`."""

    ca: trustme.CA
    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Authority:
        directory.mkdir(exist_ok=True)
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(directory / "ca.pem"))
        return cls(ca, directory)

    @property
    def trust(self) -> Path:
        return self.directory / "ca.pem"

    def pair(self, *names: str) -> Pair:
        issued = self.ca.issue_cert(*names)
        pair = Pair(self.directory / f"{names[0]}.pem", self.directory / f"{names[0]}.key")
        pair.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        pair.private_key.write_bytes(issued.private_key_pem.bytes())
        return pair

    def client(self, *names: str, by: Authority | None = None) -> ssl.SSLContext:
        """Return a client context that trusts this authority; with names, it presents a certificate."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if names:
            (by or self).ca.issue_cert(*names).configure_cert(context)
        return context


async def eventually(holds: Callable[[], bool]) -> None:
    with patience():
        while not holds():  # noqa: ASYNC110  # no event exists for the other end of a socket
            await trio.sleep(0.005)


@attrs.define
class Started:
    bound: OpenListener
    drain: trio.Event
    authority: Authority | None = None

    async def connect(
        self, context: ssl.SSLContext | None = None, receive_buffer: int | None = None
    ) -> trio.abc.Stream:
        host, port = self.bound.address.rsplit(":", 1)
        connecting = trio.socket.socket()
        if receive_buffer:
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await connecting.connect((host, int(port)))
        except OSError:
            connecting.close()
            raise
        stream = trio.SocketStream(connecting)
        if self.authority is None:
            return stream
        context = context or self.authority.client()
        tls = trio.SSLStream(stream, context, server_hostname="a.example", https_compatible=True)
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError:
            connecting.close()
            raise
        return tls

    async def wait_for(self, **numbers: int) -> None:
        """Wait until the statistics have these values; the server notices events later than the client."""
        await eventually(
            lambda: all(getattr(self.bound.statistics(), name) == number for name, number in numbers.items())
        )

    async def answers(self) -> bool:
        """Tell whether a new connection is served."""
        stream = await self.connect()
        await stream.send_all(GET)
        status, _, _ = await read_answer(stream)
        await stream.aclose()
        return status == 200


Start = Callable[..., Awaitable[Started]]


def starter(nursery: trio.Nursery, authority: Authority | None, *, direct: bool = False) -> Start:
    """Return the function that starts a listener; its arguments beyond the app are limits and options of `serve`.

    With `direct`, plain requests take the direct path.
    """

    async def start(
        app: ASGIApp,
        *,
        drain_seconds: float = 1,
        tls: ServerTls | None = None,
        buffers: Buffers | None = None,
        **limits: Any,
    ) -> Started:
        if authority is not None:
            tls = tls or ServerTls(authority.pair("a.example"), clients=Trust(authority.trust))
        drain = trio.Event()
        app = as_direct(app, drain) if direct else app
        bind = Bind("public", "127.0.0.1:0", tls, ConnectionLimits(**limits), buffers=buffers or Buffers())
        bound = await nursery.start(partial(serve, app, bind, drain=drain, drain_seconds=drain_seconds))
        return Started(bound, drain, authority)

    return start


async def read_answer(stream: trio.abc.ReceiveStream) -> tuple[int, dict[str, str], bytes]:
    """Read one answer with a content-length; the status is 0 if the connection ended first."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = await receive_some(stream)
        if not received:
            return 0, {}, data
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    while len(body) < int(headers.get("content-length", "0")):
        received = await receive_some(stream)
        assert received, "the answer was cut short"
        body += received
    return int(lines[0].split()[1]), headers, body


async def receive_some(stream: trio.abc.ReceiveStream) -> bytes:
    """Receive bytes; a reset counts as the end."""
    try:
        with patience():
            return bytes(await stream.receive_some())
    except trio.BrokenResourceError:
        return b""


async def ends(stream: trio.abc.ReceiveStream) -> bool:
    """Read until the server closes the connection, and return True."""
    while await receive_some(stream):
        pass
    return True


def post(body: bytes, *, length: int | None = None) -> bytes:
    return b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (length or len(body), body)


class WebSocketClient:
    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self._events: list[Event] = []

    async def open(self, tail: bytes = b"", **options: Any) -> Event:
        await self.stream.send_all(self.protocol.send(Request(host="a.example", target="/", **options)) + tail)
        return await self.next()

    async def send(self, event: Event) -> None:
        await self.stream.send_all(self.protocol.send(event))

    async def next(self) -> Event:
        while not self._events:
            data = await receive_some(self.stream)
            assert data, "the connection ended"
            self.protocol.receive_data(data)
            self._events.extend(self.protocol.events())
        return self._events.pop(0)


@asynccontextmanager
async def websocket_to(server: Started, **options: Any) -> AsyncIterator[WebSocketClient]:
    async with await server.connect() as stream:
        client = WebSocketClient(stream)
        assert isinstance(await client.open(**options), AcceptConnection)
        yield client
