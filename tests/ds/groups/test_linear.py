"""Linear groups: the first commit of an epoch wins, and the losers are told which it is (semantics: linear-groups)."""

from __future__ import annotations

import random
from pathlib import Path

import attrs
import pytest
import trio

from mimids.ds.groups import branches
from mimids.ds.groups.hub import LocalHub
from mimids.errors import (
    BranchTerminated,
    CommitSuperseded,
    GroupExists,
    InvalidMessage,
    Malformed,
    MimiError,
    PartitionExists,
    UnknownGroup,
    UnknownPartition,
    WrongEpoch,
)
from mimids.mls.code_points import ExtensionType, WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.leaf_node import Extension
from mimids.mls.proposals import Add, ExternalInit
from mimids.store import partitions
from mimids.store.engine.transaction import Tx
from mimids.values import Follower, Milliseconds, Sender
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.declare import decode
from mimids.wire.ids import MLS10, Counter, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    ExternalJoinRequest,
    ReceiveRequest,
    ReceiveResponse,
    SendRequest,
    SendResponse,
    WelcomeData,
)
from tests.support import signing
from tests.support.federation import COMMIT, Room, commit_at
from tests.support.hub import ALICE, A, create, everything, running_hub
from tests.support.welcomes import welcome_to

B, C = Follower(ProviderId("b.example")), Follower(ProviderId("c.example"))
SENDERS: tuple[Sender, ...] = (ALICE, B, C)
NEVER = Milliseconds(0)


async def linear_room(hub: LocalHub) -> tuple[signing.Room, PartitionKey]:
    """Create a linear group of which the hub knows the state."""
    room = signing.crowd(3)
    return room, await create(hub, room, linear=True)


def committing(
    room: signing.Room, key: PartitionKey, committer: int = 0
) -> tuple[SendRequest, signing.Room, PartitionKey]:
    """Return a commit of a member, the room after it, and the key that it leads to."""
    message, after = room.commit(committer)
    following = Room.new_key()
    return SendRequest(message, key, CommitData(following, None, None)), after, following


def joining(room: signing.Room, seed: int = 9) -> ExternalJoinRequest:
    message, _ = room.commit(signing.Client.of(seed), signing.by_value(ExternalInit(bytes(32))))
    return ExternalJoinRequest(message, CommitData(Room.new_key(), None, None))


async def refusal(hub: LocalHub, request: SendRequest | ExternalJoinRequest, sender: Sender = ALICE) -> MimiError:
    ask = hub.join(request, sender) if isinstance(request, ExternalJoinRequest) else hub.send(request, sender)
    with pytest.raises(MimiError) as refused:
        await ask
    return refused.value


async def terminate(hub: LocalHub, key: PartitionKey, *, undo: bool = False) -> None:
    def work(tx: Tx) -> None:
        partition = partitions.find_partition(tx, 1, key.masks())
        assert partition is not None
        if undo:
            branches.undo_termination(tx, partition)
        else:
            branches.terminate(tx, partition, "junk", NEVER)

    await hub._store.write(work)


