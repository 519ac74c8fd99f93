"""Uploads that break off, stall or are too many, and answers and frames that nobody reads."""

from __future__ import annotations

import gc
import socket
import ssl
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import pytest
import trio
from wsproto.events import AcceptConnection

from mimids.http.api.asgi import application
from mimids.http.api.bodies import NO_BODY, WEBSOCKET, WebSocketStream, octets
from mimids.http.api.endpoints import Call, Endpoint, Listener
from mimids.http.api.table import Table
from mimids.http.server.buffers import Buffers
from mimids.http.server.connection import ASGIApp
from mimids.values import Anyone
from tests.support.doubles import SpyLog
from tests.support.listening import (
    Authority,
    Start,
    Started,
    WebSocketClient,
    eventually,
    read_answer,
    starter,
)

MIB = 1024 * 1024
OCTETS = octets("application/octet-stream")
HEAD = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n"


class Rig:
    """An endpoint that measures bodies, and one that answers with 4 MiB."""

    # Longer than 40 lines: two endpoints are declared in full.
    def __init__(self) -> None:
        self.received: list[int] = []
        self.handed_out = 0
        self.app: ASGIApp = application(
            Table(
                [
                    Endpoint(
                        name="echo",
                        listener=Listener.PUBLIC,
                        method="POST",
                        path="/echo",
                        caller=Anyone,
                        request=OCTETS,
                        answer=NO_BODY,
                        handler=self.measure,
                        summary="",
                        limit="limit",
                    ),
                    Endpoint(
                        name="large",
                        listener=Listener.PUBLIC,
                        method="GET",
                        path="/large",
                        caller=Anyone,
                        request=NO_BODY,
                        answer=OCTETS,
                        handler=self.large,
                        summary="",
                        limit="limit",
                    ),
                    Endpoint(
                        name="small",
                        listener=Listener.PUBLIC,
                        method="GET",
                        path="/small",
                        caller=Anyone,
                        request=NO_BODY,
                        answer=OCTETS,
                        handler=self.small,
                        summary="",
                        limit="limit",
                    ),
                    Endpoint(
                        name="hand-out",
                        listener=Listener.PUBLIC,
                        method="POST",
                        path="/hand-out",
                        caller=Anyone,
                        request=NO_BODY,
                        answer=OCTETS,
                        handler=self.hand_out,
                        summary="",
                        limit="limit",
                    ),
                    Endpoint(
                        name="frames",
                        listener=Listener.PUBLIC,
                        method="GET",
                        path="/",
                        caller=Anyone,
                        request=WEBSOCKET,
                        answer=NO_BODY,
                        handler=self.frames,
                        summary="",
                        limit="limit",
                    ),
                ],
                cast("Any", None),
                limits={"limit": 32 * MIB},
                admit=self.admit,
                telemetry=SpyLog().telemetry,
            )
        )

    async def admit(self, *_: object) -> Anyone:
        return Anyone()

    async def measure(self, _: object, call: Call[Any, bytes]) -> None:
        self.received.append(len(call.body))

    async def large(self, _: object, call: Call[Any, None]) -> bytes:
        return bytes(4 * MIB)

    async def small(self, _: object, call: Call[Any, None]) -> bytes:
        return bytes(60 * 1024)

    async def hand_out(self, _: object, call: Call[Any, None]) -> bytes:
        await call.reserve(4 * MIB)
        self.handed_out += 1
        return bytes(4 * MIB)

    async def frames(self, _: object, call: Call[Any, WebSocketStream]) -> None:
        while True:
            await call.body.send(bytes(60 * 1024))


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def start_tls(nursery: trio.Nursery, tmp_path: Any) -> Start:
    return starter(nursery, Authority.make(tmp_path / "ca"))


@contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.enable()


async def break_off(server: Started) -> None:
    async with await server.connect() as stream:
        await stream.send_all(HEAD % MIB + bytes(MIB - 1))
        if isinstance(stream, trio.SSLStream):
            await stream.transport_stream.aclose()


def break_off_at_once(port: int, context: ssl.SSLContext) -> None:
    with suppress(OSError):  # the server may close first
        connected = socket.create_connection(("127.0.0.1", port))
        with context.wrap_socket(connected, server_hostname="a.example") as tls:
            tls.sendall(HEAD % MIB + bytes(MIB - 1))


