"""A provider that was restored from a backup fetches later messages from other providers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import trio

from mimids.ds.ports import PeerAnswer
from mimids.errors import MethodNotAllowed, PeerUnavailable, Recovering, UnknownGroup
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.proposals import Add
from mimids.values import Follower
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, Counter, GroupId, MaskedPartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    CreateGroupRequest,
    HeldGroupsRequest,
    KnownPartition,
    PushRequest,
    PushResponse,
    ReceiveRequest,
    RecoverRequest,
    SendRequest,
    SendResponse,
)
from tests.support.doubles import Called
from tests.support.federation import Room, commit_at, device, federated, in_memory_peer, read, wait_stored
from tests.support.hub import offer
from tests.support.provider import Assembled, assembled
from tests.support.recordings import Recording, expected
from tests.support.restoring import all_groups_free, make_backup, restored
from tests.support.signing import GROUP, Client, by_value
from tests.support.signing import Room as SignedRoom
from tests.support.stored import bodies, rows, until

SUITE = CipherSuite(1)


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_messages_come_back_from_followers_and_no_counter_is_given_twice(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        tip, newer = Room.new_key(), Room.new_key()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("0"))
        make_backup(a, tmp_path / "copy")
        for n in range(1, 4):
            await a.services.hub.send(room.send(f"{n}"), alice)
        await a.services.hub.send(room.commit("on", tip), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("here", tip, epoch=1))
        await a.services.hub.send(commit_at(room, 1, tip, newer), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("there", newer, epoch=2))
        for key, count in ((room.key, 5), (tip, 2), (newer, 1)):
            await wait_stored(b, room.hub, bob, key, count)
        before = {key: await read(a, alice, room.hub, key) for key in (room.key, tip, newer)}
        async with restored(a, tmp_path / "copy", tmp_path / "again", b) as again:
            await all_groups_free(again)
            assert {key: await read(again, alice, room.hub, key) for key in before} == before
            late = await again.services.hub.send(room.send("4"), alice)
            assert (late.counter, late.detached) == (5, 0)
            answer = await b.services.hub_router.hub(room.hub).send(bob, room.send("again", newer, epoch=2))
            assert decode(SendResponse, answer).counter == 1
            assert (await wait_stored(b, room.hub, bob, room.key, 6))[-1] == "4"
            assert (await wait_stored(b, room.hub, bob, newer, 2))[-1] == "again"
            with pytest.raises(UnknownGroup):
                await again.services.hub.send(Room("other").send("x"), alice)


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_a_group_is_held_until_its_followers_answer_and_other_groups_are_not(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example", "c.example") as (a, b, c):
        alice, bob, carol = device(a), device(b, "bob"), device(c, "carol")
        room, alone, with_carol = Room(), Room("alone"), Room("with carol")
        for each in (room, alone, with_carol):
            await a.services.hub.create_group(each.creation(), alice)
            await a.services.hub.send(each.send("first"), alice)
        for who, where, there in ((bob, b, room), (carol, c, room), (carol, c, with_carol)):
            assert await read(where, who, room.hub, there.key) == ["first"]
        make_backup(a, tmp_path / "copy")
        await a.services.hub.send(room.send("later"), alice)
        await wait_stored(b, room.hub, bob, room.key, 2)
        async with restored(a, tmp_path / "copy", tmp_path / "again", c, jobs=False) as again:
            with pytest.raises(Recovering):
                await again.services.hub.send(with_carol.send("too early"), alice)
            async with trio.open_nursery() as tasks:
                await tasks.start(again.services.recovery_as_hub.run)
                free = "SELECT 1 FROM groups g WHERE group_id = ? AND NOT EXISTS (SELECT 1 FROM recoveries"
                free += " WHERE group_ref = g.id AND answered = 0)"
                await until(lambda: rows(again, free, with_carol.group_id))
                await again.services.hub.send(with_carol.send("second"), alice)
                await again.services.hub.send(alone.send("second"), alice)
                for key in (room.key, Room.new_key()):  # an unknown key may belong to a partition that was lost
                    with pytest.raises(Recovering) as refused:
                        await again.services.hub.send(room.send("x", key), alice)
                    assert refused.value.members["retry_after"]
                assert (await read(again, alice, room.hub, room.key))[0] == "first", "reading goes on"
                again.peers.add("b.example", in_memory_peer(b, again.config.provider))
                b.peers.add("a.example", in_memory_peer(again, b.config.provider))
                await all_groups_free(again)
                answer = await again.services.hub.send(room.send("third"), alice)
                assert answer.counter == 2
                assert await read(again, alice, room.hub, room.key) == ["first", "later", "third"]
                tasks.cancel_scope.cancel()


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_a_malformed_answer_about_one_group_does_not_hold_another(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room, other = device(a), device(b, "bob"), Room(), Room("other")
        for each in (room, other):
            await a.services.hub.create_group(each.creation(), alice)
            await b.services.hub_router.hub(room.hub).send(bob, each.send("0"))
        make_backup(a, tmp_path / "copy")
        await b.services.hub_router.hub(room.hub).send(bob, other.send("1"))
        await wait_stored(b, room.hub, bob, other.key, 2)
        spec = in_memory_peer(b, a.config.provider)

        async def about_other(called: Called) -> PeerAnswer:
            if called.path == "/ds/v1/recover" and decode(RecoverRequest, called.body).group_id == room.group_id:
                return PeerAnswer(b"nonsense")
            return await spec(called)

        async with restored(a, tmp_path / "copy", tmp_path / "again", jobs=False) as again:
            again.peers.add("b.example", about_other)
            async with trio.open_nursery() as tasks:
                await tasks.start(again.services.recovery_as_hub.run)
                free = "SELECT 1 FROM groups g WHERE group_id = ? AND NOT EXISTS (SELECT 1 FROM recoveries"
                free += " WHERE group_ref = g.id AND answered = 0)"
                await until(lambda: rows(again, free, other.group_id))
                assert (await again.services.hub.send(other.send("2"), alice)).counter == 2
                with pytest.raises(Recovering):
                    await again.services.hub.send(room.send("1"), alice)
                tasks.cancel_scope.cancel()


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_a_group_created_after_the_backup_comes_back(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        make_backup(a, tmp_path / "copy")
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        for n in range(3):
            await b.services.hub_router.hub(room.hub).send(bob, room.send(f"{n}"))
        await wait_stored(b, room.hub, bob, room.key, 3)
        async with restored(a, tmp_path / "copy", tmp_path / "again", b) as again:
            await until(lambda: rows(again, "SELECT 1 FROM groups"))
            await all_groups_free(again)
            assert await read(again, alice, room.hub, room.key) == ["0", "1", "2"]
            assert (await again.services.hub.send(room.send("3"), alice)).counter == 3
            assert (await wait_stored(b, room.hub, bob, room.key, 4))[-1] == "3"


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_states_come_back_with_their_commits(tmp_path: Path) -> None:
    recording = Recording("public")
    accepted = [each for each in recording.messages() if expected(each.line) == "accept"]
    half = len(accepted) // 2
    states = "SELECT hex(masked_key), epoch, next_counter, knowledge, hex(root_hash), hex(group_context), detached"
    states += " FROM partitions ORDER BY masked_key"
    async with federated(tmp_path, "a.example", "b.example", "c.example") as (a, b, c):
        alice, bob = device(a), device(b, "bob")
        hub = a.services.hub
        creation = recording.creation()
        await hub.create_group(creation, alice)
        await read(b, bob, a.config.provider, creation.partition_key)
        for each in accepted[:half]:
            await offer(hub, each)
        make_backup(a, tmp_path / "copy")
        for each in accepted[half:]:
            await offer(hub, each)
        keys = {key for each in accepted for key in (each.key, each.next_key) if key is not None}
        for key in keys:
            await b.services.following.ask(bob, a.config.provider, ReceiveRequest(key, Counter(0)))
        await until(lambda: _same_counters(a, b))
        before = await rows(a, states)
        async with restored(a, tmp_path / "copy", tmp_path / "again", b, c) as again:
            await all_groups_free(again)

            async def is_as_before() -> bool:  # the other follower may still be answering
                return await rows(again, states) == before

            await until(is_as_before)


async def _same_counters(a: Assembled, b: Assembled) -> bool:
    counters = "SELECT masked_key, next_counter FROM partitions WHERE next_counter > 0 AND detached = 0 ORDER BY 1"
    return await rows(a, counters) == await rows(b, counters)


@pytest.mark.sqlite_file("backups and restores are of files")
@pytest.mark.parametrize("has_messages", [True, False])
async def test_the_provider_of_a_member_who_joined_after_the_backup_is_asked_too(
    has_messages: bool, tmp_path: Path
) -> None:
    """Its provider followed nothing at the time of the backup; the first follower's answer shows the member.

    The group does not wait until it answers.
    """
    recording = Recording("public")
    accepted = [each for each in recording.messages() if expected(each.line) == "accept"]
    async with federated(tmp_path, "a.example", "b.example", "c.example") as (a, b, c):
        alice, bob = device(a), device(b, "bob")
        creation = recording.creation()
        await a.services.hub.create_group(creation, alice)
        await read(b, bob, a.config.provider, creation.partition_key)
        make_backup(a, tmp_path / "copy")
        for each in accepted:
            await offer(a.services.hub, each)
        for key in {key for each in accepted for key in (each.key, each.next_key) if key is not None}:
            await b.services.following.ask(bob, a.config.provider, ReceiveRequest(key, Counter(0)))
        await until(lambda: _same_counters(a, b))
        async with restored(a, tmp_path / "copy", tmp_path / "again", b, c, jobs=False) as again:
            reach = again.peers.peers[c.config.provider]

            async def has_no_messages(called: Called) -> PeerAnswer:
                if called.path == "/ds/v1/recover":
                    raise PeerUnavailable
                return await reach(called)

            if not has_messages:
                again.peers.add(c.config.provider, has_no_messages)
            async with trio.open_nursery() as jobs:
                await jobs.start(again.services.recovery_as_hub.run)
                await all_groups_free(again)
                jobs.cancel_scope.cancel()
            asked = {call.provider for call in again.peers.calls if call.path == "/ds/v1/recover"}
            assert asked == {"b.example", "c.example"}


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_a_provider_without_recover_is_asked_for_its_counters_by_empty_pushes(tmp_path: Path) -> None:
    async def old(called: Called) -> PeerAnswer:
        if called.path != "/ds/v1/push":
            raise MethodNotAllowed
        epochs = decode(PushRequest, called.body).epochs
        return PeerAnswer(encode(PushResponse(tuple(Counter(7) for _ in epochs))))

    async with federated(tmp_path, "a.example") as (a,):
        alice, room = device(a), Room()
        await a.services.hub.create_group(room.creation(), alice)
        for n in range(3):
            await a.services.hub.send(room.send(f"{n}"), alice)
        b = Follower(ProviderId("b.example"))
        await a.services.hub.receive(ReceiveRequest(room.key, Counter(0)), b)
        make_backup(a, tmp_path / "copy")
        async with restored(a, tmp_path / "copy", tmp_path / "again", jobs=False) as again:
            again.peers.add("b.example", old)
            async with trio.open_nursery() as tasks:
                await tasks.start(again.services.recovery_as_hub.run)
                await all_groups_free(again)
                assert (await again.services.hub.send(room.send("new"), alice)).counter == 7
                assert await read(again, alice, room.hub, room.key) == ["0", "1", "2"]
                assert await read(again, alice, room.hub, room.key, 7) == ["new"]
                tasks.cancel_scope.cancel()


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_a_restart_continues_with_the_open_questions(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("0"))
        make_backup(a, tmp_path / "copy")
        await b.services.hub_router.hub(room.hub).send(bob, room.send("1"))
        await wait_stored(b, room.hub, bob, room.key, 2)
        async with restored(a, tmp_path / "copy", tmp_path / "again") as again:
            with pytest.raises(Recovering):
                await again.services.hub.send(room.send("2"), alice)
        async with assembled(again.config) as once_more, trio.open_nursery() as tasks:
            once_more.peers.add("b.example", in_memory_peer(b, a.config.provider))
            await tasks.start(once_more.services.recovery_as_hub.run)
            await all_groups_free(once_more)
            assert (await once_more.services.hub.send(room.send("2"), alice)).counter == 2
            tasks.cancel_scope.cancel()


async def test_only_the_hub_of_a_group_gets_its_messages_back(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("0"))
        await wait_stored(b, room.hub, bob, room.key, 1)
        answers = b.services.recovery_answers
        mine, stranger = Follower(a.config.provider), Follower(ProviderId("c.example"))
        nothing = RecoverRequest(room.group_id, ())
        assert len((await answers.messages_beyond(mine, nothing)).epochs) == 1
        assert (await answers.groups_of(mine, HeldGroupsRequest(GroupId(b"")))).group_ids == (room.group_id,)
        assert (await answers.groups_of(stranger, HeldGroupsRequest(GroupId(b"")))).group_ids == ()
        with pytest.raises(UnknownGroup):
            await answers.messages_beyond(stranger, nothing)


@pytest.mark.sqlite_file("backups and restores are of files")
async def test_a_restored_follower_is_pushed_again_what_came_after_the_backup(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("0"))
        await wait_stored(b, room.hub, bob, room.key, 1)
        make_backup(b, tmp_path / "copy")
        for n in range(1, 4):
            await a.services.hub.send(room.send(f"{n}"), alice)
        await wait_stored(b, room.hub, bob, room.key, 4)
        async with restored(b, tmp_path / "copy", tmp_path / "again", a) as again:
            found = await wait_stored(again, room.hub, bob, room.key, 4)
            assert found == ["0", "1", "2", "3"]
            assert await bodies(again, room.key) == [True] * 4
            with pytest.raises(PeerUnavailable):  # the test connected no other provider
                await again.services.peers.call(ProviderId("c.example"), "POST", "/ds/v1/resume")


async def test_an_answer_is_bounded_including_its_trees(tmp_path: Path) -> None:
    """The hub refuses answers over a size; in a large group the trees of many epochs alone would exceed it."""
    limit = 30_000
    async with federated(tmp_path, "a.example", "b.example", limits={"receive_bytes": limit}) as (a, b):
        alice, bob = device(a), device(b, "bob")
        keys = [Room.new_key() for _ in range(12)]
        clients = [Client.of(seed, f"user{seed}@{'ab'[seed % 2]}.example") for seed in range(1, 31)]
        group = SignedRoom.create(clients[0])
        message, group = group.commit(0, *[by_value(Add(each.key_package())) for each in clients[1:]])
        info = decode(MLSMessage, encode(MLSMessage(MLS10, WireFormat.GROUP_INFO, group.info())))
        await a.services.hub.create_group(CreateGroupRequest(GROUP, MLS10, SUITE, keys[0], info, None, None), alice)
        await b.services.following.ask(bob, a.config.provider, ReceiveRequest(keys[0], Counter(0)))
        for key, following in pairwise(keys):
            message, group = group.commit(0)
            info = decode(MLSMessage, encode(MLSMessage(MLS10, WireFormat.GROUP_INFO, group.info(tree=False))))
            data = CommitData(following, info, None)
            await a.services.hub.send(SendRequest(decode(MLSMessage, encode(message)), key, data), alice)
        await until(lambda: _same_counters(a, b))
        hub, known, answers = Follower(a.config.provider), dict[MaskedPartitionKey, Counter](), 0
        while epochs := (answer := await b.services.recovery_answers.messages_beyond(hub, _request(known))).epochs:
            assert len(encode(answer)) < 2 * limit
            known |= {each.masked_partition_key: Counter(each.counter + len(each.epoch.messages)) for each in epochs}
            answers += 1
        assert len(known) == len(keys) - 1
        assert answers > 2


def _request(known: dict[MaskedPartitionKey, Counter]) -> RecoverRequest:
    return RecoverRequest(GROUP, tuple(KnownPartition(key, counter) for key, counter in known.items()))
