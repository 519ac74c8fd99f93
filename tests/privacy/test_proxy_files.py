"""What the proxies of `examples/` leave in files: not who asked for whose KeyPackage, and no device's token."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from tests.support.provider import HOST, running
from tests.support.proxies import NAME, Stage, caddy, nginx, process, staged

ASKER = "127.0.0.77"  # every address in 127.0.0.0/8 is this machine's
TARGET = "b.example"
TOKEN = "a-token-of-a-device"
BODY = b"sealed for the gateway"
PROXIES: Mapping[str, Callable[[Stage, Path], list[str | Path]]] = {
    "nginx": partial(nginx, passes_through=False),
    "caddy": caddy,
}

pytestmark = pytest.mark.slow


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(tmp_path) as stage:
        yield stage


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """Return a device's request, which ends the connection."""
    lines = {
        "Host": NAME,
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": "message/ohttp-req",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


FETCH = f"/client/v1/providers/{TARGET}/ohttp"
FETCHES: Mapping[str, bytes] = {
    "keys": request("GET", f"/client/v1/providers/{TARGET}/ohttp-keys"),
    "fetch": request("POST", FETCH, BODY),
    "long body": request("POST", FETCH, BODY * 10_000),
    "too long body": request("POST", FETCH, BODY * 50_000),
    "body that ends early": (CUT_OFF := request("POST", FETCH, BODY, Content_Length="1000")),
    "escaped path": request("POST", FETCH.replace("providers", "%70roviders"), BODY),
    "unknown path": request("POST", f"/client/v1/providers/{TARGET}/other", BODY),
    "unreadable header": request("POST", FETCH, BODY, Authorization=f"Bearer {TOKEN}\r\n\0broken"),
    "unreadable length": request("POST", FETCH, BODY, Content_Length="many"),
    "too long header": request("POST", FETCH, BODY, X_Long="x" * 40_000),
}
STREAM = request(
    "GET",
    "/client/v1/stream",
    Connection="Upgrade",
    Upgrade="websocket",
    Sec_WebSocket_Version="13",
    Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAA==",
    Sec_WebSocket_Protocol=f"mimids.bearer.{TOKEN}",
)


@attrs.frozen
class Proxy:
    """A running proxy."""

    port: int
    trust: ssl.SSLContext

    async def say(self, octets: bytes, address: str = ASKER) -> bytes:
        """Send octets from an address; return the beginning of the answer."""
        tcp = await trio.open_tcp_stream(HOST, self.port, local_address=address)
        async with trio.SSLStream(tcp, self.trust, server_hostname=NAME, https_compatible=True) as connection:
            with suppress(trio.BrokenResourceError):  # it answered before it had read everything
                await connection.send_all(octets)
                if octets != CUT_OFF:
                    return bytes(await connection.receive_some())
            return b""


@asynccontextmanager
async def proxied(name: str, stage: Stage, directory: Path) -> AsyncIterator[Proxy]:
    """Run a proxy for the block; its files are in `directory` and beside the provider's socket."""
    shutil.copytree(stage.authority.directory, directory, ignore=lambda *_: {"a.example", directory.name})
    make = PROXIES[name]
    command, port = make(stage, directory), stage.behind if name == "nginx" else stage.https
    async with process(*command, port=port, log=directory / "log"):
        yield Proxy(port, stage.authority.client_context())


def files_with(word: str, *directories: Path) -> list[str]:
    """Return the names of all files whose name or content has this word."""
    return [
        str(path)
        for directory in directories
        for path in directory.rglob("*")
        if path.is_file() and (word in path.name or word.encode() in path.read_bytes())
    ]


@pytest.mark.parametrize("provider_is", ["up", "down"])
@pytest.mark.parametrize("name", PROXIES)
async def test_a_proxy_writes_neither_fetches_nor_tokens(
    name: str, provider_is: str, stage: Stage, tmp_path: Path
) -> None:
    provider = running(stage.config) if provider_is == "up" else nullcontext()
    with trio.fail_after(60):
        async with provider, proxied(name, stage, tmp_path / "proxy") as proxy:
            for octets in FETCHES.values():
                await proxy.say(octets)
            answer = await proxy.say(STREAM, HOST)
            assert answer.startswith(b"HTTP/1.1 401" if provider_is == "up" else b"HTTP/1.1 502")
        # The proxy has ended, so everything is written.
        for word in (ASKER, TARGET, TOKEN, BODY.decode()):
            assert files_with(word, tmp_path / "proxy", stage.sockets) == [], word


@pytest.mark.parametrize("name", PROXIES)
async def test_a_proxy_passes_bodies_on_without_a_file(name: str, stage: Stage, tmp_path: Path) -> None:
    arrived = trio.Event()

    async def provider(connection: trio.SocketStream) -> None:
        received = b""
        with suppress(trio.BrokenResourceError):
            async for part in connection:
                received += part
                if received.count(BODY) == 10_000:
                    arrived.set()

    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(str(stage.sockets / "client.sock"))
    (stage.sockets / "client.sock").chmod(0o660)
    listening.listen()
    half = request("POST", FETCH, BODY * 10_000, Content_Length=str(len(BODY) * 20_000))
    async with proxied(name, stage, tmp_path / "proxy") as proxy, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, provider, [trio.SocketListener(listening)])
        nursery.start_soon(proxy.say, half)
        with trio.fail_after(30):
            await arrived.wait()  # before the body is complete
        assert files_with(BODY.decode(), tmp_path / "proxy", stage.sockets) == []
        nursery.cancel_scope.cancel()
