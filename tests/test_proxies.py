"""The proxies of `examples/` in front of a real provider; only ports, paths and names are replaced in the files."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Event, Request

from mimids.client import Device, open_device
from mimids.config import Config
from mimids.ds.clock import SystemClock
from mimids.ds.devices import accounts
from mimids.errors import CertificateRequired
from mimids.http.peers.calls import open_peers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.testing import PretendGroup, content_of
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, ProviderId
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
from tests.support.provider import HOST, Authority, running

EXAMPLES = Path(__file__).parent.parent / "examples"
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
NAME = "localhost"  # in place of chat.a.example: it has to resolve
A, B = ProviderId("a.example"), ProviderId("b.example")

pytestmark = pytest.mark.slow


@attrs.frozen
class Stage:
    """A provider's certificates and sockets, and free ports for the proxies."""

    authority: Authority
    sockets: Path
    config: Config
    https: int
    behind: int
    public: int

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.https}"


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    authority = Authority(tmp_path)
    https, behind, public = free_ports(3)
    sockets = Path(tempfile.mkdtemp(prefix="mimids-"))  # as the unit's RuntimeDirectory: for the server's group
    sockets.chmod(0o750)
    listen = {"public": f"{HOST}:{public}", "client": f"unix:{sockets}/client.sock"}
    authority.certify(NAME)
    yield Stage(
        authority, sockets, authority.config(A, listen=listen, federation={"allow": [B]}), https, behind, public
    )
    shutil.rmtree(sockets)


def placed(example: str, places: Mapping[str, str]) -> str:
    """Return an example with these texts replaced; each text must be in it."""
    text = (EXAMPLES / example).read_text()
    for there, here in places.items():
        assert there in text, f"{example}: {there}"
        text = text.replace(there, here)
    return text


@asynccontextmanager
async def process(*command: str | Path, port: int, log: Path) -> AsyncIterator[None]:
    """Run a proxy for the block; it serves when its port answers."""
    async with await trio.open_file(log, "ab") as output, trio.open_nursery() as nursery:
        run = partial(trio.run_process, list(command), stdout=output.wrapped, stderr=output.wrapped, check=False)
        proxy: trio.Process = await nursery.start(run)
        try:
            with trio.fail_after(20):
                while not await _listens(port):
                    assert proxy.poll() is None, f"it ended; {log} says why"
                    await trio.sleep(0.05)
            yield
        finally:
            proxy.terminate()


async def _listens(port: int) -> bool:
    try:
        await (await trio.open_tcp_stream(HOST, port)).aclose()
    except OSError:
        return False
    return True


def nginx(stage: Stage, directory: Path) -> list[str | Path]:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None or not STREAM_MODULE.exists():
        pytest.skip("nginx is not here: apt install nginx-light libnginx-mod-stream")
    client = {
        "unix:/run/mimids/client.sock": f"unix:{stage.sockets}/client.sock",
        "127.0.0.1:4443": f"{HOST}:{stage.behind}",
        "chat.a.example;": f"{NAME};",
        "/etc/nginx/chat.a.example": str(directory / NAME),
    }
    passthrough = {
        "127.0.0.1:8443": f"{HOST}:{stage.public}",
        "127.0.0.1:4443": f"{HOST}:{stage.behind}",
        "listen 443;": f"listen {HOST}:{stage.https};",
        "listen [::]:443;": "",
    }
    (directory / "client.conf").write_text(placed("nginx/client.conf", client))
    (directory / "passthrough.conf").write_text(placed("nginx/passthrough.conf", passthrough))
    # In production the proxy's user is in the group of the server; here its group is that of this test.
    user = "user nobody root;" if os.getuid() == 0 else ""
    temporary = "".join(
        f"{kind}_temp_path {stage.sockets}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"load_module {STREAM_MODULE};\n{user}\ndaemon off;\npid {directory}/pid;\nworker_processes 1;\n"
        f"error_log {directory}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log {directory}/access.log;\n{temporary}include {directory}/client.conf;\n}}\n"
        f"include {directory}/passthrough.conf;\n"
    )
    return [program, "-p", directory, "-c", directory / "nginx.conf"]


def caddy(stage: Stage, directory: Path) -> list[str | Path]:
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("Caddy is not here: apt install caddy")
    places = {
        "chat.a.example:8444 {": f"{NAME}:{stage.https} {{",
        "# tls /etc/caddy/chat.a.example.pem /etc/caddy/chat.a.example.key": f"tls {directory}/{NAME}.pem"
        f" {directory}/{NAME}.key",
        "unix//run/mimids/client.sock": f"unix/{stage.sockets}/client.sock",
    }
    (directory / "site").write_text(placed("Caddyfile", places))
    (directory / "Caddyfile").write_text(
        f"{{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n"
        f"\tstorage file_system {directory}/storage\n}}\nimport {directory}/site\n"
    )
    return [program, "run", "--config", directory / "Caddyfile", "--adapter", "caddyfile"]


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
