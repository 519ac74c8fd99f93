"""The proxies of `examples/` in front of a real provider; only ports, paths and names are replaced in the files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Event, Request

from mimids.client import Device, open_device
from mimids.ds.clock import SystemClock
from mimids.ds.devices import accounts
from mimids.errors import CertificateRequired
from mimids.http.peers.calls import open_peers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.testing import PretendGroup, content_of
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter
from mimids.wire.messages import (
    Frame,
    FrameBody,
    FrameType,
    Messages,
    Present,
    ReceiveRequest,
    Result,
    Send,
    WelcomeInitRequest,
    WelcomeInitResponse,
)
from tests.support.provider import HOST, running
from tests.support.proxies import NAME, A, B, Stage, caddy, nginx, process, staged

pytestmark = pytest.mark.slow


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(tmp_path) as stage:
        yield stage


@asynccontextmanager
async def stream(stage: Stage, token: str) -> AsyncIterator[Frames]:
    """Open a device's stream through the proxy."""
    context = stage.authority.client_context()
    async with await trio.open_ssl_over_tcp_stream(NAME, stage.https, ssl_context=context) as connection:
        frames = Frames(connection, WSConnection(ConnectionType.CLIENT))
        headers = [(b"Authorization", f"Bearer {token}".encode())]
        await frames.say(Request(host=NAME, target="/client/v1/stream", extra_headers=headers))
        assert isinstance(await frames.hear(), AcceptConnection)
        yield frames


@attrs.define
class Frames:
    """The device's end of a stream."""

    connection: trio.SSLStream[trio.SocketStream]
    protocol: WSConnection
    events: list[Event] = attrs.field(factory=list)

    async def say(self, event: Event) -> None:
        await self.connection.send_all(self.protocol.send(event))

    async def hear(self) -> Event:
        while not self.events:
            data = await self.connection.receive_some()
            assert data, "the connection ended"
            self.protocol.receive_data(bytes(data))
            self.events.extend(self.protocol.events())
        return self.events.pop(0)

    async def ask(self, kind: FrameType, body: FrameBody) -> FrameBody:
        await self.say(BytesMessage(data=encode(Frame(1, kind, body))))
        event = await self.hear()
        assert isinstance(event, BytesMessage)
        return decode(Frame, bytes(event.data)).body


async def use(stage: Stage, token: str) -> None:
    """Use the client listener as a device does, by requests and by a stream."""
    group = PretendGroup.at(A)
    async with open_device(stage.url, token, trust=stage.authority.client_context()) as device:
        await use_requests(device, group)
        async with stream(stage, token) as frames:
            sent = await frames.ask(FrameType.SEND, Send(A, (group.message(b"by stream"),)))
            assert isinstance(sent, Result)
            assert [result.status for result in sent.results] == [0]
            position = ReceiveRequest(group.key, Counter(1))
            heard = await frames.ask(FrameType.PRESENT, Present(A, (position,)))
            assert isinstance(heard, Messages)
            assert [content_of(message) for message in heard.epoch.epoch.messages] == [b"by stream"]


async def use_requests(device: Device, group: PretendGroup) -> None:
    assert (await device.me())["user_id"] == f"mimi://{A}/u/alice"
    await device.create_group(group.creation())
    large = bytes(3 * 1024 * 1024)  # more than the default limit of proxies, and more than they buffer in memory
    await device.send(A, group.message(large))
    (received,) = await device.receive(A, group.key)
    assert content_of(received) == large
    assert await device.receive(A, group.key, 1, wait_seconds=1) == ()  # an answer that comes late
    keys = await device._connection.exchange("GET", f"providers/{A}/ohttp-keys")
    assert keys.headers["content-type"] == "application/ohttp-keys"


async def test_nginx_serves_devices_and_passes_other_providers_through(stage: Stage, tmp_path: Path) -> None:
    command = nginx(stage, tmp_path)
    async with running(stage.config) as bound, process(*command, port=stage.https, log=tmp_path / "log"):
        token = await add_device(bound.provider.services.store)
        with trio.fail_after(60):
            await use(stage, token)
            await call_as_a_provider(stage, tmp_path)
            await call_without_a_certificate(stage)
    logged = (tmp_path / "access.log").read_text()
    assert "/client/v1/me" in logged
    assert "/client/v1/providers/" not in logged


async def test_caddy_serves_devices(stage: Stage, tmp_path: Path) -> None:
    command = caddy(stage, tmp_path)
    async with running(stage.config) as bound, process(*command, port=stage.https, log=tmp_path / "log"):
        token = await add_device(bound.provider.services.store)
        with trio.fail_after(60):
            await use(stage, token)
    assert "/client/v1/" not in (tmp_path / "log").read_text()


async def add_device(store: Store) -> str:
    def add(tx: Tx) -> str:
        accounts.add_user(tx, A, "alice", SystemClock().now())
        return accounts.add_device(tx, A, "alice", "phone", SystemClock().now()).token

    return await store.write(add)


async def call_as_a_provider(stage: Stage, directory: Path) -> None:
    """Call the endpoints between providers as b.example, whose certificate nginx never sees."""
    peers: dict[str, Any] = {A: {"url": f"https://{HOST}:{stage.https}"}}
    config = stage.authority.config(B, providers=peers, federation={"allow": [A]})
    async with open_peers(config, SystemClock()) as reached:
        body = encode(WelcomeInitRequest(()))
        answer = await reached.call(A, "POST", "/ds/v1/welcome/init", body, timeout_seconds=20)
        assert decode(WelcomeInitResponse, answer.body) == WelcomeInitResponse(())


async def call_without_a_certificate(stage: Stage) -> None:
    """Check that b.example is let in because of its certificate."""
    tcp = await trio.open_tcp_stream(HOST, stage.https)
    tls = trio.SSLStream(tcp, stage.authority.client_context(), server_hostname=A, https_compatible=True)
    async with tls as connection:
        request = f"GET /ds/v1/arrangement HTTP/1.1\r\nHost: {A}\r\nFrom: mimi@{B}\r\nConnection: close\r\n\r\n"
        await connection.send_all(request.encode())
        answer = b"".join([bytes(part) async for part in connection])
    assert answer.startswith(f"HTTP/1.1 {CertificateRequired.status.value} ".encode())
    assert CertificateRequired.problem_type().encode() in answer
