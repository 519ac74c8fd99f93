"""Control frames, empty frames and fragments without end on WebSockets."""

from __future__ import annotations

import contextlib
import time

import pytest
import trio
from wsproto.events import CloseConnection, Pong
from wsproto.frame_protocol import CloseReason

from mimids.http.api.admission import CallerRates
from mimids.http.server.buffers import Buffers
from mimids.values import Device, DeviceRow
from mimids.wire.ids import ProviderId, UserId
from tests.support.doubles import SpyLog, bound_hits
from tests.support.listening import (
    GET,
    Held,
    Start,
    Started,
    WebSocketClient,
    echo,
    eventually,
    read_answer,
    starter,
    websocket_to,
)
from tests.support.rig import requests_per_minute

MASK = bytes(4)
PING = b"\x89\x80" + MASK
PONG = b"\x8a\x80" + MASK
EMPTY_START = b"\x02\x80" + MASK
EMPTY_FRAGMENT = b"\x00\x80" + MASK
FLOODS = {
    "pings": PING * 80_000,
    "pongs": PONG * 80_000,
    "empty fragments": EMPTY_START + EMPTY_FRAGMENT * 80_000,
    "tiny fragments": EMPTY_START + (b"\x00\x81" + MASK + b"x") * 60_000,
}


@pytest.fixture
def start_plain(nursery: trio.Nursery) -> Start:
    return starter(nursery, None)


async def closing_code(client: WebSocketClient) -> int:
    while not isinstance(event := await client.next(), CloseConnection):
        pass
    return event.code


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_of_small_frames_closes_the_stream(start_plain: Start, flood: bytes) -> None:
    server = await start_plain(echo)
    async with websocket_to(server) as client, trio.open_nursery() as nursery:
        nursery.start_soon(push, client, flood)
        assert await closing_code(client) == CloseReason.POLICY_VIOLATION
        nursery.cancel_scope.cancel()
    await server.wait_for(flooded=1, open=0)


async def test_others_are_served_while_streams_are_flooded(start_plain: Start) -> None:
    """Three streams of pings took another request 13 s.

    Everything runs in this thread, so its CPU time is what a request waits for, and other processes do not add to it.
    """
    server = await start_plain(echo)
    async with trio.open_nursery() as attackers:
        for _ in range(3):
            attackers.start_soon(flood_again, server)
        cpu_seconds = []
        for _ in range(30):
            began = time.thread_time()
            async with await server.connect() as stream:
                await stream.send_all(GET)
                assert (await read_answer(stream))[0] == 200
            cpu_seconds.append(time.thread_time() - began)
        attackers.cancel_scope.cancel()
    assert sorted(cpu_seconds)[-2] < 0.25


async def push(client: WebSocketClient, octets: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await client.stream.send_all(octets)


async def flood_again(server: Started) -> None:
    while True:
        async with websocket_to(server) as client:
            await push(client, FLOODS["pings"])


async def test_parsing_many_frames_that_are_allowed_takes_checkpoints(
    start_plain: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimids.http.server.protocols.SMALL_FRAMES_BURST", 1_000_000)
    server = await start_plain(echo)
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.thread_time()
            await trio.lowlevel.checkpoint()
            longest = max(longest, time.thread_time() - began)

    async with websocket_to(server) as client, trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await push(client, PONG * 80_000 + PING)
        assert isinstance(await client.next(), Pong)
        nursery.cancel_scope.cancel()
    assert longest < 0.15  # seconds of CPU time; over a second without checkpoints


async def test_honest_pings_and_large_fragments_do_not_close_a_stream(start_plain: Start) -> None:
    server = await start_plain(echo, message_bytes=8_000_000)
    async with websocket_to(server) as client:
        await push(client, PING * 100)
        for _ in range(100):
            assert isinstance(await client.next(), Pong)
        fragment = b"\xfe" + (1024).to_bytes(2, "big") + MASK + b"x" * 1024
        await push(client, EMPTY_START + (b"\x00" + fragment) * 2_000 + b"\x80\x80" + MASK)
        received = b""
        while len(received) < 1024 * 2_000:
            received += bytes((await client.next()).data)  # type: ignore[attr-defined]
    assert server.bound.statistics().flooded == 0


async def test_messages_that_never_end_take_of_the_budget(start_plain: Start) -> None:
    buffers = Buffers(4_000_000, largest=1_000_000)
    server = await start_plain(echo, buffers=buffers, message_bytes=1_000_000)
    piece = b"\xff" + (900_000).to_bytes(8, "big") + MASK + bytes(900_000)
    async with websocket_to(server) as first:
        await push(first, b"\x02" + piece)
        await eventually(lambda: buffers.statistics().octets == 900_000)
        await push(first, b"\x80\x80" + MASK)
        received = 0
        while received < 900_000:
            received += len((await first.next()).data)  # type: ignore[attr-defined]
        assert buffers.statistics().octets == 0
        assert buffers.take_nowait(None, 3_900_000)
        await push(first, b"\x02" + piece)
        assert await closing_code(first) == CloseReason.TRY_AGAIN_LATER


async def test_frames_count_as_requests_of_their_device(autojump_clock: trio.testing.MockClock) -> None:
    class Clock:
        def now(self) -> int:
            return int(trio.current_time() * 1000)

        async def sleep(self, seconds: float) -> None:
            await trio.sleep(seconds)

    log = SpyLog()
    rates = CallerRates(requests_per_minute(60), Clock(), log.telemetry)  # type: ignore[arg-type]
    provider, user = ProviderId("a.example"), UserId(b"mimi://a.example/u/alice")
    flooding, other = Device(provider, user, DeviceRow(1), "phone"), Device(provider, user, DeviceRow(2), "laptop")
    began = trio.current_time()
    for _ in range(160):
        await rates.wait(flooding)
    assert trio.current_time() - began >= 99
    assert bound_hits(log.telemetry, "device-frames") >= 99
    now = trio.current_time()
    await rates.wait(other)
    assert trio.current_time() == now


async def test_a_handler_that_reads_nothing_does_not_fill_the_memory(start_plain: Start) -> None:
    app = Held()
    server = await start_plain(app)
    async with websocket_to(server) as client:
        sent = 0
        with trio.move_on_after(1):
            while True:
                await client.stream.send_all(b"\x82\xfe" + (65_535).to_bytes(2, "big") + MASK + bytes(65_535))
                sent += 65_535
        assert sent < 16_000_000  # what the kernel buffers, and little more
