"""One address, device or provider that wants all connections of a listener, or keeps them busy by waiting."""

from __future__ import annotations

import os
import select
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from mimids.ds.following.following import WAITS_OF_A_DEVICE
from mimids.ds.ports import PeerAnswer
from mimids.errors import Busy, Unauthenticated
from mimids.http.api.admission import device_token
from mimids.http.api.asgi import application
from mimids.http.api.bodies import NO_BODY, octets
from mimids.http.api.endpoints import Call, Endpoint, Listener
from mimids.http.api.table import Table
from mimids.http.server import connection
from mimids.http.server.connection import ASGIApp
from mimids.http.server.listener import REFUSALS
from mimids.http.server.listener_state import NOT_YET_ADMITTED
from mimids.values import Anyone, Device, DeviceRow, Follower
from mimids.wire.ids import Counter, ProviderId, UserId
from mimids.wire.messages import ReceiveRequest
from tests.support.doubles import Called, SpyLog, bound_hits
from tests.support.federation import Room, device, federated
from tests.support.listening import Authority, Start, Started, eventually, read_answer, starter

OCTETS = octets("application/octet-stream")
CONNECTIONS = 96
SHARE = CONNECTIONS // 4
WAITS = CONNECTIONS // 2
SHARE_OF_WAITS = WAITS // 4
LONG_SECONDS = 600.0
BURST = 300  # connections of one caller that send at once


class Rig:
    """Endpoints that wait without end for a device or a provider, one that answers, and one that takes a body."""

    def __init__(self) -> None:
        self.waiting = self.answered = 0
        self.telemetry = SpyLog().telemetry

        def row(name: str, method: str, caller: Any, request: Any, handler: Any) -> Any:
            return Endpoint(
                name=name,
                listener=Listener.PUBLIC,
                method=method,
                path=f"/{name}",
                caller=caller,
                request=request,
                answer=NO_BODY,
                handler=handler,
                summary="",
                limit="limit",
                waits=True,
            )

        self.app: ASGIApp = application(
            Table(
                [
                    row("wait", "GET", Device, NO_BODY, self.wait),
                    row("wait-follower", "GET", Follower, NO_BODY, self.wait),
                    row("now", "GET", Device, NO_BODY, self.take),
                    row("body", "POST", Anyone, OCTETS, self.take),
                ],
                cast("Any", None),
                limits={"limit": 1_000_000},
                admit=self.admit,
                telemetry=self.telemetry,
            )
        )

    async def admit(self, kind: Any, headers: Any, names: Any) -> Any:
        if kind is Follower:
            return Follower(next(iter(names)))
        if kind is Anyone:
            return Anyone()
        number = device_token(headers).reveal()
        if not number.isdigit():
            raise Unauthenticated
        return Device(ProviderId("a.example"), UserId(b"mimi://a.example/u/alice"), DeviceRow(int(number)), "phone")

    async def wait(self, _: object, call: Call[Any, Any]) -> None:
        self.waiting += 1
        await trio.sleep_forever()

    async def take(self, _: object, call: Call[Any, Any]) -> None:
        self.answered += 1


class Rounds(trio.abc.Instrument):
    """Counts the rounds of the event loop."""

    def __init__(self) -> None:
        self.number = 0

    def after_io_wait(self, timeout: float) -> None:
        self.number += 1


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def start_tls(nursery: trio.Nursery, tmp_path: Any) -> Start:
    return starter(nursery, Authority.make(tmp_path / "ca"))


@pytest.fixture
def start_plain(nursery: trio.Nursery) -> Start:
    return starter(nursery, None)


def get(path: str, device: int = 1) -> bytes:
    return b"GET %b HTTP/1.1\r\nhost: a.example\r\nauthorization: Bearer %d\r\n\r\n" % (path.encode(), device)


async def try_to_hold(server: Started, number: int, octets: bytes, context: Any = None) -> list[trio.abc.Stream]:
    """Open connections that send `octets` and then nothing; those that the server closed at once are left out."""
    streams = []
    if context is None and server.authority is not None:
        context = server.authority.client()  # takes tens of milliseconds
    for _ in range(number):
        with suppress(trio.BrokenResourceError, OSError):
            stream = await server.connect(context)
            streams.append(stream)
            await stream.send_all(octets)
    return streams


