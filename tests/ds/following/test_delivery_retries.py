"""How a hub counts the failures of a follower, and when it tries the follower again."""

from __future__ import annotations

from pathlib import Path

import trio
import trio.testing

from mimids.ds.ports import PeerAnswer
from mimids.errors import PeerFailed, TooLarge
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, ProviderId
from mimids.wire.messages import PushRequest, PushResponse, ReceiveRequest
from tests.support.doubles import Called, stopped_clock
from tests.support.federation import Room, device, federated
from tests.support.provider import Assembled
from tests.support.stored import rows, until

A, B = ProviderId("a.example"), ProviderId("b.example")


async def failures(hub: Assembled) -> list[tuple[int, int]]:
    """Return how often each follower failed in a row, and the milliseconds until it is tried again."""
    now = hub.services.clock.now()
    return [(count, max(0, at - now)) for count, at in await rows(hub, "SELECT failures, next_attempt_at FROM peers")]


async def test_each_failure_counts_once_until_the_follower_answers(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock) as (hub, follower):
        room, back = Room(), hub.peers.peers.pop(B)
        await hub.services.hub.create_group(room.creation(), device(hub))
        await follower.services.hub_router.hub(A).receive(device(follower), ReceiveRequest(room.key, Counter(0)))
        await hub.services.hub.send(room.send("late"), device(hub))
        cap = int(hub.config.delivery.backoff_cap_seconds * 1000)

        async def has_failed(times: int) -> bool:
            return [count for count, _ in await failures(hub)] == [times]

        for times in (1, 2, 3):
            await until(lambda times=times: has_failed(times))  # type: ignore[misc]
            await trio.testing.wait_all_tasks_blocked(0.05)
            ((count, wait),) = await failures(hub)
            assert count == times, "the follower is not tried before its back-off ends"
            assert 0 < wait <= cap
            assert hub.services.delivery.statistics().failures == times
            clock.advance(wait / 1000)
        hub.peers.add(B, back)
        clock.advance(cap / 1000)
        await until(lambda: has_failed(0))
        statistics = hub.services.delivery.statistics()
        assert (statistics.messages, statistics.busy) == (1, 0)


async def test_an_answer_without_a_counter_for_each_epoch_is_a_failure(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, clock=stopped_clock()) as (hub, follower):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        await follower.services.hub_router.hub(A).receive(device(follower), ReceiveRequest(room.key, Counter(0)))

        async def answers_too_much(called: Called) -> PeerAnswer:
            epochs = decode(PushRequest, called.body).epochs
            return PeerAnswer(encode(PushResponse((Counter(1),) * (len(epochs) + 1))))

        hub.peers.add(B, answers_too_much)
        await hub.services.hub.send(room.send("a message"), device(hub))

        async def has_failed() -> bool:
            return [count for count, _ in await failures(hub)] == [1]

        await until(has_failed)
        assert await rows(hub, "SELECT next_counter FROM follows") == [(0,)]


async def test_a_message_that_is_too_large_alone_suspends_its_partition_and_no_other(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, clock=stopped_clock()) as (hub, follower):
        large, small = Room("large"), Room("small")
        sizes: list[int] = []
        for room in (large, small):
            await hub.services.hub.create_group(room.creation(), device(hub))
            await follower.services.hub_router.hub(A).receive(device(follower), ReceiveRequest(room.key, Counter(0)))
        take = hub.peers.peers[B]

        async def takes_little(called: Called) -> PeerAnswer:
            sizes.append(sum(len(epoch.epoch.messages) for epoch in decode(PushRequest, called.body).epochs))
            if len(called.body) > 2000:
                raise TooLarge("body_bytes", len(called.body))
            return await take(called)

        hub.peers.add(B, takes_little)
        await hub.services.hub.send_batch([large.send(f"{n}".ljust(3000)) for n in range(3)], device(hub))
        await hub.services.hub.send_batch([small.send(f"{n}".ljust(900)) for n in range(3)], device(hub))

        async def is_settled() -> bool:
            found = await rows(hub, "SELECT next_counter, suspended_reason IS NULL FROM follows ORDER BY partition")
            return found == [(0, 0), (3, 1)]

        await until(is_settled)
        assert sizes[0] > sizes[1] == 1, "a push that is too large is repeated with one message"
        ((why,),) = await rows(hub, "SELECT suspended_reason FROM follows WHERE suspended_reason IS NOT NULL")
        assert why.startswith("too-large")
        assert [count for count, _ in await failures(hub)] == [0]


async def test_a_follower_that_fails_does_not_hold_up_another(tmp_path: Path) -> None:
    c = ProviderId("c.example")
    async with federated(tmp_path, A, B, c, clock=stopped_clock()) as (hub, *followers):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        for each in followers:
            await each.services.hub_router.hub(A).receive(device(each), ReceiveRequest(room.key, Counter(0)))

        async def fails(called: Called) -> PeerAnswer:
            await trio.lowlevel.checkpoint()
            raise PeerFailed("no answer that makes sense")

        hub.peers.add(B, fails)
        await hub.services.hub.send(room.send("to both"), device(hub))

        async def is_settled() -> bool:
            return await rows(hub, "SELECT next_counter FROM follows ORDER BY provider") == [(0,), (1,)]

        await until(is_settled)
        assert sorted(count for count, _ in await failures(hub)) == [0, 1]
