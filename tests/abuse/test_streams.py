"""One device's stream cannot hold up the others: its frames, its keys and the hubs that it names are bounded."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.ds.devices import streams
from mimids.ds.devices.hub_calls import KEYS_AT_A_HUB, WORKERS, Watch
from mimids.ds.devices.stream_session import SLICE
from mimids.ds.following.incoming_welcomes import ACKNOWLEDGED_PAGE
from mimids.ds.ports import PeerAnswer
from mimids.errors import PeerUnavailable, QuotaExceeded
from mimids.wire.declare import encode
from mimids.wire.ids import Counter, PartitionKey, ProviderId
from mimids.wire.messages import (
    FRAME_ITEMS,
    Ack,
    Epoch,
    Frame,
    FrameType,
    Present,
    ReceiveRequest,
    ReceiveResponse,
    Send,
    Withdraw,
)
from tests.support.device_streams import Wire, streaming
from tests.support.doubles import Called, bound_hits
from tests.support.federation import Room, device, federated, present
from tests.support.patience import patience
from tests.support.provider import Assembled
from tests.support.stored import until

MEBIBYTE = 1024 * 1024


def keys(number: int) -> list[PartitionKey]:
    return [PartitionKey(each.to_bytes(PartitionKey.SIZE, "big")) for each in range(1, number + 1)]


class LoopWatch:
    """Counts how often another task could run, and the longest time for which it could not."""

    def __init__(self) -> None:
        self.turns = 0
        self.longest = 0.0

    async def run(self) -> None:
        last = trio.current_time()
        while True:
            await trio.lowlevel.checkpoint()
            now = trio.current_time()
            self.longest, last = max(self.longest, now - last), now
            self.turns += 1


@asynccontextmanager
async def watched_loop() -> AsyncIterator[LoopWatch]:
    watch = LoopWatch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        yield watch
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def stream_beside_a_hub(directory: Path) -> AsyncIterator[tuple[Assembled, Wire]]:
    """Run b.example with one device's stream; a test decides what its hub a.example answers."""
    async with (
        federated(directory, "a.example", "b.example", jobs_of=()) as (_, b),
        streaming(b, device(b, "bob")) as wire,
    ):
        yield b, wire


async def answered(wire: Wire) -> Frame:
    """Send a frame that is refused at once; return its answer. All frames before it have been worked through then."""
    await wire.say_octets(b"")
    while True:
        answer = await wire.hear()
        if answer.id == 0 and answer.type is FrameType.PROBLEM:
            return answer


async def test_a_frame_with_one_key_many_times_is_refused_and_costs_little(tmp_path: Path) -> None:
    async with stream_beside_a_hub(tmp_path) as (b, wire):
        (key,) = keys(1)
        octets = encode(Frame(7, FrameType.PRESENT, _unbounded_present(key, 150_000)))
        tracemalloc.start()
        try:
            async with watched_loop() as watch:
                await wire.say_octets(octets)
                assert (await wire.hear()).type is FrameType.PROBLEM
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert watch.turns > 10
        assert peak < 30 * MEBIBYTE
        assert b.services.notifier.statistics().topics < 10


async def test_the_end_of_a_stream_with_many_keys_lets_others_run(tmp_path: Path) -> None:
    """A stream with as many keys as a device may have held the loop for a quarter of a second when it ended."""
    async with stream_beside_a_hub(tmp_path) as (b, wire):
        await wire.say(FrameType.PRESENT, present(ProviderId("b.example"), *[(key, 0) for key in keys(FRAME_ITEMS)]))
        await answered(wire)
        left = [b.services.notifier.statistics().topics]
        assert left[0] > 3 * FRAME_ITEMS
        wire.hang_up()
        with patience():
            while left[-1] > 3 * SLICE:
                await trio.lowlevel.checkpoint()
                left.append(b.services.notifier.statistics().topics)
        assert max(before - after for before, after in pairwise(left)) <= 3 * SLICE


async def test_a_stream_with_many_keys_leaves_none_for_the_garbage_collector(tmp_path: Path) -> None:
    """Each stream left all its keys, which grew the process by 20 MB in a minute of all attacks."""
    async with federated(tmp_path, "a.example", "b.example", jobs_of=()) as (_, b):
        gc.collect()
        gc.disable()
        try:
            async with streaming(b, device(b, "bob")) as wire:
                several = keys(2 * FRAME_ITEMS)
                for hub, some in ("a.example", several[:FRAME_ITEMS]), ("b.example", several[FRAME_ITEMS:]):
                    await wire.say(FrameType.PRESENT, present(ProviderId(hub), *[(key, 0) for key in some]))
                await answered(wire)
                assert _count_watches() == 2 * FRAME_ITEMS
            assert _count_watches() < WORKERS  # the exceptions that ended the workers may refer to one each
        finally:
            gc.enable()


