"""What anybody can send: heads, handshakes, and requests to the OHTTP gateway."""

from __future__ import annotations

import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import httpx

from bench.attacks.inputs import Input, asks, posts
from bench.raw_client import Connection, Ended, request
from mimids.ohttp import bhttp
from mimids.ohttp.client import encapsulate
from mimids.ohttp.config import KeyConfig, decode_keys
from mimids.testing import Provider
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, BearerToken, CipherSuite, UserId
from mimids.wire.messages import KeyPackageBundleRequest, KeyPackageRequest

GATEWAY: Final = "/.well-known/ohttp-gateway"
SUITE: Final = CipherSuite(1)


def inputs(provider: Provider) -> Iterator[Input]:
    host = provider.name
    yield from asks("anonymous", "heads", heads(host))
    yield Input("handshakes", "anonymous", "whole handshakes", shake_hands)
    yield Input("handshakes", "anonymous", "no TLS", send_garbage)
    get = {"get": lambda number: request("GET", "/.well-known/mimi-ds", host)}
    yield from asks("anonymous", "directory", get)
    yield from asks("anonymous", "ohttp-keys", {"get": lambda number: request("GET", GATEWAY, host)})
    bodies = gateway(provider)
    yield from posts("anonymous", host, "ohttp-gateway", GATEWAY, bodies, media_type="message/ohttp-req")


def heads(host: str) -> dict[str, Callable[[int], bytes]]:
    def with_lines(*lines: str, path: str = "/", body: bytes = b"", method: str = "GET") -> Callable[[int], bytes]:
        whole = "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "\r\n"]).encode() + body
        return lambda number: whole

    post = {"method": "POST", "path": "/ds/v1/send"}
    chunked = "Transfer-Encoding: chunked"
    octet_stream = ("Content-Type: message/ohttp-req", chunked)
    return {
        "the shortest request": with_lines(),
        "120 lines": with_lines(*[f"a{n}:b" for n in range(120)]),
        "12 KiB of Prefer": with_lines("Prefer: " + "," * 12_000, **post),  # type: ignore[arg-type]
        "12 KiB of query": with_lines(path="/.well-known/mimi-ds?" + "&" * 12_000),
        "12 KiB of path": with_lines(path="/ds" * 4_000),
        "12 KiB of escapes": with_lines(path="/%41" * 3_000),
        "without a certificate": with_lines("Content-Length: 1000", body=bytes(1000), **post),  # type: ignore[arg-type]
        "chunks of one octet": with_lines(
            *octet_stream, method="POST", path=GATEWAY, body=b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n"
        ),
        "no HTTP": lambda number: b"\r\nx\r\n\r\n",
    }


def shake_hands(connection: Connection, number: int) -> int:
    """Open a connection and close it; count the octets of TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = connection.target.context.wrap_bio(incoming, outgoing, server_hostname=connection.target.name)
    host, port = connection.target.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sent += outgoing.pending
                plain.sendall(outgoing.read())
                incoming.write(plain.recv(65_536))
        connection.sent += outgoing.pending
        plain.sendall(outgoing.read())
    return HTTPStatus.OK


def send_garbage(connection: Connection, number: int) -> int:
    host, port = connection.target.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        garbage = b"GET / HTTP/1.1\r\n\r\n"
        connection.sent += len(garbage)
        plain.sendall(garbage)
        try:
            plain.recv(100)
        except OSError as error:
            raise Ended from error
    return 0


def gateway(provider: Provider) -> dict[str, Callable[[int], bytes]]:
    context = ssl.create_default_context(cafile=str(provider.ca_file))
    answer = httpx.get(f"{provider.public_url}{GATEWAY}", verify=context, headers={"Host": provider.name})
    config = decode_keys(answer.raise_for_status().content)[0]
    provider.add_user("victim")
    head = bytes([config.key_id]) + b"\0\x20\0\1\0\1"

    def sealed(content: Callable[[], bytes]) -> Callable[[int], bytes]:
        return lambda number: seal(config, content())

    def asking(count: int, *, bundle: bool = True) -> Callable[[], bytes]:
        def content() -> bytes:
            one = KeyPackageRequest(
                UserId(b"mimi://a.example/u/victim"), BearerToken(secrets.token_bytes(4)), MLS10, SUITE
            )
            asked = encode(KeyPackageBundleRequest((one,) * count)) if bundle else encode(one)
            return inner(provider.name, asked, "/key-packages?bundle" if bundle else "/key-packages")

        return content

    fields = tuple((b"a", b"") for _ in range(60))
    once = seal(config, asking(1, bundle=False)())
    return {
        "junk": lambda number: head + secrets.token_bytes(64),
        "1 MiB of junk": lambda number: head + secrets.token_bytes((1 << 20) - 64),
        "unknown key": lambda number: bytes([config.key_id ^ 1]) + head[1:] + bytes(64),
        "sealed junk": sealed(lambda: secrets.token_bytes(8)),
        "60 fields": sealed(lambda: bhttp.encode_request(bhttp.Request("POST", "https", "", "/", fields, b""))),
        "one request": sealed(asking(1, bundle=False)),
        "a bundle of 64": sealed(asking(64)),
        "a bundle of 10,000": sealed(asking(10_000)),
        "the same request": lambda number: once,
    }


def inner(host: str, content: bytes, path: str) -> bytes:
    date = formatdate(time.time(), usegmt=True).encode()
    fields = ((b"content-type", b"application/mimi-ds"), (b"date", date))
    return bhttp.encode_request(bhttp.Request("POST", "https", host, path, fields, content))


def seal(config: KeyConfig, message: bytes) -> bytes:
    return encapsulate(config, message, secrets.token_bytes(32)).message
