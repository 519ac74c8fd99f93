"""When hubs are asked to push again, and for what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio
import trio.testing

from mimids.ds.following import sync as module
from mimids.ds.following.followed_groups import add_followed_group
from mimids.ds.following.intake import find_or_add_partition
from mimids.ds.following.sync import BEHIND_SECONDS, SYNC_SECONDS, Sync
from mimids.ds.ports import PeerAnswer
from mimids.errors import NotFollowed, PeerUnavailable
from mimids.store import providers
from mimids.store.engine.transaction import Tx
from mimids.testing.clock import MovableClock
from mimids.wire.declare import decode
from mimids.wire.ids import Counter, PartitionKey, ProviderId
from mimids.wire.messages import ResumeRequest
from tests.support.doubles import Called, FakePeers, stopped_clock
from tests.support.federation import Room
from tests.support.hub import running_hub

if TYPE_CHECKING:
    import pytest

US, B, C = ProviderId("a.example"), ProviderId("b.example"), ProviderId("c.example")
Asked = tuple[ProviderId, PartitionKey, int]


@attrs.define
class Asking:
    """A follower of b.example and c.example, with five messages of each of two partitions of each hub."""

    sync: Sync
    clock: MovableClock
    peers: FakePeers
    rooms: dict[ProviderId, Room]
    keys: dict[ProviderId, list[PartitionKey]]
    refuses: set[ProviderId] = attrs.field(factory=set)
    answers: trio.Event = attrs.field(factory=trio.Event)

    def asked(self) -> list[Asked]:
        """Return what hubs were asked for since the last call, by hub, key and counter."""
        by_mask = {key.mask(32): key for keys in self.keys.values() for key in keys}
        found: list[Asked] = []
        for called in self.peers.calls:
            assert (called.method, called.path) == ("POST", "/ds/v1/resume")
            request = decode(ResumeRequest, called.body)
            assert request.group_id == self.rooms[called.provider].group_id
            found.append((called.provider, by_mask[request.masked_partition_key], request.counter))
        self.peers.calls.clear()
        return found

    def note_behind(self, hub: ProviderId, key: PartitionKey, counter: int) -> None:
        self.sync.note_behind(hub, self.rooms[hub].group_id, key.mask(32), Counter(counter))

    async def pass_time(self, seconds: float = BEHIND_SECONDS) -> None:
        await trio.testing.wait_all_tasks_blocked(0.05)  # the store's threads take real time
        self.clock.advance(seconds)
        await trio.testing.wait_all_tasks_blocked(0.05)

    async def answer(self, called: Called) -> PeerAnswer:
        await self.answers.wait()
        if called.provider in self.refuses:
            raise NotFollowed
        return PeerAnswer(b"")


@asynccontextmanager
async def asking(directory: Path, *, runs_jobs: bool = True) -> AsyncIterator[Asking]:
    rooms = {hub: Room(hub=hub) for hub in (B, C)}
    keys = {hub: [room.key, room.new_key()] for hub, room in rooms.items()}

    def add(tx: Tx) -> None:
        for hub, room in rooms.items():
            group = add_followed_group(tx, providers.ensure_provider(tx, hub), room.group_id, stopped_clock().now())
            for key in keys[hub]:
                find_or_add_partition(tx, group, key.mask(32), stopped_clock().now())
        tx.execute("UPDATE partitions SET next_counter = 5")

    async with running_hub(directory) as hub, trio.open_nursery() as jobs:
        await hub._store.write(add)
        clock, peers = stopped_clock(), FakePeers()
        sync = Sync(hub._store, clock, peers, provider=US, runs_jobs=lambda: runs_jobs)
        each = Asking(sync, clock, peers, rooms, keys)
        each.answers.set()
        for name in (B, C):
            peers.add(name, each.answer)
        await jobs.start(sync.run)
        await trio.testing.wait_all_tasks_blocked(0.05)
        yield each
        jobs.cancel_scope.cancel()


async def test_all_hubs_are_asked_at_the_start_and_every_hour(tmp_path: Path) -> None:
    async with asking(tmp_path) as each:
        everything = [(hub, key, 5) for hub, keys in each.keys.items() for key in keys]
        assert sorted(each.asked(), key=str) == sorted(everything, key=str)
        await each.pass_time(SYNC_SECONDS - 1)
        assert each.asked() == []
        each.refuses.add(B)
        del each.peers.peers[C]
        await each.pass_time(1)
        assert len(each.asked()) == 4, "a hub that refuses or is away does not end the round"


async def test_one_process_of_several_asks_all_hubs(tmp_path: Path) -> None:
    async with asking(tmp_path, runs_jobs=False) as each:
        await each.pass_time(SYNC_SECONDS)
        assert each.asked() == []
        key = each.keys[B][0]
        each.note_behind(B, key, 5)
        await each.pass_time()
        assert each.asked() == [(B, key, 5)], "but each asks where it is behind"


async def test_a_hub_is_asked_for_messages_that_are_not_here_a_second_later(tmp_path: Path) -> None:
    async with asking(tmp_path, runs_jobs=False) as each:
        (first, second), other = each.keys[B], each.keys[C][0]
        each.note_behind(B, first, 4)  # it is here
        each.note_behind(B, second, 5)
        each.note_behind(C, other, 9)
        each.sync.note_behind(C, each.rooms[C].group_id, Room.new_key().mask(32), Counter(1))  # unknown here
        await each.pass_time(BEHIND_SECONDS / 2)
        assert each.asked() == []
        await each.pass_time(BEHIND_SECONDS / 2)
        assert sorted(each.asked(), key=str) == sorted([(B, second, 5), (C, other, 5)], key=str)
        await each.pass_time()
        assert each.asked() == []


async def test_a_hub_that_refuses_or_does_not_answer_is_not_asked_for_the_rest(tmp_path: Path) -> None:
    async with asking(tmp_path, runs_jobs=False) as each:
        each.refuses.add(B)
        for hub in (B, C):
            for key in each.keys[hub]:
                each.note_behind(hub, key, 5)
        await each.pass_time()
        assert [hub for hub, _, _ in sorted(each.asked(), key=str)] == [B, C, C]


async def test_where_a_hub_is_being_asked_the_next_question_waits_for_its_answer(tmp_path: Path) -> None:
    async with asking(tmp_path, runs_jobs=False) as each:
        each.answers = trio.Event()
        first, second = each.keys[B]
        each.note_behind(B, first, 5)
        await each.pass_time()
        each.note_behind(B, second, 5)
        each.note_behind(C, each.keys[C][0], 5)
        await each.pass_time()
        assert each.asked() == [(B, first, 5), (C, each.keys[C][0], 5)]
        each.answers.set()
        await each.pass_time()
        assert each.asked() == [(B, second, 5)]


async def test_of_too_many_partitions_the_oldest_wait_for_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEHIND_REMEMBERED", 2)
    async with asking(tmp_path, runs_jobs=False) as each:
        noted = [(B, each.keys[B][0]), (C, each.keys[C][0]), (C, each.keys[C][1])]
        for hub, key in noted:
            each.note_behind(hub, key, 5)
        await each.pass_time()
        assert {(hub, key) for hub, key, _ in each.asked()} == {*noted[1:]}


async def test_a_hub_that_is_away_is_asked_again_later(tmp_path: Path) -> None:
    async with asking(tmp_path, runs_jobs=False) as each:
        key = each.keys[B][0]

        async def away(called: Called) -> PeerAnswer:
            raise PeerUnavailable

        each.peers.add(B, away)
        each.note_behind(B, key, 5)
        await each.pass_time()
        assert each.asked() == [(B, key, 5)]
        each.peers.add(B, each.answer)
        each.note_behind(B, key, 6)
        await each.pass_time()
        assert each.asked() == [(B, key, 5)]
