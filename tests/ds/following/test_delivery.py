"""Push between a hub and its followers, in memory, on real stores.

The file is long because it has all tests of one module, which share the helpers at its top.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from mimids.ds.backoff import Backoff
from mimids.ds.following import delivery as delivery_module
from mimids.ds.following.delivery import Delivery
from mimids.ds.groups import hub as hub_module
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.states import States
from mimids.ds.limits.rates import ProviderRates
from mimids.ds.notifier import DELIVERY, inbox_topic, partition_topic
from mimids.ds.ports import PeerAnswer
from mimids.errors import NotFollowed, PeerUnavailable, StorageUnavailable, UnknownGroup
from mimids.store.engine.access import Place, read_here
from mimids.store.engine.locks import Locks
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Ahead, Tx
from mimids.values import Device, Follower
from mimids.wire.declare import decode, encode
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, MaskedPartitionKey, PartitionKey
from mimids.wire.messages import (
    Epoch,
    Message,
    PushedEpoch,
    PushRequest,
    ResumeRequest,
    SendRequest,
    SendResponse,
    WelcomeInitRequest,
)
from tests.support.curious import octets_of
from tests.support.doubles import Called, stopped_clock
from tests.support.federation import Room, device, federated, read, wait_stored
from tests.support.patience import patience
from tests.support.provider import Assembled
from tests.support.store_faults import set_faults
from tests.support.stored import count, until
from tests.support.tables import every_row
from tests.support.welcomes import REF, hand_out, invite, reaches, welcome_to

T = TypeVar("T")


async def talking(a: Assembled, b: Assembled) -> tuple[Device, Device, Room]:
    """Create a group at Alice's provider; Bob, at another one, sends its first message and receives it."""
    alice, bob, room = device(a), device(b, "bob"), Room()
    await a.services.hub.create_group(room.creation(), alice)
    await b.services.hub_router.hub(room.hub).send(bob, room.send("here"))
    await wait_stored(b, room.hub, bob, room.key, 1)
    return alice, bob, room


