"""A peer that sends each octet in a TLS record of its own: no task works through all of them without a checkpoint."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio
import trio.testing

from mimids.http.peers.connection import PeerConnection
from mimids.http.peers.exchange import peer_request
from mimids.http.server.records import RECORDS_AT_ONCE
from mimids.http.server.transport import RECEIVE_BYTES, PlainTransport, TlsTransport
from mimids.wire.ids import ProviderId
from tests.support.provider import Authority

RECORDS = 2000  # fewer octets than a socket takes while nobody reads
B = ProviderId("b.example")


@attrs.frozen
class Sealer:
    """One end of TLS in memory; the test sends its octets when it likes."""

    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    @classmethod
    def of(cls, context: ssl.SSLContext, *, server_side: bool = False) -> Sealer:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server_side else B
        return cls(context.wrap_bio(incoming, outgoing, server_side, name), incoming, outgoing)

    async def handshake(self, connected: trio.SocketStream) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await connected.send_all(self.outgoing.read())
                self.incoming.write(bytes(await connected.receive_some()))
            else:
                await connected.send_all(self.outgoing.read())
                return

    def records(self, data: bytes) -> bytes:
        """Return one record for each octet."""
        for octet in data:
            self.tls.write(bytes([octet]))
        return self.outgoing.read()


@attrs.define(eq=False)
class Steps(trio.abc.Instrument):
    """Counts the steps of one task."""

    task: trio.lowlevel.Task
    count: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self.task


@asynccontextmanager
async def counted() -> AsyncIterator[Steps]:
    steps = Steps(trio.lowlevel.current_task())
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps
    finally:
        trio.lowlevel.remove_instrument(steps)


def server_context(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.certify(B))
    return context


async def test_a_receive_returns_the_octets_of_a_few_records(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, theirs = socket.socketpair()
    transport = TlsTransport(
        PlainTransport(trio.socket.from_stdlib_socket(ours), send_seconds=5), server_context(authority)
    )
    client, sent = Sealer.of(authority.client_context()), bytes(range(250)) * (RECORDS // 250)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.handshake, peer)
            await transport.handshake()
        await peer.send_all(client.records(sent))
        received = b""
        while len(received) < RECORDS:
            with trio.testing.assert_checkpoints():
                piece = await transport.receive(RECEIVE_BYTES)
            assert 0 < len(piece) <= RECORDS_AT_ONCE
            received += piece
        assert received == sent
    ours.close()


async def test_an_answer_in_many_records_is_read_in_many_steps(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    connection = PeerConnection(B, ours, authority.client_context())
    server, body = Sealer.of(server_context(authority), server_side=True), bytes(RECORDS)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.handshake, peer)
            await connection.handshake()
        await peer.send_all(server.records(b"HTTP/1.1 200 \r\ncontent-length: %d\r\n\r\n" % RECORDS + body))
        async with counted() as steps:
            answer = await connection.exchange(peer_request(B, "GET", "/x", b"", ""), RECORDS)
        assert answer.body == body
        assert steps.count > RECORDS // RECORDS_AT_ONCE
    connection.close()
