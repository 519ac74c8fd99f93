"""A gateway cannot give clients keys of their own: not through one relay, not to one client, not on contact cards."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, cast

import pytest
import trio

from mimids.client import KeysDiffer, KeySets
from mimids.client.connection import Connection
from mimids.client.device import Device
from mimids.ds.key_packages.relay import KEPT_AFTER_PROBLEM_SECONDS, KEPT_SECONDS, MAX_AGE_SECONDS
from mimids.ds.ports import RelayedAnswer
from mimids.ohttp.hpke import PrivateKey
from mimids.ohttp.keys_signature import APART_SECONDS, KeysExpired
from mimids.values import DeviceRow
from tests.support.client_gateway import NOW, PACKAGE, SUITE, Gateway, contact, device
from tests.support.doubles import stopped_clock
from tests.support.relaying import B, FakePeers, answered, problem, relay

SIGNATURE = f"not_after=1900000000, signature=:{b64encode(bytes(64)).decode()}:"


class CuriousGateway(FakePeers):
    """A gateway that answers each request for its keys with other ones."""

    def __init__(self, control: str) -> None:
        super().__init__()
        self.control = control
        self.sets = 0

    async def call_plainly(self, *arguments: Any, **named: Any) -> RelayedAnswer:
        if arguments[1] == "POST":
            return problem(422)
        await trio.lowlevel.checkpoint()
        self.sets += 1
        headers = {"content-type": "application/ohttp-keys", "cache-control": self.control}
        return answered(b"keys %d" % self.sets, headers | {"mimids-keys-signature": SIGNATURE})


@pytest.mark.parametrize("control", ["no-store", "max-age=0", "max-age=1", "max-age=3600", "max-age=999999"])
async def test_all_devices_of_a_relay_get_the_same_keys_whatever_the_gateway_says(control: str) -> None:
    clock, curious = stopped_clock(NOW), CuriousGateway(control)
    own = relay(curious, clock)
    got: set[bytes] = set()

    async def fetch(number: int) -> None:
        got.add((await own.ohttp_keys(DeviceRow(number), B)).body)

    async with trio.open_nursery() as devices:
        for number in range(30):
            devices.start_soon(fetch, number)
    for number in range(30):
        clock.advance((KEPT_SECONDS - 1) / 30)
        await fetch(number)
    assert got == {b"keys 1"} or len(got) == 1
    clock.advance(MAX_AGE_SECONDS)
    await fetch(0)
    assert len(got) == 2


async def test_a_gateway_that_refuses_keys_does_not_get_another_set_to_each_device() -> None:
    clock, curious = stopped_clock(NOW), CuriousGateway("max-age=3600")
    own = relay(curious, clock)
    got = []
    for number in range(10):
        got.append((await own.ohttp_keys(DeviceRow(number), B)).body)
        await own.forward(DeviceRow(number), B, b"x")
    assert len(set(got)) == 1
    clock.advance(KEPT_AFTER_PROBLEM_SECONDS)
    assert (await own.ohttp_keys(DeviceRow(1), B)).body not in got


async def test_a_clock_that_is_set_back_does_not_keep_keys_for_longer() -> None:
    clock, curious = stopped_clock(NOW), CuriousGateway("max-age=3600")
    own = relay(curious, clock)
    await own.ohttp_keys(DeviceRow(1), B)
    clock.jump(-10 * MAX_AGE_SECONDS)
    assert (await own.ohttp_keys(DeviceRow(1), B)).body == b"keys 2"


def other_key(gateway: Gateway, later: int) -> None:
    gateway.private = PrivateKey(bytes([1]) * 32)
    gateway.not_after += later


@pytest.mark.parametrize("later", [0, 1, APART_SECONDS - 1, -1, 1 - APART_SECONDS])
async def test_a_client_refuses_a_second_live_set_for_the_same_time(later: int) -> None:
    gateway = Gateway(not_after=NOW + 10 * APART_SECONDS)
    ours = device(gateway)
    await ours.fetch_key_package(contact(gateway), SUITE)
    other_key(gateway, later)
    gateway.paths.clear()
    with pytest.raises(KeysDiffer):
        await ours.fetch_key_package(contact(gateway), SUITE)
    assert gateway.paths.count("providers/b.example/ohttp") == 1, "nothing is sealed to the second set"


@pytest.mark.parametrize("later", [APART_SECONDS, 24 * 3600])
async def test_a_client_accepts_a_rotation(later: int) -> None:
    gateway = Gateway()
    ours = device(gateway)
    await ours.fetch_key_package(contact(gateway), SUITE)
    other_key(gateway, later)
    assert await ours.fetch_key_package(contact(gateway), SUITE) == PACKAGE


async def test_sets_are_remembered_across_restarts_until_they_expire() -> None:
    gateway, sets = Gateway(), KeySets()
    first = Device(cast("Connection", gateway), clock=lambda: NOW, key_sets=sets)
    await first.fetch_key_package(contact(gateway), SUITE)
    kept = KeySets.from_json(sets.as_json())
    assert kept == sets
    other_key(gateway, 5)
    again = Device(cast("Connection", gateway), clock=lambda: NOW, key_sets=kept)
    with pytest.raises(KeysDiffer):
        await again.fetch_key_package(contact(gateway), SUITE)
    later = Device(cast("Connection", gateway), clock=lambda: NOW + 3601, key_sets=kept)
    assert await later.fetch_key_package(contact(gateway), SUITE) == PACKAGE


@pytest.mark.parametrize("text", ["[]", "1", '{"b.example x": 1}', '{"b.example x": [[1, 2]]}', "{"])
def test_what_is_no_key_sets_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        KeySets.from_json(text)


async def test_relays_are_compared() -> None:
    gateway, other = Gateway(), Gateway()
    ours, theirs = device(gateway), device(other)
    assert await ours.compare_keys(contact(gateway), theirs)
    other_key(other, APART_SECONDS)
    assert not await ours.compare_keys(contact(gateway), theirs), "the other relay fetched later"
    other.not_after = gateway.not_after + 1
    with pytest.raises(KeysDiffer):
        await ours.compare_keys(contact(gateway), theirs)
    other.not_after = NOW - 1
    with pytest.raises(KeysExpired):
        await ours.compare_keys(contact(gateway), theirs)
