"""A stranger's name leads us neither into our own network nor to many hosts, and holds up no other name."""

from __future__ import annotations

import ipaddress
import socket
import threading
from contextlib import suppress
from typing import Any

import pytest
import trio
import trustme

from mimids.errors import PeerUnavailable
from mimids.http.peers import dialling
from mimids.http.peers.addresses import is_public
from mimids.http.peers.dialling import (
    LOOKUP_THREADS,
    LOOKUPS_OF_ONE,
    LOOKUPS_RESERVED,
    MAX_ADDRESSES,
    CannotConnect,
    Lookups,
    some_of,
)
from mimids.owners import WORKING_FOR
from mimids.wire.ids import ProviderId
from tests.support.other_provider import B, World
from tests.support.patience import patience

C = ProviderId("c.example")


@pytest.fixture
def world(tmp_path: Any, nursery: trio.Nursery) -> World:
    return World(tmp_path, trustme.CA(), nursery)


@pytest.mark.parametrize(
    "address",
    [
        "0.1.2.3",
        "100.127.255.255",
        "127.255.255.254",
        "172.31.0.1",
        "192.0.0.8",
        "192.0.0.9",
        "192.0.0.170",
        "192.0.2.1",
        "192.31.196.1",
        "192.52.193.1",
        "192.88.99.1",
        "192.175.48.1",
        "198.19.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "239.1.1.1",
        "250.0.0.1",
        "::7f00:1",
        "::5db8:d822",
        "::ffff:0:7f00:1",
        "::ffff:0:5db8:d822",
        "::ffff:192.0.0.8",
        "64:ff9b::c000:8",
        "64:ff9b:1::1",
        "64:ff9b:1:ffff::5db8:d822",
        "100::1",
        "100:0:0:1::1",
        "2001:2::1",
        "2001:20::1",
        "2001:db8::1",
        "2620:4f:8000::1",
        "3fff::1",
        "4000::1",
        "5f00::1",
        "fd00::1",
        "febf::1",
        "fec0::1",
        "feff::1",
        "ff0e::1",
    ],
)
def test_an_address_of_a_special_range_is_not_public(address: str) -> None:
    assert not is_public(address)


def test_no_range_that_pythons_table_calls_special_is_public() -> None:
    """The tables are private names of `ipaddress`, and newer versions of Python have more in them."""
    ranges = []
    for constants in (ipaddress._IPv4Constants, ipaddress._IPv6Constants):  # type: ignore[attr-defined]
        ranges += [*constants._private_networks, constants._linklocal_network, constants._multicast_network]
        ranges += getattr(constants, "_reserved_networks", [])
    assert len(ranges) > 30
    for each in ranges:
        if str(each) not in ("::ffff:0:0/96", "::ffff:0.0.0.0/96"):  # judged by the IPv4 address
            assert not is_public(str(each[0])), each
            assert not is_public(str(each[-1])), each


@pytest.mark.parametrize("address", ["1.1.1.1", "192.0.1.1", "203.0.114.1", "2001:4860::1", "2a00:1450::1", "2400::1"])
def test_an_address_beside_a_special_range_is_public(address: str) -> None:
    assert is_public(address)


def names(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    def answer(host: str, port: int, type: int = 0) -> list[Any]:
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.mark.parametrize("mode", ["open", "allow-list"])
async def test_one_request_connects_to_few_addresses_of_a_name(
    world: World, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[str] = []

    async def connect_nowhere(address: str, port: int, seconds: float) -> socket.socket:
        dialled.append(address)
        raise CannotConnect

    monkeypatch.setattr(dialling, "connect_tcp", connect_nowhere)
    names(monkeypatch, [f"93.184.216.{n}" for n in range(1, 200)])
    async with world.peers(None, mode=mode) as peers:
        with pytest.raises(PeerUnavailable):
            await peers.call_plainly(B, "GET", "/x", media_type="x/y")
    assert len(dialled) == MAX_ADDRESSES


def test_both_ip_versions_are_tried() -> None:
    many = [f"2a00::{n}" for n in range(1, 100)]
    assert some_of([*many, "1.1.1.1"]) == [*many[: MAX_ADDRESSES - 1], "1.1.1.1"]
    assert some_of(many) == many[:MAX_ADDRESSES]
    assert some_of(["1.1.1.1", "2a00::1"]) == ["1.1.1.1", "2a00::1"]
    assert some_of([]) == []


async def test_a_private_name_is_answered_as_an_unknown_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    async with world.peers(None, mode="open") as peers:
        for addresses in ([], ["10.0.0.1"], ["93.184.216.34", "10.0.0.1"]):
            names(monkeypatch, addresses)
            with pytest.raises(PeerUnavailable) as refused:
                await peers.call_plainly(C, "GET", "/x", media_type="x/y")
            said.append((str(refused.value), dict(refused.value.members), str(refused.value.__cause__)))
    assert len({repr(each) for each in said}) == 1


async def test_a_name_whose_server_does_not_answer_holds_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    release, running = threading.Event(), []

    def answer(host: str, port: int, type: int = 0) -> list[Any]:
        if host == "slow.example":
            running.append(host)
            release.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    lookups = Lookups()
    WORKING_FOR.set("somebody")

    async def ask() -> None:
        with pytest.raises(CannotConnect):
            await lookups.resolve("slow.example", 443, 0.1)

    try:
        async with trio.open_nursery() as asking:
            for _ in range(10 * LOOKUP_THREADS):
                asking.start_soon(ask)
        assert len(running) == 1
        with patience():
            assert await lookups.resolve("quick.example", 443, 5) == ["93.184.216.34"]
    finally:
        release.set()


async def test_the_slow_names_of_one_caller_leave_threads_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    release, running = threading.Event(), []

    def answer(host: str, port: int, type: int = 0) -> list[Any]:
        if host.startswith("slow"):
            running.append(host)
            release.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    lookups = Lookups()

    async def ask(caller: str | None, host: str) -> None:
        WORKING_FOR.set(caller)
        with suppress(CannotConnect):
            await lookups.resolve(host, 443, 0.2)

    try:
        async with trio.open_nursery() as asking:
            for n in range(2 * LOOKUP_THREADS):
                asking.start_soon(ask, "mallory", f"slow{n}.example")
        assert len(running) == LOOKUPS_OF_ONE
        async with trio.open_nursery() as asking:  # callers that occupy a thread may not take the reserve
            for caller in (*(f"mallory {n}" for n in range(4)), None):
                asking.start_soon(ask, caller, f"slow-first-{caller}.example")
        async with trio.open_nursery() as asking:
            for n in range(20):
                asking.start_soon(ask, f"mallory {n % 4}", f"slow-too{n}.example")
                asking.start_soon(ask, None, f"slow-job{n}.example")  # those of this server's own jobs
        assert len(running) <= LOOKUP_THREADS - LOOKUPS_RESERVED
        with patience():
            WORKING_FOR.set("honest")
            assert await lookups.resolve("quick.example", 443, 5) == ["93.184.216.34"]
    finally:
        release.set()