async def test_partitions_whose_keys_a_follower_presented_are_pushed_to_it(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await a.services.hub.send(room.send("one"), alice)
        assert await read(b, bob, room.hub, room.key) == ["one"]
        await a.services.hub.send(room.send("two"), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("three"))
        assert await wait_stored(b, room.hub, bob, room.key, 3) == ["one", "two", "three"]


async def test_after_a_long_absence_a_follower_catches_up_in_few_requests(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = await talking(a, b)
        spec = a.peers.peers.pop(b.config.provider)
        for start in range(0, 10_000, 250):
            batch = [room.send(f"number {start + n}") for n in range(250)]
            await a.services.hub.send_batch(batch, alice)
        pushes = 0

        async def counted(called: Called) -> PeerAnswer:
            nonlocal pushes
            pushes += called.path == "/ds/v1/push"
            return await spec(called)

        a.peers.add("b.example", counted)
        await b.services.peers.call(room.hub, "POST", "/ds/v1/resume", encode(resume(room, room.key.mask(32), 1)))
        found = await wait_stored(b, room.hub, bob, room.key, 10_001)
        assert found[1:] == [f"number {n}" for n in range(10_000)]
        assert 0 < pushes <= 10_000 / 20


def resume(room: Room, masked: bytes, counter: int) -> ResumeRequest:
    return ResumeRequest(room.group_id, MaskedPartitionKey(masked), Counter(counter))


async def test_a_send_writes_no_more_rows_with_ten_followers_than_with_none(tmp_path: Path) -> None:
    names = [f"f{n}.example" for n in range(10)]
    async with federated(tmp_path, "a.example", *names) as (a, *followers):
        alice, room, alone = device(a), Room(), Room("alone")
        for each in (room, alone):
            await a.services.hub.create_group(each.creation(), alice)
            await a.services.hub.send(each.send("first"), alice)
        for follower in followers:
            assert await read(follower, device(follower), room.hub, room.key) == ["first"]
            a.peers.peers.pop(follower.config.provider)

        async def changes(each: Room) -> int:
            before = rows(a.config.place)
            await a.services.hub.send(each.send("second"), alice)
            return rows(a.config.place) - before

        assert await changes(alone) == await changes(room) == 1


def rows(database: Place) -> int:
    with read_here(database) as tx:
        return sum(map(len, every_row(tx).values()))


async def test_a_detached_partition_is_served_to_its_key_and_pushed_to_nobody(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("in the open"))
        stray = room.new_key()
        answer = await a.services.hub.send(room.send("astray", stray, epoch=7), alice)
        assert answer.detached == 1
        assert await read(b, bob, room.hub, stray) == ["astray"]
        await a.services.hub.send(room.send("more", stray, epoch=7), alice)
        await a.services.hub.send(room.send("in the open too"), alice)
        await wait_stored(b, room.hub, bob, room.key, 2)
        assert astray(b, stray) == 0  # it was asked for and passed on, and neither stored nor pushed


async def test_a_message_sent_ahead_of_its_commit_comes_back_once_the_commit_attaches_it(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = await talking(a, b)
        following = room.new_key()
        ahead = await b.services.hub_router.hub(room.hub).send(bob, room.send("ahead", following, epoch=1))
        assert decode(SendResponse, ahead).detached == 1
        await a.services.hub.send(room.send("between"), alice)
        await wait_stored(b, room.hub, bob, room.key, 2)  # b.example's cursor is past the message
        await a.services.hub.send(room.commit("commit", following), alice)
        assert await wait_stored(b, room.hub, bob, following, 1) == ["ahead"]


async def test_the_cursor_of_a_follower_that_has_nothing_due_moves_with_what_others_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "STAMPS_NOT_STORED", 3)
    monkeypatch.setattr(hub_module, "PARTITIONS_BETWEEN_LOOKS", 3)
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = await talking(a, b)
        for number in range(10):
            other = Room(f"without followers {number}")
            await a.services.hub.create_group(other.creation(), alice)
            await a.services.hub.send(other.send("one"), alice)
            await trio.testing.wait_all_tasks_blocked(0.02)
        await until(lambda: cursor_is_near(a, 3))
        await a.services.hub.send(room.send("here too"), alice)
        assert await wait_stored(b, room.hub, bob, room.key, 2) == ["here", "here too"]


async def test_only_messages_that_may_be_pushed_cause_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "PARTITIONS_BETWEEN_LOOKS", 3)
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, _, room = await talking(a, b)
        other = Room("without followers")
        await a.services.hub.create_group(other.creation(), alice)
        await trio.testing.wait_all_tasks_blocked(0.1)

        async def looks(to: Room, text: str) -> bool:
            with a.services.notifier.listen(DELIVERY) as waiter:
                await a.services.hub.send(to.send(text), alice)
                return DELIVERY in waiter.heard

        assert [await looks(other, text) for text in ("one", "two", "three", "four")] == [False, False, True, False]
        assert await looks(room, "with a follower")


async def cursor_is_near(hub: Assembled, stamps: int) -> bool:
    return count(hub, "SELECT (SELECT max(stamp) FROM moved) - next_stamp FROM peers") <= stamps


def astray(provider: Assembled, key: PartitionKey) -> int:
    return count(provider, "SELECT count(*) FROM partitions WHERE masked_key = ?", key.mask(32))


async def test_only_followers_may_resume(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, room = device(a), Room()
        await a.services.hub.create_group(room.creation(), alice)
        stranger = Follower(b.config.provider)
        with pytest.raises(NotFollowed):
            await a.services.delivery.resume(resume(room, room.key.mask(32), 0), stranger)
        with pytest.raises(NotFollowed):
            await a.services.delivery.resume(resume(room, bytes(32), 0), stranger)


async def test_a_push_of_an_unexpected_group_is_answered_no_longer_followed(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        room = Room()
        answer = await b.services.epoch_receiver.receive_push(a.config.provider, push(room, 0, "unasked"))
        assert answer.next_counters == (NO_LONGER_FOLLOWED,)


def push(room: Room, counter: int, *texts: str) -> PushRequest:
    messages = tuple(Message(room.message(text), None) for text in texts)
    epoch = PushedEpoch(room.group_id, room.key.mask(32), Counter(counter), None, Epoch(messages))
    return PushRequest((epoch,))


async def test_duplicates_are_ignored_and_a_gap_is_answered_with_the_counter_wanted_next(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        bob, room = device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), device(a))
        await b.services.hub_router.hub(room.hub).send(bob, room.send("zero"))
        await wait_stored(b, room.hub, bob, room.key, 1)

        async def pushed(counter: int, *texts: str) -> tuple[Counter, ...]:
            return (await b.services.epoch_receiver.receive_push(room.hub, push(room, counter, *texts))).next_counters

        assert await pushed(0, "zero", "one") == (2,)
        assert await pushed(0, "zero", "one") == (2,)
        assert await pushed(5, "five") == (2,)
        assert await pushed(1, "other") == (2,)
        assert await pushed(2, "two") == (3,)
        assert await wait_stored(b, room.hub, bob, room.key, 3) == ["zero", "one", "two"]
        statistics = b.services.epoch_receiver.statistics()
        assert (statistics.gaps, statistics.contradictions) == (1, 1)


async def test_a_provider_whose_last_device_left_is_not_pushed_to(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        assert await read(b, bob, room.hub, room.key) == []
        await b.services.hub_router.hub(room.hub).send(bob, room.send("hello"))
        await wait_stored(b, room.hub, bob, room.key, 1)
        await b.services.following.leave(bob, room.hub, room.group_id)
        await a.services.hub.send(room.send("without bob"), alice)
        with patience():
            while count(a, "SELECT count(*) FROM follows"):  # noqa: ASYNC110  # the store changes by another task
                await trio.sleep(0.01)
        assert await wait_stored(b, room.hub, bob, room.key, 1) == ["hello"]


async def test_a_device_that_leaves_while_its_request_is_recorded_has_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room, other = device(a), device(b, "bob"), Room(), Room("other")
        for each in (room, other):
            await a.services.hub.create_group(each.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("hello"))
        await wait_stored(b, room.hub, bob, room.key, 1)
        write = b.services.store.write

        async def leave_first(work: Callable[[Tx], object]) -> object:
            monkeypatch.undo()
            await b.services.following.leave(bob, room.hub, room.group_id)
            return await write(work)

        monkeypatch.setattr(b.services.store, "write", leave_first)
        assert await read(b, bob, other.hub, other.key) == []
        assert b.services.store.write is not leave_first, "it wrote"
        assert count(b, "SELECT count(*) FROM requested_partitions") == 0


async def test_a_hub_that_does_not_answer_is_unavailable_and_no_key_is_queued(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        bob, room = device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), device(a))
        b.peers.peers.pop(a.config.provider)
        with pytest.raises(PeerUnavailable):
            await b.services.hub_router.hub(room.hub).send(bob, room.send("lost"))
        assert room.key.reveal() not in octets_of(b.config.database)


async def test_repeats_and_forks_reach_a_follower_as_the_hub_stores_them(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        left, right = room.new_key(), room.new_key()
        await a.services.hub.create_group(room.creation(), alice)
        requests: list[SendRequest] = [room.send("zero"), room.commit("left", left), room.commit("right", right)]
        for request in requests:
            assert await a.services.hub.send(request, alice) == await a.services.hub.send(request, alice)
        answers = [await a.services.hub.send(request, alice) for request in requests]
        assert [answer.counter for answer in answers] == [0, 1, 2]
        assert answers[2].earlier_commits == (left.mask(32),)
        assert await read(b, bob, room.hub, room.key) == ["zero", "left", "right"]
        for branch in (left, right):
            assert await read(b, bob, room.hub, branch) == []
            await a.services.hub.send(room.send("on a branch", branch, epoch=1), alice)
            assert await wait_stored(b, room.hub, bob, branch, 1) == ["on a branch"]


class Full:
    """A store whose disk is full until `room` is set."""

    def __init__(self, store: Store) -> None:
        self._store, self.room, self.refused = store, trio.Event(), trio.Event()
        self.read = store.read

    async def write(self, work: Callable[[Tx], T], *, locks: Locks | None = None, ahead: Ahead | None = None) -> T:
        if not self.room.is_set():
            self.refused.set()
            raise StorageUnavailable
        return await self._store.write(work, locks=locks, ahead=ahead)

    write_or_refuse = write


async def test_a_full_disk_delays_pushes_and_the_job_goes_on(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with federated(tmp_path, "a.example", "b.example", jobs_of=()) as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("here"))
        store: Any = Full(a.services.store)
        delivery = Delivery(
            store,
            a.services.clock,
            a.services.peers,
            States(),
            a.services.notifier,
            Recent(),
            ProviderRates(a.config.limits, a.services.clock),
            provider=a.config.provider,
            backoff=Backoff(0.01, 0.01),
            workers=1,
            batch_octets=1 << 20,
        )
        await nursery.start(delivery.run)
        with patience():
            await store.refused.wait()
            await wait_stored(b, room.hub, bob, room.key, 1)  # the push arrived, though the hub could not write that
            store.room.set()
            await a.services.hub.send(room.send("and there"), alice)
            assert await wait_stored(b, room.hub, bob, room.key, 2) == ["here", "and there"]
        nursery.cancel_scope.cancel()


class Held:
    """Delays pushes to a provider until `go` is set: the request, or with `answers` its answer."""

    def __init__(self, caller: Assembled, target: Assembled, *, answers: bool) -> None:
        self.waits, self.go = trio.Event(), trio.Event()
        self._door, self._answers = caller.peers.peers[target.config.provider], answers
        caller.peers.add(target.config.provider, self._call)

    async def _call(self, called: Called) -> PeerAnswer:
        if called.path != "/ds/v1/push":
            return await self._door(called)
        answer = await self._door(called) if self._answers else None
        self.waits.set()
        await self.go.wait()
        return answer or await self._door(called)


async def test_a_key_presented_while_the_follower_answers_no_longer_followed_is_followed(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = await talking(a, b)
        await b.services.following.leave(bob, room.hub, room.group_id)
        held = Held(a, b, answers=True)
        await a.services.hub.send(room.send("while nobody is there"), alice)
        with patience():
            await held.waits.wait()
        await b.services.hub_router.hub(room.hub).present(bob, room.key)
        held.go.set()
        await a.services.hub.send(room.send("again"), alice)
        assert await wait_stored(b, room.hub, bob, room.key, 3) == ["here", "while nobody is there", "again"]


async def test_ending_one_epoch_does_not_end_another_that_was_just_presented(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = await talking(a, b)
        await b.services.following.leave(bob, room.hub, room.group_id)
        held, following = Held(a, b, answers=False), room.new_key()
        await a.services.hub.send(room.commit("on", following), alice)
        with patience():
            await held.waits.wait()
        await b.services.hub_router.hub(room.hub).present(bob, following)  # its group is not known to be this one
        held.go.set()
        await a.services.hub.send(room.send("again", following, epoch=1), alice)
        assert await wait_stored(b, room.hub, bob, following, 1) == ["again"]


async def test_a_push_under_a_key_that_a_device_presented_is_accepted(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        assert await read(b, bob, room.hub, room.key) == []  # the group is not known here yet
        await a.services.hub.send(room.send("the first"), alice)
        await wait_stored(b, room.hub, bob, room.key, 1)
        assert count(b, "SELECT count(*) FROM participations WHERE left_at IS NULL") == 1
        await b.services.following.leave(bob, room.hub, room.group_id)
        following = room.new_key()
        await a.services.hub.send(room.commit("on", following), alice)
        await b.services.hub_router.hub(room.hub).present(bob, following)  # back again, in an epoch not known here
        await a.services.hub.send(room.send("again", following, epoch=1), alice)
        assert await wait_stored(b, room.hub, bob, following, 1) == ["again"]


async def test_leaving_one_group_loses_no_other_that_a_device_presented(tmp_path: Path) -> None:
    """Also not while the other group is not known here, because it has no message yet."""
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = await talking(a, b)
        other, never = Room("other"), Room("never")
        await a.services.hub.create_group(other.creation(), alice)
        await b.services.hub_router.hub(room.hub).present(bob, other.key)
        await b.services.following.leave(bob, room.hub, room.group_id)
        with pytest.raises(UnknownGroup):
            await b.services.following.leave(bob, room.hub, never.group_id)
        await a.services.hub.send(other.send("the first"), alice)
        assert await wait_stored(b, other.hub, bob, other.key, 1) == ["the first"]


async def test_a_key_presented_before_leaving_its_group_does_not_bring_the_device_back(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = await talking(a, b)
        following = room.new_key()
        held = Held(a, b, answers=False)
        await a.services.hub.send(room.commit("on", following), alice)
        with patience():
            await held.waits.wait()
        await b.services.hub_router.hub(room.hub).present(bob, following)
        await b.services.following.leave(bob, room.hub, room.group_id)
        held.go.set()
        await a.services.hub.send(room.send("again", following, epoch=1), alice)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert count(b, "SELECT count(*) FROM participations WHERE left_at IS NULL") == 0
        await b.services.hub_router.hub(room.hub).present(bob, following)
        assert await wait_stored(b, room.hub, bob, following, 1) == ["again"]


async def test_leaving_while_a_long_backlog_is_fetched_ends_the_fetching(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = await talking(a, b)
        a.peers.peers.pop(b.config.provider)
        await a.services.hub.send_batch([room.send(f"{n}".ljust(1000)) for n in range(200)], alice)
        spec, asked = b.peers.peers[room.hub], 0

        async def leaves_meanwhile(called: Called) -> PeerAnswer:
            nonlocal asked
            asked += 1
            await b.services.following.leave(bob, room.hub, room.group_id)
            return await spec(called)

        b.peers.add(room.hub, leaves_meanwhile)
        with patience():
            await b.services.hub_router.hub(room.hub).present(bob, room.key)
        assert asked == 1


async def test_a_group_that_no_device_takes_up_does_not_delay_other_groups(tmp_path: Path) -> None:
    clock = stopped_clock()  # stands still: nothing that is put off comes again
    names = ("a.example", "b.example")
    async with federated(tmp_path, *names, clock=clock, limits={"provider_unmatched_bytes": 5000}) as (a, b):
        alice, bob, ben = device(a), device(b, "bob"), device(b, "ben", 2)
        room, other = Room(), Room("other")
        await hand_out(b)
        key = await invite(a, room)
        await reaches(a, "delivered")
        await a.services.hub.create_group(other.creation(), alice)
        assert await read(b, ben, other.hub, other.key) == []
        said = [f"{n}".ljust(2000) for n in range(5)]
        for text in said:
            await a.services.hub.send(room.send(text, key, epoch=1), alice)
        await trio.testing.wait_all_tasks_blocked(0.2)  # pushed as far as there is room
        await a.services.hub.send_batch([other.send(text) for text in said], alice)
        assert await wait_stored(b, other.hub, ben, other.key, 5) == said
        assert count(b, "SELECT unmatched_bytes FROM groups ORDER BY id LIMIT 1") <= 5000
        await b.services.hub_router.hub(room.hub).present(bob, key)  # here he comes
        assert await wait_stored(b, room.hub, bob, key, 5) == said


@pytest.mark.parametrize("what", ["a message", "a push", "a Welcome"])
async def test_a_waiting_reader_is_notified_though_the_sender_hangs_up(what: str, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example", jobs_of=()) as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("zero"))
        await hand_out(b)
        await b.services.incoming_welcomes.init(room.hub, WelcomeInitRequest((REF,)))
        topic = inbox_topic(bob.row) if what == "a Welcome" else partition_topic(room.key.mask(32))
        token, hanging_up = trio.lowlevel.current_trio_token(), trio.CancelScope()
        receiver = a if what == "a message" else b

        def hang_up(point: str) -> None:
            if point == "before_commit":
                token.run_sync_soon(hanging_up.cancel)

        set_faults(receiver.services.store, hang_up)
        with receiver.services.notifier.listen(topic) as waiter:
            with hanging_up:
                if what == "a message":
                    await a.services.hub.send(room.send("one"), alice)
                elif what == "a push":
                    await b.services.epoch_receiver.receive_push(room.hub, push(room, 0, "zero"))
                else:
                    await b.services.incoming_welcomes.store(room.hub, welcome_to(REF))
            with patience():
                assert await waiter.wait() == {topic}