async def test_uploads_that_break_off_at_once_leave_no_cycles(rig: Rig, start_tls: Start) -> None:
    """Their buffers stayed until the collector ran: 87 to 300 MB in 8 rounds of 50."""
    server = await start_tls(rig.app)
    assert server.authority is not None
    port, context = int(server.bound.address.rpartition(":")[2]), server.authority.client()

    async def attack(number: int) -> int:
        async with trio.open_nursery() as clients:
            for _ in range(number):
                clients.start_soon(trio.to_thread.run_sync, break_off_at_once, port, context)
        await server.wait_for(open=0)
        return gc.collect()

    await attack(5)
    gc.disable()
    try:
        assert await attack(25) < 100  # objects; 1,600 before, with all their buffers
    finally:
        gc.enable()


@pytest.mark.parametrize("tls", [False, True])
async def test_broken_uploads_leave_nothing_for_the_garbage_collector(
    rig: Rig, nursery: trio.Nursery, tmp_path: Any, tls: bool
) -> None:
    """100 a round grew the process by 1.2 GB in 36 rounds."""
    server = await starter(nursery, Authority.make(tmp_path / "ca") if tls else None)(rig.app)
    await break_off(server)
    with without_collector():
        held = []
        for _ in range(4):
            for _ in range(5):
                await break_off(server)
            await server.wait_for(open=0)
            held.append(tracemalloc.get_traced_memory()[0])
    assert held[-1] - held[0] < MIB // 4
    assert not rig.received


async def test_served_requests_leave_nothing_either(rig: Rig, nursery: trio.Nursery) -> None:
    server = await starter(nursery, None)(rig.app)

    async def upload() -> None:
        async with await server.connect() as stream:
            for _ in range(2):
                await stream.send_all(HEAD % MIB + bytes(MIB))
                assert (await read_answer(stream))[0] == 200

    await upload()
    with without_collector():
        held = []
        for _ in range(4):
            for _ in range(5):
                await upload()
            await server.wait_for(open=0)
            held.append(tracemalloc.get_traced_memory()[0])
    assert held[-1] - held[0] < MIB // 4


