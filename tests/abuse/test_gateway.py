"""Anonymous garbage for the OHTTP gateway: it costs its own address, and nobody else."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from mimids.ds.key_packages.gateway import GatewayBounds, network_of
from mimids.ds.limits.rates import Rate
from mimids.errors import Busy, MimiError, RateLimited
from mimids.http.api.public import PUBLIC
from mimids.ohttp import bhttp
from mimids.store import ohttp
from mimids.wire.declare import encode
from tests.support.doubles import bound_hits
from tests.support.inmemory import InMemory
from tests.support.provider import Authority, assembled
from tests.support.rig import ask, bundle, problem_type, running

BOUNDS = GatewayBounds(rate=Rate("gateway_requests_per_second", 1, 10), address_rate=Rate("per_address", 1, 30))


async def test_garbage_spends_the_rate_of_its_address_only(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite", bounds=BOUNDS) as rig:
        token = await rig.stocked(3)
        message, _ = rig.encapsulate(encode(ask(token)))
        refusals = []
        for _ in range(200):
            with pytest.raises(MimiError) as refused:
                await rig.gateway.answer(message[:-16] + secrets.token_bytes(16), "192.0.2.1")
            refusals.append(type(refused.value))
        assert refusals.count(RateLimited) == 170
        assert len(await rig.gateway.answer(message, "192.0.2.2")) > 100
        assert (await rig.fetch(ask(token))).status == 200


async def test_sealed_requests_that_cannot_be_read_do_not_spend_the_rate_of_all(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite", bounds=BOUNDS) as rig:
        token = await rig.stocked(1)
        for _ in range(30):
            await rig.gateway.answer(rig.seal(secrets.token_bytes(100))[0], "192.0.2.1")
        assert (await rig.fetch(ask(token))).status == 200


async def test_each_request_of_a_bundle_counts(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite", bounds=BOUNDS) as rig:
        token = await rig.stocked(20)
        content = bundle(*[ask(token)] * 9)
        message, _ = rig.encapsulate(content, path="/key-packages?bundle")
        await rig.gateway.answer(message)
        assert (await rig.fetch(ask(token))).status == 200
        assert problem_type(await rig.fetch(ask(token))) == (429, "rate-limited")
        assert bound_hits(rig.log.telemetry, "gateway-rate") == 1


@pytest.mark.parametrize("bundled", [False, True])
async def test_an_answer_for_which_there_is_no_room_claims_no_key_package(bundled: bool, tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        token = await rig.stocked(3)
        content, path = encode(ask(token)), "/key-packages"
        if bundled:
            content, path = bundle(ask(token), ask(token)), f"{path}?bundle"
        message, opener = rig.encapsulate(content, path=path)
        asked: list[int] = []

        async def no_room(octets: int) -> None:
            asked.append(octets)
            raise Busy

        before = await rig.left()
        response = bhttp.decode_response(opener.open(await rig.gateway.answer(message, reserve=no_room)))
        assert problem_type(response) == (503, "busy")
        assert (await rig.left(), await rig.store.read(ohttp.room_taken)) == (before, 0)
        message, opener = rig.encapsulate(content, path=path)
        answer = await rig.gateway.answer(message)
        assert bhttp.decode_response(opener.open(answer)).status == 200
        assert asked[0] >= len(answer)


def test_an_ipv6_network_is_one_requester() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1%eth0") != network_of("2001:db8:0:1::1")
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:0:0:1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") != network_of("192.0.2.2")


async def test_the_address_comes_from_the_connection(tmp_path: Path) -> None:
    limits = {"gateway_address_requests_per_second": 1, "gateway_address_requests_burst": 2}
    config = Authority(tmp_path).config("a.example", limits=limits)
    async with assembled(config) as provider:
        app = provider.app(PUBLIC)

        async def from_address(address: str) -> int:
            async def addressed(scope, receive, send):  # type: ignore[no-untyped-def]
                await app({**scope, "client": (address, 1)}, receive, send)

            headers = {"content-type": "message/ohttp-req"}
            path = "/.well-known/ohttp-gateway"
            return (await InMemory(addressed).ask("POST", path, bytes(60), headers)).status

        assert [await from_address("192.0.2.1") for _ in range(4)] == [400, 400, 429, 429]
        assert await from_address("192.0.2.2") == 400
        assert bound_hits(provider.services.telemetry, "gateway-address-rate") == 2
