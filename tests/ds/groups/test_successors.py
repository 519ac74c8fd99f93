"""Groups that another group replaces (semantics: replaced-groups)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.ds.commands import command_named
from mimids.ds.commands.performing import perform
from mimids.ds.groups import branches
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.successors import replace_group
from mimids.errors import GroupOpen, GroupReplaced, Malformed, MimiError, UnknownGroup, UnknownPartition
from mimids.mls import framing
from mimids.mls.code_points import SenderType
from mimids.mls.proposals import Add, ExternalInit
from mimids.store import groups, partitions
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Successor
from mimids.values import Follower, Milliseconds, Sender
from mimids.wire.base64url import base64url
from mimids.wire.ids import Counter, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    ExternalJoinRequest,
    ExternalProposalRequest,
    ReceiveRequest,
    SendRequest,
)
from tests.support import signing
from tests.support.commands import command
from tests.support.federation import Room, device, federated
from tests.support.hub import ALICE, create, everything, running_hub

B = Follower(ProviderId("b.example"))
NEXT = Successor(GroupId(b"mimi://b.example/g/next"), ProviderId("b.example"))
JOINER, PROPOSER = signing.Client.of(2, "bob@b.example"), signing.Client.of(3, "carol@b.example")


async def replace(hub: LocalHub, group_id: GroupId, successor: Successor = NEXT) -> None:
    def work(tx: Tx) -> MimiError | None:
        group = groups.find_group(tx, 1, group_id)
        assert group is not None
        try:
            replace_group(tx, group, successor)
        except MimiError as error:
            return error
        return None

    refused = await hub._store.write(work)
    if refused is not None:
        raise refused


async def terminate(hub: LocalHub, key: PartitionKey) -> None:
    def work(tx: Tx) -> None:
        partition = partitions.find_partition(tx, 1, key.masks())
        assert partition is not None
        branches.terminate(tx, partition, "broken", Milliseconds(0))

    await hub._store.write(work)


def requests(room: signing.Room, key: PartitionKey) -> dict[str, Callable[[LocalHub, Sender], Awaitable[object]]]:
    """Return every request about the group that is refused once it is replaced."""
    words = Room.of(room)
    join, _ = room.commit(JOINER, signing.by_value(ExternalInit(bytes(32))))
    commit, _ = room.commit(0)
    sender = framing.Sender(SenderType.NEW_MEMBER_PROPOSAL, None)
    proposal = room.propose(sender, Add(PROPOSER.key_package()), by=PROPOSER.signer)
    return {
        "send": lambda hub, by: hub.send(words.send("text", key), by),
        "commit": lambda hub, by: hub.send(SendRequest(commit, key, CommitData(Room.new_key(), None, None)), by),
        "unknown key": lambda hub, by: hub.send(words.send("text", Room.new_key()), by),
        "join": lambda hub, by: hub.join(ExternalJoinRequest(join, CommitData(Room.new_key(), None, None)), by),
        "propose": lambda hub, by: hub.propose(ExternalProposalRequest(proposal, None), by),
        "propose there": lambda hub, by: hub.propose(ExternalProposalRequest(proposal, key.mask(32)), by),
        "receive": lambda hub, by: hub.receive(ReceiveRequest(key, Counter(0)), by),
        "group-info": lambda hub, by: hub.group_info(room.group_id, by),
        "group-info of a partition": lambda hub, by: hub.group_info(room.group_id, by, partition=key.mask(32)),
    }


@pytest.mark.parametrize("linear", [False, True], ids=["forking", "linear"])
@pytest.mark.parametrize("sender", [ALICE, B], ids=["device", "follower"])
@pytest.mark.parametrize("mode", ["open", "followers"])
async def test_every_request_about_a_replaced_group_names_the_other_one(
    mode: str, sender: Sender, linear: bool, tmp_path: Path
) -> None:
    room = signing.Room.create(signing.Client.of(1))
    async with running_hub(tmp_path, group={"external_joins": mode}) as hub:
        key = await create(hub, room, linear=linear, joinable=True)
        first = Room.of(room).send("before", key)
        answer = await hub.send(first, sender)
        await terminate(hub, key)
        await replace(hub, room.group_id)
        before = await everything(hub)
        for name, ask in requests(room, key).items():
            with pytest.raises(GroupReplaced) as refused:
                await ask(hub, sender)
            assert refused.value.members == {"group_id": base64url(NEXT.group_id), "hub": NEXT.hub}, name
        assert await hub.send(first, sender) == answer, "a repeat gets its first answer"
        assert await everything(hub) == before
        with pytest.raises(UnknownPartition):
            await hub.receive(ReceiveRequest(Room.new_key(), Counter(0)), sender)


async def test_a_provider_that_never_followed_the_group_learns_nothing(tmp_path: Path) -> None:
    room = signing.Room.create(signing.Client.of(1))
    async with running_hub(tmp_path, group={"external_joins": "followers"}) as hub:
        key = await create(hub, room, joinable=True)
        await terminate(hub, key)
        await replace(hub, room.group_id)
        with pytest.raises(UnknownGroup):
            await hub.group_info(room.group_id, B)


async def test_a_group_with_an_open_branch_is_not_replaced(tmp_path: Path) -> None:
    room, following = Room(), Room.new_key()
    async with running_hub(tmp_path) as hub:
        await hub.create_group(room.creation(), ALICE)
        await hub.send(room.commit("commit", following), ALICE)
        await hub.send(room.send("junk that anybody can send", Room.new_key(), epoch=9), ALICE)
        for _ in range(2):
            with pytest.raises(GroupOpen):
                await replace(hub, room.group_id)
            await terminate(hub, following)
        await terminate(hub, room.key)
        await replace(hub, room.group_id)  # the detached partition is no branch


async def test_the_command_wakes_those_who_wait_for_messages(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=()) as (a,):
        await a.add_device("alice")
        alice, room = device(a), Room()
        await a.services.hub.create_group(room.creation(), alice)
        named = base64url(room.group_id)
        await command(a, "group terminate", group=named, partition=room.key.mask(32).hex())
        refused: list[GroupReplaced] = []

        async def wait() -> None:
            try:
                await a.services.hub.receive(ReceiveRequest(room.key, Counter(0)), alice, wait_seconds=60)
            except GroupReplaced as error:
                refused.append(error)

        with trio.fail_after(30):
            async with trio.open_nursery() as waiting:
                waiting.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked(0.05)
                replacing = command_named("group replace")
                given = replacing.given({"group": named, "successor_group": "bmV4dA", "successor_hub": "b.example"})
                await perform(a.services, replacing, given, "shell 0")
        assert len(refused) == 1


async def test_a_replaced_group_stays_replaced(tmp_path: Path) -> None:
    room = Room()
    async with running_hub(tmp_path) as hub:
        await hub.create_group(room.creation(), ALICE)
        await terminate(hub, room.key)
        with pytest.raises(Malformed):
            await replace(hub, room.group_id, Successor(room.group_id, ALICE.provider))
        await replace(hub, room.group_id)
        await replace(hub, room.group_id)
        with pytest.raises(GroupReplaced):
            await replace(hub, room.group_id, Successor(NEXT.group_id, ProviderId("c.example")))

        def undo(tx: Tx) -> None:
            partition = partitions.find_partition(tx, 1, room.key.masks())
            assert partition is not None
            with pytest.raises(Malformed):
                branches.undo_termination(tx, partition)

        await hub._store.write(undo)
