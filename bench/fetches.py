"""KeyPackage fetches over OHTTP at the gateway's provider: TLS, HTTP, open, claim, seal (bench: programs-and-bars).

Every request is encapsulated separately and gets another KeyPackage. They come over 16 connections. The figure is
compared with the echo floor, in CPU time of the server's process.

    python -m bench.fetches
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import subprocess
import sys
import time
from base64 import urlsafe_b64decode
from email.utils import formatdate
from functools import partial
from typing import Final, cast
from urllib.parse import urlsplit

import httpx

from bench.floor import CONNECTIONS, cpu_seconds, echo_floor
from bench.hub import Figure
from mimids.client import Device
from mimids.mls.code_points import CredentialType
from mimids.mls.leaf_node import Credential, HpkePublicKey, Lifetime
from mimids.ohttp import bhttp
from mimids.ohttp.client import encapsulate
from mimids.ohttp.config import KeyConfig, decode_keys
from mimids.ohttp.padding import pad_request
from mimids.testing import Provider, federation
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, BearerToken, CipherSuite, UserId
from mimids.wire.messages import KeyPackageRequest
from tests.support.mls_makers import Signer, key_package, leaf_node

FETCHES: Final = 2000
WARM_UP: Final = 200
UPLOAD: Final = 200
GATEWAY: Final = "/.well-known/ohttp-gateway"
MANY: Final = {"key_packages": {"device_packages": FETCHES + WARM_UP}, "limits": {"gateway_requests_per_second": 0}}


def measure() -> float:
    """Return fetches for each CPU second of the gateway's process."""
    with federation("b.example", config=MANY, links=False) as (provider,):
        bob = provider.add_device("bob")
        made = [_key_package(bob.user_id) for _ in range(FETCHES + WARM_UP)]
        for start in range(0, len(made), UPLOAD):
            bob.ask(partial(_upload, made[start : start + UPLOAD]))
        token = provider.issue_token("bob", "shared")
        return _fetch_all(provider, bob.user_id, urlsafe_b64decode(token + "=="))


def _key_package(user_id: str) -> bytes:
    now, signer = int(time.time()), Signer.of(1)
    credential = Credential(CredentialType.BASIC, user_id.encode())
    leaf = leaf_node(signer, credential=credential, origin=Lifetime(now - 3600, now + 86_400))
    return key_package(signer, leaf, init_key=HpkePublicKey(secrets.token_bytes(32))).encoded


async def _upload(packages: list[bytes], device: Device) -> None:
    uploaded = await device.upload(packages)
    assert uploaded.accepted == len(packages), uploaded


def _fetch_all(provider: Provider, user_id: str, token: bytes) -> float:
    """Prepare all requests, let another process send them, and return fetches for each CPU second of the gateway."""
    context = ssl.create_default_context(cafile=str(provider.ca_file))
    answer = httpx.get(f"{provider.public_url}{GATEWAY}", verify=context).raise_for_status()
    request = encode(KeyPackageRequest(UserId(user_id.encode()), BearerToken(token), MLS10, CipherSuite(1)))
    config = decode_keys(answer.content)[0]
    sealed = [_sealed(config, request) for _ in range(FETCHES + WARM_UP)]
    address = urlsplit(provider.public_url).netloc
    assert provider.pid is not None
    before = 0.0
    for part in (sealed[:WARM_UP], sealed[WARM_UP:]):
        before = cpu_seconds(provider.pid)
        command = [sys.executable, "-m", "bench.fetches", "load", address, str(provider.ca_file)]
        subprocess.run(command, input="\n".join(map(bytes.hex, part)), text=True, check=True)
    return FETCHES / (cpu_seconds(provider.pid) - before)


class Client(asyncio.Protocol):
    """One connection: sends a request from the list, waits for the whole answer, and goes on with the next."""

    def __init__(self, waiting: list[bytes], ended: asyncio.Future[None]) -> None:
        self._waiting = waiting
        self._ended = ended
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r")[0]) if end else -1
        if len(body) == size:
            if not head.startswith(b"HTTP/1.1 200"):
                self._ended.set_exception(RuntimeError(repr(self._received)))
                return
            self._received = b""
            self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(error or RuntimeError("closed"))

    def _next(self) -> None:
        if self._waiting:
            self._transport.write(self._waiting.pop())
        else:
            self._ended.set_result(None)
            self._transport.close()


async def load(address: str, trust: str, bodies: list[bytes]) -> None:
    """Send each of `bodies` once, over `CONNECTIONS`."""
    host, port = address.rsplit(":", 1)
    context = ssl.create_default_context(cafile=trust)
    head = f"POST {GATEWAY} HTTP/1.1\r\nhost: {address}\r\ncontent-type: message/ohttp-req\r\ncontent-length: "
    waiting = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    loop = asyncio.get_running_loop()
    ends = [loop.create_future() for _ in range(CONNECTIONS)]
    for ended in ends:
        await loop.create_connection(partial(Client, waiting, ended), host, int(port), ssl=context)
    await asyncio.gather(*ends)


def _sealed(config: KeyConfig, body: bytes) -> bytes:
    """Return an encapsulated request for one KeyPackage."""
    date = formatdate(time.time(), usegmt=True).encode()
    fields = ((b"content-type", b"application/mimi-ds"), (b"date", date))
    request = bhttp.Request("POST", "https", "b.example", "/key-packages", fields, body)
    return encapsulate(config, pad_request(bhttp.encode_request(request)), secrets.token_bytes(32)).message


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["load"]:
        address, trust = arguments[1:]
        asyncio.run(load(address, trust, [bytes.fromhex(line) for line in sys.stdin]))
        return
    found = []
    for _ in range(3):
        echo = echo_floor(2).per_cpu_second
        found.append(Figure("KeyPackage fetches over OHTTP", measure(), "the echo floor", echo, 0.6))
    print(sorted(found, key=lambda figure: figure.ratio)[1])


if __name__ == "__main__":
    main(sys.argv[1:])
