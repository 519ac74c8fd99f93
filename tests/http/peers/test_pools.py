"""Connections that are kept, whom we trust, and renewed certificates."""

from __future__ import annotations

import attrs
import pytest
import trio
import trustme

from mimids.ds.clock import SystemClock
from mimids.errors import PeerUnavailable
from mimids.http.peers.calls import open_peers
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
    async with world.peers(url) as peers, trio.open_nursery() as nursery:
        nursery.start_soon(peers.call, B, "POST", "/slow")
        await other.wait_for(1)
        world.pair("a.example", "also-a.example")
        await peers.reload()
        await peers.call(B, "POST", "/x")
        release.set()
    assert [len(asked.names or ()) for asked in other.asked] == [1, 2]
