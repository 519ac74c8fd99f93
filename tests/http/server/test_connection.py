"""Connections on real sockets: timeouts, peers that disconnect or do not read, and apps that fail.

The file is long because it has a test for each way in which a peer or an app can fail.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, cast

import pytest
import trio
from quart_trio import QuartTrio
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Ping,
    TextMessage,
)

from mimids.http.server.connection import (
    ASGIApp,
    Receive,
    Scope,
    Send,
)
from mimids.http.server.protocols import HttpProtocol
from tests.support.listening import (
    GET,
    HUGE,
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

# --- slow peers and disconnects -----------------------------------------------------------------------------------


async def test_a_handshake_that_never_ends_times_out(start_tls: Start) -> None:
    server = await start_tls(echo, handshake_seconds=0.1)
    host, port = server.bound.address.rsplit(":", 1)
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(b"\x16\x03\x01\x02\x00\x01")
        assert await ends(stream)
    await server.wait_for(open=0, timed_out=1)


async def test_a_peer_that_never_sends_a_request_is_disconnected(start: Start) -> None:
    server = await start(echo, head_seconds=0.1)
    async with await server.connect() as stream:
        assert await ends(stream)
    await server.wait_for(open=0)


async def test_a_slowly_sent_head_has_one_deadline(start: Start) -> None:
    server = await start(echo, head_seconds=0.3)
    async with await server.connect() as stream:
        with patience():
            async with trio.open_nursery() as both:

                async def trickle() -> None:
                    for octet in GET[:-1] * 1000:
                        await stream.send_all(bytes([octet]))
                        await trio.sleep(0.05)

                both.start_soon(trickle)
                assert (await read_answer(stream))[0] == 408
                both.cancel_scope.cancel()
    await server.wait_for(open=0, timed_out=1)


async def test_the_time_until_an_answer_does_not_count_for_the_next_head(start: Start) -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(0.4)
        await echo(scope, receive, send)

    server = await start(slow, head_seconds=0.3)
    async with await server.connect() as stream:
        line, rest = GET.split(b"\r\n", 1)
        await stream.send_all(line)
        await trio.sleep(0.05)
        await stream.send_all(b"\r\n" + rest + line)
        assert (await read_answer(stream))[0] == 200
        await stream.send_all(b"\r\n" + rest)
        assert (await read_answer(stream))[0] == 200


async def test_an_idle_connection_is_closed(start: Start) -> None:
    server = await start(echo, idle_seconds=0.1)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        assert (await read_answer(stream))[0] == 200
        assert await ends(stream)
    await server.wait_for(open=0, timed_out=0)


@pytest.mark.parametrize("trickled", [False, True])
async def test_a_body_that_does_not_arrive_times_out_and_cancels_its_handler(start: Start, trickled: bool) -> None:
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
    with patience():
        await app.ended.wait()
    assert app.cancelled
    await server.wait_for(open=0, timed_out=1, failed=0)


async def test_a_body_at_the_lowest_allowed_rate_is_accepted(start_plain: Start) -> None:
    server = await start_plain(echo, body_seconds=0.2, body_bytes_per_second=1000)
    async with await server.connect() as stream:
        await stream.send_all(post(b"", length=600))
        for _ in range(6):
            await trio.sleep(0.08)
            await stream.send_all(b"x" * 100)
        assert (await read_answer(stream))[2] == b"x" * 600


async def test_the_app_has_no_time_limit(start: Start) -> None:
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
    with patience():
        await app.ended.wait()


async def test_a_peer_that_reads_slowly_gets_the_whole_answer(start: Start) -> None:
    body = b"x" * 12_000_000
    app = Held(body)
    app.release.set()
    server = await start(app, send_seconds=0.3)
    async with await server.connect(receive_buffer=65536) as stream:
        await stream.send_all(GET)
        received = pause_at = 0
        while received < len(body):
            piece = await receive_some(stream)
            assert piece, "the connection ended early"
            received += len(piece)
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


async def test_a_disconnect_cancels_the_handler(start: Start) -> None:
    app = Held()
    server = await start(app)
    stream = await server.connect()
    await stream.send_all(GET)
    await app.began.wait()
    await trio.aclose_forcefully(stream)
    with patience():
        await app.ended.wait()
    assert app.cancelled
    await server.wait_for(open=0, failed=0)


async def test_a_disconnect_cancels_a_quart_handler(start_asgi: Start) -> None:
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

    server = await start_asgi(app)
    stream = await server.connect()
    await stream.send_all(GET)
    await began.wait()
    await trio.aclose_forcefully(stream)
    with patience():
        await ended.wait()
    await server.wait_for(open=0, failed=0)


async def test_a_disconnect_after_the_answer_does_not_cancel_the_handler(start_asgi: Start) -> None:
    answered, finished = trio.Event(), trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)
        await answered.wait()
        await trio.sleep(0.05)
        finished.set()

    server = await start_asgi(app)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        await read_answer(stream)
    answered.set()
    with patience():
        await finished.wait()


@pytest.mark.parametrize("pause", [False, True])
async def test_a_refusal_reaches_a_client_that_keeps_uploading(start: Start, pause: bool) -> None:
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
async def test_an_app_that_does_not_read_holds_the_peer_back(start: Start, kind: str) -> None:
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


async def test_a_silent_peer_is_pinged_and_then_disconnected(start: Start) -> None:
    app = Held()
    server = await start(app, ping_seconds=0.2)
    async with websocket_to(server) as client:
        assert isinstance(await client.next(), Ping)  # not answered
        assert await ends(client.stream)
    with patience():
        await app.ended.wait()
    await server.wait_for(open=0, timed_out=1)


async def test_a_peer_that_answers_pings_stays_connected(start: Start) -> None:
    server = await start(echo, ping_seconds=0.1)
    async with websocket_to(server) as client:
        for _ in range(5):
            ping = await client.next()
            assert isinstance(ping, Ping)
            await client.send(ping.response())
        await client.send(TextMessage("still here"))
        assert cast("TextMessage", await client.next()).data == "still here"


async def test_an_answer_to_a_ping_counts_as_heard(start: Start) -> None:
    heard: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            heard.append(scope["extensions"]["mimids"].holding.heard_at)
            await trio.sleep(0.01)

    server = await start(app, ping_seconds=0.1)
    async with websocket_to(server) as client:
        for _ in range(3):
            ping = await client.next()
            assert isinstance(ping, Ping)
            await client.send(ping.response())
        assert isinstance(await client.next(), Ping)
        assert len(set(heard)) >= 4  # the handshake, and three answers
    await server.wait_for(open=0)


# --- failing apps -------------------------------------------------------------------------------------------------


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
async def test_an_exception_is_answered_500_without_a_body_and_logged(
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


async def test_an_app_that_does_not_answer_is_a_500(start_asgi: Start) -> None:
    server = await start_asgi(answer_nothing)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        assert (await read_answer(stream))[0] == 500


async def test_an_exception_within_the_body_truncates_it(start_asgi: Start, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        raise ZeroDivisionError

    server = await start_asgi(app)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        with pytest.raises(AssertionError, match="cut short"):
            await read_answer(stream)
    await server.wait_for(open=0, failed=1)


async def test_a_body_longer_than_its_content_length_is_logged_as_an_error(
    start_asgi: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"abc"})

    server = await start_asgi(app)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        await ends(stream)
    await server.wait_for(open=0)
    assert server.bound.statistics().failed > 0
    assert "Too much data" in caplog.text


async def test_an_exception_below_the_app_ends_its_connection_only(
    start_asgi: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any) -> None:
        raise ZeroDivisionError

    server = await start_asgi(echo)
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


async def test_an_exception_in_a_websocket_closes_it_with_1011(start: Start, caplog: pytest.LogCaptureFixture) -> None:
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
