"""The hub is killed many times under load: no acknowledged message is lost, and none is there twice."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from http import HTTPStatus
from itertools import count
from typing import TypeVar

import attrs
import pytest
import trio

from mimids.client import Contact, Device, Problem, Unreachable
from mimids.testing import PretendGroup, Provider, Session, content_of, open_federation
from mimids.wire.ids import PartitionKey
from mimids.wire.messages import SendRequest, SendResponse
from tests.support.people import key_packages
from tests.support.stage import AWAY, SUITE

pytestmark = [pytest.mark.slow, AWAY]

T = TypeVar("T")

SEED = 20
KILLS = 50
MOST_SECONDS = 120
SENDERS = 2  # at each provider
FETCHERS = 3
AWAY_SECONDS = 0.05
FETCH_SECONDS = 0.1
STOCK = 400  # of each of Alice's devices
UNLIMITED = {"limits": {"device_fetches_per_minute": 0, "device_sends_per_second": 0}}


@attrs.define
class Seen:
    """The answers so far, all of which have to stay true."""

    sent: list[tuple[SendRequest, SendResponse]] = attrs.field(factory=list)
    fetched: list[bytes] = attrs.field(factory=list)
    failures: int = 0  # requests without an answer


async def send_on(device: Device, group: PretendGroup, seen: Seen, name: str) -> None:
    """Send messages one by one, each until it is acknowledged."""
    for number in count():
        request = group.message(f"{name} {number}".encode())
        while (answer := await unless_away(device.send(group.hub, request), seen)) is None:
            continue
        seen.sent.append((request, answer))


async def fetch_on(device: Device, card: Contact, seen: Seen) -> None:
    """Fetch one KeyPackage after the other."""
    while True:
        if (key_package := await unless_away(device.fetch_key_package(card, SUITE), seen)) is not None:
            seen.fetched.append(key_package)
        await trio.sleep(FETCH_SECONDS)  # a fast machine would empty the stock before the last kill


async def unless_away(call: Awaitable[T], seen: Seen) -> T | None:
    """Return the answer, or None after a moment if the hub cannot be reached."""
    try:
        return await call
    except Unreachable:
        seen.failures += 1
    except Problem as problem:
        if problem.status != HTTPStatus.SERVICE_UNAVAILABLE:
            raise
        seen.failures += 1
    await trio.sleep(AWAY_SECONDS)
    return None


async def kill_often(hub: Provider, chance: random.Random) -> None:
    for _ in range(KILLS):
        await trio.sleep(chance.uniform(0.01, 0.5))
        await trio.to_thread.run_sync(hub.kill)
        await trio.to_thread.run_sync(hub.start)
    await trio.sleep(0.2)


async def test_fifty_kills_lose_no_acknowledged_message_and_repeat_no_key_package(
    mimids_session: Session,
) -> None:
    began = time.monotonic()
    seen = Seen()
    async with (
        open_federation("a.example", "b.example", config=UNLIMITED, session=mimids_session) as federation,
        AsyncExitStack() as stack,
    ):
        a, b = federation

        async def device(provider: Provider, user: str, name: str) -> Device:
            account = provider.add_device(user, name)
            return await stack.enter_async_context(account.client())

        owners = [await device(a, "alice", name) for name in ("phone", "tablet")]
        for seed, owner in enumerate(owners, start=1):
            assert (await owner.upload(key_packages(seed, "alice@a.example", STOCK))).accepted == STOCK
        card = a.contact("alice")
        first = PretendGroup.at(a.name)
        await owners[0].create_group(first.creation())
        commit, second = first.commit()
        await owners[0].send(first.hub, commit)
        async with trio.open_nursery() as load:
            for number in range(SENDERS):
                for provider, group in ((a, first), (b, second if number % 2 else first)):
                    name = f"{provider.name}-{number}"
                    sender = await device(provider, f"sender-{number}", "phone")
                    load.start_soon(send_on, sender, group, seen, name)
            for number in range(FETCHERS):
                load.start_soon(fetch_on, await device(b, f"fetcher-{number}", "phone"), card, seen)
            await kill_often(a, random.Random(SEED))
            load.cancel_scope.cancel()

        messages = {group.key: await all_of(owners[0], group) for group in (first, second)}
        everything_is_there_once(a, messages, seen)
        for request, answer in seen.sent[-5:]:
            assert await owners[0].send(first.hub, request) == answer  # a repeat gets the same answer
    assert seen.failures > 0
    assert len(seen.sent) > KILLS
    assert len(seen.fetched) > KILLS
    assert time.monotonic() - began < MOST_SECONDS


async def all_of(device: Device, group: PretendGroup) -> list[bytes]:
    return [message.message.encoded async for message in device.receive_all(group.hub, group.key)]


def everything_is_there_once(hub: Provider, messages: dict[PartitionKey, list[bytes]], seen: Seen) -> None:
    for request, answer in seen.sent:
        assert messages[request.partition_key][answer.counter] == request.message.encoded, content_of(request.message)
    everything = [message for of_partition in messages.values() for message in of_partition]
    assert len(set(everything)) == len(everything)
    assert len(seen.sent) + 1 <= len(everything) <= len(seen.sent) + 1 + 2 * SENDERS  # the commit, what was in flight
    for partition, lowest, highest, found in hub.read(
        "SELECT partition, min(counter), max(counter), count(*) FROM messages GROUP BY partition"
    ):
        assert (lowest, highest) == (0, found - 1), partition
    assert len(set(seen.fetched)) == len(seen.fetched)
    ((stock,),) = hub.read("SELECT count(*) FROM key_packages")
    assert stock + len(seen.fetched) <= 2 * STOCK