async def served(server: Started, octets: bytes, context: Any = None) -> int:
    async with await server.connect(context) as stream:
        await stream.send_all(octets)
        return (await read_answer(stream))[0]


async def close(streams: list[trio.abc.Stream]) -> None:
    for stream in streams:
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_device_that_waits_on_many_connections_leaves_room_for_others(
    rig: Rig, start_plain: Start, start_tls: Start, tls: bool
) -> None:
    """2,000 receives with Prefer: wait=60 of one device took the whole listener."""
    server = await (start_tls if tls else start_plain)(rig.app, connections=CONNECTIONS)
    streams = await try_to_hold(server, CONNECTIONS + 20, get("/wait", 1))
    await eventually(lambda: rig.waiting == SHARE)
    assert await served(server, get("/now", 2)) == 200
    assert await served(server, get("/now", 1)) == 503
    assert rig.waiting == SHARE
    await close(streams)


async def test_a_provider_that_waits_on_many_connections_leaves_room_for_others(rig: Rig, start_tls: Start) -> None:
    server = await start_tls(rig.app, connections=CONNECTIONS)
    assert server.authority is not None
    bad, good = server.authority.client("b.example"), server.authority.client("c.example")
    streams = await try_to_hold(server, CONNECTIONS + 20, get("/wait-follower"), bad)
    await eventually(lambda: rig.waiting == SHARE)
    assert await served(server, get("/now"), good) == 200
    await close(streams)


def wait(path: str, device: int = 1) -> bytes:
    return get(path, device).replace(b"\r\n", b"\r\nprefer: wait=60\r\n", 1)


async def test_a_device_may_wait_on_a_share_of_the_waiting_requests(rig: Rig, start_plain: Start) -> None:
    server = await start_plain(rig.app, connections=CONNECTIONS)
    streams = await try_to_hold(server, SHARE_OF_WAITS, wait("/wait", 1))
    await eventually(lambda: rig.waiting == SHARE_OF_WAITS)
    assert await served(server, wait("/wait", 1)) == 503
    assert bound_hits(rig.telemetry, "waiting-requests") == 1
    assert await served(server, get("/now", 1)) == 200  # a request that does not wait
    streams += await try_to_hold(server, 1, wait("/wait", 2))
    await server.wait_for(waiting=SHARE_OF_WAITS + 1)
    await close(streams)
    await server.wait_for(waiting=0)
    assert await served(server, wait("/now", 1)) == 200


async def test_a_provider_may_wait_on_a_share_of_the_waiting_requests(rig: Rig, start_tls: Start) -> None:
    server = await start_tls(rig.app, connections=CONNECTIONS)
    assert server.authority is not None
    bad, good = server.authority.client("b.example"), server.authority.client("c.example")
    streams = await try_to_hold(server, SHARE_OF_WAITS, wait("/wait-follower"), bad)
    await eventually(lambda: rig.waiting == SHARE_OF_WAITS)
    assert await served(server, wait("/wait-follower"), bad) == 503
    streams += await try_to_hold(server, 1, wait("/wait-follower"), good)
    await server.wait_for(waiting=SHARE_OF_WAITS + 1)
    await close(streams)


async def test_all_devices_at_one_address_have_one_share_of_the_waiting_requests(rig: Rig, start_tls: Start) -> None:
    server = await start_tls(rig.app, connections=CONNECTIONS)
    assert server.authority is not None
    context = server.authority.client()
    streams = []
    for number in range(SHARE_OF_WAITS):
        streams += await try_to_hold(server, 1, wait("/wait", number), context)
    await server.wait_for(waiting=SHARE_OF_WAITS)
    assert await served(server, wait("/wait", 99), context) == 503
    provider = server.authority.client("c.example")
    streams += await try_to_hold(server, 1, wait("/wait-follower"), provider)
    await server.wait_for(waiting=SHARE_OF_WAITS + 1)
    await close(streams)


