"""Listeners on real sockets: addresses, client certificates, the limit of connections, and the drain."""

from __future__ import annotations

import json
import os
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from quart import request, websocket
from quart_trio import QuartTrio
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    RejectConnection,
)

from mimids.http.server.connection import (
    Receive,
    Scope,
    Send,
)
from mimids.http.server.listener import Bind, connection_info, serve
from mimids.http.server.tls import ServerTls, Trust
from mimids.wire.ids import ProviderId
from tests.support.listening import (
    GET,
    HUGE,
    Authority,
    Held,
    Start,
    Started,
    WebSocketClient,
    answer,
    echo,
    ends,
    eventually,
    post,
    read_answer,
    websocket_to,
)
from tests.support.patience import patience


async def test_a_quart_app_is_served_over_tls_and_gets_the_connection(start_tls: Start) -> None:
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


async def test_a_unix_socket_is_private_and_removed_afterwards(tmp_path: Path, nursery: trio.Nursery) -> None:
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


@pytest.mark.parametrize("with_tls", [False, True])
@pytest.mark.parametrize("address", ["[::1]:0", "[::]:0"])
async def test_addresses_of_ipv6_are_served(
    address: str, with_tls: bool, authority: Authority, nursery: trio.Nursery
) -> None:
    if address == "[::]:0" and not with_tls:
        pytest.skip("plain HTTP is for loopback only")
    tls, drain = ServerTls(authority.pair("a.example")) if with_tls else None, trio.Event()
    bound = await nursery.start(partial(serve, echo, Bind("client", address, tls), drain=drain))
    host, _, port = bound.address.rpartition(":")
    assert host == address.rpartition(":")[0]
    connecting = trio.socket.socket(socket.AF_INET6)
    await connecting.connect(("::1", int(port)))
    stream: trio.abc.Stream = trio.SocketStream(connecting)
    if with_tls:
        stream = trio.SSLStream(stream, authority.client(), server_hostname="a.example", https_compatible=True)
    async with stream:
        await stream.send_all(post(b"hello"))
        assert (await read_answer(stream))[2] == b"hello"
    drain.set()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
async def test_plain_http_is_allowed_on_loopback_only(address: str) -> None:
    with pytest.raises(ValueError, match="loopback"):
        await serve(echo, Bind("client", address), drain=trio.Event())


@pytest.mark.parametrize("address", ["", "8443", "127.0.0.1", "127.0.0.1:https"])
async def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        await serve(echo, Bind("client", address), drain=trio.Event())


# --- client certificates ------------------------------------------------------------------------------------------


async def names(scope: Scope, receive: Receive, send: Send) -> None:
    found = connection_info(scope).names
    await answer(send, json.dumps(None if found is None else sorted(found)).encode())


async def names_seen(server: Started, context: ssl.SSLContext) -> Any:
    async with await server.connect(context) as stream:
        await stream.send_all(GET)
        return json.loads((await read_answer(stream))[2])


async def test_each_request_has_the_certificate_of_its_connection(start_tls: Start, authority: Authority) -> None:
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


async def test_an_untrusted_certificate_ends_its_connection_only(
    start_tls: Start, authority: Authority, tmp_path: Path
) -> None:
    server = await start_tls(names)
    strangers = Authority.make(tmp_path / "strangers")
    with pytest.raises((trio.BrokenResourceError, json.JSONDecodeError)):
        await names_seen(server, authority.client("b.example", by=strangers))
    assert await names_seen(server, authority.client()) is None


async def test_the_trust_file_of_a_provider_is_for_that_provider_alone(
    start_tls: Start, authority: Authority, tmp_path: Path
) -> None:
    own = Authority.make(tmp_path / "own")
    trust = Trust(authority.trust, {ProviderId("b.example"): own.trust})
    server = await start_tls(names, tls=ServerTls(authority.pair("a.example"), clients=trust))
    assert await names_seen(server, authority.client("b.example", "c.example", by=own)) == ["b.example"]
    assert await names_seen(server, authority.client("b.example", "c.example")) == ["c.example"]


async def test_a_renewed_certificate_is_used_for_new_connections(start_tls: Start, authority: Authority) -> None:
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


# --- the limit of connections -------------------------------------------------------------------------------------


async def test_a_full_listener_closes_an_idle_connection_for_a_new_one(start: Start) -> None:
    server = await start(echo, connections=3)
    quiet = [await server.connect() for _ in range(3)]
    async with await server.connect() as stream:
        await stream.send_all(GET)
        assert (await read_answer(stream))[0] == 200
    assert await ends(quiet[0])  # the one that was quiet longest
    await server.wait_for(refused=0, open=2)
    for stream in quiet:
        await trio.aclose_forcefully(stream)


async def test_a_listener_full_of_busy_connections_answers_503(start: Start) -> None:
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


# --- draining -----------------------------------------------------------------------------------------------------


async def test_a_drain_answers_requests_in_flight_and_closes_idle_connections(start: Start) -> None:
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


async def test_a_waiting_handler_can_see_the_drain(start: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await connection_info(scope).draining.wait()
        await answer(send, b"nothing new")

    server = await start(app)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        await server.wait_for(idle=0, open=1)
        server.drain.set()
        assert (await read_answer(stream))[2] == b"nothing new"


async def test_a_drain_closes_websockets_with_1001(start: Start) -> None:
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
    with patience():
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
    with patience():
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(partial(serve, app, Bind("public", "127.0.0.1:0", tls), drain=trio.Event()))
            stream = await Started(bound, trio.Event(), authority).connect(receive_buffer=4096)
            await stream.send_all(GET)
            await app.began.wait()
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)


async def test_no_socket_is_left_open(start: Start) -> None:
    before = len(os.listdir("/proc/self/fd"))
    app = Held()
    app.release.set()
    server = await start(app)
    for _ in range(20):
        assert await server.answers()
    await server.wait_for(open=0)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the listener
