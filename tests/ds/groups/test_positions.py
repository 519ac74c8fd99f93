"""How far partitions go, and what a reader with a counter beyond the end is told (semantics: restore)."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import trio

from mimids.ds.groups.positions import NOT_SAID
from mimids.errors import CounterAhead, MessagesExpired, Recovering
from mimids.store import recoveries
from mimids.store.engine.transaction import Tx
from mimids.store.groups import find_group
from mimids.store.providers import provider_row
from mimids.values import Follower
from mimids.wire.base64url import base64url
from mimids.wire.declare import decode
from mimids.wire.ids import Counter, PartitionKey, ProviderId
from mimids.wire.messages import MOST_SUCCESSORS, FrameType, Position, ReceiveRequest, SendResponse
from tests.support.commands import command
from tests.support.device_streams import heard, streaming
from tests.support.federation import Room, device, federated, present, read, wait_stored
from tests.support.provider import Assembled
from tests.support.restoring import make_backup, restored
from tests.support.stored import rows, until
from tests.support.tables import table_names

A, B = ProviderId("a.example"), ProviderId("b.example")


async def told(provider: Assembled, who: int, room: Room, counter: int, user: str = "alice") -> int:
    """Return the counter that a device is told to start again at."""
    with pytest.raises(CounterAhead) as refused:
        await read(provider, device(provider, user, who), room.hub, room.key, counter)
    next_counter = refused.value.members["next_counter"]
    assert isinstance(next_counter, int)
    return next_counter


async def say(provider: Assembled, room: Room, *texts: str) -> None:
    for text in texts:
        await provider.services.hub.send(room.send(text), device(provider))


async def positions(
    provider: Assembled, *keys: PartitionKey, hub: ProviderId = A, user: str = "alice", row: int = 1
) -> list[Position]:
    return list(await provider.services.hub_router.hub(hub).positions(device(provider, user, row), keys))


async def arrived_at(provider: Assembled, room: Room, counter: int) -> bool:
    return (Counter(counter + 1),) in await rows(provider, "SELECT next_counter FROM partitions")


async def test_a_counter_beyond_the_end_is_answered_with_the_next_one(tmp_path: Path) -> None:
    async with federated(tmp_path, A) as (a,):
        room = Room()
        await a.services.hub.create_group(room.creation(), device(a))
        await say(a, room, "0", "1", "2")
        assert await read(a, device(a), A, room.key, 3) == []
        assert await told(a, 1, room, 4) == 3
        with pytest.raises(CounterAhead):
            await a.services.hub.receive(ReceiveRequest(room.key, Counter(9)), Follower(ProviderId("b.example")))


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_a_device_of_before_the_restore_is_told_even_when_the_hub_has_caught_up(tmp_path: Path) -> None:
    async with federated(tmp_path, A) as (a,):
        room = Room()
        await a.services.hub.create_group(room.creation(), device(a))
        await say(a, room, *"012")
        make_backup(a, tmp_path / "copy")
        await say(a, room, *(f"lost {n}" for n in range(5)))
        assert len(await read(a, device(a), A, room.key)) == 8
        async with restored(a, tmp_path / "copy", tmp_path / "again") as again:
            assert await read(again, device(again, row=3), A, room.key, 3) == []
            await say(again, room, *(f"new {n}" for n in range(5)))
            new = [f"new {n}" for n in range(5)]
            assert await told(again, 1, room, 8) == 3
            assert await told(again, 1, room, 5) == 3
            assert await read(again, device(again), A, room.key, 3) == new
            assert await read(again, device(again), A, room.key, 8) == []
            assert await told(again, 1, room, 9) == 8
            assert await told(again, 2, room, 8) == 3, "each device by itself"
            assert await read(again, device(again, row=3), A, room.key, 6) == new[3:]


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_a_stream_is_told_and_starts_again(tmp_path: Path) -> None:
    async with federated(tmp_path, A) as (a,):
        room = Room()
        await a.services.hub.create_group(room.creation(), device(a))
        await say(a, room, *"012")
        make_backup(a, tmp_path / "copy")
        async with restored(a, tmp_path / "copy", tmp_path / "again") as again:
            await say(again, room, "new 0", "new 1")
            async with streaming(again, device(again)) as wire:
                await wire.say(FrameType.PRESENT, present(A, (room.key, 4)))
                frame = await wire.hear()
                assert (frame.id, frame.type) == (7, FrameType.PROBLEM)
                assert isinstance(frame.body, bytes)
                problem = json.loads(frame.body)
                assert (problem["type"], problem["next_counter"]) == ("urn:mimids:problem:counter-ahead", 3)
                await wire.say(FrameType.PRESENT, present(A, (room.key, 3)))
                assert await heard(wire) == (3, ["new 0", "new 1"])


async def test_a_follower_tells_its_devices_what_the_hub_does_not_have(tmp_path: Path) -> None:
    async with federated(tmp_path, A, "b.example") as (a, b):
        room, bob = Room(), device(b, "bob")
        await a.services.hub.create_group(room.creation(), device(a))
        await say(a, room, *"012")
        assert await told(b, 1, room, 8, "bob") == 3, "the group is unknown here: the hub says so"
        assert await read(b, bob, A, room.key) == ["0", "1", "2"]
        await wait_stored(b, A, bob, room.key, 3)
        assert await read(b, bob, A, room.key, 3) == []
        assert await told(b, 1, room, 8, "bob") == 3
        async with streaming(b, bob) as wire:
            await wire.say(FrameType.PRESENT, present(A, (room.key, 8)))
            frame = await wire.hear()
            assert isinstance(frame.body, bytes)
            assert json.loads(frame.body)["next_counter"] == 3
            await wire.say(FrameType.PRESENT, present(A, (room.key, 2)))
            assert await heard(wire) == (2, ["2"])


async def test_a_device_at_a_follower_that_is_behind_is_not_sent_back(tmp_path: Path) -> None:
    """The answer to a send may come before the push of the message."""
    async with federated(tmp_path, A, "b.example", jobs_of=()) as (a, b):
        room, bob = Room(), device(b, "bob")
        await a.services.hub.create_group(room.creation(), device(a))
        sent = [await b.services.hub_router.hub(A).send(bob, room.send(f"{n}")) for n in range(3)]
        assert await read(b, bob, A, room.key, decode(SendResponse, sent[-1]).counter + 1) == []
        assert await read(b, bob, A, room.key, 1) == ["1", "2"]


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_in_a_held_group_nobody_is_sent_back(tmp_path: Path) -> None:
    async with federated(tmp_path, A, "b.example") as (a, b):
        room, bob = Room(), device(b, "bob")
        await a.services.hub.create_group(room.creation(), device(a))
        await b.services.hub_router.hub(A).send(bob, room.send("0"))
        make_backup(a, tmp_path / "copy")
        await say(a, room, "1", "2")
        await wait_stored(b, A, bob, room.key, 3)
        async with restored(a, tmp_path / "copy", tmp_path / "again", jobs=False) as again:
            with pytest.raises(Recovering):
                await read(again, device(again), A, room.key, 3)
            assert await read(again, device(again), A, room.key, 1) == []
            b_asks = again.services.hub.receive(ReceiveRequest(room.key, Counter(3)), Follower(b.config.provider))
            assert await b_asks == b"\0\0", "a follower waits for the end of the recovery"


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_counters_of_a_follower_that_is_not_waited_for_are_skipped(tmp_path: Path) -> None:
    async with federated(tmp_path, A, "b.example") as (a, b):
        room, bob = Room(), device(b, "bob")
        await a.services.hub.create_group(room.creation(), device(a))
        await b.services.hub_router.hub(A).send(bob, room.send("0"))
        await wait_stored(b, A, bob, room.key, 1)
        make_backup(a, tmp_path / "copy")
        await say(a, room, "1", "2")
        await wait_stored(b, A, bob, room.key, 3)
        async with restored(a, tmp_path / "copy", tmp_path / "again", b, jobs=False) as again:
            await again.services.store.write(
                lambda tx: recoveries.release(tx, find_group(tx, provider_row(tx, A) or 0, room.group_id).id)  # type: ignore[union-attr]
            )
            async with trio.open_nursery() as tasks:
                await tasks.start(again.services.delivery.run)
                sent = await again.services.hub.send(room.send("new"), device(again))
                assert sent.counter > 3
                await until(lambda: arrived_at(b, room, sent.counter))
                assert await read(b, bob, A, room.key) == ["0", "1", "2"]
                with pytest.raises(MessagesExpired) as refused:
                    await read(again, device(again), A, room.key, 3)
                assert refused.value.members["next_counter"] == sent.counter
                tasks.cancel_scope.cancel()


async def test_positions_tell_how_far_partitions_go(tmp_path: Path) -> None:
    async with federated(tmp_path, A) as (a,):
        room, following, other = Room(), Room.new_key(), Room.new_key()
        await a.services.hub.create_group(room.creation(), device(a))
        assert await positions(a, room.key) == [Position(1, Counter(0), Counter(0), 0, ())]
        await say(a, room, "0", "1")
        for name, key in (("left", following), ("right", other)):
            await a.services.hub.send(room.commit(name, key), device(a))
        await a.services.hub.send(room.send("2", following, epoch=1), device(a))
        assert await positions(a, following, Room.new_key(), room.key, following) == [
            Position(1, Counter(0), Counter(1), 0, ()),
            NOT_SAID,
            Position(1, Counter(0), Counter(4), 0, (following.mask(32), other.mask(32))),
            Position(1, Counter(0), Counter(1), 0, ()),
        ]
        assert await positions(a) == []
        await command(a, "group terminate", group=base64url(room.group_id), partition=other.mask(32).hex())
        assert [each.terminated for each in await positions(a, room.key, following, other)] == [0, 0, 1]


async def test_of_very_many_successors_the_first_are_named(tmp_path: Path) -> None:
    async with federated(tmp_path, A) as (a,):
        room, keys = Room(), [Room.new_key() for _ in range(MOST_SUCCESSORS + 1)]
        await a.services.hub.create_group(room.creation(), device(a))
        for number, key in enumerate(keys):
            await a.services.hub.send(room.commit(str(number), key), device(a, row=number % 3 + 1))
        (position,) = await positions(a, room.key)
        assert position.successors == tuple(key.mask(32) for key in keys[:MOST_SUCCESSORS])


def _empty_before(counter: int, tx: Tx) -> None:
    tx.execute("UPDATE messages SET body = NULL WHERE counter < ?", (counter,))


async def test_the_first_counter_is_that_of_the_oldest_message_kept(tmp_path: Path) -> None:
    async with federated(tmp_path, A) as (a,):
        room = Room()
        await a.services.hub.create_group(room.creation(), device(a))
        await say(a, room, *"012")
        for emptied, first in ((1, 1), (3, 3)):
            await a.services.store.write(partial(_empty_before, emptied))
            assert await positions(a, room.key) == [Position(1, Counter(first), Counter(3), 0, ())]


async def test_a_follower_answers_from_its_store_without_asking_the_hub(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (a, b):
        room, bob = Room(), device(b, "bob")
        await a.services.hub.create_group(room.creation(), device(a))
        await say(a, room, "0", "1")
        called = len(b.peers.calls)
        assert await positions(b, room.key) == [NOT_SAID]
        assert len(b.peers.calls) == called
        assert await rows(b, "SELECT count(*) FROM partitions") == [(0,)]
        await read(b, bob, A, room.key)
        await wait_stored(b, A, bob, room.key, 2)
        called = len(b.peers.calls)
        assert await positions(b, room.key) == [Position(1, Counter(0), Counter(2), 0, ())]
        assert await positions(b, room.key, hub=B) == [NOT_SAID], "a key counts at its own hub"
        assert len(b.peers.calls) == called


async def test_asking_for_positions_changes_nothing(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (a, b):
        room = Room()
        await a.services.hub.create_group(room.creation(), device(a))
        await say(a, room, "0")
        await read(b, device(b, "bob"), A, room.key)
        await wait_stored(b, A, device(b, "bob"), room.key, 1)
        tables = await b.services.store.read(table_names)
        queries = ["SELECT * FROM " + name for name in tables]  # noqa: S608
        before = [await rows(b, query) for query in queries]
        await positions(b, room.key, Room.new_key(), row=7)
        assert [await rows(b, query) for query in queries] == before


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_after_a_restore_a_device_has_to_receive_before_it_is_told_positions(tmp_path: Path) -> None:
    async with federated(tmp_path, A) as (a,):
        room = Room()
        await a.services.hub.create_group(room.creation(), device(a))
        await say(a, room, *"012")
        make_backup(a, tmp_path / "copy")
        await say(a, room, "lost")
        assert len(await read(a, device(a), A, room.key)) == 4
        async with restored(a, tmp_path / "copy", tmp_path / "again") as again:
            await say(again, room, "new")
            assert await positions(again, room.key) == [NOT_SAID], "4 is the end now too, of other messages"
            assert await told(again, 1, room, 4) == 3
            assert await read(again, device(again), A, room.key, 3) == ["new"]
            assert [each.next_counter for each in await positions(again, room.key)] == [4]
            assert await positions(again, room.key, row=2) == [NOT_SAID]
