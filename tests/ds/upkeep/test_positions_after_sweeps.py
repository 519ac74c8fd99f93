"""What a sweep leaves of positions and of detached partitions, at exactly the ends of their times."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mimids.ds.groups import branches
from mimids.store import partitions
from mimids.store.engine.transaction import Tx
from mimids.values import Device, Milliseconds
from mimids.wire.ids import Counter, PartitionKey
from mimids.wire.messages import ReceiveRequest
from tests.support.federation import Room, commit_at, device, read
from tests.support.provider import Assembled
from tests.support.stored import DAY, bodies, provider, rows, sweep

MILLISECOND = 0.001


async def shows(running: Assembled, who: Device, room: Room, key: PartitionKey, counter: int) -> None:
    """Let a device present a position."""
    running.services.cursors.note(who, room.hub, ReceiveRequest(key, Counter(counter)))
    await running.services.cursors.save()


async def positions(running: Assembled) -> list[tuple[int, int]]:
    """Return each stored position: its partition's row, and the next counter."""
    found = await rows(running, "SELECT partition, next_counter FROM device_cursors ORDER BY 1")
    return [(row[0], row[1]) for row in found]


async def test_messages_that_a_device_left_behind_wait_a_month_for_its_return(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        hub, alice, room, tip = running.services.hub, device(running), Room(), Room.new_key()
        await hub.create_group(room.creation(), alice)
        for n in range(3):
            await hub.send(room.send(f"{n}"), alice)
        await hub.send(room.commit("on", tip), alice)
        await hub.send(room.send("there", tip, epoch=1), alice)
        clock.advance(20 * DAY)
        await shows(running, alice, room, room.key, 1)
        await shows(running, alice, room, tip, 1)  # it went on, and has three messages of the first epoch to fetch
        clock.advance(29 * DAY)  # the day of a position is stored, not its moment
        await sweep(running)
        assert await bodies(running, room.key) == [False, True, True, True]
        assert await positions(running) == [(1, 1), (2, 1)]
        clock.advance(DAY + MILLISECOND)
        await sweep(running)
        assert await bodies(running, room.key) == [False] * 4
        assert await positions(running) == [(2, 1)], "where the device is now is still known"


async def test_a_position_at_the_end_of_an_epoch_is_forgotten_once_the_device_went_on(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        left, right = Room.new_key(), Room.new_key()
        await running.add_device("bob")
        await hub.create_group(room.creation(), alice)
        await hub.send(room.commit("left", left), alice)
        await hub.send(room.commit("right", right), alice)
        await shows(running, alice, room, room.key, 2)
        await shows(running, alice, room, left, 0)
        await shows(running, device(running, "bob", 2), room, room.key, 2)  # another device is still there
        clock.advance(31 * DAY)
        await sweep(running)
        assert await rows(running, "SELECT device, partition FROM device_cursors ORDER BY 1") == [(1, 2), (2, 1)]


async def test_a_branch_that_lost_a_race_stays_for_a_month_and_a_terminated_one_for_a_year(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        won, lost, ended = Room.new_key(), Room.new_key(), Room.new_key()
        await hub.create_group(room.creation(), alice)
        clock.advance(40 * DAY)
        for name, key in (("won", won), ("lost", lost), ("ended", ended)):
            await hub.send(room.commit(name, key), alice)
        await hub.send(room.send("here", won, epoch=1), alice)
        await running.services.store.write(partial(terminate, ended))
        expired = "SELECT id, expired_at IS NOT NULL FROM partitions WHERE parent > 0 ORDER BY id"
        await sweep(running)
        assert await rows(running, expired) == [(2, 0), (3, 0), (4, 0)]
        clock.advance(30 * DAY)
        await sweep(running)
        assert await rows(running, expired) == [(2, 0), (3, 0), (4, 0)]
        clock.advance(MILLISECOND)
        await sweep(running)
        assert await rows(running, expired) == [(2, 0), (3, 1), (4, 0)], "the terminated one may be opened again"
        clock.advance(335 * DAY)
        await sweep(running)
        assert await rows(running, expired) == [(2, 0), (3, 1), (4, 1)]


def terminate(key: PartitionKey, tx: Tx) -> None:
    found = partitions.find_partition(tx, 1, key.masks())
    assert found is not None
    branches.terminate(tx, found, "why", Milliseconds(0))


async def test_a_commit_leads_to_a_detached_partition_also_after_its_messages_are_gone(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        hub, alice, room, apart = running.services.hub, device(running), Room(), Room.new_key()
        await hub.create_group(room.creation(), alice)
        first = await hub.send(room.send("apart", apart, epoch=1), alice)
        assert first.detached == 1
        clock.advance(7 * DAY)
        await sweep(running)
        assert await bodies(running, apart) == [True]
        clock.advance(MILLISECOND)
        await sweep(running)
        assert await bodies(running, apart) == [False]
        commit = room.commit("to it", apart)
        assert (await hub.send(commit, alice)).counter == 0
        assert (await hub.send(room.send("apart", apart, epoch=1), alice)).counter == 0, "a repeat"
        sent = await hub.send(room.send("attached", apart, epoch=1), alice)
        assert (sent.counter, sent.detached) == (1, 0)
        assert await read(running, alice, room.hub, apart, 1) == ["attached"]
        await sweep(running)
        assert await bodies(running, apart) == [False, True], "it is swept like any other now"


async def test_a_chain_of_detached_partitions_is_removed_from_its_end(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        one, two = Room.new_key(), Room.new_key()
        await hub.create_group(room.creation(), alice)
        await hub.send(room.commit("on", two, one), alice)
        await hub.send(commit_at(room, 1, two, Room.new_key()), alice)
        clock.advance(8 * DAY)
        await sweep(running)
        expired = "SELECT count(*), count(expired_at) FROM partitions WHERE detached = 1"
        assert await rows(running, expired) == [(3, 3)]
        clock.advance(723 * DAY)
        await hub.send(room.send("the newest message is never deleted"), alice)
        for _ in range(4):
            await sweep(running)
        assert await rows(running, expired) == [(0, 0)]
        found = await running.services.store.read(lambda tx: partitions.find_partition(tx, 1, one.masks()))
        assert found is None
