"""The direct path keeps the bounds and counts of the ASGI path: these tests run on both."""

from __future__ import annotations

import pytest
import trio

from mimids.http.server import direct_path, peer_watch
from mimids.http.server.buffers import Buffers
from mimids.http.server.connection import Receive, Scope, Send
from mimids.http.server.listener import connection_info
from mimids.http.server.plain_requests import PlainHead, parse_head
from mimids.http.server.protocols import ProtocolSettings
from mimids.http.server.transport import RECEIVE_BYTES
from tests.support.listening import (
    GET,
    HUGE,
    Held,
    Start,
    answer,
    echo,
    ends,
    eventually,
    post,
    read_answer,
    receive_some,
)
from tests.support.patience import patience


async def test_a_body_that_breaks_off_cancels_its_handler(start: Start) -> None:
    app = Held(reads=True)
    server = await start(app)
    stream = await server.connect()
    await stream.send_all(post(b"x", length=10_000))
    await app.began.wait()
    await stream.aclose()
    with patience():
        await app.ended.wait()
    assert app.cancelled
    await server.wait_for(open=0, timed_out=0, failed=0)


async def test_the_octets_of_a_failed_request_are_given_back_before_its_answer(start: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert connection_info(scope).holding.take_nowait(50_000)
        raise ZeroDivisionError

    buffers = Buffers()
    server = await start(app, buffers=buffers)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        assert (await read_answer(stream))[0] == 500
        assert buffers.statistics().octets == 0


async def test_a_drain_closes_a_connection_whose_answer_was_being_sent(start: Start) -> None:
    app = Held(HUGE)
    app.release.set()
    server = await start(app, drain_seconds=60)
    async with await server.connect(receive_buffer=4096) as stream:
        await stream.send_all(GET)
        await app.began.wait()
        assert await receive_some(stream)
        server.drain.set()
        with patience():
            assert await ends(stream)
    await server.wait_for(open=0, forced=0, failed=0)


async def test_a_body_is_received_in_pieces_of_bounded_size(start: Start) -> None:
    pieces: list[int] = []
    body = b"x" * 4 * RECEIVE_BYTES

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert connection_info(scope).holding.take_nowait(len(body))
        await trio.sleep(0.2)  # until much of the body has arrived
        more = True
        while more:
            message = await receive()
            pieces.append(len(message["body"]))
            more = message["more_body"]
        await answer(send)

    server = await start(app)
    async with await server.connect() as stream:
        await stream.send_all(post(body))
        assert (await read_answer(stream))[0] == 200
    assert sum(pieces) == len(body)
    assert max(pieces) <= RECEIVE_BYTES


async def test_a_connection_has_a_last_request(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProtocolSettings, "keep_alive_max_requests", 3)
    server = await start(echo)
    async with await server.connect() as stream:
        for last in (False, False, True):
            await stream.send_all(post(b"x"))
            assert ("connection" in (await read_answer(stream))[1]) == last
        assert await ends(stream)
    await server.wait_for(open=0, forced=0, failed=0)


@pytest.mark.parametrize("end", ["idle", "drain"])
async def test_a_connection_whose_peer_was_watched_ends_like_any_other(
    start: Start, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_watch, "WATCH_SECONDS", 0.01)
    app = Held()
    server = await start(app, idle_seconds=0.1 if end == "idle" else 60)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        await app.began.wait()
        await trio.sleep(0.1)  # watched by now
        if end == "drain":
            server.drain.set()
        app.release.set()
        assert (await read_answer(stream))[0] == 200
        assert await ends(stream)
    await server.wait_for(open=0, forced=0, failed=0)


async def test_what_follows_a_request_counts_against_the_budget_until_it_is_answered(start_direct: Start) -> None:
    app, buffers = Held(), Buffers()
    server = await start_direct(app, buffers=buffers)
    async with await server.connect() as stream:
        await stream.send_all(GET + post(b"x" * 20_000))
        await app.began.wait()
        assert buffers.statistics().octets > 10_000
        app.release.set()
        for _ in range(2):
            assert (await read_answer(stream))[0] == 200
        await eventually(lambda: buffers.statistics().octets == 0)


async def test_a_connection_ends_unanswered_if_there_is_no_room_for_what_follows_its_request(
    start_direct: Start,
) -> None:
    app, buffers = Held(), Buffers(5000, largest=5000)
    server = await start_direct(app, buffers=buffers)
    async with await server.connect() as stream:
        await stream.send_all(GET + post(b"x" * 6000))
        assert (await read_answer(stream))[0] == 0
    assert not app.began.is_set()
    assert (buffers.statistics().octets, buffers.refused) == (0, 1)
    await server.wait_for(open=0, failed=0)


async def test_a_connection_ends_after_the_answer_to_a_failed_request(start_direct: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    server = await start_direct(app)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        assert (await read_answer(stream))[0] == 500
        assert await ends(stream)


async def test_a_head_that_is_repeated_is_parsed_once(start_direct: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []

    def parse(received: bytes, head_bytes: int) -> PlainHead | None:
        parsed.append(received)
        return parse_head(received, head_bytes)

    monkeypatch.setattr(direct_path, "parse_head", parse)
    server = await start_direct(echo)
    async with await server.connect() as stream:
        for body in (b"one", b"two", b"three"):
            await stream.send_all(post(body))
            assert (await read_answer(stream))[2] == body
    assert [octets.partition(b"\r\n\r\n")[0] for octets in parsed] == [post(b"one")[:-7], post(b"three")[:-9]]
