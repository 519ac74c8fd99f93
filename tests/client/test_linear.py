"""Devices in linear and in replaced groups, at real providers (semantics: linear-groups, replaced-groups)."""

from __future__ import annotations

from contextlib import AsyncExitStack

import attrs
import pytest
import trio

from mimids.client import (
    CommitAttempt,
    CommitSuperseded,
    Device,
    GroupReplaced,
    NotServed,
    Problem,
    commit_with_retry,
    join_with_retry,
    requests,
)
from mimids.mls.code_points import ExtensionType, WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.leaf_node import Extension
from mimids.mls.proposals import ExternalInit
from mimids.testing import PretendGroup, Session, open_federation
from mimids.wire.base64url import base64url
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, CipherSuite, GroupId, MaskedPartitionKey, ProviderId
from mimids.wire.messages import ExternalJoinRequest, GroupInfoBundle, Message
from tests.support import signing
from tests.support.federation import Room
from tests.support.patience import patience

NAMES = ("a.example", "b.example", "c.example")


@attrs.define(eq=False)
class Member:
    """A member of a `PretendGroup`, in the epoch that it has reached."""

    device: Device
    group: PretendGroup
    epochs: dict[MaskedPartitionKey, PretendGroup]  # of all members: in place of what a commit tells them
    counter: int = 0
    lost: int = 0
    pending: PretendGroup | None = None

    async def make(self) -> CommitAttempt:
        request, self.pending = self.group.commit()
        self.epochs[self.pending.key.mask(32)] = self.pending
        return CommitAttempt(request, self.counter)

    async def apply(self, counter: int, messages: tuple[Message, ...]) -> None:
        assert counter == self.counter
        *before, winner = messages
        assert all(each.commit is None for each in before)
        assert winner.commit is not None
        self.group, self.counter = self.epochs[winner.commit.next_partition_key], 0
        self.lost += 1

    async def commit(self, hub: ProviderId) -> None:
        answer = await commit_with_retry(self.device, hub, self.make, self.apply, tries=200)
        assert answer.earlier_commits == ()
        assert self.pending is not None
        self.group, self.counter = self.pending, 0


async def test_members_of_three_providers_race_and_each_commits_in_the_end(mimids_session: Session) -> None:
    group = PretendGroup.at(NAMES[0])
    epochs: dict[MaskedPartitionKey, PretendGroup] = {}
    async with open_federation(*NAMES, session=mimids_session) as federation, AsyncExitStack() as stack:
        members = []
        for number in range(6):
            account = federation[NAMES[number % 3]].add_device(f"member{number}")
            members.append(Member(await stack.enter_async_context(account.client()), group, epochs))
        await members[0].device.create_group(group.creation(), linear=True)

        async def race(member: Member) -> None:
            for _ in range(3):
                await member.commit(group.hub)

        with trio.fail_after(60):
            async with trio.open_nursery() as racing:
                for member in members:
                    racing.start_soon(race, member)
        assert max(member.group.epoch for member in members) == 18
        assert sum(member.lost for member in members) > 0
        found = federation[NAMES[0]].read("SELECT parent, count(*) FROM partitions GROUP BY parent")
        assert len(found) == 19
        assert all(number == 1 for _, number in found)


async def test_the_number_of_tries_is_bounded_and_a_missing_winner_is_an_error(mimids_session: Session) -> None:
    async with open_federation("a.example", session=mimids_session) as (a,), a.add_device("alice").client() as alice:
        group = PretendGroup.at(a.name)
        await alice.create_group(group.creation(), linear=True)
        await alice.send(group.hub, group.commit()[0])
        member = Member(alice, group, {})
        applied: list[int] = []

        async def ignore(counter: int, messages: tuple[Message, ...]) -> None:
            applied.append(len(messages))

        with pytest.raises(CommitSuperseded) as refused:
            await commit_with_retry(alice, group.hub, member.make, ignore, tries=3)
        assert applied == [1, 1]
        assert refused.value.counter == 0
        with pytest.raises(ValueError, match="tries"):
            await commit_with_retry(alice, group.hub, member.make, ignore, tries=0)


