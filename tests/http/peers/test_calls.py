"""Calls to other providers, over real sockets and TLS; `FakePeers` keeps the same contract."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from functools import partial

import attrs
import pytest
import trio
import trio.testing

from mimids.ds.clock import SystemClock
from mimids.ds.ports import PeerAnswer, PeerTransport, RelayedAnswer
from mimids.errors import BranchTerminated, MimiError, PeerFailed, PeerUnavailable, ProviderNotAllowed, UnknownPartition
from mimids.http.api.problems import reply
from mimids.http.peers.answers import HttpAnswer
from mimids.http.peers.calls import CALLS_TO_ONE, FEW_CALLS, WAITS_AT_ONE, PeerStatistics, open_peers
from mimids.http.peers.exchange import PeerRequest
from mimids.http.peers.pools import Pools
from mimids.wire.ids import ProviderId
from tests.support.doubles import Called, FakePeers
from tests.support.other_provider import Asked, B, World
from tests.support.patience import patience


async def test_a_call_presents_our_certificate_and_name(world: World) -> None:
    other, url = await world.other()
    async with world.peers(url) as peers:
        answer = await peers.call(B, "POST", "/ds/v1/send?bundle", b"body", wait_seconds=3, terms_revision=5)
    assert answer.body == b"answer to body"
    assert answer.date.endswith(" GMT")
    (asked,) = other.asked
    assert asked.names == frozenset({ProviderId("a.example")})
    assert (asked.method, asked.target, asked.body) == ("POST", "/ds/v1/send?bundle", b"body")
    assert asked.headers == {
        "host": "b.example",
        "user-agent": "mimids",
        "from": "mimi@a.example",
        "mimids-arrangement": "5",
        "prefer": "wait=3",
        "content-type": "application/mimi-ds",
        "content-length": "4",
    }


async def test_a_plain_call_does_not_identify_us(world: World) -> None:
    other, url = await world.other()
    async with world.peers(url) as peers:
        answer = await peers.call_plainly(B, "POST", "/.well-known/ohttp-gateway", b"x", media_type="message/ohttp-req")
        await peers.call_plainly(B, "GET", "/.well-known/ohttp-gateway", media_type="application/ohttp-keys")
    assert (answer.status, answer.body) == (200, b"answer to x")
    first, second = other.asked
    assert first.names is None
    assert set(first.headers) == {"host", "user-agent", "content-type", "content-length"}
    assert set(second.headers) == {"host", "user-agent"}


async def test_a_refusal_is_raised_as_itself_and_a_plain_one_returned(world: World) -> None:
    async def refuse(_: Asked) -> tuple[int, dict[str, str], bytes]:
        answer = reply(BranchTerminated("ended by its hub"))
        return answer.status, {name.decode(): value.decode() for name, value in answer.headers}, answer.body

    _, url = await world.other(refuse)
    async with world.peers(url) as peers:
        with pytest.raises(BranchTerminated, match="ended by its hub"):
            await peers.call(B, "POST", "/x")
        assert (await peers.call_plainly(B, "GET", "/x", media_type="x/y")).status == 409
        assert peers.statistics() == PeerStatistics(0, 1, 1, 0, 0)


async def test_cookies_and_redirects_are_ignored(world: World) -> None:
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
    config = world.config(url)
    config = attrs.evolve(config, federation=attrs.evolve(config.federation, answer_seconds=1))
    async with open_peers(config, SystemClock()) as peers:
        with patience(), pytest.raises(PeerUnavailable):
            await peers.call(B, "POST", "/x")
        assert peers.statistics().calling == 0


async def test_a_peer_that_speaks_only_tls_1_2_is_not_called(world: World) -> None:
    other, url = await world.other()
    context = world.tls[0].current.context
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    async with world.peers(url) as peers:
        for call in (peers.call(B, "POST", "/x"), peers.call_plainly(B, "GET", "/x", media_type="x/y")):
            with pytest.raises(PeerUnavailable):
                await call
    assert other.asked == []


async def test_a_refused_connection_is_unavailable(world: World) -> None:
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
            with patience():
                await greeted.wait()
            calling.cancel_scope.cancel()
        with patience():
            await left.wait()
        listening.cancel_scope.cancel()


async def test_a_stale_connection_is_replaced_but_not_for_the_relay(world: World) -> None:
    cut = 0

    async def cutting(stream: trio.SSLStream[trio.SocketStream]) -> None:
        """Answer one request on each connection, read the next, and close."""
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


async def test_one_slow_peer_takes_a_bounded_number_of_calls(world: World) -> None:
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


async def test_many_slow_peers_leave_calls_for_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four slow hubs took all connections."""

    async def exchange(pools: Pools, request: PeerRequest, octets: int, *, repeatable: bool) -> HttpAnswer:
        if request.provider.startswith("slow"):
            await trio.sleep_forever()
        return HttpAnswer(200, {}, b"")

    monkeypatch.setattr(Pools, "exchange", exchange)
    async with world.peers(None, mode="open") as peers:

        async def call(provider: str) -> None:
            with suppress(PeerUnavailable):
                await peers.call(ProviderId(provider), "POST", "/x")

        async with trio.open_nursery() as nursery:
            for n in range(40):
                for _ in range(CALLS_TO_ONE):
                    nursery.start_soon(call, f"slow{n}.example")
            await trio.testing.wait_all_tasks_blocked()
            assert peers.statistics().crowded_out > 0
            async with trio.open_nursery() as others:
                for _ in range(FEW_CALLS):
                    others.start_soon(peers.call, ProviderId("quick.example"), "POST", "/x")
            nursery.cancel_scope.cancel()
        assert peers.statistics().calling == 0


async def test_calls_that_wait_for_news_leave_room_for_others(world: World) -> None:
    async def waits(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        if "prefer" in asked.headers:
            await trio.sleep_forever()
        return 200, {}, b""

    other, url = await world.other(waits)
    async with world.peers(url) as peers, trio.open_nursery() as nursery:
        for _ in range(WAITS_AT_ONE):
            nursery.start_soon(partial(peers.call, B, "POST", "/x", wait_seconds=60))
        await other.wait_for(WAITS_AT_ONE)
        with pytest.raises(PeerUnavailable, match="wait"):
            await peers.call(B, "POST", "/x", wait_seconds=60)
        await peers.call(B, "POST", "/x")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["c.example", "a.example"])
async def test_a_provider_that_is_not_allowed_is_not_called(world: World, name: str) -> None:
    async with world.peers(None) as peers:
        with pytest.raises(ProviderNotAllowed):
            await peers.call(ProviderId(name), "POST", "/x")
        with pytest.raises(ProviderNotAllowed):
            await peers.call_plainly(ProviderId(name), "GET", "/x", media_type="x/y")


# Longer than 40 lines: the real side, the fake side, and the checks of both are together.
@pytest.mark.parametrize("real", [True, False], ids=["http", "fake"])
async def test_real_and_fake_peers_keep_the_same_contract(world: World, real: bool) -> None:
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