def _count_watches() -> int:
    return sum(isinstance(each, Watch) for each in gc.get_objects())


def _unbounded_present(key: PartitionKey, times: int) -> Present:
    return Present(ProviderId("a.example"), (ReceiveRequest(key, Counter(0)),) * times)


async def test_a_key_that_is_repeated_within_a_frame_is_presented_once(tmp_path: Path) -> None:
    async with stream_beside_a_hub(tmp_path) as (b, wire):
        presented = await _count_calls(b)
        (key,) = keys(1)
        await wire.say(FrameType.PRESENT, present(ProviderId("a.example"), *[(key, 0)] * FRAME_ITEMS))
        await answered(wire)
        await trio.sleep(0.2)
        assert len(presented) == 1


async def test_a_frame_with_all_the_keys_that_a_device_may_present_lets_others_run(tmp_path: Path) -> None:
    async with stream_beside_a_hub(tmp_path) as (_, wire), watched_loop() as watch:
        await wire.say(FrameType.PRESENT, present(ProviderId("a.example"), *[(key, 0) for key in keys(FRAME_ITEMS)]))
        before = watch.turns
        await answered(wire)
        assert watch.turns - before >= FRAME_ITEMS // 64 - 1


async def test_a_device_presents_a_bounded_number_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PRESENTED_KEYS", FRAME_ITEMS)
    async with stream_beside_a_hub(tmp_path) as (b, wire):
        await wire.say(FrameType.PRESENT, present(ProviderId("b.example"), *[(key, 0) for key in keys(FRAME_ITEMS)]), 1)
        late = PartitionKey(bytes([255]) * PartitionKey.SIZE)
        await wire.say(FrameType.PRESENT, present(ProviderId("b.example"), (late, 0)), 2)
        while (answer := await wire.hear()).id != 2:
            pass
        assert isinstance(answer.body, bytes)
        assert b"too-many" in answer.body
        assert bound_hits(b.services.telemetry, "presented-keys") == 1


