"""Followers that answer slowly, however many: the others get their pushes at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.ds.limits.call_slots import PATIENCE_SECONDS, QUICK_IN_A_ROW, CallSlots, CallTooSlow
from mimids.ds.ports import PeerAnswer
from mimids.values import Follower
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, ProviderId
from mimids.wire.messages import PushRequest, PushResponse, ReceiveRequest
from tests.support.doubles import Called
from tests.support.federation import Room, device, federated, wait_stored

A, B = "a.example", "b.example"
SLOW_SECONDS = 25  # less than the timeout of a call


async def answers_slowly(called: Called) -> PeerAnswer:
    """Accept every push, after a long time."""
    await trio.sleep(SLOW_SECONDS)
    epochs = decode(PushRequest, called.body).epochs
    wanted = tuple(Counter(each.counter + len(each.epoch.messages)) for each in epochs)
    return PeerAnswer(encode(PushResponse(wanted)))


@pytest.mark.parametrize("slow", [8, 100])
async def test_slow_followers_delay_no_other_follower(slow: int, tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (hub, follower):
        alice, bob, room = device(hub), device(follower, "bob"), Room()
        await hub.services.hub.create_group(room.creation(), alice)
        for name in (ProviderId(f"slow{n}.example") for n in range(slow)):
            hub.peers.add(name, answers_slowly)
            await hub.services.hub.receive(ReceiveRequest(room.key, Counter(0)), Follower(name))
        await follower.services.hub_router.hub(room.hub).present(bob, room.key)
        began = trio.current_time()
        for count in range(1, 4):  # the first push, and those while all slow ones are being served
            await hub.services.hub.send(room.send(f"message {count}"), alice)
            with trio.fail_after(5):
                await wait_stored(follower, room.hub, bob, room.key, count)
        assert trio.current_time() - began < SLOW_SECONDS / 4
        assert hub.services.delivery.statistics().busy >= slow


async def test_a_call_that_takes_long_makes_room_for_others(autojump_clock: trio.testing.MockClock) -> None:
    slots = CallSlots(quick_calls=4, slow_calls=2)
    cancelled: list[int] = []

    async def slow(key: int) -> None:
        try:
            async with slots.slot(key, 1000) as slot:
                await slot.call(partial(trio.sleep, SLOW_SECONDS))
        except CallTooSlow:
            cancelled.append(key)

    async with trio.open_nursery() as nursery:
        for key in range(4):
            nursery.start_soon(slow, key)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        for key in range(100, 103):
            async with slots.slot(key, 1000) as slot:
                await slot.call(trio.lowlevel.checkpoint)
            assert trio.current_time() - began <= PATIENCE_SECONDS
    assert cancelled == [], "two moved to the slow pool, and the others did not have to"
    assert [slots.is_slow(key) for key in (0, 1, 2, 3, 100)] == [True] * 4 + [False]


async def test_beyond_the_slow_slots_a_slow_call_is_cancelled_and_waits(autojump_clock: trio.testing.MockClock) -> None:
    slots = CallSlots(quick_calls=2, slow_calls=1)
    outcomes: dict[int, str] = {}

    async def slow(key: int) -> None:
        try:
            async with slots.slot(key, 1) as slot:
                await slot.call(partial(trio.sleep, SLOW_SECONDS))
            outcomes[key] = "answered"
        except CallTooSlow:
            outcomes[key] = "cancelled"

    async def quick(key: int) -> float:
        began = trio.current_time()
        async with slots.slot(key, 1) as slot:
            await slot.call(partial(trio.sleep, 0.01))
        return trio.current_time() - began

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(slow, 2)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(quick, 10)
        nursery.start_soon(quick, 11)
        assert await quick(12) < 2 * PATIENCE_SECONDS
    assert outcomes == {1: "answered"} or outcomes == {1: "answered", 2: "cancelled"}
    assert slots.is_slow(1)
    for _ in range(QUICK_IN_A_ROW):
        await quick(1)
    assert not slots.is_slow(1)


async def test_the_octets_in_flight_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    slots, running, most = CallSlots(), 0, 0
    large = 16 << 20

    async def call() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(0.5)
        running -= 1

    async def push(key: int) -> None:
        async with slots.slot(key, large) as slot:
            await slot.call(call)

    async with trio.open_nursery() as nursery:
        for key in range(40):
            nursery.start_soon(push, key)
    assert most == 4  # of 16 MiB each, in 64 MiB
