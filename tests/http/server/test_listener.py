"""Real sockets, real TLS. Each test of a containment fails when the containment is taken out."""

from __future__ import annotations

import json
import logging
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
import trustme
from quart import request, websocket
from quart_trio import QuartTrio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate

from mimids.http.server.connection import (
    ASGIApp,
    ConnectionLimits,
    ListenerState,
    Receive,
    Scope,
    Send,
    ServerConnection,
)
from mimids.http.server.listener import Bind, OpenListener, connection_info, serve
from mimids.http.server.protocols import HttpProtocol
from mimids.http.server.tls import Pair, ServerTls, Trust
from mimids.wire.ids import ProviderId

GET = b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n"
HUGE = b"x" * 30_000_000  # more than the kernel buffers for one connection


# --- apps ---------------------------------------------------------------------------------------------------------


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
    """An app that keeps each request until the test says otherwise, and notes how its handlers end."""

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


# --- both ends ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Authority:
    """A throw-away CA, and the files that the server reads."""

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
        """A context that trusts this authority and shows a certificate, if names are given."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if names:
            (by or self).ca.issue_cert(*names).configure_cert(context)
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "ca")


async def eventually(holds: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not holds():  # noqa: ASYNC110  (nobody tells the other end of a socket)
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
        await tls.do_handshake()
        return tls

    async def wait_for(self, **numbers: int) -> None:
        """Wait until the statistics say so: the server learns of things after the client did."""
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


@pytest.fixture(params=["plain", "tls"])
def start(request: pytest.FixtureRequest, nursery: trio.Nursery, authority: Authority) -> Start:
    return starter(nursery, authority if request.param == "tls" else None)


@pytest.fixture
def start_plain(nursery: trio.Nursery) -> Start:
    return starter(nursery, None)


@pytest.fixture
def start_tls(nursery: trio.Nursery, authority: Authority) -> Start:
    return starter(nursery, authority)


def starter(nursery: trio.Nursery, authority: Authority | None) -> Start:
    async def start(app: ASGIApp, *, drain_seconds: float = 1, tls: ServerTls | None = None, **limits: Any) -> Started:
        if authority is not None:
            tls = tls or ServerTls(authority.pair("a.example"), clients=Trust(authority.trust))
        drain = trio.Event()
        bind = Bind("public", "127.0.0.1:0", tls, ConnectionLimits(**limits))
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
    """Receive, with a reset read as the end."""
    try:
        with trio.fail_after(5):
            return bytes(await stream.receive_some())
    except trio.BrokenResourceError:
        return b""


async def ends(stream: trio.abc.ReceiveStream) -> bool:
    """Tell that the server closes the connection, reading away what still comes."""
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


# --- serving ------------------------------------------------------------------------------------------------------


async def test_requests_are_answered_one_after_the_other_on_a_connection(start: Start) -> None:
    server = await start(echo)
    async with await server.connect() as stream:
        for body in (b"one", b"", b"x" * 300_000):
            async with trio.open_nursery() as both:
                both.start_soon(stream.send_all, post(body))
                status, headers, got = await read_answer(stream)
            assert (status, got) == (200, body)
            assert "date" in headers
            assert "server" not in headers
    await server.wait_for(open=0, accepted=1)


async def test_pipelined_requests_are_answered_in_order(start: Start) -> None:
    server = await start(echo)
    async with await server.connect() as stream:
        await stream.send_all(b"".join(post(str(n).encode()) for n in range(20)) + post(b"last")[:-4] + b"last")
        data = b""
        while not data.endswith(b"\r\n\r\nlast"):
            data += await receive_some(stream)
    bodies = [part.partition(b"HTTP/1.1")[0] for part in data.split(b"\r\n\r\n")[1:]]
    assert bodies == [str(n).encode() for n in range(20)] + [b"last"]


async def test_head_and_body_of_an_answer_leave_in_one_send() -> None:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # one packet for each send
    shared = ListenerState("client", None, ConnectionLimits(), logging.getLogger())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ServerConnection(echo, shared, ours).run)
        for _ in range(2):
            await theirs.send(post(b"hello"))
            packet = await theirs.recv(65536)
            assert packet.startswith(b"HTTP/1.1 200")
            assert packet.endswith(b"\r\n\r\nhello")
        theirs.close()


async def test_a_head_request_is_answered_without_body(start: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"seven..")

    server = await start(app)
    async with await server.connect() as stream:
        await stream.send_all(GET.replace(b"GET", b"HEAD"))
        data = await receive_some(stream)
        assert b"content-length: 7" in data
        assert data.endswith(b"\r\n\r\n")
        await stream.send_all(GET)
        assert (await read_answer(stream))[2] == b"seven.."


async def test_websockets_carry_messages_and_close_in_order(start: Start) -> None:
    server = await start(echo)
    async with websocket_to(server) as client:
        await client.send(BytesMessage(b"\0" * 100_000))
        received = 0
        while received < 100_000:
            received += len(cast("BytesMessage", await client.next()).data)
        await client.send(TextMessage("text"))
        assert cast("TextMessage", await client.next()).data == "text"
        await client.send(Ping(b"there?"))
        assert type(await client.next()).__name__ == "Pong"
        await client.send(CloseConnection(1000))
        assert cast("CloseConnection", await client.next()).code == 1000
        assert await ends(client.stream)
    await server.wait_for(open=0)


async def test_compression_is_not_negotiated(start_plain: Start) -> None:
    server = await start_plain(echo)
    async with await server.connect() as stream:
        accepted = await WebSocketClient(stream).open(extensions=[PerMessageDeflate()])
        assert isinstance(accepted, AcceptConnection)
        assert accepted.extensions == []


async def test_a_quart_app_is_served_over_tls_and_knows_the_connection(start_tls: Start) -> None:
    app = QuartTrio("test")

    @app.post("/")
    async def root() -> dict[str, Any]:
        info = connection_info(cast("Scope", request.scope))
        return {"names": sorted(info.names or ()), "body": await request.get_data(as_text=True)}

    @app.websocket("/")
    async def stream() -> None:
        while True:
            await websocket.send(await websocket.receive())

    server = await start_tls(app)
    assert server.authority is not None
    async with await server.connect(server.authority.client("b.example")) as connection:
        await connection.send_all(post(b"hello"))
        status, _, body = await read_answer(connection)
        assert (status, json.loads(body)) == (200, {"names": ["b.example"], "body": "hello"})
    async with websocket_to(server) as client:
        await client.send(BytesMessage(b"hello"))
        assert cast("BytesMessage", await client.next()).data == b"hello"


async def test_a_unix_socket_is_ours_alone_and_is_gone_afterwards(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # left behind by a process that was killed
    drain = trio.Event()
    starting = partial(serve, echo, Bind("operator", f"unix:{path}"), drain=drain)
    bound = await nursery.start(starting)
    assert bound.address == f"unix:{path}"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        await serve(echo, Bind("operator", f"unix:{path}"), drain=trio.Event())
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(post(b"hello"))
        assert (await read_answer(stream))[2] == b"hello"
    drain.set()
    await eventually(lambda: not path.exists())


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
async def test_plain_http_is_for_loopback_only(address: str) -> None:
    with pytest.raises(ValueError, match="loopback"):
        await serve(echo, Bind("client", address), drain=trio.Event())


@pytest.mark.parametrize("address", ["", "8443", "127.0.0.1", "127.0.0.1:https"])
async def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        await serve(echo, Bind("client", address), drain=trio.Event())


# --- who is at the other end --------------------------------------------------------------------------------------


async def names(scope: Scope, receive: Receive, send: Send) -> None:
    found = connection_info(scope).names
    await answer(send, json.dumps(None if found is None else sorted(found)).encode())


async def names_seen(server: Started, context: ssl.SSLContext) -> Any:
    async with await server.connect(context) as stream:
        await stream.send_all(GET)
        return json.loads((await read_answer(stream))[2])


async def test_each_request_knows_its_own_certificate(start_tls: Start, authority: Authority) -> None:
    server = await start_tls(names)
    shown: list[tuple[str, ...]] = [(), ("b.example",), ("c.example", "d.example"), ("*.e.example", "F.example")]
    expected = [None, ["b.example"], ["c.example", "d.example"], ["f.example"]]
    contexts = [authority.client(*each) for each in shown]
    seen: dict[int, Any] = {}

    async def ask(n: int) -> None:
        seen[n] = await names_seen(server, contexts[n % 4])

    async with trio.open_nursery() as asking:
        for n in range(20):
            asking.start_soon(ask, n)
    assert [seen[n] for n in range(20)] == expected * 5


async def test_a_certificate_of_strangers_ends_its_connection_only(
    start_tls: Start, authority: Authority, tmp_path: Path
) -> None:
    server = await start_tls(names)
    strangers = Authority.make(tmp_path / "strangers")
    with pytest.raises((trio.BrokenResourceError, json.JSONDecodeError)):
        await names_seen(server, authority.client("b.example", by=strangers))
    assert await names_seen(server, authority.client()) is None


async def test_a_providers_own_trust_vouches_for_it_alone(
    start_tls: Start, authority: Authority, tmp_path: Path
) -> None:
    own = Authority.make(tmp_path / "own")
    trust = Trust(authority.trust, {ProviderId("b.example"): own.trust})
    server = await start_tls(names, tls=ServerTls(authority.pair("a.example"), clients=trust))
    assert await names_seen(server, authority.client("b.example", "c.example", by=own)) == ["b.example"]
    assert await names_seen(server, authority.client("b.example", "c.example")) == ["c.example"]


async def test_a_renewed_certificate_is_shown_to_new_connections(start_tls: Start, authority: Authority) -> None:
    tls = ServerTls(authority.pair("a.example"))
    server = await start_tls(echo, tls=tls)
    async with await server.connect() as before:
        old = cast("trio.SSLStream[trio.SocketStream]", before).getpeercert(binary_form=True)
        authority.pair("a.example")  # over the same files
        tls.reload()
        async with await server.connect() as after:
            new = cast("trio.SSLStream[trio.SocketStream]", after).getpeercert(binary_form=True)
        assert new != old
        await before.send_all(post(b"still here"))
        assert (await read_answer(before))[2] == b"still here"


# --- what a peer can do -------------------------------------------------------------------------------------------


async def test_http2_is_refused(start_plain: Start) -> None:
    server = await start_plain(echo)
    async with await server.connect() as stream:
        await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        assert (await read_answer(stream))[0] == 505
        assert await ends(stream)
    async with await server.connect() as stream:  # an upgrade may be declined (RFC 9110 section 7.8)
        upgrade = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n"
        await stream.send_all(GET[:-2] + upgrade)
        assert (await read_answer(stream))[0] == 200
    await server.wait_for(open=0, failed=0)


async def test_alpn_offers_http1_only(start_tls: Start, authority: Authority) -> None:
    server = await start_tls(echo)
    context = authority.client()
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with await server.connect(context) as stream:
        assert cast("trio.SSLStream[trio.SocketStream]", stream).selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize(
    ("garbage", "status"),
    [
        (b"\x16\x03\x01\x00\x05hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 40_000, 431),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nno number\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400),
    ],
)
async def test_what_is_not_http_ends_its_connection_only(start: Start, garbage: bytes, status: int) -> None:
    server = await start(echo)
    async with await server.connect() as stream:
        await stream.send_all(garbage)
        assert (await read_answer(stream))[0] == status
        assert await ends(stream)
    await server.wait_for(open=0, failed=0)
    assert await server.answers()


async def test_garbage_instead_of_tls_ends_its_connection_only(start_tls: Start) -> None:
    server = await start_tls(echo)
    for garbage in (GET, b"\0" * 100, b"\x16\x03\x01\x02\x00\x01"):
        host, port = server.bound.address.rsplit(":", 1)
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(garbage)
            await stream.send_eof()
            assert await ends(stream)
    await server.wait_for(open=0, failed=0)
    assert await server.answers()


async def test_a_handshake_that_never_ends_is_given_up(start_tls: Start) -> None:
    server = await start_tls(echo, handshake_seconds=0.1)
    host, port = server.bound.address.rsplit(":", 1)
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(b"\x16\x03\x01\x02\x00\x01")
        assert await ends(stream)
    await server.wait_for(open=0, timed_out=1)


async def test_a_peer_that_never_sends_a_request_is_dropped(start: Start) -> None:
    server = await start(echo, head_seconds=0.1)
    async with await server.connect() as stream:
        assert await ends(stream)
    await server.wait_for(open=0)


async def test_a_trickled_head_gets_one_time_for_all_of_it(start: Start) -> None:
    server = await start(echo, head_seconds=0.3)
    async with await server.connect() as stream:
        with trio.fail_after(5):
            async with trio.open_nursery() as both:

                async def trickle() -> None:
                    for octet in GET[:-1] * 1000:
                        await stream.send_all(bytes([octet]))
                        await trio.sleep(0.05)

                both.start_soon(trickle)
                assert (await read_answer(stream))[0] == 408
                both.cancel_scope.cancel()
    await server.wait_for(open=0, timed_out=1)


async def test_an_idle_connection_is_closed(start: Start) -> None:
    server = await start(echo, idle_seconds=0.1)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        assert (await read_answer(stream))[0] == 200
        assert await ends(stream)
    await server.wait_for(open=0, timed_out=0)


@pytest.mark.parametrize("trickled", [False, True])
async def test_a_body_that_does_not_come_is_given_up_and_its_handler_cancelled(start: Start, trickled: bool) -> None:
    app = Held(reads=True)
    server = await start(app, body_seconds=0.3)
    async with await server.connect() as stream, trio.open_nursery() as both:
        await stream.send_all(post(b"x", length=10_000))

        async def trickle() -> None:
            while True:
                await stream.send_all(b"x")
                await trio.sleep(0.05)

        if trickled:
            both.start_soon(trickle)
        assert (await read_answer(stream))[0] == 408
        both.cancel_scope.cancel()
    with trio.fail_after(5):
        await app.ended.wait()
    assert app.cancelled
    await server.wait_for(open=0, timed_out=1, failed=0)


async def test_a_slow_body_that_keeps_its_rate_is_taken(start_plain: Start) -> None:
    server = await start_plain(echo, body_seconds=0.2, body_bytes_per_second=1000)
    async with await server.connect() as stream:
        await stream.send_all(post(b"", length=600))
        for _ in range(6):
            await trio.sleep(0.08)
            await stream.send_all(b"x" * 100)
        assert (await read_answer(stream))[2] == b"x" * 600


async def test_the_app_may_take_longer_than_any_peer(start: Start) -> None:
    app = Held()
    server = await start(app, head_seconds=0.05, body_seconds=0.05, idle_seconds=0.05)
    async with await server.connect() as stream:
        await stream.send_all(post(b"x"))
        await trio.sleep(0.3)
        app.release.set()
        assert (await read_answer(stream))[2] == b"done"


@pytest.mark.parametrize("kind", ["answer", "websocket"])
async def test_a_peer_that_stops_reading_is_closed_by_force(start: Start, kind: str) -> None:
    app = Held(HUGE)
    app.release.set()
    server = await start(app, send_seconds=0.3)
    async with await server.connect(receive_buffer=4096) as stream:
        if kind == "websocket":
            await WebSocketClient(stream).open()
        else:
            await stream.send_all(GET)
        await server.wait_for(open=0, forced=1, failed=0)
    with trio.fail_after(5):
        await app.ended.wait()


async def test_a_peer_that_reads_slowly_gets_it_all(start: Start) -> None:
    body = b"x" * 12_000_000
    app = Held(body)
    app.release.set()
    server = await start(app, send_seconds=0.3)
    async with await server.connect(receive_buffer=65536) as stream:
        await stream.send_all(GET)
        received = pause_at = 0
        while received < len(body):
            received += len(await receive_some(stream))
            if received > pause_at:
                pause_at += 250_000
                await trio.sleep(0.02)  # a second in all
    await server.wait_for(open=0, forced=0)


@pytest.mark.parametrize("when", ["at once", "in the head", "in the body", "while it waits", "in a websocket"])
async def test_an_abrupt_close_ends_its_connection_only(start: Start, when: str) -> None:
    app = Held()
    server = await start(app)
    stream = await server.connect()
    if when == "in the head":
        await stream.send_all(GET[:10])
    elif when == "in the body":
        await stream.send_all(post(b"x", length=100))
        await app.began.wait()
    elif when == "while it waits":
        await stream.send_all(GET)
        await app.began.wait()
    elif when == "in a websocket":
        await WebSocketClient(stream).open()
    below = cast("trio.SocketStream", getattr(stream, "transport_stream", stream))
    below.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(below)
    app.release.set()
    await server.wait_for(open=0, failed=0)
    assert await server.answers()


async def test_a_client_that_hangs_up_cancels_its_handler(start: Start) -> None:
    app = Held()
    server = await start(app)
    stream = await server.connect()
    await stream.send_all(GET)
    await app.began.wait()
    await trio.aclose_forcefully(stream)
    with trio.fail_after(5):
        await app.ended.wait()
    assert app.cancelled
    await server.wait_for(open=0, failed=0)


async def test_a_client_that_hangs_up_cancels_a_quart_handler(start: Start) -> None:
    app = QuartTrio("test")
    began, ended = trio.Event(), trio.Event()

    @app.get("/")
    async def root() -> str:
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    server = await start(app)
    stream = await server.connect()
    await stream.send_all(GET)
    await began.wait()
    await trio.aclose_forcefully(stream)
    with trio.fail_after(5):
        await ended.wait()
    await server.wait_for(open=0, failed=0)


async def test_what_a_handler_does_after_its_answer_is_not_cancelled_by_the_client_leaving(start: Start) -> None:
    answered, finished = trio.Event(), trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)
        await answered.wait()
        await trio.sleep(0.05)
        finished.set()

    server = await start(app)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        await read_answer(stream)
    answered.set()
    with trio.fail_after(5):
        await finished.wait()


@pytest.mark.parametrize("pause", [False, True])
async def test_a_refusal_reaches_a_client_that_goes_on_uploading(start: Start, pause: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if pause:
            await trio.sleep(0.1)  # by now all queues are full
        await answer(send, b"no", status=413)

    server = await start(app)
    async with await server.connect() as stream:
        await stream.send_all(post(b"x" * 1_500_000))  # all of it, and only then does the client look
        assert (await read_answer(stream))[::2] == (413, b"no")
    await server.wait_for(open=0, failed=0)


@pytest.mark.parametrize("kind", ["body", "websocket"])
async def test_an_app_that_does_not_read_makes_its_peer_wait(start: Start, kind: str) -> None:
    app = Held()
    server = await start(app)
    async with await server.connect() as stream:
        if kind == "websocket":
            client = WebSocketClient(stream)
            await client.open()
            message = client.protocol.send(BytesMessage(b"x" * 100_000))
        else:
            message = b"x" * 100_000
            await stream.send_all(post(b"", length=len(HUGE)))
        with trio.move_on_after(1) as time:
            for _ in range(len(HUGE) // len(message)):
                await stream.send_all(message)
        assert time.cancelled_caught
        await trio.aclose_forcefully(stream)
    app.release.set()
    await server.wait_for(open=0)


async def test_when_all_places_are_taken_a_quiet_connection_makes_room(start: Start) -> None:
    server = await start(echo, connections=3)
    quiet = [await server.connect() for _ in range(3)]
    async with await server.connect() as stream:
        await stream.send_all(GET)
        assert (await read_answer(stream))[0] == 200
    assert await ends(quiet[0])  # the one that was quiet longest
    await server.wait_for(refused=0, open=2)
    for stream in quiet:
        await trio.aclose_forcefully(stream)


async def test_when_all_places_are_at_work_a_new_request_is_told_so(start: Start) -> None:
    app = Held()
    server = await start(app, connections=2)
    busy = [await server.connect() for _ in range(2)]
    for stream in busy:
        await stream.send_all(GET)
    await server.wait_for(open=2, idle=0)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        status, headers, _ = await read_answer(stream)
        assert (status, headers["retry-after"]) == (503, "2")
        assert await ends(stream)
    async with await server.connect() as stream:
        rejected = await WebSocketClient(stream).open()
        assert isinstance(rejected, RejectConnection)
        assert rejected.status_code == 503
    app.release.set()
    for stream in busy:
        assert (await read_answer(stream))[0] == 200
        await stream.aclose()
    await server.wait_for(open=0, refused=2)


# --- what a peer can do to a WebSocket ------------------------------------------------------------------------------


async def test_a_byte_behind_the_opening_handshake_ends_its_connection_only(start: Start) -> None:
    app = Held()
    server = await start(app, tail_seconds=0.1)
    async with await server.connect() as stream:
        await WebSocketClient(stream).open(tail=b"\x81")
        assert await ends(stream)
    with trio.fail_after(5):
        await app.ended.wait()
    await server.wait_for(open=0, failed=0)
    app.release.set()
    assert await server.answers()


async def test_bytes_behind_the_closing_handshake_do_no_harm(start: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    server = await start(app)
    async with websocket_to(server) as client:
        assert isinstance(await client.next(), CloseConnection)
        close = client.protocol.send(CloseConnection(1000))
        await client.stream.send_all(close + close + b"\x81\x01")
        assert await ends(client.stream)
    await server.wait_for(open=0, failed=0)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b"\xff\xff"], 1002),  # reserved bits
        ([b"\x82\xfe\x27\x10" + bytes(4) + bytes(10_000)], 1009),
        ([b"\x02\x80" + bytes(4)] + [b"\x00\xfe\x10\x00" + bytes(4) + bytes(4096)] * 3, 1009),  # in fragments
        ([b"\x81\x81" + bytes(4) + b"\xff"], 1007),  # not UTF-8
    ],
)
async def test_a_frame_that_may_not_be_ends_its_connection_only(start: Start, frames: list[bytes], code: int) -> None:
    server = await start(echo, message_bytes=8192)
    async with websocket_to(server) as client:
        for frame in frames:
            await client.stream.send_all(frame)
        assert cast("CloseConnection", await client.next()).code == code
        assert await ends(client.stream)
    await server.wait_for(open=0, failed=0)


async def test_an_opening_handshake_that_is_none_gets_400(start: Start) -> None:
    server = await start(echo)
    opening = GET[:-2] + b"connection: upgrade\r\nupgrade: websocket\r\n"
    for rest in (
        b"\r\n",
        b"sec-websocket-version: 13\r\nsec-websocket-key: a\r\nsec-websocket-protocol: \xff\r\n\r\n",
        b"sec-websocket-version: 8\r\nsec-websocket-key: a\r\n\r\n",
    ):
        async with await server.connect() as stream:
            await stream.send_all(opening + rest)
            assert (await read_answer(stream))[0] == 400
            assert await ends(stream)
    await server.wait_for(open=0, failed=0)


async def test_a_silent_peer_is_pinged_and_then_dropped(start: Start) -> None:
    app = Held()
    server = await start(app, ping_seconds=0.2)
    async with websocket_to(server) as client:
        assert isinstance(await client.next(), Ping)  # not answered
        assert await ends(client.stream)
    with trio.fail_after(5):
        await app.ended.wait()
    await server.wait_for(open=0, timed_out=1)


async def test_a_peer_that_answers_pings_stays(start: Start) -> None:
    server = await start(echo, ping_seconds=0.1)
    async with websocket_to(server) as client:
        for _ in range(5):
            ping = await client.next()
            assert isinstance(ping, Ping)
            await client.send(ping.response())
        await client.send(TextMessage("still here"))
        assert cast("TextMessage", await client.next()).data == "still here"


# --- what an app can do -------------------------------------------------------------------------------------------


async def raise_before(scope: Scope, receive: Receive, send: Send) -> None:
    raise ZeroDivisionError("secret")


async def raise_in_a_nursery(scope: Scope, receive: Receive, send: Send) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await raise_before(scope, receive, send)


async def raise_after_the_head(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    raise ZeroDivisionError("secret")


async def answer_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    pass


@pytest.mark.parametrize("app", [raise_before, raise_in_a_nursery, raise_after_the_head])
async def test_a_fault_is_a_bare_500_and_is_logged(
    start: Start, app: ASGIApp, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start(app)
    async with await server.connect() as other:
        async with await server.connect() as stream:
            await stream.send_all(GET)
            status, _, body = await read_answer(stream)
            assert (status, body) == (500, b"")
            assert await ends(stream)
        await server.wait_for(open=1, failed=1)
        await other.send_all(GET)
        assert (await read_answer(other))[0] == 500
    assert "ZeroDivisionError: secret" in caplog.text


async def test_an_app_that_answers_nothing_is_a_500(start: Start) -> None:
    server = await start(answer_nothing)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        assert (await read_answer(stream))[0] == 500


async def test_a_fault_within_the_body_cuts_it_short(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        raise ZeroDivisionError

    server = await start(app)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        with pytest.raises(AssertionError, match="cut short"):
            await read_answer(stream)
    await server.wait_for(open=0, failed=1)


async def test_a_body_longer_than_its_length_is_our_fault(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"abc"})

    server = await start(app)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        await ends(stream)
    await server.wait_for(open=0)
    assert server.bound.statistics().failed > 0
    assert "Too much data" in caplog.text


async def test_a_fault_beneath_the_app_ends_its_connection_only(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any) -> None:
        raise ZeroDivisionError

    server = await start(echo)
    async with await server.connect() as other:
        with monkeypatch.context() as patch:  # none is known that a peer or an app could cause
            patch.setattr(HttpProtocol, "_create_stream", fail)
            async with await server.connect() as stream:
                await stream.send_all(GET)
                assert await ends(stream)
            await server.wait_for(open=1, failed=1)
        await other.send_all(GET)
        assert (await read_answer(other))[0] == 200
    assert "ZeroDivisionError" in caplog.text


async def test_a_fault_in_a_websocket_closes_it_with_1011(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        raise ZeroDivisionError("secret")

    server = await start(app)
    async with websocket_to(server) as client:
        close = await client.next()
        assert isinstance(close, CloseConnection)
        assert (close.code, close.reason or "") == (1011, "")
        assert await ends(client.stream)
    await server.wait_for(open=0, failed=1)
    assert "ZeroDivisionError: secret" in caplog.text


# --- the end ------------------------------------------------------------------------------------------------------


async def test_a_drain_answers_what_is_in_flight_and_closes_what_is_idle(start: Start) -> None:
    app = Held()
    server = await start(app, drain_seconds=5)
    idle, busy = await server.connect(), await server.connect()
    await busy.send_all(GET)
    await app.began.wait()
    await server.wait_for(open=2)
    server.drain.set()
    assert await ends(idle)
    with pytest.raises(OSError, match="refused"):
        await server.connect()
    app.release.set()
    status, headers, body = await read_answer(busy)
    assert (status, headers["connection"], body) == (200, "close", b"done")
    assert await ends(busy)
    for stream in (idle, busy):
        await stream.aclose()
    await server.wait_for(open=0, forced=0)


async def test_a_long_wait_can_see_the_drain(start: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await connection_info(scope).draining.wait()
        await answer(send, b"nothing new")

    server = await start(app)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        await server.wait_for(idle=0, open=1)
        server.drain.set()
        assert (await read_answer(stream))[2] == b"nothing new"


async def test_a_drain_tells_websockets_that_the_server_goes_away(start: Start) -> None:
    server = await start(echo, drain_seconds=5)
    async with websocket_to(server) as client:
        server.drain.set()
        close = await client.next()
        assert isinstance(close, CloseConnection)
        assert close.code == 1001
        await client.send(close.response())
        assert await ends(client.stream)
    await server.wait_for(open=0, forced=0, failed=0)


async def test_stalled_readers_on_each_listener_are_closed_at_the_end_of_the_drain(authority: Authority) -> None:
    drain = trio.Event()
    tls = ServerTls(authority.pair("a.example"), clients=Trust(authority.trust))
    binds = [Bind("public", "127.0.0.1:0", tls), Bind("client", "127.0.0.1:0", tls), Bind("operator", "127.0.0.1:0")]
    app = Held(HUGE)
    app.release.set()
    stalled = []
    with trio.fail_after(8):
        async with trio.open_nursery() as nursery:
            for bind in binds:
                bound = await nursery.start(partial(serve, app, bind, drain=drain, drain_seconds=0.5))
                server = Started(bound, drain, authority if bind.tls else None)
                stalled.append(await server.connect(receive_buffer=4096))
                await stalled[-1].send_all(GET)
                await server.wait_for(idle=0, open=1)
                stalled.append(await server.connect(receive_buffer=4096))
                await WebSocketClient(stalled[-1]).open()
            await trio.sleep(0.1)
            drain.set()
    for stream in stalled:
        await trio.aclose_forcefully(stream)


async def test_cancellation_does_not_wait_for_a_stalled_reader(authority: Authority) -> None:
    tls = ServerTls(authority.pair("a.example"))
    app = Held(HUGE)
    app.release.set()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(partial(serve, app, Bind("public", "127.0.0.1:0", tls), drain=trio.Event()))
            stream = await Started(bound, trio.Event(), authority).connect(receive_buffer=4096)
            await stream.send_all(GET)
            await app.began.wait()
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)


async def test_nothing_is_left_open(start: Start) -> None:
    before = len(os.listdir("/proc/self/fd"))
    app = Held()
    app.release.set()
    server = await start(app)
    for _ in range(20):
        assert await server.answers()
    await server.wait_for(open=0)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the listener
