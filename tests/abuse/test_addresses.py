"""A stranger's name leads us neither into our own network nor to many hosts, and holds up no other name."""

from __future__ import annotations

import socket
import threading
from typing import Any

import httpcore
import pytest
import trio
import trustme

from mimids.errors import PeerUnavailable
from mimids.http.peers.addresses import is_public
from mimids.http.peers.dialling import LOOKUP_THREADS, MAX_ADDRESSES, Lookups, some_of
from mimids.wire.ids import ProviderId
from tests.support.other_provider import B, World

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

    class Nowhere(httpcore.TrioBackend):
        async def connect_tcp(self, host: str, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
            dialled.append(host)
            raise httpcore.ConnectError

    monkeypatch.setattr(httpcore, "TrioBackend", Nowhere)
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

    async def ask() -> None:
        with pytest.raises(httpcore.ConnectTimeout):
            await lookups.resolve("slow.example", 443, 0.1)

    try:
        async with trio.open_nursery() as asking:
            for _ in range(10 * LOOKUP_THREADS):
                asking.start_soon(ask)
        assert len(running) == 1
        with trio.fail_after(5):
            assert await lookups.resolve("quick.example", 443, 5) == ["93.184.216.34"]
    finally:
        release.set()
