"""Another provider behind a real listener with TLS, to call from tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
import trustme

from mimids.config import Config, parse
from mimids.ds.clock import SystemClock
from mimids.http.peers.calls import HttpPeers, open_peers
from mimids.http.server.listener import Bind, OpenListener, connection_info, serve
from mimids.http.server.tls import Pair, ServerTls, Trust
from mimids.wire.ids import ProviderId
from tests.support.direct import as_direct

B = ProviderId("b.example")
Message = dict[str, Any]
Script = Callable[["Asked"], Awaitable[tuple[int, dict[str, str], bytes]]]


@attrs.frozen
class Asked:
    """A request as the other provider received it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    names: frozenset[ProviderId] | None
    connection: tuple[str, int]


class Other:
    """Another provider behind a listener; `script` answers its requests."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self._more = trio.Event()

    async def wait_for(self, requests: int) -> None:
        while len(self.asked) < requests:
            await self._more.wait()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        target = (scope["raw_path"] + query).decode()
        asked = Asked(scope["method"], target, headers, body, connection_info(scope).names, scope["client"])
        self.asked.append(asked)
        self._more.set()
        self._more = trio.Event()
        status, sent, content = await self.script(asked)
        pairs = [(name.encode(), value.encode()) for name, value in sent.items()]
        if b"content-length" not in {name.lower() for name, _ in pairs}:
            pairs.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": content, "more_body": False})


async def ok(asked: Asked) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/mimi-ds"}, b"answer to " + asked.body


@attrs.frozen
class World:
    """A certificate authority and our configuration; `other` starts another provider."""

    directory: Path
    ca: trustme.CA
    nursery: trio.Nursery
    tls: list[ServerTls] = attrs.field(factory=list)  # of the providers that were started

    def pair(self, *names: str, ca: trustme.CA | None = None) -> Pair:
        certificate = (ca or self.ca).issue_cert(*names)
        base = self.directory / names[0]
        certificate.private_key_pem.write_to_path(base.with_suffix(".key"))
        base.with_suffix(".pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        return Pair(base.with_suffix(".pem"), base.with_suffix(".key"))

    @property
    def trust(self) -> Path:
        path = self.directory / "ca.crt"
        self.ca.cert_pem.write_to_path(path)
        return path

    async def other(
        self, script: Script = ok, *, names: tuple[str, ...] = ("b.example",), ca: Any = None, direct: bool = False
    ) -> tuple[Other, str]:
        """Start another provider; return it and its url."""
        app = Other(script)
        tls = ServerTls(self.pair(*names, ca=ca), clients=Trust(self.trust))
        self.tls.append(tls)
        drain = trio.Event()
        served = as_direct(app, drain) if direct else app
        bound: OpenListener = await self.nursery.start(
            lambda task_status: serve(served, Bind("public", "127.0.0.1:0", tls), drain=drain, task_status=task_status)
        )
        return app, f"https://{bound.address}"

    def config(self, url: str | None, *, mode: str = "allow-list", **peer: str) -> Config:
        ours = self.pair("a.example")
        table: dict[str, Any] = {
            "provider": "a.example",
            "tls": {
                "certificate": str(ours.certificate),
                "private_key": str(ours.private_key),
                "trust": str(self.trust),
            },
            "federation": {"mode": mode, "allow": ["a.example", "b.example"], "connect_seconds": 10},
        }
        if url is not None:
            table["providers"] = {"b.example": {"url": url, **peer}}
        return parse(table, self.directory)

    @asynccontextmanager
    async def peers(self, url: str | None, **options: Any) -> AsyncIterator[HttpPeers]:
        async with open_peers(self.config(url, **options), SystemClock()) as peers:
            yield peers
