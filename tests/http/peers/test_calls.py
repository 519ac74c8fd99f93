"""Calls to other providers: over real sockets and TLS, to listeners of our own; contract with `FakePeers`."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import httpcore
import pytest
import trio
import trustme

from mimids.config import Config, parse
from mimids.ds.clock import SystemClock
from mimids.ds.ports import PeerAnswer, PeerTransport, RelayedAnswer
from mimids.errors import BranchTerminated, MimiError, PeerFailed, PeerUnavailable, ProviderNotAllowed, UnknownPartition
from mimids.http.api.problems import reply
from mimids.http.peers.calls import CALLS_TO_ONE, HttpPeers, PeerStatistics, open_peers
from mimids.http.peers.dialling import public_addresses
from mimids.http.server.listener import Bind, OpenListener, connection_info, serve
from mimids.http.server.tls import Pair, ServerTls, Trust
from mimids.wire.ids import ProviderId
from tests.support.doubles import Called, FakePeers

B = ProviderId("b.example")
Message = dict[str, Any]
Script = Callable[["Asked"], Awaitable[tuple[int, dict[str, str], bytes]]]


@attrs.frozen
class Asked:
    """A request, as the other provider sees it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    names: frozenset[ProviderId] | None
    connection: tuple[str, int]


class Other:
    """Another provider, behind a listener of ours; `script` answers."""

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
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": content, "more_body": False})


async def ok(asked: Asked) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/mimi-ds"}, b"answer to " + asked.body


@attrs.frozen
class World:
    """An authority, our configuration, and a way to start others."""

    directory: Path
    ca: trustme.CA
    nursery: trio.Nursery

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
        self, script: Script = ok, *, names: tuple[str, ...] = ("b.example",), ca: Any = None
    ) -> tuple[Other, str]:
        """Start another provider; return it and its url."""
        app = Other(script)
        tls = ServerTls(self.pair(*names, ca=ca), clients=Trust(self.trust))
        bound: OpenListener = await self.nursery.start(
            lambda task_status: serve(
                app, Bind("public", "127.0.0.1:0", tls), drain=trio.Event(), task_status=task_status
            )
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
            "federation": {"mode": mode, "allow": ["a.example", "b.example"], "connect_seconds": 2},
        }
        if url is not None:
            table["providers"] = {"b.example": {"url": url, **peer}}
        return parse(table, self.directory)

    @asynccontextmanager
    async def peers(self, url: str | None, **options: Any) -> AsyncIterator[HttpPeers]:
        async with open_peers(self.config(url, **options), SystemClock()) as peers:
            yield peers


@pytest.fixture
def world(tmp_path: Path, nursery: trio.Nursery) -> World:
    return World(tmp_path, trustme.CA(), nursery)


# --- what a call is -----------------------------------------------------------------------------------------------


async def test_a_call_shows_our_certificate_and_name(world: World) -> None:
    other, url = await world.other()
    async with world.peers(url) as peers:
        answer = await peers.call(B, "POST", "/ds/v1/send?bundle", b"body", wait_seconds=3)
    assert answer.body == b"answer to body"
    assert answer.date.endswith(" GMT")
    (asked,) = other.asked
    assert asked.names == frozenset({ProviderId("a.example")})
    assert (asked.method, asked.target, asked.body) == ("POST", "/ds/v1/send?bundle", b"body")
    assert asked.headers == {
        "host": "b.example",
        "user-agent": "mimids",
        "from": "mimi@a.example",
        "prefer": "wait=3",
        "content-type": "application/mimi-ds",
        "content-length": "4",
    }


async def test_a_plain_call_says_nothing_of_us(world: World) -> None:
    other, url = await world.other()
    async with world.peers(url) as peers:
        answer = await peers.call_plainly(B, "POST", "/.well-known/ohttp-gateway", b"x", media_type="message/ohttp-req")
        await peers.call_plainly(B, "GET", "/.well-known/ohttp-gateway", media_type="application/ohttp-keys")
    assert (answer.status, answer.body) == (200, b"answer to x")
    first, second = other.asked
    assert first.names is None
    assert set(first.headers) == {"host", "user-agent", "content-type", "content-length"}
    assert set(second.headers) == {"host", "user-agent"}


