"""Device streams without sockets: frames in, frames out, everything pushed read from the store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.ds.devices.streams import DeviceGone
from mimids.errors import QuotaExceeded
from mimids.mls.welcome import Welcome
from mimids.store import providers, welcomes
from mimids.store.engine.transaction import Tx
from mimids.values import Device, Milliseconds
from mimids.wire.declare import decode, encode
from mimids.wire.messages import (
    Ack,
    Frame,
    FrameBody,
    FrameType,
    InboxWelcome,
    Messages,
    Result,
    Send,
    SendRequest,
    SendResponse,
    Withdraw,
)
from tests.support.federation import Room, device, federated, present, said
from tests.support.provider import Assembled
from tests.support.stored import count, until
from tests.vectors import load_lines


class Wire:
    """The device's end of a stream; `slow` lets what is sent to it wait."""

    def __init__(self) -> None:
        self._to_server, self._from_device = trio.open_memory_channel[bytes](0)
        self._to_device, self._from_server = trio.open_memory_channel[bytes](0)
        self.delivered = 0

    async def receive(self) -> bytes:
        try:
            return await self._from_device.receive()
        except trio.EndOfChannel:
            raise DeviceGone from None

    async def send(self, frame: bytes) -> None:
        await self._to_device.send(frame)
        self.delivered += 1

    async def say(self, type_: FrameType, body: FrameBody, frame: int = 7) -> None:
        await self._to_server.send(encode(Frame(frame, type_, body)))

    async def say_octets(self, octets: bytes) -> None:
        await self._to_server.send(octets)

    async def hear(self) -> Frame:
        with trio.fail_after(10):
            return decode(Frame, await self._from_server.receive())

    def hang_up(self) -> None:
        self._to_server.close()


@asynccontextmanager
async def streaming(provider: Assembled, who: Device) -> AsyncIterator[Wire]:
    wire = Wire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(provider.services.streams.serve, who, wire)
        yield wire
        wire.hang_up()


async def heard(wire: Wire) -> tuple[int, list[str]]:
    """Return the counter and texts of the next messages."""
    frame = await wire.hear()
    assert isinstance(frame.body, Messages), frame
    assert frame.id == 0
    return frame.body.epoch.counter, said(frame.body.epoch.epoch.messages)


async def test_a_stream_resumes_from_a_counter_and_goes_on_live(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        alice, room = device(a), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await a.services.hub.send_batch([room.send(text) for text in ("zero", "one", "two")], alice)
        async with streaming(a, alice) as wire:
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 1)))
            assert await heard(wire) == (1, ["one", "two"])
            await a.services.hub.send(room.send("three"), alice)
            assert await heard(wire) == (3, ["three"])
            await wire.say(FrameType.WITHDRAW, Withdraw((room.key,)))
            await wire.say(FrameType.SEND, Send(room.hub, (room.send("four"),)))
            assert isinstance((await wire.hear()).body, Result)