async def test_many_uploads_of_one_address_are_received_a_few_at_a_time(
    rig: Rig, start_tls: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 anonymous bodies of 1 MiB took 570 MB. Those that find no room get 503; small ones are not held up."""
    monkeypatch.setattr("mimids.http.server.buffers.WAIT_SECONDS", 0.5)
    buffers = Buffers(16 * MIB, largest=4 * MIB)
    server = await start_tls(rig.app, buffers=buffers)
    statuses: list[int] = []
    most = 0

    unfinished = HEAD % MIB + bytes(MIB - 1)

    async def stall() -> None:
        async with await server.connect() as stream:
            with trio.move_on_after(10):
                await stream.send_all(unfinished)
            statuses.append((await read_answer(stream))[0])

    tracemalloc.start()
    async with trio.open_nursery() as uploads:
        for _ in range(24):
            uploads.start_soon(stall)
        await eventually(lambda: statuses.count(503) == 20)
        most = buffers.statistics().octets
        peak = tracemalloc.get_traced_memory()[1]
        async with await server.connect() as stream:
            await stream.send_all(HEAD % 1000 + bytes(1000))
            assert (await read_answer(stream))[0] == 200
        uploads.cancel_scope.cancel()
    tracemalloc.stop()
    assert most == 4 * MIB
    assert peak < 40 * MIB  # of which 24 are the ciphertext of the clients, which are in this process, too
    await server.wait_for(open=0)
    assert buffers.statistics().octets == 0


async def test_answers_that_nobody_reads_are_bounded_for_each_address(rig: Rig, start_tls: Start) -> None:
    """150 unread answers of 4 MiB took 587 MB."""
    buffers = Buffers(64 * MIB, largest=16 * MIB)
    server = await start_tls(rig.app, buffers=buffers)
    streams = [await server.connect(receive_buffer=4096) for _ in range(12)]
    for stream in streams:
        await stream.send_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
    await eventually(lambda: buffers.refused >= 8)
    assert buffers.statistics().octets <= 16 * MIB
    async with await server.connect() as stream:
        await stream.send_all(HEAD % 1000 + bytes(1000))
        assert (await read_answer(stream))[0] == 200
    for stream in streams:
        await trio.aclose_forcefully(stream)
    await eventually(lambda: buffers.statistics().octets == 0)


async def test_what_cannot_be_repeated_is_done_only_if_there_is_room_for_its_answer(
    rig: Rig, start_tls: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KeyPackage was claimed, and then its answer was refused for room."""
    monkeypatch.setattr("mimids.http.server.buffers.WAIT_SECONDS", 0.2)
    buffers = Buffers(64 * MIB, largest=16 * MIB)
    server = await start_tls(rig.app, buffers=buffers)
    streams = [await server.connect(receive_buffer=4096) for _ in range(12)]
    for stream in streams:
        await stream.send_all(b"POST /hand-out HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
    await eventually(lambda: buffers.refused >= 8)
    assert rig.handed_out == 4
    assert buffers.statistics().octets == 16 * MIB
    for stream in streams:
        await trio.aclose_forcefully(stream)
    await eventually(lambda: buffers.statistics().octets == 0)


async def test_small_answers_that_nobody_reads_are_bounded_too(rig: Rig, start_tls: Start) -> None:
    """An answer of less than 64 KiB did not count, nor did the requests that were pipelined behind it."""
    buffers = Buffers(4 * MIB, largest=MIB)
    server = await start_tls(rig.app, buffers=buffers)
    assert server.authority is not None
    context = server.authority.client()
    streams = [await server.connect(context, receive_buffer=4096) for _ in range(30)]
    pipelined = b"GET /small HTTP/1.1\r\nhost: a\r\nx: %b\r\n\r\n" % bytes(8000).replace(b"\0", b"x")
    async with trio.open_nursery() as sending:
        for stream in streams:
            sending.start_soon(send_quietly, stream, pipelined * 200)
        await eventually(lambda: buffers.refused >= 5)
        assert buffers.statistics().octets <= MIB
        for stream in streams:
            await trio.aclose_forcefully(stream)
    await eventually(lambda: buffers.statistics().octets == 0)


async def test_frames_that_nobody_reads_are_bounded_for_each_address(rig: Rig, start_tls: Start) -> None:
    """The streams that find no room are closed; their devices connect again, and nothing is lost."""
    buffers = Buffers(4 * MIB, largest=MIB)
    server = await start_tls(rig.app, buffers=buffers)
    assert server.authority is not None
    context = server.authority.client()
    clients = [WebSocketClient(await server.connect(context, receive_buffer=4096)) for _ in range(30)]
    for client in clients:
        assert isinstance(await client.open(), AcceptConnection)
    await eventually(lambda: buffers.refused >= 10)
    assert buffers.statistics().octets <= MIB
    async with await server.connect(context) as stream:
        await stream.send_all(HEAD % 1000 + bytes(1000))
        assert (await read_answer(stream))[0] == 200
    for client in clients:
        await trio.aclose_forcefully(client.stream)
    await eventually(lambda: buffers.statistics().octets == 0)


async def send_quietly(stream: trio.abc.Stream, octets: bytes) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(octets)


async def test_a_body_that_waited_for_room_is_served(rig: Rig, start_tls: Start) -> None:
    buffers = Buffers(16 * MIB, largest=4 * MIB)
    server = await start_tls(rig.app, buffers=buffers)

    async def upload() -> None:
        async with await server.connect() as stream:
            await stream.send_all(HEAD % (3 * MIB) + bytes(3 * MIB))
            assert (await read_answer(stream))[0] == 200

    async with trio.open_nursery() as uploads:
        for _ in range(6):
            uploads.start_soon(upload)
    assert rig.received == [3 * MIB] * 6


async def test_a_chunked_body_takes_of_the_budget_as_it_grows(rig: Rig, start_tls: Start) -> None:
    buffers = Buffers(64 * MIB, largest=16 * MIB)
    server = await start_tls(rig.app, buffers=buffers)
    async with await server.connect() as stream:
        head = HEAD.partition(b"content-length")[0] + b"transfer-encoding: chunked\r\n\r\n"
        await stream.send_all(head + b"%x\r\n" % (3 * MIB) + bytes(2 * MIB + MIB // 2))
        await eventually(lambda: buffers.statistics().octets == 3 * MIB)
        await stream.send_all(bytes(MIB // 2) + b"\r\n0\r\n\r\n")
        assert (await read_answer(stream))[0] == 200
    assert rig.received == [3 * MIB]
