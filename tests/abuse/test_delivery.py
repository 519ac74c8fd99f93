"""Followers that answer slowly, however many: the others get their pushes at once."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.ds.following.delivery import PARTLY_TAKEN_SECONDS, SLOW_PUSH_OCTETS
from mimids.ds.limits import rates
from mimids.ds.limits.call_slots import PATIENCE_SECONDS, QUICK_IN_A_ROW, SLOW_CALLS, CallSlots, CallTooSlow, Slot
from mimids.ds.ports import PeerAnswer
from mimids.errors import RateLimited
from mimids.values import Follower
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, ProviderId
from mimids.wire.messages import PushedEpoch, PushRequest, PushResponse, ReceiveRequest, ResumeRequest
from tests.support.doubles import Called, bound_hits, stopped_clock
from tests.support.federation import Room, device, federated, wait_stored
from tests.support.provider import Assembled
from tests.support.stored import until

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


async def test_large_pushes_to_slow_followers_leave_a_slot_for_the_others(tmp_path: Path) -> None:
    """Pushes of 1 MiB filled the slots, so that the others waited for the patience with a slow follower to end."""
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, follower), trio.open_nursery() as jobs:
        alice, bob, room = device(hub), device(follower, "bob"), Room()
        await hub.services.hub.create_group(room.creation(), alice)
        for _ in range(5):
            await hub.services.hub.send(room.send(secrets.token_hex(100_000)), alice)
        for name in (ProviderId(f"slow{n}.example") for n in range(100)):
            hub.peers.add(name, answers_slowly)
            await hub.services.hub.receive(ReceiveRequest(room.key, Counter(0)), Follower(name))
        await jobs.start(hub.services.delivery.run)
        await until(lambda: _are_called(hub, 60))
        await follower.services.hub_router.hub(room.hub).present(bob, room.key)
        with trio.fail_after(SLOW_SECONDS / 2):
            await wait_stored(follower, room.hub, bob, room.key, 5)
        slots = hub.services.delivery._slots
        assert slots._slow.calls == SLOW_CALLS, "nobody waited, so no call had to leave the quick slots"
        jobs.cancel_scope.cancel()


async def _are_called(hub: Assembled, followers: int) -> bool:
    return len(hub.peers.calls) >= followers


async def test_with_a_hundred_slow_followers_a_push_gets_its_slot_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """For ten minutes, in which all slow followers have something due at any time."""
    slots = CallSlots()
    waited: list[float] = []

    async def slow(key: int) -> None:
        while True:
            with suppress(CallTooSlow):
                async with slots.slot(key, SLOW_PUSH_OCTETS) as slot:
                    await slot.call(partial(trio.sleep, SLOW_SECONDS))

    async with trio.open_nursery() as nursery:
        for key in range(100):
            nursery.start_soon(slow, key)
        for _ in range(600):
            await trio.sleep(1)
            due_at = trio.current_time()
            async with slots.slot("honest", 1 << 20) as slot:
                waited.append(trio.current_time() - due_at)
                await slot.call(partial(trio.sleep, 0.05))
        nursery.cancel_scope.cancel()
    assert max(waited) == 0


async def test_more_slow_followers_than_slots_delay_no_other_follower(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (hub, follower):
        hub.services.delivery._slots = CallSlots(quick_calls=2, slow_calls=1)
        alice, bob, room = device(hub), device(follower, "bob"), Room()
        await hub.services.hub.create_group(room.creation(), alice)
        for name in (ProviderId(f"slow{n}.example") for n in range(5)):
            hub.peers.add(name, answers_slowly)
            await hub.services.hub.receive(ReceiveRequest(room.key, Counter(0)), Follower(name))
        await hub.services.hub.send(room.send("message 1"), alice)
        await follower.services.hub_router.hub(room.hub).present(bob, room.key)
        await hub.services.hub.send(room.send("message 2"), alice)
        with trio.fail_after(10):
            await wait_stored(follower, room.hub, bob, room.key, 2)


async def test_a_push_that_is_cancelled_for_others_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def cancelled(slot: Slot, make: object) -> None:
        raise CallTooSlow

    monkeypatch.setattr(Slot, "call", cancelled)
    async with federated(tmp_path, A) as (hub,):
        alice, room, slow = device(hub), Room(), ProviderId("slow.example")
        hub.peers.add(slow, answers_slowly)
        await hub.services.hub.create_group(room.creation(), alice)
        await hub.services.hub.receive(ReceiveRequest(room.key, Counter(0)), Follower(slow))
        await hub.services.hub.send(room.send("message 1"), alice)
        with trio.fail_after(20):
            while not bound_hits(hub.services.telemetry, "slow-call-cancelled"):  # noqa: ASYNC110
                await trio.sleep(0.01)


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
    waited: list[float] = []

    async def slow(key: int) -> None:
        try:
            async with slots.slot(key, 1) as slot:
                await slot.call(partial(trio.sleep, SLOW_SECONDS))
            outcomes[key] = "answered"
        except CallTooSlow:
            outcomes[key] = "cancelled"

    async def quick(key: int) -> None:
        began = trio.current_time()
        async with slots.slot(key, 1) as slot:
            await slot.call(partial(trio.sleep, 0.01))
        waited.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for key in (1, 2):
            nursery.start_soon(slow, key)
            await trio.testing.wait_all_tasks_blocked()
        for key in (10, 11, 12):
            nursery.start_soon(quick, key)
    assert max(waited) < 2 * PATIENCE_SECONDS
    assert outcomes == {1: "answered", 2: "cancelled"}, "one moved to the slow slot, and the other found it taken"
    assert slots.is_slow(1)
    for _ in range(QUICK_IN_A_ROW):
        await quick(1)
    assert not slots.is_slow(1)


async def test_one_call_that_waits_cancels_one_slow_call(autojump_clock: trio.testing.MockClock) -> None:
    slots, cancelled = CallSlots(quick_calls=8, slow_calls=1), 0

    async def slow(key: int) -> None:
        nonlocal cancelled
        try:
            async with slots.slot(key, 1) as slot:
                await slot.call(partial(trio.sleep, SLOW_SECONDS))
        except CallTooSlow:
            cancelled += 1

    async with trio.open_nursery() as nursery:
        for key in range(9):
            nursery.start_soon(slow, key)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(2 * PATIENCE_SECONDS)  # one has moved to the slow pool, and all others take long, too
        async with slots.slot(10, 1) as slot:
            await slot.call(trio.lowlevel.checkpoint)
    assert cancelled == 1


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


LIES = {
    "starts again and again": lambda epoch, number: 0 if epoch.counter else 1,
    "takes one message of each push": lambda epoch, number: epoch.counter + 1,
    "goes back and forth": lambda epoch, number: number % 2,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_follower_that_takes_little_of_each_push_gets_few_pushes(
    lie: Callable[[PushedEpoch, int], int], tmp_path: Path
) -> None:
    """It got pushes of a thousand messages one after the other, without end."""
    pushes = 0

    async def lies(called: Called) -> PeerAnswer:
        nonlocal pushes
        pushes += 1
        (epoch,) = decode(PushRequest, called.body).epochs
        assert epoch.epoch.messages
        return PeerAnswer(encode(PushResponse((Counter(lie(epoch, pushes)),))))

    async with federated(tmp_path, A, jobs_of=("delivery",)) as (hub,):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        for first in range(0, 2000, 500):
            await hub.services.hub.send_batch([room.send(str(first + n)) for n in range(500)], device(hub))
        hub.peers.add(B, lies)
        await hub.services.hub.receive(ReceiveRequest(room.key, Counter(0)), Follower(ProviderId(B)))
        await until(lambda: _are_called(hub, 1))
        await trio.sleep(2)
        assert bound_hits(hub.services.telemetry, "partly-taken-push") >= 1
    assert pushes <= 2 + 2 / PARTLY_TAKEN_SECONDS


async def takes_all(called: Called) -> PeerAnswer:
    epochs = decode(PushRequest, called.body).epochs
    wanted = tuple(Counter(each.counter + len(each.epoch.messages)) for each in epochs)
    return PeerAnswer(encode(PushResponse(wanted)))


async def resume_from_the_start(hub: Assembled, room: Room, follower: Follower) -> None:
    request = ResumeRequest(room.group_id, room.key.mask(32), Counter(0))
    await hub.services.delivery.resume(request, follower)


async def receive_from_the_start(hub: Assembled, room: Room, follower: Follower) -> None:
    await hub.services.hub.receive(ReceiveRequest(room.key, Counter(0)), follower)


@pytest.mark.parametrize("ask_again", [resume_from_the_start, receive_from_the_start])
async def test_a_follower_that_asks_to_be_pushed_to_again_and_again_is_refused(
    ask_again: Callable[[Assembled, Room, Follower], Awaitable[None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these short requests made the hub push everything again, without end."""
    messages, burst = 500, 2_000
    monkeypatch.setattr(rates, "REPEATED_BURST", burst)
    clock = stopped_clock()
    async with federated(tmp_path, A, clock=clock, jobs_of=("delivery",)) as (hub,):
        room, greedy, other = Room(), Follower(ProviderId(B)), Follower(ProviderId("c.example"))
        await hub.services.hub.create_group(room.creation(), device(hub))
        await hub.services.hub.send_batch([room.send(str(n)) for n in range(messages)], device(hub))

        async def is_pushed(times: int) -> bool:
            return hub.services.delivery.statistics().messages == times * messages

        for follower in greedy, other:
            hub.peers.add(follower.provider, takes_all)
            await receive_from_the_start(hub, room, follower)
        await until(partial(is_pushed, 2))
        for again in range(burst // messages):
            await ask_again(hub, room, greedy)
            await until(partial(is_pushed, 3 + again))
        with pytest.raises(RateLimited):
            await ask_again(hub, room, greedy)
        assert bound_hits(hub.services.telemetry, "repeated-pushes") == 1
        await ask_again(hub, room, other)
        clock.advance(seconds=1)
        await ask_again(hub, room, greedy)