async def test_connections_are_kept(world: World) -> None:
    other, url = await world.other()
    async with world.peers(url) as peers:
        for _ in range(3):
            await peers.call(B, "POST", "/x")
    assert len({asked.connection for asked in other.asked}) == 1


async def test_a_refusal_is_raised_as_itself_and_a_plain_one_returned(world: World) -> None:
    async def refuse(_: Asked) -> tuple[int, dict[str, str], bytes]:
        answer = reply(BranchTerminated("ended by its hub"))
        return answer.status, {name.decode(): value.decode() for name, value in answer.headers}, answer.body

    _, url = await world.other(refuse)
    async with world.peers(url) as peers:
        with pytest.raises(BranchTerminated, match="ended by its hub"):
            await peers.call(B, "POST", "/x")
        assert (await peers.call_plainly(B, "GET", "/x", media_type="x/y")).status == 409
        assert peers.statistics() == PeerStatistics(0, 1, 1, 0)


async def test_cookies_and_redirects_mean_nothing(world: World) -> None:
    async def redirect(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        return 307, {"Location": "/elsewhere", "Set-Cookie": "a=b"}, b""

    other, url = await world.other(redirect)
    async with world.peers(url) as peers:
        for _ in range(2):
            with pytest.raises(PeerFailed):
                await peers.call(B, "POST", "/x")
    assert [asked.target for asked in other.asked] == ["/x", "/x"]
    assert "cookie" not in other.asked[1].headers


@pytest.mark.parametrize("how", ["length", "chunked", "problem"])
async def test_an_answer_beyond_its_limit_is_cut_off(world: World, how: str) -> None:
    async def large(_: Asked) -> tuple[int, dict[str, str], bytes]:
        headers = {"Content-Length": "200000"} if how == "length" else {}
        return (404 if how == "problem" else 200), headers, b"x" * 200_000

    _, url = await world.other(large)
    config = world.config(url)
    config = attrs.evolve(config, limits=attrs.evolve(config.limits, max_body_bytes=100_000))
    async with open_peers(config, SystemClock()) as peers:
        with pytest.raises(PeerFailed, match="too large"):
            await peers.call(B, "POST", "/x")


async def test_a_peer_that_does_not_answer_in_time_is_unavailable(world: World) -> None:
    async def never(_: Asked) -> tuple[int, dict[str, str], bytes]:
        await trio.sleep_forever()
        raise AssertionError

    _, url = await world.other(never)
    async with world.peers(url) as peers:
        with trio.fail_after(5), pytest.raises(PeerUnavailable):
            await peers.call(B, "POST", "/x", timeout_seconds=0.2)
        assert peers.statistics().calling == 0


async def test_nobody_there_is_unavailable(world: World) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with world.peers(f"https://127.0.0.1:{unused.getsockname()[1]}") as peers:
            with pytest.raises(PeerUnavailable):
                await peers.call(B, "POST", "/x")


async def test_a_call_that_is_cancelled_in_its_handshake_leaves_no_socket_open(world: World) -> None:
    greeted, left = trio.Event(), trio.Event()

    async def say_nothing(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            greeted.set()
        left.set()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"https://127.0.0.1:{listener.socket.getsockname()[1]}"
    async with trio.open_nursery() as listening, world.peers(url) as peers:
        listening.start_soon(trio.serve_listeners, say_nothing, [listener])
        async with trio.open_nursery() as calling:
            calling.start_soon(peers.call, B, "POST", "/x")
            with trio.fail_after(10):
                await greeted.wait()
            calling.cancel_scope.cancel()
        with trio.fail_after(10):
            await left.wait()
        listening.cancel_scope.cancel()


async def test_a_connection_that_went_stale_is_made_anew_but_not_for_the_relay(world: World) -> None:
    cut = 0

    async def cutting(stream: trio.SSLStream[trio.SocketStream]) -> None:
        """Answer one request on each connection, read the next, and go away."""
        nonlocal cut
        try:
            for answer in (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""):
                data = b""
                while b"\r\n\r\n" not in data:
                    data += await stream.receive_some()
                    if not data:
                        return
                if answer:
                    await stream.send_all(answer)
            cut += 1
        finally:
            await trio.aclose_forcefully(stream)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pair = world.pair("b.example")
    context.load_cert_chain(pair.certificate, pair.private_key)
    listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1", https_compatible=True)
    world.nursery.start_soon(trio.serve_listeners, cutting, listeners)
    inner = listeners[0].transport_listener
    assert isinstance(inner, trio.SocketListener)
    port = inner.socket.getsockname()[1]
    async with world.peers(f"https://127.0.0.1:{port}") as peers:
        for _ in range(2):
            await peers.call(B, "GET", "/x")
        assert cut == 1
        await peers.call_plainly(B, "GET", "/x", media_type="x/y")
        with pytest.raises(PeerUnavailable):
            await peers.call_plainly(B, "GET", "/x", media_type="x/y")


async def test_one_slow_peer_holds_a_bounded_number_of_calls(world: World) -> None:
    release = trio.Event()

    async def slow(_: Asked) -> tuple[int, dict[str, str], bytes]:
        await release.wait()
        return 200, {}, b""

    other, url = await world.other(slow)
    async with world.peers(url) as peers, trio.open_nursery() as nursery:
        for _ in range(CALLS_TO_ONE):
            nursery.start_soon(peers.call, B, "POST", "/x")
        await other.wait_for(CALLS_TO_ONE)
        with pytest.raises(PeerUnavailable, match="too many"):
            await peers.call(B, "POST", "/x")
        release.set()


# --- whom we believe ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("c.example",), ("*.example",), ("127.0.0.1",)])
async def test_another_name_than_the_providers_is_not_believed(world: World, names: tuple[str, ...]) -> None:
    other, url = await world.other(names=names)
    async with world.peers(url) as peers:
        with pytest.raises(PeerUnavailable):
            await peers.call(B, "POST", "/x")
    assert not other.asked


async def test_a_stranger_to_our_trust_is_not_believed_unless_the_provider_has_its_own(world: World) -> None:
    strange = trustme.CA()
    _, url = await world.other(ca=strange)
    async with world.peers(url) as peers:
        with pytest.raises(PeerUnavailable):
            await peers.call(B, "POST", "/x")
    path = world.directory / "b-ca.crt"
    strange.cert_pem.write_to_path(path)
    async with world.peers(url, trust=str(path)) as peers:
        assert (await peers.call(B, "POST", "/x")).body


async def test_a_renewed_certificate_is_shown_without_disturbing_a_call(world: World) -> None:
    release = trio.Event()

    async def slow_first(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        if asked.target == "/slow":
            await release.wait()
        return 200, {}, b"done"

    other, url = await world.other(slow_first)
    async with world.peers(url) as peers, trio.open_nursery() as nursery:
        nursery.start_soon(peers.call, B, "POST", "/slow")
        await other.wait_for(1)
        world.pair("a.example", "also-a.example")
        await peers.reload()
        await peers.call(B, "POST", "/x")
        release.set()
    assert [len(asked.names or ()) for asked in other.asked] == [1, 2]


# --- whom we may call ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c.example", "a.example"])
async def test_who_is_not_allowed_is_not_called(world: World, name: str) -> None:
    async with world.peers(None) as peers:
        with pytest.raises(ProviderNotAllowed):
            await peers.call(ProviderId(name), "POST", "/x")
        with pytest.raises(ProviderNotAllowed):
            await peers.call_plainly(ProviderId(name), "GET", "/x", media_type="x/y")


class Names(trio.abc.HostnameResolver):
    """A resolver that knows what it is told."""

    def __init__(self, **known: list[str]) -> None:
        self.known = known
        self.asked = 0

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.known["all"]]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], []])
async def test_in_open_mode_a_name_with_any_other_address_is_not_dialled(world: World, addresses: list[str]) -> None:
    trio.socket.set_custom_hostname_resolver(Names(all=addresses))
    async with world.peers(None, mode="open") as peers:
        with pytest.raises(ProviderNotAllowed, match="public"):
            await peers.call(ProviderId("c.example"), "POST", "/x")