async def test_a_second_commit_is_refused_with_the_first_one_and_changes_nothing(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        room, key = await linear_room(hub)
        first, _, following = committing(room, key)
        other = await hub.send(Room.of(room).send("a message before", key, epoch=room.epoch), ALICE)
        assert other.counter == 0
        assert (await hub.send(first, ALICE)).counter == 1
        second, third = committing(room, key, 1)[0], joining(room)
        before = await everything(hub)
        for request in (second, third):
            refused = await refusal(hub, request)
            assert isinstance(refused, CommitSuperseded)
            assert refused.members == {"counter": 1, "next_masked_key": base64url(following.mask(32))}
        assert await everything(hub) == before


async def test_a_loser_can_fetch_the_winner_and_commit_after_it(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        room, key = await linear_room(hub)
        first, after, following = committing(room, key)
        await hub.send(first, B)
        refused = await refusal(hub, committing(room, key, 1)[0])
        position = ReceiveRequest(key, Counter(int(str(refused.members["counter"]))))
        (winner,) = decode(ReceiveResponse, await hub.receive(position, ALICE)).epoch.messages
        assert winner.message == first.message
        assert winner.commit is not None
        assert winner.commit.next_partition_key == from_base64url(str(refused.members["next_masked_key"]))
        assert (await hub.send(committing(after, following, 1)[0], ALICE)).counter == 0


async def test_a_repeat_of_either_gets_its_first_answer(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        room, key = await linear_room(hub)
        first, second = committing(room, key)[0], committing(room, key, 1)[0]
        answer = await hub.send(first, ALICE)
        lost = await refusal(hub, second)
        assert await hub.send(first, ALICE) == answer
        assert (await refusal(hub, second)).members == lost.members


async def test_the_refusal_comes_before_the_rules_of_mls_and_after_those_of_the_partition(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        room, key = await linear_room(hub)
        first, after, following = committing(room, key)
        await hub.send(first, ALICE)
        invalid, _ = room.commit(1, path=False, tag=b"too short")
        broken = SendRequest(invalid, key, CommitData(Room.new_key(), None, None))
        assert isinstance(await refusal(hub, broken), CommitSuperseded)
        broken = SendRequest(invalid, following, CommitData(Room.new_key(), None, None))
        assert isinstance(await refusal(hub, broken), WrongEpoch)
        of_nobody, _ = after.commit(1, tag=b"too short")
        broken = SendRequest(of_nobody, following, CommitData(Room.new_key(), None, None))
        assert isinstance(await refusal(hub, broken), InvalidMessage)


async def test_an_unknown_key_opens_nothing(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        room, _ = await linear_room(hub)
        before = await everything(hub)
        words = Room.of(room)
        for request in (
            words.send("to nowhere", Room.new_key(), epoch=room.epoch),
            SendRequest(
                words.message("commit", epoch=room.epoch, kind=COMMIT),
                Room.new_key(),
                CommitData(Room.new_key(), None, None),
            ),
        ):
            assert isinstance(await refusal(hub, request), UnknownPartition)
        assert await everything(hub) == before


async def test_a_commit_cannot_lead_to_a_partition_that_exists(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        room, key = await linear_room(hub)
        message, _ = room.commit(0)
        to_itself = SendRequest(message, key, CommitData(key, None, None))
        assert isinstance(await refusal(hub, to_itself), PartitionExists)


async def test_a_batch_with_two_commits_of_one_epoch_takes_the_first(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        room, key = await linear_room(hub)
        first, after, following = committing(room, key)
        answers = await hub.send_batch(
            [first, committing(room, key, 1)[0], committing(after, following)[0], committing(after, following, 1)[0]],
            ALICE,
        )
        assert [type(each) for each in answers] == [SendResponse, CommitSuperseded, SendResponse, CommitSuperseded]
        assert [each.members["counter"] for each in answers if isinstance(each, CommitSuperseded)] == [0, 0]


async def test_a_welcome_goes_out_when_its_commit_is_durable_also_after_a_terminated_one(tmp_path: Path) -> None:
    newcomer = signing.Client.of(7)
    async with running_hub(tmp_path) as hub:
        room, key = await linear_room(hub)
        junk, _, away = committing(room, key)
        await hub.send(junk, ALICE)
        await terminate(hub, away)
        package = newcomer.key_package()
        message, _ = room.commit(1, signing.by_value(Add(package)))
        welcome = WelcomeData(welcome_to(package.ref(room.suite)), (ProviderId(A),))
        await hub.send(SendRequest(message, key, CommitData(Room.new_key(), None, welcome)), ALICE)
        found = await hub._store.read(lambda tx: tx.all("SELECT state FROM outgoing_welcomes"))
        assert found == [("due",)]


async def test_a_junk_commit_is_undone_by_terminating_its_branch(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        room, key = await linear_room(hub)
        junk = SendRequest(
            Room.of(room).message("nobody can read this", epoch=room.epoch, kind=COMMIT),
            key,
            CommitData(away := Room.new_key(), None, None),
        )
        await hub.send(junk, B)
        good, after, following = committing(room, key, 1)
        assert isinstance(await refusal(hub, good), CommitSuperseded)
        await terminate(hub, away)
        response = await hub.send(good, ALICE)
        assert (response.counter, response.earlier_commits) == (1, (away.mask(32),))
        assert (await hub.send(junk, B)).counter == 0  # a repeat
        assert isinstance(await refusal(hub, joining(after, 8), B), MimiError)
        assert (await hub.send(committing(after, following)[0], ALICE)).counter == 0
        assert isinstance(await refusal(hub, Room.of(room).send("below junk", away, epoch=1)), BranchTerminated)


async def test_a_termination_is_not_undone_where_another_branch_took_the_place(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        room, key = await linear_room(hub)
        first, after, one = committing(room, key)
        await hub.send(first, ALICE)
        below, _, x = committing(after, one)
        await hub.send(below, ALICE)
        await terminate(hub, x)
        await hub.send(committing(after, one, 1)[0], ALICE)
        await terminate(hub, one)
        with pytest.raises(Malformed):  # the branch of x would come back with the other one, when `one` is opened
            await terminate(hub, x, undo=True)
        second, _, two = committing(room, key, 1)
        await hub.send(second, ALICE)
        with pytest.raises(Malformed):
            await terminate(hub, one, undo=True)
        await terminate(hub, two)
        await terminate(hub, one, undo=True)
        assert isinstance(await refusal(hub, committing(room, key, 2)[0]), CommitSuperseded)


async def test_a_repeat_of_the_creation_must_say_linear_too(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        linear, forking = Room("linear"), Room("forking")
        for room, flag in ((linear, True), (forking, False)):
            await hub.create_group(room.creation(), ALICE, linear=flag)
            await hub.create_group(room.creation(), ALICE, linear=flag)
            with pytest.raises(GroupExists):
                await hub.create_group(room.creation(), ALICE, linear=not flag)


async def test_group_info_tells_whether_a_group_is_linear(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        for flag in (True, False):
            room = signing.Room.create(signing.Client.of(1))
            room.group_id = Room(f"linear {flag}").group_id
            await create(hub, room, linear=flag, joinable=True)
            assert (await hub.group_info(room.group_id, ALICE)).linear is flag


@pytest.mark.parametrize("info", [None, "without external_pub", "joinable"])
async def test_an_external_commit_that_cannot_be_verified_needs_a_group_info_to_join_by(
    info: str | None, tmp_path: Path
) -> None:
    room = signing.crowd(2)
    key = Room.new_key()
    async with running_hub(tmp_path) as hub:
        await hub.create_group(Room.of(room).creation(key), ALICE, linear=True)
        external = (Extension(ExtensionType.EXTERNAL_PUB, bytes(32)),) if info == "joinable" else ()
        encoded = MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info(*external)).encoded

        def give(tx: Tx) -> None:
            if info is not None:
                partitions.set_group_info(tx, 1, encoded)

        await hub._store.write(give)
        if info == "joinable":
            assert (await hub.join(joining(room), ALICE)).counter == 0
        else:
            assert isinstance(await refusal(hub, joining(room)), UnknownGroup)
            assert (await hub.send(committing(room, key)[0], ALICE)).counter == 0
            assert isinstance(await refusal(hub, joining(room)), UnknownGroup)


async def test_a_winner_whose_digest_retention_deleted_is_named_without_its_counter(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        room, key = await linear_room(hub)
        first, _, following = committing(room, key)
        await hub.send(Room.of(room).send("before", key, epoch=room.epoch), ALICE)
        await hub.send(first, ALICE)
        await hub._store.write(lambda tx: tx.execute("DELETE FROM messages"))
        refused = await refusal(hub, committing(room, key, 1)[0])
        assert refused.members == {"counter": 0, "next_masked_key": base64url(following.mask(32))}


# --- races ------------------------------------------------------------------------------------------------------


@attrs.define
class Member:
    """A member that commits to the newest epoch it knows, and applies what it lost against."""

    sender: Sender
    number: int
    key: PartitionKey
    epoch: int = 0
    won: int = 0


@pytest.mark.parametrize("seed", range(6))
async def test_of_racing_members_one_wins_each_epoch_and_all_converge(seed: int, tmp_path: Path) -> None:
    dice, room = random.Random(seed), Room()
    keys: dict[MaskedPartitionKey, PartitionKey] = {}  # in place of what a commit tells its members
    members = [Member(dice.choice(SENDERS), number, room.key) for number in range(8)]
    chain = [room.key]

    async def race(hub: LocalHub, member: Member) -> None:
        while member.won < 5:
            for _ in range(dice.randrange(3)):
                await trio.lowlevel.checkpoint()
            following = Room.new_key()
            keys[following.mask(32)] = following
            request = commit_at(room, member.epoch, member.key, following)
            (answer,) = await hub.send_batch([request], member.sender)
            if isinstance(answer, CommitSuperseded):
                counter = Counter(int(str(answer.members["counter"])))
                page = decode(ReceiveResponse, await hub.receive(ReceiveRequest(member.key, counter), member.sender))
                hint = page.epoch.messages[0].commit
                assert hint is not None
                assert hint.next_partition_key == from_base64url(str(answer.members["next_masked_key"]))
                member.key = keys[hint.next_partition_key]
            else:
                assert isinstance(answer, SendResponse)
                assert (answer.counter, answer.earlier_commits) == (0, ())
                chain.append(following)
                member.key, member.won = following, member.won + 1
            member.epoch += 1

    async with running_hub(tmp_path, limits={"device_sends_per_second": 0, "provider_sends_per_second": 0}) as hub:
        await hub.create_group(room.creation(), ALICE, linear=True)
        with trio.fail_after(60):
            async with trio.open_nursery() as racing:
                for member in members:
                    racing.start_soon(race, hub, member)
        assert len(chain) == 41
        parents = await hub._store.read(lambda tx: tx.all("SELECT parent, count(*) FROM partitions GROUP BY parent"))
        assert all(count == 1 for _, count in parents)
        for key in chain[:-1]:
            page = decode(ReceiveResponse, await hub.receive(ReceiveRequest(key, Counter(0)), ALICE))
            assert len(page.epoch.messages) == 1
