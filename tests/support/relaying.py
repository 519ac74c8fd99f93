"""A relay to gateways that answer as they are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio
import trio.testing

from mimids.ds.key_packages.gateway_keys import KeysAnswer
from mimids.ds.key_packages.relay import OwnGateway, Relay, RelayBounds
from mimids.ds.limits.new_providers import NewProviders
from mimids.ds.ports import PeerAnswer, RelayedAnswer, Reserve
from mimids.http.peers.answers import HttpAnswer, relayed_answer
from mimids.testing.clock import MovableClock
from mimids.values import DeviceRow
from mimids.wire.ids import ProviderId
from tests.support.doubles import stopped_clock
from tests.support.mls_makers import NOW
from tests.support.rig import UNLIMITED

A, B, C = ProviderId("a.example"), ProviderId("b.example"), ProviderId("c.example")
PHONE, LAPTOP = DeviceRow(1), DeviceRow(2)
KEYS = {"content-type": "application/ohttp-keys", "cache-control": "public, max-age=600", "mimids-keys-signature": "s"}
SEALED = {"content-type": "message/ohttp-res"}


def answered(body: bytes, headers: Mapping[str, str], status: int = 200) -> RelayedAnswer:
    return relayed_answer(HttpAnswer(status, headers, body))


class FakePeers:
    """`ports.Peers` that answers as it is told and remembers what it was asked."""

    def __init__(self, answer: RelayedAnswer | Exception | None = None) -> None:
        self.answer = answer or answered(b"sealed", SEALED)
        self.asked: list[tuple[ProviderId, str, str, bytes, str]] = []
        self.hold = trio.Event()
        self.hold.set()

    async def call_plainly(
        self, provider: ProviderId, method: str, path: str, body: bytes = b"", *, media_type: str
    ) -> RelayedAnswer:
        self.asked.append((provider, method, path, body, media_type))
        await self.hold.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def call(self, *_args: Any, **_named: Any) -> PeerAnswer:
        raise AssertionError("a relay presents no certificate")


async def our_gateway(message: bytes, /, *, reserve: Reserve) -> bytes:
    await reserve(1)
    return b"ours:" + message


def relay(peers: FakePeers, clock: MovableClock | None = None, **bounds: Any) -> Relay:
    clock = clock or stopped_clock(NOW)
    new_providers = NewProviders(bounds.pop("new_providers", UNLIMITED), UNLIMITED, clock)
    chosen = RelayBounds(**{"fetches": UNLIMITED, **bounds})
    local = OwnGateway(provider=A, answer=our_gateway, keys=lambda: KeysAnswer(b"our keys", "our signature", 60))
    return Relay(peers, clock, local, lambda provider: provider in (B, C), chosen, new_providers)


def problem(status: int) -> RelayedAnswer:
    return answered(b"{}", {"content-type": "application/problem+json"}, status)
