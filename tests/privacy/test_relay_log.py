"""The log of a relay at level debug, over real sockets: it does not say whom a failed request was for."""

from __future__ import annotations

import io
import ssl
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trio
import trustme

from mimids.ds.clock import SystemClock
from mimids.ds.devices import accounts
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.telemetry import Format, new_telemetry
from mimids.wire.ids import ProviderId
from tests.support.provider import Authority, running

ADDRESS = "127.0.0.88"  # of all targets
REFUSES, UNTRUSTED, HANGS_UP, NO_HTTP, NO_GATEWAY, NOT_ALLOWED = (
    f"{name}.example" for name in ("refuses", "untrusted", "hangs-up", "no-http", "no-gateway", "not-allowed")
)
ANSWERS = {
    HANGS_UP: b"",
    NO_HTTP: b"220 mail.example ESMTP\r\n\r\n",
    NO_GATEWAY: b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nno",
}

pytestmark = pytest.mark.slow


async def start_target(
    name: str, answer: bytes, authority: trustme.CA, nursery: trio.Nursery
) -> tuple[str, dict[str, str]]:
    """Start a provider that reads a request and gives this answer; return its name and its table of `providers`."""
    context = server_context(authority, name)

    async def serve(connection: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            stream = trio.SSLStream(connection, context, server_side=True, https_compatible=True)
            await stream.receive_some()
            if answer:
                await stream.send_all(answer)

    (listener,) = await trio.open_tcp_listeners(0, host=ADDRESS)
    port = listener.socket.getsockname()[1]
    nursery.start_soon(trio.serve_listeners, serve, [listener])
    return name, {"url": f"https://{ADDRESS}:{port}"}


async def add_device(store: Store) -> str:
    def add(tx: Tx) -> str:
        accounts.add_user(tx, ProviderId("a.example"), "alice", SystemClock().now())
        return accounts.add_device(tx, ProviderId("a.example"), "alice", "phone", SystemClock().now()).token

    return await store.write(add)


def server_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.parametrize("format", ["text", "json"])
async def test_no_failed_request_through_the_relay_names_its_target(format: Format, tmp_path: Path) -> None:
    authority, log = Authority(tmp_path), io.StringIO()
    async with trio.open_nursery() as nursery:
        targets = [await start_target(name, answer, authority.ca, nursery) for name, answer in ANSWERS.items()]
        targets.append(await start_target(UNTRUSTED, b"", trustme.CA(), nursery))
        targets.append((REFUSES, {"url": f"https://{ADDRESS}:1"}))
        config = authority.config(providers=dict(targets), federation={"allow": list(dict(targets))})
        telemetry = new_telemetry(config.provider, format=format, level="debug", to=log)
        async with running(config, telemetry=telemetry) as bound:
            token = await add_device(bound.provider.services.store)
            url = f"https://{bound.addresses['client']}"
            context = authority.client_context()
            context.check_hostname = False  # the listener has the certificate of a.example
            async with httpx.AsyncClient(
                base_url=url, verify=context, headers={"Authorization": f"Bearer {token}"}
            ) as client:
                for name in (*dict(targets), NOT_ALLOWED, f"{REFUSES}/.."):
                    path = f"/client/v1/providers/{name}/ohttp"
                    sealed = await client.post(path, content=b"sealed", headers={"Content-Type": "message/ohttp-req"})
                    keys = await client.get(f"{path}-keys")
                    wrong = await client.post(path, content=b"sealed", headers={"Content-Type": "text/html"})
                    method = await client.delete(path)
                    assert all(answer.status_code >= 400 for answer in (sealed, keys, wrong, method)), name
        nursery.cancel_scope.cancel()
    written = log.getvalue()
    assert "route=relay" in written or '"route":"relay"' in written
    for word in (*dict(targets), NOT_ALLOWED, ADDRESS, token, "alice"):
        assert word not in written
