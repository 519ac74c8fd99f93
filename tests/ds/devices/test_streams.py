"""Device streams without sockets: frames in, frames out, everything pushed read from the store."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.errors import QuotaExceeded
from mimids.mls.welcome import Welcome
from mimids.store import providers, welcomes
from mimids.store.engine.transaction import Tx
from mimids.values import Device, Milliseconds
from mimids.wire.messages import (
    Ack,
    CaughtUp,
    CommitData,
    Frame,
    FrameType,
    Heartbeat,
    InboxWelcome,
    Messages,
    Result,
    Send,
    SendRequest,
    SendResponse,
    WelcomeData,
    Withdraw,
)
from tests.support.device_streams import Wire, heard, streaming
from tests.support.doubles import bound_hits
from tests.support.federation import COMMIT, Room, device, federated, present, said
from tests.support.provider import Assembled
from tests.support.store_faults import set_faults
from tests.support.stored import count, until
from tests.support.welcomes import REF, has_states, welcome_to
from tests.vectors import load_lines


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


async def test_a_message_in_a_frame_behind_its_commit_releases_the_welcome_however_busy_the_hub_is(
    tmp_path: Path,
) -> None:
    async with federated(tmp_path, "a.example", jobs_of=()) as (a,):
        alice, room, ours = device(a), Room(), Room.new_key()
        await a.services.hub.create_group(room.creation(), alice)
        await a.services.hub.send(room.commit("of another member", Room.new_key()), alice)
        welcome = WelcomeData(welcome_to(REF), (a.config.provider,))
        adds = SendRequest(room.message("add", kind=COMMIT), room.key, CommitData(ours, None, welcome))
        used = threading.Event()
        async with streaming(a, alice) as wire:
            set_faults(a.services.store, lambda point: wait_before_commit(point, used))
            for frame, request in enumerate([room.send("first"), adds, room.send("used", ours, epoch=1)]):
                await wire.say(FrameType.SEND, Send(room.hub, (request,)), frame)
                await trio.testing.wait_all_tasks_blocked(0.05)  # the first occupies the hub, so the others wait
            used.set()
            for _ in range(3):
                assert isinstance((await wire.hear()).body, Result)
        assert await has_states(a, "due")


def wait_before_commit(point: str, event: threading.Event) -> None:
    if point == "before_commit":
        event.wait(10)


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


async def test_a_heartbeat_is_answered_with_its_id(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,), streaming(a, device(a)) as wire:
        await wire.say(FrameType.HEARTBEAT, Heartbeat(), 41)
        assert await wire.hear() == Frame(41, FrameType.HEARTBEAT, Heartbeat())


async def test_caught_up_comes_after_everything_that_was_there(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        texts = [f"{number} {'x' * 3000}" for number in range(200)]  # several pages
        await a.services.hub.send_batch([room.send(text) for text in texts], alice)
        async with streaming(b, bob) as wire:
            await wire.say(FrameType.CAUGHT_UP, CaughtUp(()), 3)
            assert await wire.hear() == Frame(3, FrameType.CAUGHT_UP, CaughtUp(()))
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            await wire.say(FrameType.CAUGHT_UP, CaughtUp(()), 4)
            got: list[str] = []
            while (frame := await wire.hear()).type is FrameType.MESSAGES:
                assert isinstance(frame.body, Messages)
                got += said(frame.body.epoch.epoch.messages)
            assert frame == Frame(4, FrameType.CAUGHT_UP, CaughtUp(()))
            assert got == texts


async def test_caught_up_names_the_hubs_that_cannot_be_reached(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        b.peers.peers.pop(room.hub)
        async with streaming(b, bob) as wire:
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            await wire.say(FrameType.CAUGHT_UP, CaughtUp(()), 5)
            assert await wire.hear() == Frame(5, FrameType.CAUGHT_UP, CaughtUp((room.hub,)))


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
            await wire.say(FrameType.ACK, Ack(((1 << 63) - 1, again.welcome_id)))  # the first of them is no row
            await wire.say_octets(b"")  # answered once what came before is done
            assert (await wire.hear()).type == FrameType.PROBLEM
            assert await a.services.incoming_welcomes.inbox(alice.row) == []


async def test_the_newest_stream_of_a_device_displaces_its_most_silent_one(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,), trio.open_nursery() as streams:
        alice, bob = device(a), device(a, "bob", 2)
        a.services.streams._device_streams = 2
        ended: list[Wire] = []

        async def serve(wire: Wire, who: Device) -> None:
            try:
                await a.services.streams.serve(who, wire)
            except QuotaExceeded:
                ended.append(wire)

        async def has_opened(count: int) -> bool:
            return a.services.streams.statistics().open == count

        async def has_ended() -> bool:
            return bool(ended)

        wires = [Wire() for _ in range(4)]
        streams.start_soon(serve, wires[3], bob)
        for n, (wire, heard_at) in enumerate(zip(wires[:2], [7, 5], strict=True), 1):
            wire.heard_at = heard_at
            streams.start_soon(serve, wire, alice)
            await until(partial(has_opened, n + 1))
        streams.start_soon(serve, wires[2], alice)
        await until(partial(has_opened, 3))
        await until(has_ended)
        assert (ended, a.services.streams.statistics().open) == ([wires[1]], 3)
        for wire in (wires[0], wires[2]):
            await wire.say_octets(b"")
            assert (await wire.hear()).type == FrameType.PROBLEM
        streams.cancel_scope.cancel()
    assert a.services.streams.statistics().open == 0
    assert bound_hits(a.services.telemetry, "device-streams") == 1


async def test_a_stream_that_is_open_takes_nobody_back_into_a_group_that_was_left(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, ben, room = device(a), device(b, "bob"), device(b, "ben", 2), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(ben, room.send("Ben is here"))
        async with streaming(b, bob) as wire:
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            assert await heard(wire) == (0, ["Ben is here"])
            await until(lambda: _take_part(b, 2))  # the message may come before the answer of the hub
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
            await until(lambda: _take_part(b, 1))


async def _take_part(provider: Assembled, devices: int) -> bool:
    return count(provider, "SELECT count(*) FROM participations WHERE left_at IS NULL") == devices


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
