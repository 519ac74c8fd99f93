"""What the sweeper deletes, and what it must keep: on a real store, with a clock that the test moves.

The file is long because it has a test for each rule of what is kept and deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio
import trio.testing

from mimids.ds.groups.states import States
from mimids.ds.ports import PeerAnswer
from mimids.ds.upkeep import retention
from mimids.ds.upkeep.retention_plan import plan_group
from mimids.ds.upkeep.sweeper import Sweeper
from mimids.errors import CounterAhead, MessagesExpired, QuotaExceeded, StorageUnavailable, UnknownGroup
from mimids.mls.knowledge import NotKnown
from mimids.store import groups, partitions
from mimids.store.engine.transaction import Tx
from mimids.values import Device, Follower
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, PartitionKey, ProviderId
from mimids.wire.messages import FrameType, PushRequest, PushResponse, ReceiveRequest, SendResponse
from tests.support.device_streams import streaming
from tests.support.doubles import Called, stopped_clock
from tests.support.federation import (
    APPLICATION,
    PROPOSAL,
    Room,
    commit_at,
    device,
    federated,
    present,
    read,
    wait_stored,
)
from tests.support.hub import offer
from tests.support.provider import Assembled
from tests.support.recordings import Recording, expected
from tests.support.stored import DAY, bodies, provider, rows, sweep, until


async def shows(running: Assembled, who: Device, room: Room, key: PartitionKey, counter: int) -> None:
    """Let a device present a position."""
    running.services.cursors.note(who, room.hub, ReceiveRequest(key, Counter(counter)))
    await running.services.cursors.save()


# --- messages -----------------------------------------------------------------------------------------------------


async def test_a_message_without_waiters_is_deleted_after_a_month_and_a_repeat_gets_the_first_answer(
    tmp_path: Path,
) -> None:
    async with provider(tmp_path) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        await hub.create_group(room.creation(), alice)
        answers = [await hub.send(room.send(f"{n}"), alice) for n in range(3)]
        clock.advance(20 * DAY)
        answers += [await hub.send(room.send(f"{n}"), alice) for n in range(3, 5)]
        clock.advance(11 * DAY)
        await sweep(running)
        assert await bodies(running, room.key) == [False, False, False, True, True]
        assert [await hub.send(room.send(f"{n}"), alice) for n in range(5)] == answers
        with pytest.raises(MessagesExpired) as refused:
            await read(running, alice, room.hub, room.key)
        assert refused.value.members["next_counter"] == 3
        assert await read(running, alice, room.hub, room.key, 3) == ["3", "4"]
        assert (await hub.send(room.send("5"), alice)).counter == 5


@pytest.mark.parametrize("way", ["a request", "a stream"])
async def test_a_position_that_a_device_cannot_have_keeps_the_messages_that_it_never_had(
    way: str, tmp_path: Path
) -> None:
    """A device of a group that was restored is ahead of it; what the group gets then, the device never had."""
    async with provider(tmp_path) as (running, clock):
        services, alice, room = running.services, device(running), Room()
        await services.hub.create_group(room.creation(), alice)
        for n in range(3):
            await services.hub.send(room.send(f"{n}"), alice)
        if way == "a stream":
            await stream_presents(running, alice, room, 8)
        else:
            with pytest.raises(CounterAhead):
                await read(running, alice, room.hub, room.key, 8)
        clock.advance(1)
        for n in range(3, 9):
            await services.hub.send(room.send(f"{n}"), alice)
        await services.cursors.save()
        clock.advance(40 * DAY)
        await sweep(running)
        assert (await bodies(running, room.key))[3:] == [True] * 6


async def test_a_device_that_is_ahead_of_another_providers_group_is_told_so(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, "a.example", "b.example", clock=clock, jobs_of=()) as (a, b):
        bob, room = device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), device(a))
        for n in range(3):
            await a.services.hub.send(room.send(f"{n}"), device(a))
        with pytest.raises(CounterAhead) as refused:  # the group is not known here: the hub's own answer
            await read(b, bob, room.hub, room.key, 8)
        assert refused.value.members["next_counter"] == 3
        assert await read(b, bob, room.hub, room.key) == ["0", "1", "2"]


async def stream_presents(running: Assembled, who: Device, room: Room, counter: int) -> None:
    """Present a position on a stream that is refused."""
    async with streaming(running, who) as wire:
        await wire.say(FrameType.PRESENT, present(room.hub, (room.key, counter)))
        assert (await wire.hear()).type is FrameType.PROBLEM


async def test_an_older_request_that_ends_later_does_not_move_a_position(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        services, alice, room = running.services, device(running), Room()
        hub = services.hub_router.hub(room.hub)
        await services.hub.create_group(room.creation(), alice)
        for n in range(3):
            await services.hub.send(room.send(f"{n}"), alice)
        async with trio.open_nursery() as requests:
            at_the_end = ReceiveRequest(room.key, Counter(3))
            requests.start_soon(partial(hub.receive, alice, at_the_end, wait_seconds=20))
            await trio.testing.wait_all_tasks_blocked(0.01)
            clock.advance(1)
            assert await read(running, alice, room.hub, room.key) == ["0", "1", "2"]  # it lost its messages
            await services.hub.send(room.send("3"), alice)
        clock.advance(40 * DAY)
        await sweep(running)
        assert await bodies(running, room.key) == [True] * 4


async def test_a_phone_of_a_follower_gets_all_messages_also_if_it_read_before_the_group_was_known(
    tmp_path: Path,
) -> None:
    clock = stopped_clock()
    async with (
        federated(tmp_path, "a.example", "b.example", clock=clock, jobs_of=()) as (a, b),
        trio.open_nursery() as jobs,
    ):
        alice, phone, tablet, room = device(a), device(b, "bob"), device(b, "bob", 2), Room()
        for name in ("phone", "tablet"):
            await b.add_device("bob", name)
        await a.services.hub.create_group(room.creation(), alice)
        for n in range(2):
            await a.services.hub.send(room.send(f"{n}"), alice)
        got = await read(b, phone, room.hub, room.key)
        got += await read(b, phone, room.hub, room.key, len(got))
        await jobs.start(a.services.delivery.run)
        for n in range(2, 4):
            await a.services.hub.send(room.send(f"{n}"), alice)
        await wait_stored(b, room.hub, tablet, room.key, 4)
        await read(b, tablet, room.hub, room.key, 4)
        clock.advance(40 * DAY)
        await sweep(b)
        got += await read(b, phone, room.hub, room.key, len(got))
        assert got == ["0", "1", "2", "3"]
        jobs.cancel_scope.cancel()


async def test_messages_are_kept_for_a_device_whose_position_was_never_stored(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, "a.example", "b.example", clock=clock) as (a, b):
        alice, phone, tablet, room = device(a), device(b, "bob"), device(b, "bob", 2), Room()
        for name in ("phone", "tablet"):
            await b.add_device("bob", name)
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(phone, room.send("0"))  # it has presented nothing
        await a.services.hub.send(room.send("1"), alice)
        await wait_stored(b, room.hub, tablet, room.key, 2)
        await read(b, tablet, room.hub, room.key, 2)
        clock.advance(40 * DAY)
        await sweep(b)
        assert await bodies(b, room.key) == [True] * 2
        await b.services.following.leave(phone, ProviderId(room.hub), room.group_id)
        await sweep(b)
        assert await bodies(b, room.key) == [False] * 2


async def test_a_device_that_left_does_not_keep_messages_until_it_returns(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        services, alice, room = running.services, device(running), Room()
        await services.hub.create_group(room.creation(), alice)
        for n in range(2):
            await services.hub.send(room.send(f"{n}"), alice)
            services.cursors.note(alice, room.hub, ReceiveRequest(room.key, Counter(n)))
            await services.following.leave(alice, room.hub, room.group_id)
            clock.advance(40 * DAY)
            await sweep(running)
            assert await bodies(running, room.key) == [False] * (n + 1)
        await services.hub.send(room.send("welcome back"), alice)
        await shows(running, alice, room, room.key, 2)
        clock.advance(40 * DAY)
        await sweep(running)
        assert await bodies(running, room.key) == [False, False, True]


async def test_messages_that_a_device_waits_for_are_kept_until_it_is_silent_for_a_year(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        await hub.create_group(room.creation(), alice)
        for n in range(4):
            await hub.send(room.send(f"{n}"), alice)
        await shows(running, alice, room, room.key, 2)
        clock.advance(364 * DAY)
        await sweep(running)
        assert await bodies(running, room.key) == [False, False, True, True]
        await shows(running, alice, room, room.key, 2)  # it is there, and has not fetched them yet
        clock.advance(364 * DAY)
        await sweep(running)
        assert await bodies(running, room.key) == [False, False, True, True]
        clock.advance(2 * DAY)
        await sweep(running)
        assert await bodies(running, room.key) == [False] * 4


async def test_a_device_waits_for_later_epochs_of_its_branch_and_not_for_other_branches(
    tmp_path: Path,
) -> None:
    async with provider(tmp_path) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        first, second, other = Room.new_key(), Room.new_key(), Room.new_key()
        await hub.create_group(room.creation(), alice)
        await hub.send(room.commit("to first", first), alice)
        await hub.send(room.commit("to other", other), alice)
        await hub.send(commit_at(room, 1, first, second), alice)
        for key, epoch in ((second, 2), (other, 1)):
            await hub.send(room.send("hello", key, epoch=epoch), alice)
        await shows(running, alice, room, first, 1)  # it has the commit to `second`, and has not come there yet
        clock.advance(40 * DAY)
        await sweep(running)
        assert await bodies(running, room.key) == [False, False]
        assert await bodies(running, first) == [False]
        assert await bodies(running, second) == [True]
        assert await bodies(running, other) == [False]
        await shows(running, alice, room, second, 1)
        await sweep(running)
        assert await bodies(running, second) == [False]


async def test_proposals_of_a_tip_are_kept_and_those_of_earlier_epochs_deleted(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        await hub.create_group(room.creation(), alice)
        for key, epoch in ((room.key, 0), (tip := Room.new_key(), 1)):
            if epoch:
                await hub.send(room.commit("next", tip), alice)
            for n, kind in enumerate((APPLICATION, PROPOSAL, APPLICATION)):
                request = room.send(f"{epoch} {n}", key, epoch=epoch)
                message = room.message(f"{epoch} {n}", epoch=epoch, kind=kind)
                await hub.send(type(request)(message, key, None), alice)
        clock.advance(31 * DAY)
        await sweep(running)
        assert await bodies(running, room.key) == [False] * 4
        assert await bodies(running, tip) == [False, True, False]
        assert await rows(running, "SELECT expired_at IS NOT NULL FROM partitions ORDER BY id") == [(1,), (0,)]


async def test_digests_are_deleted_after_two_years_and_counters_are_never_reused(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        await hub.create_group(room.creation(), alice)
        for n in range(3):
            await hub.send(room.send(f"{n}"), alice)
        ((newest,),) = await rows(running, "SELECT max(seq) FROM messages")
        clock.advance(731 * DAY)
        await sweep(running)
        await sweep(running)
        assert await rows(running, "SELECT seq, counter FROM messages") == [(newest, 2)]
        answer = await hub.send(room.send("0"), alice)
        assert answer.counter == 3
        assert await read(running, alice, room.hub, room.key, 3) == ["0"]
        assert await rows(running, "SELECT counter FROM messages WHERE seq > ?", newest) == [(3,)]


# --- followers ----------------------------------------------------------------------------------------------------


async def test_a_follower_that_returns_too_late_continues_at_the_first_stored_message(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, "a.example", "b.example", clock=clock) as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("0"))
        await wait_stored(b, room.hub, bob, room.key, 1)
        spec = a.peers.peers.pop(b.config.provider)
        for n in range(1, 5):
            await a.services.hub.send(room.send(f"{n}"), alice)
        await failed_once(a)
        clock.advance(364 * DAY)
        await sweep(a)
        assert await bodies(a, room.key) == [False, True, True, True, True], "it is still followed"
        clock.advance(2 * DAY)
        await sweep(a)
        assert await bodies(a, room.key) == [False] * 5, "it was silent for a year"
        await a.services.hub.send(room.send("5"), alice)
        a.peers.add("b.example", spec)
        clock.advance(400)
        await until(lambda: has(b, room.key, [True, True]))
        with pytest.raises(MessagesExpired) as refused:
            await read(b, bob, room.hub, room.key, 1)
        assert refused.value.members["next_counter"] == 5
        assert await read(b, bob, room.hub, room.key, 5) == ["5"]
        await a.services.hub.send(room.send("6"), alice)
        await until(lambda: has(b, room.key, [True, True, True]))
        pushes = [call for call in a.peers.calls if call.path == "/ds/v1/push"]
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert len([call for call in a.peers.calls if call.path == "/ds/v1/push"]) == len(pushes), "no circles"


async def failed_once(running: Assembled) -> None:
    await until(lambda: rows(running, "SELECT 1 FROM peers WHERE failures > 0"))


async def has(running: Assembled, key: PartitionKey, kept: list[bool]) -> bool:
    return await bodies(running, key) == kept


async def test_a_follower_that_refuses_a_gap_is_suspended_for_that_partition_only(tmp_path: Path) -> None:
    clock = stopped_clock()
    taken: dict[bytes, int] = {}

    async def stubborn(called: Called) -> PeerAnswer:
        counters = []
        for epoch in decode(PushRequest, called.body).epochs:
            if epoch.counter == taken.get(epoch.group_id, 0):
                taken[epoch.group_id] = epoch.counter + len(epoch.epoch.messages)
            counters.append(Counter(taken.get(epoch.group_id, 0)))
        return PeerAnswer(encode(PushResponse(tuple(counters))))

    async with federated(tmp_path, "a.example", clock=clock) as (a,):
        alice, carol = device(a), Follower(ProviderId("c.example"))
        old, new = Room("old"), Room("new")
        for room in (old, new):
            await a.services.hub.create_group(room.creation(), alice)
            await a.services.hub.send(room.send("0"), alice)
        clock.advance(31 * DAY)
        await sweep(a)
        a.peers.add("c.example", stubborn)
        for room in (old, new):
            await a.services.hub.send(room.send("1"), alice)
        request = ReceiveRequest(old.key, Counter(1))
        await a.services.hub.receive(request, carol)
        await until(lambda: rows(a, "SELECT 1 FROM follows WHERE suspended_reason IS NOT NULL"))
        fresh = Room("fresh")
        await a.services.hub.create_group(fresh.creation(), alice)
        await a.services.hub.receive(ReceiveRequest(fresh.key, Counter(0)), carol)
        await a.services.hub.send(fresh.send("0"), alice)
        due = "SELECT 1 FROM follows f, partitions p WHERE p.id = f.partition AND masked_key = ? AND f.next_counter > 0"
        await until(lambda: rows(a, due, fresh.key.mask(32)))
        assert taken[fresh.group_id] == 1


async def test_a_group_without_anything_due_is_not_read(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        await hub.create_group(room.creation(), alice)
        await hub.send(room.send("0"), alice)
        await shows(running, alice, room, room.key, 0)
        for days, planned in ((0.01, 1), (0.01, 0), (0.6, 0), (0.5, 1), (31, 1), (0.01, 0)):
            clock.advance(days * DAY)
            with mock.patch.object(retention, "plan_group", wraps=plan_group) as plan:
                await sweep(running)
            assert plan.call_count == planned, days
        assert await bodies(running, room.key) == [True]
        await shows(running, alice, room, room.key, 1)
        await sweep(running)
        assert await bodies(running, room.key) == [False]


# --- partitions ---------------------------------------------------------------------------------------------------


async def test_detached_partitions_expire_early_and_free_their_quota(tmp_path: Path) -> None:
    async with provider(tmp_path, limits={"device_detached_partitions": 2}) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        await hub.create_group(room.creation(), alice)
        keys = [Room.new_key() for _ in range(3)]
        for key in keys[:2]:
            assert (await hub.send(room.send("nowhere", key), alice)).detached == 1
        with pytest.raises(QuotaExceeded):
            await hub.send(room.send("nowhere", keys[2]), alice)
        with pytest.raises(QuotaExceeded):  # nor may it grow in depth
            await hub.send(room.commit("deeper", Room.new_key(), keys[0]), alice)
        clock.advance(4 * DAY)
        await hub.send(room.send("again", keys[1]), alice)
        clock.advance(4 * DAY)
        await sweep(running)
        assert (await bodies(running, keys[0]), await bodies(running, keys[1])) == ([False], [True, True])
        assert (await hub.send(room.send("nowhere", keys[2]), alice)).detached == 1
        clock.advance(731 * DAY)
        await hub.send(room.send("in the meantime"), alice)
        await sweep(running)
        await sweep(running)
        assert await rows(running, "SELECT count(*) FROM partitions WHERE detached = 1") == [(0,)]


async def test_tips_keep_their_state_and_earlier_epochs_lose_theirs(tmp_path: Path) -> None:
    recording = Recording("public")
    async with provider(tmp_path) as (running, clock):
        services, alice = running.services, device(running)
        hub = services.hub
        await hub.create_group(recording.creation(), alice)
        for recorded in recording.messages():
            if expected(recorded.line) == "accept":
                await offer(hub, recorded)
        before = await rows(running, "SELECT count(*) FROM tree_nodes")
        tip = (await rows(running, "SELECT id FROM partitions ORDER BY epoch DESC, next_counter DESC LIMIT 1"))[0][0]
        kept = await rows(running, "SELECT root_hash, group_info FROM partitions WHERE id = ?", tip)
        of_expired = "SELECT count(*) FROM proposals r JOIN partitions p ON p.id = r.partition WHERE p.id != ?"
        assert await rows(running, of_expired, tip) != [(0,)]
        clock.advance(1000 * DAY)
        await sweep(running)
        assert await rows(running, of_expired + " AND p.expired_at IS NOT NULL", tip) == [(0,)]
        assert await rows(running, "SELECT root_hash, group_info FROM partitions WHERE id = ?", tip) == kept
        known = set(await services.store.read(all_states))
        inner = {row[0] for row in await rows(running, "SELECT parent FROM partitions WHERE parent IS NOT NULL")}
        assert tip in known
        assert not known & inner, "what leads on has no state any more"
        assert inner
        assert await rows(running, "SELECT count(*) FROM tree_nodes") < before
        assert await rows(running, "SELECT count(*) FROM tree_notes") == [(0,)]


def all_states(tx: Tx) -> list[int]:
    """Load every stored group state, which raises if a node is missing; return the rows of the partitions."""
    found = [row for (row,) in tx.all("SELECT id FROM partitions WHERE root_hash IS NOT NULL")]
    for row in found:
        partition = partitions.partition_by_row(tx, row)
        knowledge = States().knowledge(tx, groups.group_by_row(tx, partition.group), partition)
        assert not isinstance(knowledge, NotKnown)
    return found


async def test_a_branch_that_lost_a_race_expires_and_frees_its_quota(tmp_path: Path) -> None:
    async with provider(tmp_path, limits={"device_branches": 2}) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        await hub.create_group(room.creation(), alice)
        won, lost = Room.new_key(), Room.new_key()
        await hub.send(room.commit("won", won), alice)
        await hub.send(room.commit("lost", lost), alice)
        with pytest.raises(QuotaExceeded):
            await hub.send(room.commit("third", Room.new_key()), alice)
        await hub.send(room.send("here", won, epoch=1), alice)
        clock.advance(31 * DAY)
        await sweep(running)
        found = await rows(running, "SELECT masked_key FROM partitions WHERE expired_at IS NOT NULL ORDER BY id")
        assert found == [(room.key.mask(32),), (lost.mask(32),)]
        assert (await hub.send(room.send("late", lost, epoch=1), alice)).counter == 0


# --- stops --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_after", range(1, 15))
async def test_a_sweep_that_stops_anywhere_is_completed_by_the_next_one(tmp_path: Path, stop_after: int) -> None:
    recording = Recording("public")
    ends = []
    for stop in (None, stop_after):
        directory = tmp_path / str(stop)
        directory.mkdir()
        async with provider(directory) as (running, clock):
            hub, alice = running.services.hub, device(running)
            await sweep(running)  # so that the time until the next sweep counts as passed
            await hub.create_group(recording.creation(), alice)
            for recorded in recording.messages():
                if expected(recorded.line) == "accept":
                    await offer(hub, recorded)
            clock.advance(50 * DAY)
            if stop is not None:
                with pytest.raises(StorageUnavailable):
                    await stopping(running, stop).sweep()
                await running.services.store.read(all_states)
            await sweep(running)
            digest = hashlib.sha256()
            for table in ("messages", "partitions", "proposals", "tree_nodes", "tree_notes", "tree_sweep"):
                for row in await rows(running, f"SELECT * FROM {table} ORDER BY 1"):  # noqa: S608
                    digest.update(repr(row).encode())
            ends.append(digest.hexdigest())
    assert ends[0] == ends[1]


def stopping(running: Assembled, after: int) -> Sweeper:
    """Return a sweeper whose store fails after so many writes."""
    store = running.services.store

    class Stopping:
        read = store.read
        statistics = store.statistics

        def __init__(self) -> None:
            self.left = after

        async def write(self, work: Callable[[Tx], Any]) -> Any:
            self.left -= 1
            if self.left < 0:
                raise StorageUnavailable
            return await store.write(work)

    double: Any = Stopping()
    services = running.services
    return Sweeper(services.config, double, services.clock, services.notifier, services.recent, services.telemetry.log)


async def test_joining_an_expired_group_is_refused(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        await hub.create_group(room.creation(), alice)
        clock.advance(400 * DAY)
        await sweep(running)
        with pytest.raises(UnknownGroup):
            await hub.group_info(room.group_id, alice)
        assert isinstance(await hub.send(room.send("still"), alice), SendResponse)