async def test_a_reserve_of_the_waiting_requests_is_kept_for_those_that_wait_little(
    rig: Rig, start_plain: Start
) -> None:
    server = await start_plain(rig.app, connections=CONNECTIONS)
    streams = []
    for row in range(4):
        streams += await try_to_hold(server, SHARE_OF_WAITS, wait("/wait", row))
    reserve = WAITS // 8
    await server.wait_for(waiting=WAITS - reserve)
    for row in range(10, 10 + reserve):
        streams += await try_to_hold(server, 1, wait("/wait", row))
    await server.wait_for(waiting=WAITS)
    assert await served(server, wait("/wait", 99)) == 503
    assert await served(server, get("/now", 99)) == 200
    await close(streams)


async def test_an_address_that_begins_many_bodies_leaves_room_for_callers_that_are_known(
    rig: Rig, start_tls: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 begun bodies of one address took the whole listener, even for providers at other addresses."""
    # However slow the machine is, no connection ends by itself before the test looks.
    monkeypatch.setattr(connection, "LINGER_SECONDS", LONG_SECONDS)
    server = await start_tls(rig.app, connections=CONNECTIONS, body_seconds=LONG_SECONDS)
    assert server.authority is not None
    begun = b"POST /body HTTP/1.1\r\nhost: a\r\ncontent-type: application/octet-stream\r\ncontent-length: 1000\r\n\r\n"
    streams = await try_to_hold(server, CONNECTIONS + 20, begun + b"x")

    answered = SHARE + NOT_YET_ADMITTED + REFUSALS
    await server.wait_for(open=answered, refused=CONNECTIONS + 20 - SHARE - NOT_YET_ADMITTED)
    # Those that were let in beyond the share get 503 once their request shows who they are, and are closed.
    for stream in streams[SHARE:answered]:
        assert (await read_answer(stream))[0] == 503
    await close(streams[SHARE:])
    await server.wait_for(open=SHARE)
    # Even from the same address a provider is served: its certificate comes before any request.
    provider = server.authority.client("c.example")
    assert await served(server, get("/now"), provider) == 200
    await close(streams)


async def test_another_address_is_served_while_one_holds_all_that_it_may(rig: Rig, start_tls: Start) -> None:
    server = await start_tls(rig.app, connections=CONNECTIONS)
    begun = b"POST /body HTTP/1.1\r\nhost: a\r\ncontent-type: application/octet-stream\r\ncontent-length: 1000\r\n\r\n"
    streams = await try_to_hold(server, CONNECTIONS + 20, begun + b"x")
    assert server.authority is not None
    host, port = server.bound.address.rsplit(":", 1)
    connecting = trio.socket.socket()
    await connecting.bind(("127.0.0.2", 0))
    await connecting.connect((host, int(port)))
    tls = trio.SSLStream(
        trio.SocketStream(connecting), server.authority.client(), server_hostname="a.example", https_compatible=True
    )
    async with tls:
        await tls.send_all(get("/now", 3))
        assert (await read_answer(tls))[0] == 200
    await close(streams)


async def test_connections_without_a_request_are_evicted_from_the_owner_that_holds_most(
    rig: Rig, start_plain: Start
) -> None:
    server = await start_plain(rig.app, connections=32)
    honest = await server.connect()
    await honest.send_all(get("/now", 2))
    assert (await read_answer(honest))[0] == 200
    greedy = []
    for _ in range(10):
        stream = await server.connect()
        await stream.send_all(get("/now", 1))
        assert (await read_answer(stream))[0] == 200
        greedy.append(stream)
    silent = [await server.connect() for _ in range(21)]
    await server.wait_for(open=32)
    silent += [await server.connect() for _ in range(30)]
    await server.wait_for(accepted=62, open=32)
    await honest.send_all(get("/now", 2))  # not evicted, although it was idle for longest
    assert (await read_answer(honest))[0] == 200
    await close([honest, *greedy, *silent])


async def test_a_device_that_asks_on_many_connections_at_once_leaves_turns_for_others(
    rig: Rig, start_plain: Start
) -> None:
    """One round of the event loop answered a request of each connection: 500 of one device took half a second."""
    server = await start_plain(rig.app, connections=4 * BURST)
    greedy = await try_to_hold(server, BURST, get("/now", 1))
    honest = await server.connect()
    await honest.send_all(get("/now", 2))
    for stream in [*greedy, honest]:
        assert (await read_answer(stream))[0] == 200  # from now on the connection counts for its device
    answered = rig.answered
    for stream in [*greedy, honest]:
        os.write(cast("trio.SocketStream", stream).socket.fileno(), get("/now", 1 if stream is not honest else 2))
    assert (await read_answer(honest))[0] == 200
    assert rig.answered - answered < BURST // 2
    for stream in greedy:
        assert (await read_answer(stream))[0] == 200
    await close([honest, *greedy])


async def test_an_address_that_begins_many_handshakes_at_once_leaves_turns_for_others(
    rig: Rig, start_tls: Start
) -> None:
    """A handshake takes as long as a request, and its first message can be sent again and again at no cost."""
    server = await start_tls(rig.app, connections=4 * BURST)
    assert server.authority is not None
    host, port = server.bound.address.rsplit(":", 1)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = server.authority.client().wrap_bio(incoming, outgoing, server_hostname="a.example")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    sockets = [socket.create_connection((host, int(port)), source_address=("127.0.0.2", 0)) for _ in range(BURST)]
    await server.wait_for(accepted=BURST)
    for each in sockets:
        each.send(hello)
    assert await served(server, get("/now", 2)) == 200
    answered = len(select.select(sockets, [], [], 0)[0])
    assert answered < BURST * 3 // 4
    for each in sockets:
        each.close()


async def test_a_thousand_connections_at_once_do_not_delay_the_next_one(rig: Rig, start_plain: Start) -> None:
    """One was accepted in each round of the event loop; in a round full of handshakes that took seconds."""
    server = await start_plain(rig.app, connections=4 * BURST)
    host, port = server.bound.address.rsplit(":", 1)
    sockets = [socket.create_connection((host, int(port))) for _ in range(BURST)]
    rounds = Rounds()
    trio.lowlevel.add_instrument(rounds)
    await server.wait_for(accepted=BURST)
    trio.lowlevel.remove_instrument(rounds)
    assert rounds.number < BURST // 2
    for each in sockets:
        each.close()


async def test_the_connections_of_one_address_are_not_served_before_those_of_another(
    rig: Rig, start_tls: Start
) -> None:
    """The kernel hands them over in the order in which they came, and to begin to serve one takes half a millisecond.

    With 900 of them, another client's request took 350 ms of CPU time.
    """
    server = await start_tls(rig.app, connections=4 * BURST)
    host, port = server.bound.address.rsplit(":", 1)
    sockets = [socket.create_connection((host, int(port)), source_address=("127.0.0.2", 0)) for _ in range(2 * BURST)]
    assert await served(server, get("/now", 2)) == 200
    statistics = server.bound.statistics()
    assert statistics.accepted < BURST
    assert statistics.evicted > BURST // 2  # beyond what one address may have
    for each in sockets:
        each.close()


async def test_half_open_handshakes_do_not_fill_a_listener(rig: Rig, start_tls: Start) -> None:
    server = await start_tls(rig.app, connections=CONNECTIONS)
    host, port = server.bound.address.rsplit(":", 1)
    sockets = [socket.create_connection((host, int(port))) for _ in range(CONNECTIONS + 20)]
    assert await served(server, get("/now", 2)) == 200
    for each in sockets:
        each.close()


async def test_a_device_waits_for_another_hub_in_few_requests(tmp_path: Path) -> None:
    """Each of them holds one of the calls to that hub, which all devices share."""
    async with federated(tmp_path, "a.example", "b.example", jobs_of=()) as (_, b):
        asked = []

        async def waits(called: Called) -> PeerAnswer:
            asked.append(called)
            await trio.sleep_forever()
            raise AssertionError

        b.peers.add("a.example", waits)
        hub = b.services.hub_router.hub(ProviderId("a.example"))

        async def receive(who: Device) -> None:
            await hub.receive(who, ReceiveRequest(Room.new_key(), Counter(0)), wait_seconds=60)

        async with trio.open_nursery() as nursery:
            for _ in range(WAITS_OF_A_DEVICE):
                nursery.start_soon(receive, device(b, "bob"))
            await eventually(lambda: len(asked) == WAITS_OF_A_DEVICE)
            with pytest.raises(Busy):
                await receive(device(b, "bob"))
            nursery.start_soon(receive, device(b, "ben", 2))
            await eventually(lambda: len(asked) == WAITS_OF_A_DEVICE + 1)
            nursery.cancel_scope.cancel()
        assert not b.services.following._waiting
