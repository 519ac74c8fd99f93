"""Connections that are kept, whom we trust, and renewed certificates."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import trio
import trustme

from mimids.config import Config
from mimids.ds.clock import SystemClock
from mimids.errors import PeerUnavailable
from mimids.http.peers.calls import open_peers
from mimids.http.peers.pools import IDLE_SECONDS, KEPT_OF_ONE
from mimids.wire.ids import ProviderId
from tests.support.other_provider import Asked, B, World


async def test_connections_are_reused(world: World) -> None:
    other, url = await world.other()
    async with world.peers(url) as peers:
        for _ in range(3):
            await peers.call(B, "POST", "/x")
    assert len({asked.connection for asked in other.asked}) == 1


async def test_two_providers_at_one_address_have_separate_connections(world: World) -> None:
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


@pytest.mark.parametrize("names", [("c.example",), ("*.example",), ("127.0.0.1",)])
async def test_a_certificate_with_another_name_is_refused(world: World, names: tuple[str, ...]) -> None:
    other, url = await world.other(names=names)
    async with world.peers(url) as peers:
        with pytest.raises(PeerUnavailable):
            await peers.call(B, "POST", "/x")
    assert not other.asked


async def test_a_certificate_of_an_unknown_authority_is_refused_unless_the_provider_has_a_trust_file(
    world: World,
) -> None:
    strange = trustme.CA()
    _, url = await world.other(ca=strange)
    async with world.peers(url) as peers:
        with pytest.raises(PeerUnavailable):
            await peers.call(B, "POST", "/x")
    path = world.directory / "b-ca.crt"
    strange.cert_pem.write_to_path(path)
    async with world.peers(url, trust=str(path)) as peers:
        assert (await peers.call(B, "POST", "/x")).body


async def test_a_renewed_certificate_is_presented_without_interrupting_a_call(world: World) -> None:
    release = trio.Event()

    async def slow_first(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        if asked.target == "/slow":
            await release.wait()
        return 200, {}, b"done"

    other, url = await world.other(slow_first)
    async with world.peers(url) as peers:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peers.call, B, "POST", "/slow")
            await other.wait_for(1)
            world.pair("a.example", "also-a.example")
            await peers.reload()
            await peers.call(B, "POST", "/x")
            release.set()
        await peers.call(B, "POST", "/x")  # not on the connection of the slow call
    assert [len(asked.names or ()) for asked in other.asked] == [1, 2, 2]


def calling(names: Sequence[ProviderId], config: Config) -> Config:
    """Return a configuration in which all these providers are where it has b.example."""
    return attrs.evolve(
        config,
        federation=attrs.evolve(config.federation, allow=tuple(names)),
        providers=dict.fromkeys(names, config.providers[B]),
    )


async def test_the_connections_of_the_providers_called_longest_ago_are_closed_first(world: World) -> None:
    names = [ProviderId(f"{letter}.example") for letter in "bcde"]
    other, url = await world.other(names=tuple(names))
    async with open_peers(calling(names, world.config(url)), SystemClock()) as peers:
        pools = peers._named
        pools._most_kept = 3
        for name in names:  # the first is dropped for the last
            await peers.call(name, "POST", "/x")
        assert (pools.kept, len(pools._pools)) == (3, 3)
        for name in reversed(names):
            await peers.call(name, "POST", "/x")
        assert (pools.kept, len(pools._pools)) == (3, 3)
    assert (pools.kept, len(pools._pools)) == (0, 0)
    assert len({asked.connection for asked in other.asked}) == 5


async def test_a_provider_that_cannot_be_reached_leaves_no_pool(world: World) -> None:
    _, url = await world.other(names=("c.example",))
    async with world.peers(url) as peers:
        with pytest.raises(PeerUnavailable):
            await peers.call(B, "POST", "/x")
        assert not peers._named._pools
        assert not peers._named._idle


async def test_a_hundred_providers_that_are_called_again_and_again_keep_their_connections(world: World) -> None:
    names = [ProviderId(f"f{number}.example") for number in range(100)]
    other, url = await world.other(names=tuple(names))
    async with open_peers(calling(names, world.config(url)), SystemClock()) as peers:
        for _ in range(2):
            for name in names:
                await peers.call(name, "POST", "/x")
    assert len(other.asked) == 200
    assert len({asked.connection for asked in other.asked}) == 100


async def test_connections_that_are_idle_too_long_are_closed_by_calls_to_others(world: World) -> None:
    names = [ProviderId(f"{letter}.example") for letter in "bcde"]
    _, url = await world.other(names=tuple(names))
    async with open_peers(calling(names, world.config(url)), SystemClock()) as peers:
        pools = peers._named
        for name in names[:3]:
            await peers.call(name, "POST", "/x")
        for connection in pools._idle:
            connection.idle_since -= IDLE_SECONDS
        await peers.call(names[3], "POST", "/x")
        assert list(pools._pools) == [names[3]]


async def test_a_burst_leaves_few_connections_to_one_provider(world: World) -> None:
    release = trio.Event()

    async def slow(_: Asked) -> tuple[int, dict[str, str], bytes]:
        await release.wait()
        return 200, {}, b""

    other, url = await world.other(slow)
    async with world.peers(url) as peers:
        async with trio.open_nursery() as nursery:
            for _ in range(KEPT_OF_ONE + 2):
                nursery.start_soon(peers.call, B, "POST", "/x")
            await other.wait_for(KEPT_OF_ONE + 2)
            release.set()
        assert peers._named.kept == KEPT_OF_ONE
