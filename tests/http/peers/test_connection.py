"""One connection to another provider at a time: what it does when the other side misbehaves, over real sockets."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from mimids.http.peers.connection import PeerConnection
from mimids.http.peers.dialling import CannotConnect, connect_tcp
from mimids.http.peers.exchange import AnswerTooLarge, BrokenConnection, PeerRequest, peer_request
from mimids.http.server.tls import ClientTls, Trust
from tests.support.other_provider import B, World
from tests.support.patience import patience

Tls = trio.SSLStream[trio.SocketStream]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@asynccontextmanager
async def connection_to(
    world: World, serve: Callable[[Tls], Awaitable[None]], *, tickets: int = 0
) -> AsyncIterator[PeerConnection]:
    """Connect to a server of one connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = tickets
    pair = world.pair("b.example")
    context.load_cert_chain(pair.certificate, pair.private_key)

    async def serve_and_close(stream: Tls) -> None:
        async with stream:
            await serve(stream)

    (listener,) = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
    world.nursery.start_soon(trio.serve_listeners, serve_and_close, [listener])
    inner = listener.transport_listener
    assert isinstance(inner, trio.SocketListener)
    tcp = await connect_tcp("127.0.0.1", inner.socket.getsockname()[1], 5)
    connection = PeerConnection(B, tcp, ClientTls(Trust(world.trust)).context(B))
    try:
        await connection.handshake()
        yield connection
    finally:
        connection.close()


def a_request(body: bytes = b"") -> PeerRequest:
    return peer_request(B, "POST", "/x", body, "a/b")


async def receive_head(stream: Tls) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        received = bytes(await stream.receive_some())
        if not received:
            return b""
        data += received
    return data


async def test_requests_are_answered_in_turn_and_large_ones_in_pieces(world: World) -> None:
    body = bytes(range(256)) * 20_000

    async def echo(stream: Tls) -> None:
        while head := await receive_head(stream):
            length = int(head.partition(b"content-length: ")[2].split(b"\r")[0])
            data = head.partition(b"\r\n\r\n")[2]
            while len(data) < length:
                data += bytes(await stream.receive_some())
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % length + data)

    async with connection_to(world, echo, tickets=2) as connection:
        for sent in (b"", b"small", body, b"small"):
            assert (await connection.exchange(a_request(sent), len(body))).body == sent
            assert connection.is_reusable
            assert connection.is_usable(0)


async def test_an_answer_is_read_though_the_peer_stops_reading_the_request(world: World) -> None:
    async def refuse(stream: Tls) -> None:
        await receive_head(stream)
        await stream.send_all(b"HTTP/1.1 413 x\r\ncontent-length: 2\r\n\r\nno")
        stream.transport_stream.socket.shutdown(socket.SHUT_RD)

    async with connection_to(world, refuse) as connection:
        answer = await connection.exchange(a_request(bytes(100_000)), 10)
        assert (answer.status, answer.body) == (413, b"no")


async def test_what_comes_after_an_answer_ends_the_connection(world: World) -> None:
    async def talk(stream: Tls) -> None:
        await receive_head(stream)
        await stream.send_all(OK)
        await stream.send_all(OK)
        await trio.sleep_forever()

    async with connection_to(world, talk) as connection:
        assert (await connection.exchange(a_request(), 10)).body == b"ok"
        if connection.is_reusable:  # the second answer had not arrived with the first
            await trio.lowlevel.wait_readable(connection._tcp)
            assert not connection.is_usable(0)


@pytest.mark.parametrize("answered", [b"", OK[:20], OK[:-1], b"HTTP/1.1 200 OK\r\n\r\nok"])
async def test_a_connection_that_is_cut_leaves_no_answer(world: World, answered: bytes) -> None:
    """Without a close_notify, an answer without a length may have been cut off by somebody else."""

    async def cut(stream: Tls) -> None:
        await receive_head(stream)
        await stream.send_all(answered)
        await stream.transport_stream.aclose()

    async with connection_to(world, cut) as connection:
        with pytest.raises(BrokenConnection):
            await connection.exchange(a_request(), 10)
        assert not connection.is_reusable


async def test_an_answer_without_a_length_ends_with_the_connection(world: World) -> None:
    async def answer(stream: Tls) -> None:
        await receive_head(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\nok")

    async with connection_to(world, answer) as connection:
        assert (await connection.exchange(a_request(), 10)).body == b"ok"
        assert not connection.is_reusable


async def test_an_answer_without_end_is_given_up(world: World) -> None:
    left = trio.Event()

    async def flood(stream: Tls) -> None:
        await receive_head(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(bytes(65_536))
        left.set()

    async with connection_to(world, flood) as connection:
        with pytest.raises(AnswerTooLarge):
            await connection.exchange(a_request(), 1_000_000)
    with patience():
        await left.wait()


async def test_an_idle_connection_is_closed_with_close_notify(world: World) -> None:
    ended = trio.Event()

    async def answer(stream: Tls) -> None:
        await receive_head(stream)
        await stream.send_all(OK)
        assert await stream.receive_some() == b""  # a ragged end would raise
        ended.set()

    async with connection_to(world, answer) as connection:
        await connection.exchange(a_request(), 10)
    with patience():
        await ended.wait()


async def test_a_connection_is_not_usable_once_the_peer_has_closed_it(world: World) -> None:
    async def answer(stream: Tls) -> None:
        await receive_head(stream)
        await stream.send_all(OK)

    async with connection_to(world, answer) as connection:
        await connection.exchange(a_request(), 10)
        with patience():
            await trio.lowlevel.wait_readable(connection._tcp)
        assert not connection.is_usable(0)


async def test_an_exchange_that_is_cancelled_leaves_a_connection_that_is_not_reused(world: World) -> None:
    asked = trio.Event()

    async def never(stream: Tls) -> None:
        await receive_head(stream)
        asked.set()
        await trio.sleep_forever()

    async with connection_to(world, never) as connection, trio.open_nursery() as asking:
        asking.start_soon(connection.exchange, a_request(), 10)
        await asked.wait()
        asking.cancel_scope.cancel()
    assert not connection.is_reusable


async def test_an_address_that_refuses_is_named_as_the_reason() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(CannotConnect, match="refused"):
            await connect_tcp("127.0.0.1", unused.getsockname()[1], 5)