async def test_a_joiner_that_lost_joins_the_epoch_after_the_winner(mimids_session: Session) -> None:
    room, newcomer = signing.Room.create(signing.Client.of(1)), signing.Client.of(2)
    rooms = {room.epoch: room}
    key, tip = Room.new_key(), Room.new_key()
    async with open_federation("a.example", session=mimids_session) as (a,), a.add_device("alice").client() as alice:
        hub = ProviderId(a.name)
        await alice.create_group(
            requests.creation(room.group_id, CipherSuite(1), key, group_info=_info(room)), linear=True
        )
        assert (await alice.find_group(hub, room.group_id)).linear
        winner, after = room.commit(0)
        rooms[after.epoch] = after
        seen: list[int] = []

        async def make(bundle: GroupInfoBundle) -> ExternalJoinRequest:
            info = bundle.info.group_info.message
            epoch = info.group_context.epoch  # type: ignore[union-attr]
            seen.append(epoch)
            if len(seen) == 1:
                await alice.send(hub, requests.commit(encode(winner), key, tip, group_info=_info(after)))
            commit, _ = rooms[epoch].commit(newcomer, signing.by_value(ExternalInit(bytes(32))))
            return requests.external_join(encode(commit), Room.new_key())

        answer = await join_with_retry(alice, hub, room.group_id, make)
        assert seen == [0, 1]
        assert (answer.counter, answer.partition) == (0, tip.mask(32))
        with pytest.raises(ValueError, match="tries"):
            await join_with_retry(alice, hub, room.group_id, make, tries=0)


def _info(room: signing.Room) -> bytes:
    info = room.info(Extension(ExtensionType.EXTERNAL_PUB, bytes(32)))
    return encode(MLSMessage(MLS10, WireFormat.GROUP_INFO, info))


async def test_devices_are_told_which_group_replaces_theirs(mimids_session: Session) -> None:
    other = GroupId(b"mimi://b.example/g/other")
    async with (
        open_federation("a.example", "b.example", session=mimids_session) as (a, b),
        a.add_device("alice").client() as alice,
        a.add_device("carol").client() as carol,
        b.add_device("bob").client() as bob,
    ):
        group, hub = PretendGroup.at(a.name), ProviderId(a.name)
        await alice.create_group(group.creation())
        await bob.send(hub, group.message(b"hello"))
        for device, code in ((alice, "group-open"), (carol, "unknown-group"), (bob, "unknown-group")):
            with pytest.raises(Problem) as refused:
                await device.replace_group(group.group_id, other, ProviderId(b.name))
            assert refused.value.code == code
        name = base64url(group.group_id)
        shown = a.command("group show", group=name)
        a.command("group terminate", group=name, partition=shown["tree"][0]["partition"])
        async with alice.stream() as hers:
            hers.present(hub, group.key)
            await anext(hers)
            for _ in range(2):
                await alice.replace_group(group.group_id, other, ProviderId(b.name))
            with patience():
                event = await anext(hers)
            assert isinstance(event, NotServed)
            _names(event.problem, other, b.name)
        async with bob.stream() as his:
            his.present(hub, group.key)
            with patience():
                while not isinstance(event := await anext(his), NotServed):
                    pass
            _names(event.problem, other, b.name)
        for device in (alice, bob):
            with pytest.raises(GroupReplaced) as replaced:
                await device.send(hub, group.message(b"too late"))
            _names(replaced.value, other, b.name)
            with pytest.raises(GroupReplaced) as replaced:
                await device.receive(hub, group.key)
            _names(replaced.value, other, b.name)


def _names(problem: Problem, group_id: GroupId, hub: str) -> None:
    assert isinstance(problem, GroupReplaced)
    assert (problem.group_id, problem.hub) == (group_id, hub)


@pytest.mark.parametrize("members", ["", ',"counter":"7","next_masked_key":[],"group_id":"not base64url!","hub":null'])
def test_members_that_a_provider_wrote_wrongly_are_empty(members: str) -> None:
    superseded, replaced = (
        Problem.from_json(409, f'{{"type":"{kind.TYPE}"{members}}}'.encode())
        for kind in (CommitSuperseded, GroupReplaced)
    )
    assert isinstance(superseded, CommitSuperseded)
    assert isinstance(replaced, GroupReplaced)
    assert (superseded.counter, superseded.next_masked_key, replaced.group_id) == (0, b"", b"")