async def test_sends_in_flight_keep_their_order_and_get_their_own_results(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        alice, room = device(a), Room()
        await a.services.hub.create_group(room.creation(), alice)
        async with streaming(a, alice) as wire, trio.open_nursery() as nursery:

            async def say_all() -> None:
                for frame in range(1, 41):
                    requests = (room.send(f"{frame} a"), room.send(f"{frame} b", epoch=frame % 2))
                    await wire.say(FrameType.SEND, Send(room.hub, requests), frame)

            nursery.start_soon(say_all)
            counter = 0
            for frame in range(1, 41):
                answer = await wire.hear()
                assert answer.id == frame
                assert isinstance(answer.body, Result)
                first, second = (result.outcome for result in answer.body.results)
                assert isinstance(first, SendResponse)
                assert first.counter == counter
                counter += 1
                if isinstance(second, SendResponse):
                    counter += 1


async def test_messages_of_another_hub_come_by_presenting_a_key(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await a.services.hub.send(room.send("before"), alice)
        async with streaming(b, bob) as wire:
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            assert await heard(wire) == (0, ["before"])
            await a.services.hub.send(room.send("after"), alice)
            assert await heard(wire) == (1, ["after"])


async def test_a_hub_that_is_away_is_asked_again_while_the_stream_is_open(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await a.services.hub.send(room.send("hello"), alice)
        spec = b.peers.peers.pop(room.hub)
        async with streaming(b, bob) as wire:
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            await wire.say(FrameType.SEND, Send(room.hub, (room.send("lost"),)), 9)
            refused = await wire.hear()
            assert (refused.id, refused.type) == (9, FrameType.PROBLEM)
            b.peers.add(room.hub, spec)
            assert await heard(wire) == (0, ["hello"])


async def test_an_unknown_key_is_said_and_stays_watched(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        alice, room = device(a), Room()
        async with streaming(a, alice) as wire:
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)), 3)
            answer = await wire.hear()
            assert (answer.id, answer.type) == (3, FrameType.PROBLEM)
            assert isinstance(answer.body, bytes)
            assert b"unknown-partition" in answer.body
            await a.services.hub.create_group(room.creation(), alice)
            await a.services.hub.send(room.send("now"), alice)
            assert await heard(wire) == (0, ["now"])


@pytest.mark.parametrize("octets", [b"", b"\0" * 5, b"\0\0\0\1\x09\0", b"\0\0\0\1\1\xff"])
async def test_what_is_no_frame_is_refused_and_the_stream_goes_on(octets: bytes, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        alice, room = device(a), Room()
        await a.services.hub.create_group(room.creation(), alice)
        async with streaming(a, alice) as wire:
            await wire.say_octets(octets)
            answer = await wire.hear()
            assert answer.type == FrameType.PROBLEM
            assert isinstance(answer.body, bytes)
            assert b"malformed" in answer.body
            await wire.say(FrameType.SEND, Send(room.hub, (room.send("fine"),)))
            assert isinstance((await wire.hear()).body, Result)


async def test_a_slow_reader_waits_in_its_cursor_and_not_in_memory(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        alice, room = device(a), Room()
        await a.services.hub.create_group(room.creation(), alice)
        async with streaming(a, alice) as wire:
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            for start in range(0, 2000, 200):
                batch: list[SendRequest] = [room.send(f"{start + n}") for n in range(200)]
                await a.services.hub.send_batch(batch, alice)
            assert wire.delivered == 0
            found: list[str] = []
            while len(found) < 2000:
                counter, texts = await heard(wire)
                assert counter == len(found)
                found += texts
            assert found == [str(n) for n in range(2000)]


async def test_a_welcome_comes_until_it_is_acknowledged(tmp_path: Path) -> None:
    line = next(each for each in load_lines("conversations/public.jsonl") if each["kind"] == "welcome")
    body = bytes.fromhex(line["bytes"])
    async with federated(tmp_path, "a.example") as (a,):
        alice = device(a)

        def put(tx: Tx) -> None:
            hub = providers.ensure_provider(tx, a.config.provider)
            welcomes.put_in_inbox(tx, alice.row, welcomes.keep_welcome(tx, body, Milliseconds(1)), hub, Milliseconds(1))

        await a.services.store.write(put)
        async with streaming(a, alice) as wire:
            await wire.hear()
        async with streaming(a, alice) as wire:
            again = (await wire.hear()).body
            assert isinstance(again, InboxWelcome)
            assert isinstance(again.welcome.message, Welcome)
            assert again.welcome.encoded == body
            await wire.say(FrameType.ACK, Ack(((1 << 64) - 1, again.welcome_id)))  # the first of them is no row
            await wire.say_octets(b"")  # answered once what came before is done
            assert (await wire.hear()).type == FrameType.PROBLEM
            assert await a.services.incoming_welcomes.inbox(alice.row) == []


async def test_a_device_has_a_bounded_number_of_streams(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        alice = device(a)
        a.services.streams._device_streams = 1
        async with streaming(a, alice):
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(QuotaExceeded):
                await a.services.streams.serve(alice, Wire())
        assert a.services.streams.statistics().open == 0


async def test_a_stream_that_is_open_takes_nobody_back_into_a_group_that_was_left(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, ben, room = device(a), device(b, "bob"), device(b, "ben", 2), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(ben, room.send("Ben is here"))
        async with streaming(b, bob) as wire:
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            assert await heard(wire) == (0, ["Ben is here"])
            await b.services.following.leave(bob, room.hub, room.group_id)
            await a.services.hub.send(room.send("Bob is not"), alice)
            assert await heard(wire) == (
                1,
                ["Bob is not"],
            )  # who leaves goes on receiving until it is sequenced (semantics: welcomes-and-leaving)
            assert count(b, "SELECT count(*) FROM participations WHERE left_at IS NULL") == 1
            await b.services.following.leave(ben, room.hub, room.group_id)
            await a.services.hub.send(room.send("nobody is"), alice)
            await until(lambda: _empty(a, "follows"))
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 2)))  # and whoever presents a key is in
            assert await heard(wire) == (2, ["nobody is"])
            assert count(b, "SELECT count(*) FROM participations WHERE left_at IS NULL") == 1


async def _empty(provider: Assembled, table: str) -> bool:
    return count(provider, f"SELECT count(*) FROM {table}") == 0  # noqa: S608  # a name of ours


async def test_a_partition_that_a_provider_has_lost_comes_again_by_its_key(tmp_path: Path) -> None:
    """It was restored from a backup of a time before the group, or dropped what no device of its took up for long."""
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("zero"))
        await a.services.hub.send(room.send("one"), alice)
        await until(lambda: _reached(a, 2))

        def forget(tx: Tx) -> None:
            for table in ("messages", "device_cursors", "participations", "partitions", "groups"):
                tx.execute(f"DELETE FROM {table}")  # noqa: S608  # names of ours

        await b.services.store.write(forget)
        async with streaming(b, bob) as wire:
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            assert await heard(wire) == (0, ["zero", "one"])
            await a.services.hub.send(room.send("two"), alice)
            assert await heard(wire) == (2, ["two"])


async def _reached(hub: Assembled, counter: int) -> bool:
    return count(hub, "SELECT next_counter FROM follows") == counter
