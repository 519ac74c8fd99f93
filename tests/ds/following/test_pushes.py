"""What a push to a follower has, and what each answer of the follower changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs
import pytest

from mimids.ds.following import pushes as module
from mimids.ds.following.pushes import Push, Pushes
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.states import States
from mimids.errors import NotFollowed, PeerFailed
from mimids.store import moved, peers, providers
from mimids.store.engine.transaction import Tx
from mimids.store.peers import PeerState
from mimids.values import Follower
from mimids.wire.declare import decode
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, PartitionKey, ProviderId
from mimids.wire.messages import PushRequest, ReceiveRequest, ResumeRequest
from tests.support.federation import Room, said
from tests.support.hub import ALICE, A, offer, running_hub
from tests.support.recordings import Recording

T = TypeVar("T")
B = ProviderId("b.example")
PLENTY = 1 << 20


@attrs.define
class Followed:
    """A group with partitions of three messages each, all of which b.example follows from the first message on."""

    hub: LocalHub
    room: Room
    keys: list[PartitionKey]
    pushes: Pushes = attrs.field(factory=lambda: Pushes(States(), Recent()))

    async def read(self, work: Callable[[Tx], T]) -> T:
        return await self.hub._store.read(work)

    async def peer(self) -> PeerState:
        found = await self.read(lambda tx: peers.find_peer(tx, providers.provider_row(tx, B) or 0))
        assert found is not None
        return found

    async def push(self, octets: int = PLENTY) -> Push | None:
        return await self.read(partial(self.pushes.next_push, await self.peer(), octets))

    async def pushed(self, octets: int = PLENTY) -> Push:
        push = await self.push(octets)
        assert push is not None
        return push

    async def answer(self, push: Push, *counters: int) -> PeerState | PeerFailed:
        settle = partial(self.pushes.settle, await self.peer(), push, [Counter(each) for each in counters])
        return await self.hub._store.write(settle)

    async def follows(self) -> list[tuple[int, str | None]]:
        """Return the position and the reason of a suspension in each partition that is followed."""
        return await self.read(
            lambda tx: tx.all("SELECT next_counter, suspended_reason FROM follows ORDER BY partition")
        )

    async def rewind(self, key: PartitionKey, counter: int, *, by: ProviderId = B) -> object:
        request = ResumeRequest(self.room.group_id, key.mask(32), Counter(counter))
        return await self.hub._store.write(partial(self.pushes.rewind, A, by, request))


@asynccontextmanager
async def followed(directory: Path, *, partitions: int = 1) -> AsyncIterator[Followed]:
    async with running_hub(directory) as hub:
        room = Room()
        await hub.create_group(room.creation(), ALICE)
        keys = [room.key]
        for number in range(1, partitions):
            keys.append(room.new_key())
            await hub.send(room.commit(f"fork {number}", keys[-1]), ALICE)
        for key in keys[1:] or keys:
            epoch = int(key is not room.key)
            await hub.send_batch([room.send(f"{n}", key, epoch=epoch) for n in range(3)], ALICE)
        for key in keys[1:] or keys:
            await hub.receive(ReceiveRequest(key, Counter(0)), Follower(B))
        yield Followed(hub, room, keys[1:] or keys)


@asynccontextmanager
async def with_members(directory: Path) -> AsyncIterator[Followed]:
    """Play the first commits of a recorded group with users of b.example; the hub computes its states."""
    async with running_hub(directory) as hub:
        recording = Recording("public")
        await hub.create_group(recording.creation(), ALICE)
        keys = []
        for recorded in recording.messages():
            await offer(hub, recorded)
            if recorded.next_key is not None:
                keys.append(recorded.next_key)
            if recorded.name.endswith("alice_covers_update"):
                break
        room = Room()
        room.group_id = recording.creation().group_id
        yield Followed(hub, room, keys)


def texts(push: Push) -> list[list[str]]:
    return [said(each.epoch.messages) for each in decode(PushRequest, push.body).epochs]


def counters(push: Push) -> list[int]:
    return [each.counter for each in decode(PushRequest, push.body).epochs]


async def test_a_push_has_what_is_due_and_then_there_is_nothing(tmp_path: Path) -> None:
    async with followed(tmp_path, partitions=3) as each:
        push = await each.pushed()
        assert (texts(push), counters(push)) == ([["0", "1", "2"]] * 2, [0, 0])
        assert (push.messages, push.groups) == (6, frozenset({each.room.group_id}))
        assert push.settles_up_to == await each.read(moved.settled)
        state = await each.answer(push, 3, 3)
        assert isinstance(state, PeerState)
        assert (state.next_stamp, state.failures) == (push.settles_up_to, 0)
        assert (await each.peer()).next_stamp == push.settles_up_to
        assert await each.push() is None
        await each.hub.send(each.room.send("later", each.keys[0], epoch=1), ALICE)
        push = await each.pushed()
        assert (texts(push), counters(push)) == ([["later"]], [3])


async def test_a_push_of_few_octets_has_one_message_and_settles_nothing(tmp_path: Path) -> None:
    async with followed(tmp_path, partitions=3) as each:
        push = await each.pushed(1)
        assert (texts(push), push.settles_up_to) == ([["0"]], None)
        state = await each.answer(push, 1)
        assert isinstance(state, PeerState)
        assert state.next_stamp == push.first_stamp
        rest = await each.pushed()
        assert sorted(texts(rest)) == [["0", "1", "2"], ["1", "2"]]
        assert isinstance(await each.answer(rest, *(3, 3)), PeerState)
        assert await each.push() is None


async def test_more_partitions_than_fit_a_push_come_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EPOCHS_IN_A_PUSH", 2)
    async with followed(tmp_path, partitions=6) as each:
        seen = []
        for count in (2, 2, 1):
            push = await each.pushed()
            assert len(push.epochs) == count
            assert (push.settles_up_to is None) == (count == 2)
            seen += [epoch.partition.id for epoch in push.epochs]
            await each.answer(push, *[3] * count)
        assert len(set(seen)) == 5
        assert await each.push() is None


@pytest.mark.parametrize(("wanted", "left"), [(1, ["1", "2"]), (2, ["2"]), (3, None), (9, None)])
async def test_a_follower_gets_what_it_wants_next(wanted: int, left: Sequence[str] | None, tmp_path: Path) -> None:
    async with followed(tmp_path) as each:
        push = await each.pushed()
        state = await each.answer(push, wanted)
        assert isinstance(state, PeerState)
        assert await each.follows() == [(min(wanted, 3), None)]
        again = await each.push()
        assert (None if again is None else texts(again)) == (None if left is None else [left])


async def test_a_follower_that_accepts_nothing_has_failed_and_is_not_moved(tmp_path: Path) -> None:
    async with followed(tmp_path, partitions=3) as each:
        before = await each.peer()
        assert isinstance(await each.answer(await each.pushed(), 0, 0), PeerFailed)
        assert (await each.peer(), await each.follows()) == (before, [(0, None), (0, None)])
        assert isinstance(await each.answer(await each.pushed(), 0, 3), PeerState), "a part is not nothing"
        assert sorted(await each.follows()) == [(0, None), (3, None)]
        assert texts(await each.pushed()) == [["0", "1", "2"]]


async def test_a_partition_that_is_no_longer_followed_is_pushed_no_more_and_others_are(tmp_path: Path) -> None:
    async with followed(tmp_path, partitions=3) as each:
        push = await each.pushed()
        state = await each.answer(push, NO_LONGER_FOLLOWED, 3)
        assert isinstance(state, PeerState)
        assert state.next_stamp == push.settles_up_to
        assert await each.follows() == [(3, None)]
        assert await each.push() is None


async def test_a_follower_that_wants_what_is_no_longer_kept_is_suspended_until_it_resumes(tmp_path: Path) -> None:
    async with followed(tmp_path) as each:
        await each.hub._store.write(
            lambda tx: (
                tx.execute("UPDATE messages SET body = NULL WHERE counter < 2"),
                tx.execute("UPDATE partitions SET kept_from = 2"),
            )
        )
        push = await each.pushed()
        assert (texts(push), counters(push)) == ([[]], [2])
        assert isinstance(await each.answer(push, 0), PeerState)
        ((position, why),) = await each.follows()
        assert (position, "no longer kept" in (why or "")) == (0, True)
        assert await each.push() is None
        assert await each.rewind(each.keys[0], 2) == 0
        assert (await each.follows()) == [(0, None)]
        push = await each.pushed()
        assert (texts(push), counters(push)) == ([[]], [2])


async def test_a_follower_that_skips_what_is_no_longer_kept_goes_on(tmp_path: Path) -> None:
    async with followed(tmp_path) as each:
        await each.hub._store.write(
            lambda tx: (
                tx.execute("UPDATE messages SET body = NULL WHERE counter < 2"),
                tx.execute("UPDATE partitions SET kept_from = 2"),
            )
        )
        assert isinstance(await each.answer(await each.pushed(), 2), PeerState)
        assert await each.follows() == [(2, None)]
        assert texts(await each.pushed()) == [["2"]]


async def test_a_follower_that_resumes_gets_the_messages_again_from_its_counter(tmp_path: Path) -> None:
    async with followed(tmp_path) as each:
        await each.answer(await each.pushed(), 3)
        await each.hub._store.write(lambda tx: tx.execute("UPDATE peers SET next_attempt_at = 1 << 50, failures = 3"))
        assert await each.rewind(each.keys[0], 1) == 2, "messages come again"
        assert (await each.peer()).next_attempt_at == 0, "it can be reached"
        assert texts(await each.pushed()) == [["1", "2"]]
        assert await each.rewind(each.keys[0], 9) == 0
        assert texts(await each.pushed()) == [["1", "2"]], "never forward"


async def test_a_follower_with_members_follows_the_partitions_that_its_pushes_open(tmp_path: Path) -> None:
    async with with_members(tmp_path) as each:
        await each.hub.receive(ReceiveRequest(each.keys[0], Counter(0)), Follower(B))
        pushed = []
        while (push := await each.push()) is not None:
            pushed += [epoch.masked_partition_key for epoch in decode(PushRequest, push.body).epochs]
            await each.answer(push, *(epoch.counter + len(epoch.messages) for epoch in push.epochs))
        assert pushed == [key.mask(32) for key in each.keys[:2]], "the last partition has no messages"
        assert await each.follows() == [(4, None), (2, None), (0, None)]


async def test_who_has_members_in_a_partition_follows_it_when_resuming_it(tmp_path: Path) -> None:
    async with with_members(tmp_path) as each:
        assert await each.follows() == []
        assert isinstance(await each.rewind(each.keys[0], 3, by=ProviderId("stranger.example")), NotFollowed)
        assert await each.rewind(each.keys[0], 3) == 0
        (epoch,) = decode(PushRequest, (await each.pushed()).body).epochs
        assert (epoch.masked_partition_key, epoch.counter, len(epoch.epoch.messages)) == (each.keys[0].mask(32), 3, 1)
        assert epoch.opening is not None, "it may not know the group"


async def test_who_does_not_follow_a_partition_cannot_resume_it(tmp_path: Path) -> None:
    async with followed(tmp_path) as each:
        stranger = ProviderId("c.example")
        assert isinstance(await each.rewind(each.keys[0], 0, by=stranger), NotFollowed)
        assert isinstance(await each.rewind(Room.new_key(), 0), NotFollowed)
        other = Room("other")
        await each.hub.create_group(other.creation(), ALICE)
        assert isinstance(await each.rewind(other.key, 0), NotFollowed), "it is of another group"
        assert len(await each.follows()) == 1
