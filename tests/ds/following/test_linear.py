"""Linear and replaced groups of other hubs, and after a restore (semantics: linear-groups, replaced-groups)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mimids.ds.groups import branches
from mimids.ds.groups.successors import replace_group
from mimids.ds.ports import PeerAnswer
from mimids.errors import CommitSuperseded, GroupReplaced
from mimids.store import groups, partitions
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Successor
from mimids.values import Device, Milliseconds
from mimids.wire.base64url import base64url
from mimids.wire.declare import decode
from mimids.wire.ids import Counter, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import ReceiveRequest, SendRequest, SendResponse
from tests.support.doubles import Called
from tests.support.federation import Room, commit_at, device, federated, read, wait_stored
from tests.support.provider import Assembled
from tests.support.restoring import all_groups_free, make_backup, restored
from tests.support.stored import rows, until

NEXT = Successor(GroupId(b"mimi://c.example/g/next"), ProviderId("c.example"))


async def send(provider: Assembled, who: Device, room: Room, request: SendRequest) -> SendResponse:
    return decode(SendResponse, await provider.services.hub_router.hub(room.hub).send(who, request))


async def linear_here(provider: Assembled, room: Room) -> bool:
    return await rows(provider, "SELECT linear FROM groups WHERE group_id = ?", room.group_id) == [(1,)]


async def terminate(hub: Assembled, key: PartitionKey) -> None:
    def work(tx: Tx) -> None:
        partition = partitions.find_partition(tx, 1, key.masks())
        assert partition is not None
        branches.terminate(tx, partition, "junk", Milliseconds(0))

    await hub.services.store.write(work)


async def replace(hub: Assembled, room: Room) -> None:
    def work(tx: Tx) -> None:
        group = groups.find_group(tx, 1, room.group_id)
        assert group is not None
        replace_group(tx, group, NEXT)

    await hub.services.store.write(work)


async def test_the_loser_of_another_provider_is_told_the_winner_in_both_kinds_of_send(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room, winner = device(a), device(b, "bob"), Room(), Room.new_key()
        await a.services.hub.create_group(room.creation(), alice, linear=True)
        await a.services.hub.send(room.send("first"), alice)
        await a.services.hub.send(room.commit("winner", winner), alice)
        named = {"counter": 1, "next_masked_key": base64url(winner.mask(32))}
        with pytest.raises(CommitSuperseded) as refused:
            await send(b, bob, room, room.commit("loser", Room.new_key()))
        assert refused.value.members == named
        (answer,) = await b.services.hub_router.hub(room.hub).send_batch(
            bob, [room.commit("loser too", Room.new_key())]
        )
        assert isinstance(answer, bytes)
        assert f'"counter":1,"next_masked_key":"{named["next_masked_key"]}"'.encode() in answer
        assert await read(b, bob, room.hub, room.key, 1) == ["winner"]
        assert (await send(b, bob, room, commit_at(room, 1, winner, Room.new_key()))).counter == 0


async def test_a_follower_takes_two_commits_of_a_linear_group(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room, junk, good = device(a), device(b, "bob"), Room(), Room.new_key(), Room.new_key()
        await a.services.hub.create_group(room.creation(), alice, linear=True)
        await send(b, bob, room, room.send("first"))
        await a.services.hub.send(room.commit("junk", junk), alice)
        await terminate(a, junk)
        await a.services.hub.send(room.commit("good", good), alice)
        await a.services.hub.send(room.send("on", good, epoch=1), alice)
        assert await wait_stored(b, room.hub, bob, room.key, 3) == ["first", "junk", "good"]
        assert await read(b, bob, room.hub, good) == ["on"]


async def test_a_follower_learns_that_a_group_is_linear_by_receiving(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room, forking = device(a), device(b, "bob"), Room(), Room("forking")
        for each in (room, forking):
            await a.services.hub.create_group(each.creation(), alice, linear=each is room)
            await a.services.hub.send(each.send("first"), alice)
            assert await read(b, bob, room.hub, each.key) == ["first"]  # the group is unknown here until it is pushed
        await until(lambda: linear_here(b, room))
        await wait_stored(b, room.hub, bob, forking.key, 1)
        assert not await linear_here(b, forking)


async def test_a_follower_that_knew_the_group_before_learns_it_too(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice, linear=True)
        await send(b, bob, room, room.send("first"))
        await wait_stored(b, room.hub, bob, room.key, 1)
        assert not await linear_here(b, room)
        assert await read(b, bob, room.hub, room.key, 1) == []
        assert await linear_here(b, room)


@pytest.mark.sqlite_file("backups and restores are of files")
@pytest.mark.parametrize("created", ["before the backup", "after the backup"])
async def test_a_restored_hub_keeps_a_linear_group_linear(created: str, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room, tip = device(a), device(b, "bob"), Room(), Room.new_key()
        if created == "after the backup":
            make_backup(a, tmp_path / "copy")
        await a.services.hub.create_group(room.creation(), alice, linear=True)
        await a.services.hub.send(room.send("first"), alice)
        assert await read(b, bob, room.hub, room.key) == ["first"]
        await until(lambda: linear_here(b, room))
        if created == "before the backup":
            make_backup(a, tmp_path / "copy")
        await a.services.hub.send(room.commit("winner", tip), alice)
        await wait_stored(b, room.hub, bob, room.key, 2)
        async with restored(a, tmp_path / "copy", tmp_path / "again", b) as again:
            await all_groups_free(again)
            assert await linear_here(again, room)
            with pytest.raises(CommitSuperseded) as refused:
                await again.services.hub.send(room.commit("loser", Room.new_key()), alice)
            assert refused.value.members == {"counter": 1, "next_masked_key": base64url(tip.mask(32))}
            assert (await again.services.hub.send(commit_at(room, 1, tip, Room.new_key()), alice)).counter == 0


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_a_restored_hub_believes_nobody_that_a_group_of_its_backup_is_linear(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await send(b, bob, room, room.send("first"))
        make_backup(a, tmp_path / "copy")
        await a.services.hub.send(room.send("later"), alice)
        await wait_stored(b, room.hub, bob, room.key, 2)
        await b.services.store.write(lambda tx: tx.execute("UPDATE groups SET linear = 1"))
        async with restored(a, tmp_path / "copy", tmp_path / "again", b) as again:
            await all_groups_free(again)
            assert not await linear_here(again, room)


@pytest.mark.parametrize("way", ["send", "send_batch", "receive"])
async def test_a_follower_passes_on_which_group_replaces_one_and_remembers_it(way: str, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await send(b, bob, room, room.send("first"))
        await wait_stored(b, room.hub, bob, room.key, 1)
        await terminate(a, room.key)
        await replace(a, room)
        assert await read(b, bob, room.hub, room.key) == ["first"], "the hub was not asked"
        there = b.services.hub_router.hub(room.hub)
        named = {"group_id": base64url(NEXT.group_id), "hub": NEXT.hub}
        ask: dict[str, Callable[[], Awaitable[object]]] = {
            "send": lambda: there.send(bob, room.send("second")),
            "receive": lambda: read(b, bob, room.hub, room.key, 1),
        }
        if way == "send_batch":
            (answer,) = await there.send_batch(bob, [room.send("second")])
            assert isinstance(answer, bytes)
            assert named["group_id"].encode() in answer
        else:
            with pytest.raises(GroupReplaced) as refused:
                await ask[way]()
            assert refused.value.members == named
        with pytest.raises(GroupReplaced) as refused:
            await read(b, bob, room.hub, room.key)
        assert refused.value.members == named
        with pytest.raises(GroupReplaced):
            await there.page(bob, ReceiveRequest(room.key, Counter(0)), limit_octets=1 << 20)


async def test_a_problem_that_names_no_group_is_passed_on_and_not_remembered(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await send(b, bob, room, room.send("first"))
        await wait_stored(b, room.hub, bob, room.key, 1)

        async def refuse(_: Called) -> PeerAnswer:
            raise GroupReplaced("not base64url!", "..")

        b.peers.add("a.example", refuse)
        with pytest.raises(GroupReplaced):
            await send(b, bob, room, room.send("second"))
        assert await read(b, bob, room.hub, room.key) == ["first"]