async def test_in_open_mode_what_was_looked_at_is_what_is_connected_to(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second look-up could answer otherwise (DNS rebinding)."""
    names = Names(all=["93.184.216.34", "93.184.216.35"])
    trio.socket.set_custom_hostname_resolver(names)
    dialled: list[str] = []

    class Nowhere(httpcore.TrioBackend):
        async def connect_tcp(self, host: str, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
            dialled.append(host)
            raise httpcore.ConnectError

    monkeypatch.setattr(httpcore, "TrioBackend", Nowhere)
    async with world.peers(None, mode="open") as peers:
        with pytest.raises(PeerUnavailable):
            await peers.call_plainly(ProviderId("c.example"), "GET", "/x", media_type="x/y")
    assert dialled == ["93.184.216.34", "93.184.216.35"]
    assert names.asked == 1
    assert await public_addresses("c.example", 443) == dialled


async def test_two_providers_at_one_address_share_no_connection(world: World) -> None:
    other, url = await world.other(names=("b.example", "c.example"))
    config = world.config(url)
    c = ProviderId("c.example")
    config = attrs.evolve(
        config,
        federation=attrs.evolve(config.federation, allow=(B, c)),
        providers={B: config.providers[B], c: config.providers[B]},
    )
    async with open_peers(config, SystemClock()) as peers:
        await peers.call(B, "POST", "/x")
        await peers.call(c, "POST", "/x")
    assert [asked.headers["host"] for asked in other.asked] == ["b.example", "c.example"]
    assert len({asked.connection for asked in other.asked}) == 2


# --- the contract that the double keeps too -----------------------------------------------------------------------


@pytest.mark.parametrize("real", [True, False], ids=["http", "fake"])
async def test_both_kinds_of_peers_keep_the_contract(world: World, real: bool) -> None:
    terms = {"Mimids-Arrangement": "7"}

    async def script(body: bytes) -> bytes:
        if body == b"refuse":
            raise UnknownPartition
        if body == b"hang":
            await trio.sleep_forever()
        return b"answer to " + body

    async def served(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        try:
            return 200, terms, await script(asked.body)
        except MimiError as error:
            answer = reply(error)
            headers = {name.decode(): value.decode() for name, value in answer.headers}
            return answer.status, headers | terms, answer.body

    async def faked(called: Called) -> PeerAnswer:
        called.on_terms_revision(7)
        return PeerAnswer(await script(called.body))

    async def fake_gateway(called: Called) -> RelayedAnswer:
        return RelayedAnswer(status=200, media_type="", body=await script(called.body))

    async def check(peers: PeerTransport) -> None:
        assert (await peers.call(B, "POST", "/x", b"1")).body == b"answer to 1"
        assert (await peers.call_plainly(B, "POST", "/x", b"2", media_type="x/y")).status == 200
        revisions: list[int] = []
        with suppress(UnknownPartition):
            await peers.call(B, "POST", "/x", b"refuse", on_terms_revision=revisions.append)
        assert revisions == [7]
        with pytest.raises(UnknownPartition):
            await peers.call(B, "POST", "/x", b"refuse")
        with pytest.raises(PeerUnavailable):
            await peers.call(B, "POST", "/x", b"hang", timeout_seconds=0.1)

    if real:
        _, url = await world.other(served)
        async with world.peers(url) as peers:
            await check(peers)
    else:
        fake = FakePeers()
        fake.add("b.example", faked)
        fake.add_gateway("b.example", fake_gateway)
        await check(fake)
