"""Partitions that a stream asks for: where it continues, and which refusals end them."""

from __future__ import annotations

from mimids.client import Arrived, NotServed
from mimids.wire.messages import (
    Epoch,
    FrameType,
    Withdraw,
)
from tests.support.fake_provider import HUB, faked
from tests.support.stream_steps import (
    BUSY,
    GONE,
    GROUP,
    UNKNOWN,
    arrived,
    next_event,
    presented,
    said,
)


async def test_a_new_connection_continues_at_the_counter_reached() -> None:
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key, 3)
        peer = await provider.next()
        assert await presented(peer) == (GROUP.key, 3)
        await peer.push(GROUP.key, 3, said("three", "four"))
        await peer.hang_up()
        peer = await provider.next()
        assert await presented(peer) == (GROUP.key, 5)
        await peer.push(GROUP.key, 5, said("five"))
        assert [await arrived(stream) for _ in range(2)] == [(3, ["three", "four"]), (5, ["five"])]
        assert stream.statistics().connections == 2


async def test_messages_that_come_twice_are_seen_once() -> None:
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key)
        peer = await provider.next()
        await presented(peer)
        epoch = said("zero", "one")
        for counter, messages in ((0, epoch), (0, epoch), (1, Epoch((*epoch.messages[1:], *said("two").messages)))):
            await peer.push(GROUP.key, counter, messages)
        assert await arrived(stream) == (0, ["zero", "one"])
        assert await arrived(stream) == (2, ["two"])


async def test_skipped_messages_are_counted() -> None:
    """A user who is banned in a branch gets its handshake messages only (semantics: policy)."""
    async with faked() as provider:
        provider.stream.present(HUB, GROUP.key)
        peer = await provider.next()
        await presented(peer)
        await peer.push(GROUP.key, 2, said("two"))
        event = await next_event(provider.stream)
        assert isinstance(event, Arrived)
        assert (event.counter, event.skipped, event.next_counter) == (2, 2, 3)


async def test_a_key_that_is_presented_again_gets_a_new_connection() -> None:
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key, 5)
        peer = await provider.next()
        await presented(peer)
        stream.withdraw(GROUP.key)
        withdrawn = (await peer.hear(FrameType.WITHDRAW)).body
        assert withdrawn == Withdraw((GROUP.key,))
        await peer.push(GROUP.key, 5, said("late"))
        stream.present(HUB, GROUP.key, 5)
        peer = await provider.next()
        assert await presented(peer) == (GROUP.key, 5)
        await peer.push(GROUP.key, 5, said("five"))
        assert await arrived(stream) == (5, ["five"])


async def test_an_unknown_partition_is_reported_once_and_stays_presented() -> None:
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key)
        for _ in range(2):
            peer = await provider.next()
            frame = await peer.hear(FrameType.PRESENT)
            await peer.say(FrameType.PROBLEM, UNKNOWN, frame.id)
            await peer.hang_up()
        peer = await provider.next()
        await presented(peer)
        await peer.push(GROUP.key, 0, said("now"))
        event = await next_event(stream)
        assert isinstance(event, NotServed)
        assert (event.partition_key, event.problem.code) == (GROUP.key, "unknown-partition")
        assert await arrived(stream) == (0, ["now"])


async def test_a_refused_partition_is_not_presented_again_automatically() -> None:
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key)
        peer = await provider.next()
        frame = await peer.hear(FrameType.PRESENT)
        await peer.say(FrameType.PROBLEM, GONE, frame.id)
        event = await next_event(stream)
        assert isinstance(event, NotServed)
        stream.present(HUB, GROUP.key, event.problem.members["next_counter"])
        await peer.hear(FrameType.WITHDRAW)
        assert await presented(peer) == (GROUP.key, 7), "on the same connection"


async def test_a_temporarily_refused_partition_is_presented_again() -> None:
    async with faked() as provider:
        provider.stream.present(HUB, GROUP.key, 2)
        peer = await provider.next()
        frame = await peer.hear(FrameType.PRESENT)
        await peer.say(FrameType.PROBLEM, BUSY, frame.id)
        assert await presented(peer) == (GROUP.key, 2)
