"""HTTP/1.1 and WebSocket on real sockets. Each test of an override of Hypercorn fails without the override."""

from __future__ import annotations

import logging
import socket
from typing import cast

import pytest
import trio
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate

from mimids.http.server.buffers import Buffers
from mimids.http.server.connection import (
    Receive,
    Scope,
    Send,
    ServerConnection,
)
from mimids.http.server.listener_state import ConnectionLimits, ListenerState
from tests.support.listening import (
    GET,
    Authority,
    Held,
    Start,
    WebSocketClient,
    answer,
    echo,
    ends,
    post,
    read_answer,
    receive_some,
    websocket_to,
)
from tests.support.patience import patience


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


async def test_head_and_body_of_an_answer_are_sent_in_one_write() -> None:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # one packet for each send
    shared = ListenerState("client", None, ConnectionLimits(), logging.getLogger(), Buffers())
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


async def test_websockets_carry_messages_and_close_cleanly(start: Start) -> None:
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


# --- malformed requests -------------------------------------------------------------------------------------------


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
async def test_bytes_that_are_not_http_end_their_connection_only(start: Start, garbage: bytes, status: int) -> None:
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


# --- malformed WebSockets -----------------------------------------------------------------------------------------


async def test_a_byte_after_the_opening_handshake_ends_its_connection_only(start: Start) -> None:
    app = Held()
    server = await start(app, tail_seconds=0.1)
    async with await server.connect() as stream:
        await WebSocketClient(stream).open(tail=b"\x81")
        assert await ends(stream)
    with patience():
        await app.ended.wait()
    await server.wait_for(open=0, failed=0)
    app.release.set()
    assert await server.answers()


async def test_bytes_after_the_closing_handshake_are_harmless(start: Start) -> None:
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
async def test_an_invalid_frame_ends_its_connection_only(start: Start, frames: list[bytes], code: int) -> None:
    server = await start(echo, message_bytes=8192)
    async with websocket_to(server) as client:
        for frame in frames:
            await client.stream.send_all(frame)
        assert cast("CloseConnection", await client.next()).code == code
        assert await ends(client.stream)
    await server.wait_for(open=0, failed=0)


async def test_a_malformed_opening_handshake_gets_400(start: Start) -> None:
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
