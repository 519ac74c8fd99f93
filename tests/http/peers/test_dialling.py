"""Which addresses a provider's name leads to, and which of them count as public."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from mimids.errors import PeerUnavailable
from mimids.http.peers import dialling
from mimids.http.peers.addresses import is_public
from mimids.http.peers.dialling import CannotConnect
from mimids.wire.ids import ProviderId
from tests.support.other_provider import World


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),  # noqa: S104  # an address to be refused
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d822", True),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


class Names:
    """A resolver with fixed addresses for every name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
        self.asked = 0
        self._addresses = addresses
        monkeypatch.setattr(socket, "getaddrinfo", self._answer)

    def _answer(self, host: str, port: int, type: int = 0) -> list[Any]:
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self._addresses]


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that are connected to; no connection succeeds."""
    found: list[str] = []

    async def connect_nowhere(address: str, port: int, seconds: float) -> socket.socket:
        found.append(address)
        raise CannotConnect

    monkeypatch.setattr(dialling, "connect_tcp", connect_nowhere)
    return found


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], []])
async def test_in_open_mode_a_name_with_a_private_address_is_not_contacted(
    world: World, addresses: list[str], dialled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Names(monkeypatch, addresses)
    async with world.peers(None, mode="open") as peers:
        with pytest.raises(PeerUnavailable):
            await peers.call(ProviderId("c.example"), "POST", "/x")
    assert not dialled


async def test_in_open_mode_the_addresses_that_were_checked_are_connected_to(
    world: World, dialled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second look-up could return other addresses (DNS rebinding)."""
    names = Names(monkeypatch, ["93.184.216.34", "93.184.216.35"])
    async with world.peers(None, mode="open") as peers:
        with pytest.raises(PeerUnavailable):
            await peers.call_plainly(ProviderId("c.example"), "GET", "/x", media_type="x/y")
    assert dialled == ["93.184.216.34", "93.184.216.35"]
    assert names.asked == 1
