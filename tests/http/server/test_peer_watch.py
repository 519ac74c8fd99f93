"""Requests on the direct path that last so long that their peers are watched."""

from __future__ import annotations

import pytest
import trio

from mimids.http.server import peer_watch
from mimids.http.server.buffers import Buffers
from tests.support.listening import GET, Held, Start, WebSocketClient, echo, post, read_answer
from tests.support.patience import patience


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Held:
    monkeypatch.setattr(peer_watch, "WATCH_SECONDS", 0.01)
    return Held()


@pytest.mark.parametrize("request_", [GET, post(b"x" * 100_000)])
async def test_a_peer_that_leaves_cancels_its_handler(start_direct: Start, app: Held, request_: bytes) -> None:
    app.reads = request_ is not GET
    server = await start_direct(app)
    stream = await server.connect()
    await stream.send_all(request_)
    await app.began.wait()
    await stream.aclose()
    with patience():
        await app.ended.wait()
    assert app.cancelled
    await server.wait_for(open=0, failed=0)


async def test_what_a_watched_peer_sends_is_its_next_request(start_direct: Start, app: Held) -> None:
    server = await start_direct(app)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        await app.began.wait()
        await trio.sleep(0.1)  # watched by now
        await stream.send_all(post(b"x"))
        await trio.sleep(0.05)
        app.release.set()
        assert (await read_answer(stream))[::2] == (200, b"done")
        assert (await read_answer(stream))[::2] == (200, b"done")
    await server.wait_for(open=0, failed=0)


async def test_a_watched_connection_serves_further_requests(start_direct: Start, app: Held) -> None:
    server = await start_direct(app)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        await app.began.wait()
        await trio.sleep(0.1)
        app.release.set()
        for _ in range(3):
            assert (await read_answer(stream))[0] == 200
            await stream.send_all(GET)
        assert (await read_answer(stream))[0] == 200
    await server.wait_for(open=0, failed=0)


async def test_the_requests_of_one_connection_take_either_path(start_direct: Start) -> None:
    server = await start_direct(echo)
    chunked = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    async with await server.connect() as stream:
        for octets, body in [(post(b"one"), b"one"), (chunked, b"abc"), (post(b"two"), b"two")] * 2:
            await stream.send_all(octets)
            assert (await read_answer(stream))[::2] == (200, body)
        await WebSocketClient(stream).open()
    await server.wait_for(open=0, accepted=1, failed=0)


async def test_what_a_watched_peer_sends_needs_room_in_the_budget(start_direct: Start, app: Held) -> None:
    buffers = Buffers(100_000, largest=1000)
    server = await start_direct(app, buffers=buffers)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        await app.began.wait()
        assert buffers.take_nowait(None, 90_000)
        await trio.sleep(0.1)  # watched by now
        await stream.send_all(bytes(30_000))
        with patience():
            await app.ended.wait()
    assert app.cancelled
    await server.wait_for(open=0, failed=0)
