"""What an observer of both sides of a relay can pair, with and without batches (docs/privacy.md has the figures)."""

from __future__ import annotations

import random
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from mimids.ds.key_packages.batches import SPREAD
from mimids.ds.ports import RelayedAnswer
from mimids.values import DeviceRow
from tests.support.relaying import SEALED, A, B, FakePeers, answered, relay

SEED = 15
REQUESTS = 1500
GATEWAY_SECONDS = 0.02  # for an answer, at most


@attrs.define
class Observer:
    """Sees the times of requests and answers on both sides, and tries to pair the requests; numbers are the truth."""

    asked: dict[int, float] = attrs.field(factory=dict)
    relayed: dict[int, float] = attrs.field(factory=dict)
    came_back: dict[int, float] = attrs.field(factory=dict)
    answered: dict[int, float] = attrs.field(factory=dict)

    def right(self) -> float:
        """Return the share of requests that are paired rightly.

        The order of requests is the order of relayed requests, as far as the times on the way back allow it.
        """
        inner = sorted(self.relayed, key=lambda n: self.relayed[n])
        outer = sorted(self.asked, key=lambda n: self.asked[n])
        by_requests = sum(one == other for one, other in zip(outer, inner, strict=True))
        inner = sorted(self.came_back, key=lambda n: self.came_back[n])
        outer = sorted(self.answered, key=lambda n: self.answered[n])
        by_answers = sum(one == other for one, other in zip(inner, outer, strict=True))
        return max(by_requests, by_answers) / len(self.asked)


class Gateways(FakePeers):
    def __init__(self, observer: Observer, chance: random.Random) -> None:
        super().__init__()
        self.observer = observer
        self.chance = chance

    async def call_plainly(self, *arguments: Any, **named: Any) -> RelayedAnswer:
        number = int(arguments[3])
        self.observer.relayed[number] = trio.current_time()
        await trio.sleep(GATEWAY_SECONDS * self.chance.random())
        self.observer.came_back[number] = trio.current_time()
        return answered(b"sealed", SEALED)


async def watch(batch_seconds: float, per_second: float) -> Observer:
    """Relay REQUESTS requests, at random times with this rate, and return what the observer saw."""
    chance, observer = random.Random(SEED), Observer()
    own = relay(Gateways(observer, chance), batch_seconds=batch_seconds, at_once=REQUESTS)

    async def fetch(number: int) -> None:
        observer.asked[number] = trio.current_time()
        await own.forward(DeviceRow(number), B, b"%d" % number)
        observer.answered[number] = trio.current_time()

    async with trio.open_nursery() as devices:
        for number in range(REQUESTS):
            await trio.sleep(chance.expovariate(per_second))
            devices.start_soon(fetch, number)
    return observer


@pytest.mark.parametrize(
    ("batch_seconds", "per_second", "least", "most"),
    [
        (0, 7, 0.9, 1),
        (0, 1 / 60, 0.9, 1),
        (0.5, 7, 0.2, 0.4),
        (1, 7, 0.1, 0.2),
        (2, 7, 0.04, 0.11),
        (5, 7, 0.0, 0.05),
        (10, 1 / 60, 0.8, 1),  # a request alone in its batch is paired
    ],
)
async def test_batches_leave_one_right_pair_for_each_batch(
    autojump_clock: trio.testing.MockClock, batch_seconds: float, per_second: float, least: float, most: float
) -> None:
    right = (await watch(batch_seconds, per_second)).right()
    assert least <= right <= most, right


async def test_a_request_waits_for_two_periods_at_most(autojump_clock: trio.testing.MockClock) -> None:
    observer = await watch(2, 7)
    waits = [observer.answered[number] - observer.asked[number] for number in observer.asked]
    assert max(waits) <= 2 * 2 * (1 + SPREAD) + GATEWAY_SECONDS


async def test_a_request_to_our_own_gateway_takes_as_long_as_others(autojump_clock: trio.testing.MockClock) -> None:
    own = relay(FakePeers(), batch_seconds=2)
    began = trio.current_time()
    await own.forward(DeviceRow(1), A, b"x")
    assert trio.current_time() - began >= 2