async def test_keys_withdrawn_while_a_frame_is_presented_free_no_room_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frame has reserved room for all its keys; some of them are not watched yet."""
    async with federated(tmp_path, "b.example", jobs_of=()) as (b,):
        monkeypatch.setattr(streams, "PRESENTED_KEYS", 100)
        opened = b.services.streams
        connection = Wire()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.serve, device(b, "bob"), connection)
            await connection.say(FrameType.PRESENT, present(ProviderId("b.example"), *[(key, 0) for key in keys(10)]))
            await trio.testing.wait_all_tasks_blocked(0.05)
            (counted,) = next(iter(opened._open.values()))
            opened.make_room(device(b, "bob"), counted, 100)
            await connection.say(FrameType.WITHDRAW, Withdraw(tuple(keys(4))))
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert counted.keys == 96
            nursery.cancel_scope.cancel()


async def test_the_most_silent_stream_of_a_device_ends_if_another_one_presents_its_share_of_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PRESENTED_KEYS", 100)
    async with federated(tmp_path, "b.example", jobs_of=(), limits={"device_streams": 3}) as (b,):
        bob, wires = device(b, "bob"), [Wire() for _ in range(3)]
        ended: list[int] = []

        async def serve(number: int) -> None:
            with pytest.raises(QuotaExceeded, match="presented_keys"):
                await b.services.streams.serve(bob, wires[number])
            ended.append(number)

        async with trio.open_nursery() as nursery:
            for number, count in ((0, 60), (1, 30), (2, 40)):
                nursery.start_soon(serve, number)
                wanted = present(ProviderId("b.example"), *[(key, 0) for key in keys(count)])
                await wires[number].say(FrameType.PRESENT, wanted)
                await trio.testing.wait_all_tasks_blocked(0.05)
            assert (ended, b.services.streams.statistics().open) == ([0], 2)
            nursery.cancel_scope.cancel()


async def test_a_hub_that_is_down_is_asked_for_one_key_however_many_are_presented(tmp_path: Path) -> None:
    async with stream_beside_a_hub(tmp_path) as (b, wire):
        asked = []

        async def down(called: Called) -> PeerAnswer:
            asked.append(called)
            raise PeerUnavailable

        b.peers.add("a.example", down)
        for frame in range(6):
            many = [(key, 0) for key in keys(FRAME_ITEMS)]
            await wire.say(FrameType.PRESENT, present(ProviderId("a.example"), *many), frame)
        await answered(wire)
        assert len(asked) <= 4  # one when the keys came, and perhaps some when the back-off was over


async def test_keys_are_presented_once_the_hub_is_back(tmp_path: Path) -> None:
    async with stream_beside_a_hub(tmp_path) as (b, wire):
        hub = b.peers.peers.pop(ProviderId("a.example"))
        await wire.say(FrameType.PRESENT, present(ProviderId("a.example"), *[(key, 0) for key in keys(20)]))
        await answered(wire)
        presented = await _count_calls(b)
        await until(lambda: _is(len(presented) >= 20))
        assert hub is not None


async def test_a_stream_that_names_many_hubs_keeps_a_bounded_number_of_tasks_and_calls(tmp_path: Path) -> None:
    names = [ProviderId(f"h{number}.example") for number in range(FRAME_ITEMS)]
    async with federated(tmp_path, "b.example", jobs_of=()) as (b,):
        calling = most = 0

        async def slow(_: Called) -> PeerAnswer:
            nonlocal calling, most
            calling += 1
            most = max(most, calling)
            try:
                await trio.sleep_forever()
            finally:
                calling -= 1
            raise AssertionError

        for name in names:
            b.peers.add(name, slow)
        async with streaming(b, device(b, "bob")) as wire:
            tasks = trio.lowlevel.current_statistics().tasks_living
            for name, key in zip(names, keys(len(names)), strict=True):
                await wire.say(FrameType.PRESENT, present(name, (key, 0)))
            await answered(wire)
            await until(lambda: _is(calling >= WORKERS))
            await trio.sleep(0.1)  # no further call begins
            assert most == WORKERS
            assert trio.lowlevel.current_statistics().tasks_living < tasks + 3 * WORKERS
            # The calls to our own hub have a worker of their own.
            await wire.say(FrameType.SEND, Send(ProviderId("b.example"), (Room(hub="b.example").send("hello"),)), 9)
            assert (await _answer_to(wire, 9)).type is FrameType.RESULT


async def test_hubs_are_served_in_turn(tmp_path: Path) -> None:
    """A hub with thousands of keys does not delay the one key of another hub."""
    async with federated(tmp_path, "b.example", jobs_of=()) as (b,):
        order: list[ProviderId] = []

        async def answer(called: Called) -> PeerAnswer:
            order.append(called.provider)
            await trio.sleep(0.005)
            return PeerAnswer(encode(ReceiveResponse(Epoch(()), ())))

        first, second = ProviderId("first.example"), ProviderId("second.example")
        b.peers.add(first, answer)
        b.peers.add(second, answer)
        async with streaming(b, device(b, "bob")) as wire:
            *many, last = keys(1001)
            await wire.say(FrameType.PRESENT, present(first, *[(key, 0) for key in many]))
            await wire.say(FrameType.PRESENT, present(second, (last, 0)))
            await answered(wire)
            await until(lambda: _is(second in order))
        assert order.index(second) < 900
        assert KEYS_AT_A_HUB < WORKERS


async def test_acknowledgements_of_one_frame_take_one_statement_for_each_page(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=()) as (a,), streaming(a, device(a)) as wire:
        writes = a.services.store.statistics().writes
        await wire.say(FrameType.ACK, Ack(tuple(range(1, FRAME_ITEMS + 1))))
        await answered(wire)
        assert a.services.store.statistics().writes - writes <= FRAME_ITEMS // ACKNOWLEDGED_PAGE + 1
        await wire.say(FrameType.ACK, Ack((7,) * FRAME_ITEMS))
        await answered(wire)
        assert a.services.store.statistics().writes - writes <= FRAME_ITEMS // ACKNOWLEDGED_PAGE + 2


async def test_a_frame_with_half_a_million_acknowledgements_is_refused(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=()) as (a,), streaming(a, device(a)) as wire:
        writes = a.services.store.statistics().writes
        await wire.say(FrameType.ACK, Ack(tuple(range(500_000))))
        assert (await wire.hear()).type is FrameType.PROBLEM
        assert a.services.store.statistics().writes == writes


async def _is(value: bool) -> bool:
    return value


async def _answer_to(wire: Wire, frame: int) -> Frame:
    while (answer := await wire.hear()).id != frame:
        pass
    return answer


async def _count_calls(b: Assembled) -> list[Called]:
    """Let a.example answer that the partition has no messages; return the calls it gets."""
    calls: list[Called] = []

    async def answer(called: Called) -> PeerAnswer:
        calls.append(called)
        return PeerAnswer(encode(ReceiveResponse(Epoch(()), ())))

    b.peers.add("a.example", answer)
    return calls
