"""What a hub pushes, right or wrong: one push of many messages, and many pushes of one."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mimids.ds.following import intake
from mimids.ds.following.receiver import FollowerStatistics
from mimids.ds.groups.contradiction import Contradiction
from mimids.ds.notifier import partition_topic
from mimids.mls.code_points import ContentType, WireFormat
from mimids.mls.framing import MLSMessage, PrivateMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.proposals import Add, Remove
from mimids.wire.ids import MLS10, NO_LONGER_FOLLOWED, Counter, GroupId, PartitionKey
from mimids.wire.messages import CommitHint, Epoch, GroupInfoResponse, Message, PushedEpoch, PushRequest
from tests.support import signing
from tests.support.federation import Room, device
from tests.support.followers import HUB, epoch, follower
from tests.support.mls_makers import replace
from tests.support.patience import patience
from tests.support.provider import Assembled
from tests.support.recordings import Recorded, Recording

RECORDINGS = ("public", "private", "policy", "rules", "rooms", "suite-2", "suite-5")
TABLES = {
    "groups": "group_id, version, cipher_suite, encrypted_handshakes, unmatched_bytes",
    "messages": "seq, partition, counter, kind, digest, digest_key, next_masked_key, group_info, body",
    "partitions": "id, masked_key, parent, opened_by, detached, epoch, next_counter, last_seq, knowledge, root_hash,"
    " group_context, confirmation_tag, reinitialized, group_info",
    "proposals": "partition, ref, seq, proposal_type, refusal",
}


async def rows(running: Assembled, sql: str) -> list[tuple[Any, ...]]:
    return await running.services.store.read(lambda tx: tx.all(sql))


# --- by hand ------------------------------------------------------------------------------------------------------


async def test_gaps_duplicates_and_another_message_under_the_same_counter_are_told_apart(tmp_path: Path) -> None:
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (_, receiver):

        async def push(*epochs: PushedEpoch) -> tuple[Counter, ...]:
            return (await receiver.receive_push(HUB, PushRequest(epochs))).next_counters

        # Two epochs of one partition in one push: the second begins where the first ends.
        both = epoch(room, room.key, ["0", "1"]), epoch(room, room.key, ["1", "2"], 1)
        assert await push(*both) == (2, 3)
        assert await push(epoch(room, room.key, ["4"], 4)) == (3,)
        assert await push(epoch(room, room.key, ["other", "3"], 2)) == (3,)
        assert await push(epoch(room, room.key, [], 7)) == (7,), "the hub keeps nothing before 7"
        assert await push(epoch(room, room.key, ["5"], 5)) == (7,), "what is not kept is not compared"
        assert await push(epoch(Room("unknown", HUB), room.new_key(), ["0"])) == (NO_LONGER_FOLLOWED,)
        assert receiver.statistics() == FollowerStatistics(messages=3, duplicates=3, gaps=2, contradictions=1)


async def test_a_commit_that_leads_back_to_a_partition_above_it_is_a_contradiction(tmp_path: Path) -> None:
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        keys = [room.key, room.new_key(), room.new_key()]
        for key, next_key in zip(keys, [*keys[1:], keys[0]], strict=True):
            request = PushRequest((epoch(room, key, [f"to {next_key.mask(32).hex()}"], next_key=next_key),))
            assert (await receiver.receive_push(HUB, request)).next_counters == (1,), "the commit itself is delivered"
        assert receiver.statistics().contradictions == 1
        assert await rows(running, "SELECT parent FROM partitions ORDER BY id") == [(None,), (1,), (2,)]


async def test_a_commit_attaches_no_partition_of_another_group(tmp_path: Path) -> None:
    room, other = Room(hub=HUB), Room("other", HUB)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        await running.services.following.note_sent(device(running), HUB, other.group_id, [])
        epochs = epoch(other, other.key, ["first"]), epoch(room, room.key, ["commit"], next_key=other.key)
        assert (await receiver.receive_push(HUB, PushRequest(epochs))).next_counters == (1, 1)
        assert receiver.statistics().contradictions == 1
        assert await rows(running, "SELECT parent FROM partitions ORDER BY id") == [(None,), (None,)]


# --- a lying hub ----------------------------------------------------------------------------------------------------

KEYS = [PartitionKey(bytes([number]) * 16) for number in range(1, 4)]
Lie = tuple[list[PushedEpoch], int]  # what the hub pushes, and how many messages it has


def opened(room: signing.Room, *messages: Message, **changed: Any) -> PushedEpoch:
    """Return an epoch in the first partition that begins with the room's GroupInfo."""
    info = MLSMessage(MLS10, WireFormat.GROUP_INFO, changed.pop("info", None) or room.info(**changed))
    opening = GroupInfoResponse(info, None)
    return PushedEpoch(room.group_id, KEYS[0].mask(32), Counter(0), opening, Epoch(messages))


def plain(message: MLSMessage) -> Message:
    return Message(message, None)


def leading(message: MLSMessage, key: PartitionKey, info: GroupInfo | None = None) -> Message:
    carried = None if info is None else MLSMessage(MLS10, WireFormat.GROUP_INFO, info)
    return Message(message, CommitHint(key.mask(32), carried))


def an_invalid_message() -> Lie:
    room = signing.crowd(4)
    unsigned = replace(signing.Client.of(9).key_package(), signature=bytes(64))
    return [opened(room, plain(room.propose(1, Remove(2))), plain(room.propose(1, Add(unsigned))))], 2


def an_invalid_commit() -> Lie:
    room = signing.crowd(4)
    return [opened(room, leading(room.commit(1, signing.by_value(Remove(1)))[0], KEYS[1]))], 1


def a_message_of_another_epoch() -> Lie:
    room = signing.crowd(4)
    return [opened(room, plain(room.commit(1)[1].propose(1, Remove(2))))], 1


def an_opening_with_a_wrong_signature() -> Lie:
    room = signing.crowd(4)
    return [opened(room, plain(room.propose(1, Remove(2))), info=replace(room.info(), signature=bytes(64)))], 1


def an_opening_of_another_group() -> Lie:
    room, other = signing.crowd(4), signing.crowd(3)
    other.group_id = GroupId(b"other")
    return [opened(room, plain(room.propose(1, Remove(2))), info=other.info())], 1


def a_group_info_with_a_wrong_signature() -> Lie:
    room = signing.crowd(4)
    commit, after = room.commit(1)
    return [opened(room, leading(commit, KEYS[1], replace(after.info(), signature=bytes(64))))], 1


def a_group_info_of_another_epoch() -> Lie:
    room = signing.crowd(4)
    commit, after = room.commit(1)
    after.epoch = 17
    return [opened(room, leading(commit, KEYS[1], after.info()))], 1


def a_group_info_with_another_tag() -> Lie:
    room = signing.crowd(4)
    commit, after = room.commit(1)
    return [opened(room, leading(commit, KEYS[1], after.info(confirmation_tag=bytes(32))))], 1


def two_commits_to_one_partition() -> Lie:
    room = signing.crowd(4)
    commits = [leading(room.commit(by)[0], KEYS[1]) for by in (1, 2)]
    return [opened(room, *commits)], 2


def another_message_under_one_counter() -> Lie:
    room = signing.crowd(4)
    first, second = plain(room.propose(1, Remove(2))), plain(room.propose(1, Remove(3)))
    return [opened(room, first), opened(room, second)], 1


LIES = {
    an_invalid_message: "key-package",
    an_invalid_commit: "own-remove",
    a_message_of_another_epoch: "wrong-epoch",
    an_opening_with_a_wrong_signature: "group-info-signature",
    an_opening_of_another_group: "group-info-contradicts",
    a_group_info_with_a_wrong_signature: "group-info-signature",
    a_group_info_of_another_epoch: "group-info-contradicts",
    a_group_info_with_another_tag: "group-info-tag",
    two_commits_to_one_partition: "partition-exists",
    another_message_under_one_counter: "sequenced-differently",
}


@pytest.mark.parametrize("lie", LIES)
async def test_each_lie_of_a_hub_is_named_and_its_messages_are_stored(lie: Callable[[], Lie], tmp_path: Path) -> None:
    epochs, sent = lie()
    async with follower(tmp_path, epochs[0].group_id) as (running, receiver):
        found: list[Contradiction] = []
        receiver._contradicted = found.append
        for each in epochs:
            await receiver.receive_push(HUB, PushRequest((each,)))
        assert [(each.hub, each.group_id, each.rule) for each in found] == [(HUB, epochs[0].group_id, LIES[lie])]
        assert found[0].message in {octets for each in epochs for octets in sent_in(each)}
        assert receiver.statistics().contradictions == 1
        bodies = await rows(running, "SELECT body FROM messages ORDER BY seq")
        assert bodies == [(each.message.encoded,) for each in epochs[0].epoch.messages]
        assert len(bodies) == sent


def sent_in(pushed: PushedEpoch) -> Iterator[bytes]:
    """Yield the messages and GroupInfos of an epoch, encoded."""
    if pushed.opening is not None:
        yield pushed.opening.group_info.encoded
    for message in pushed.epoch.messages:
        yield message.message.encoded
        if message.commit is not None and message.commit.group_info is not None:
            yield message.commit.group_info.encoded


async def test_devices_hear_that_a_partition_goes_on_without_its_earlier_messages(tmp_path: Path) -> None:
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        await receiver.receive_push(HUB, PushRequest((epoch(room, room.key, ["0"]),)))
        topic = partition_topic(room.key.mask(32))
        with running.services.notifier.listen(topic) as waiter:
            await receiver.receive_push(HUB, PushRequest((epoch(room, room.key, [], 7),)))
            with patience():
                assert await waiter.wait() == {topic}


async def test_a_partition_of_another_group_is_a_named_contradiction(tmp_path: Path) -> None:
    room, other = Room(hub=HUB), Room("other", HUB)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        await running.services.following.note_sent(device(running), HUB, other.group_id, [])
        found: list[Contradiction] = []
        receiver._contradicted = found.append
        epochs = (
            epoch(room, room.key, ["first"]),
            epoch(other, room.key, ["second", "third"]),
            epoch(other, room.key, [], 1),
        )
        answer = await receiver.receive_push(HUB, PushRequest(epochs))
        assert answer.next_counters == (1, NO_LONGER_FOLLOWED, NO_LONGER_FOLLOWED)
        second = epochs[1].epoch.messages[0].message.encoded
        assert found == [Contradiction(HUB, other.group_id, message, "partition-exists") for message in (second, b"")]
        assert len(await rows(running, "SELECT body FROM messages")) == 1


async def test_a_group_info_without_its_tree_contradicts_nothing(tmp_path: Path) -> None:
    """The hub may know the tree where the follower does not."""
    room = signing.crowd(4)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        commit, after = room.commit(1)
        sealed = PrivateMessage(room.group_id, room.epoch, ContentType.COMMIT, b"", bytes(28), bytes(200))
        hidden = MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, sealed)
        info = after.info(tree=False)
        push = opened(room, leading(commit, KEYS[1], info), leading(hidden, KEYS[2], info), tree=False)
        await receiver.receive_push(HUB, PushRequest((push,)))
        assert receiver.statistics() == FollowerStatistics(messages=2, duplicates=0, gaps=0, contradictions=0)
        assert len(await rows(running, "SELECT id FROM partitions")) == 3


async def test_an_opening_tells_the_state_the_epoch_and_the_suite_of_its_partition(tmp_path: Path) -> None:
    room = signing.crowd(4)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        push = opened(room)
        assert (await receiver.receive_push(HUB, PushRequest((push,)))).next_counters == (0,)
        known = "SELECT knowledge, root_hash, epoch, group_info FROM partitions"
        assert push.opening is not None
        info = push.opening.group_info.encoded
        assert await rows(running, known) == [("claimed", room.tree.tree_hash(), room.epoch, info)]
        assert await rows(running, "SELECT version, cipher_suite FROM groups") == [(1, room.suite.code)]


async def test_a_commit_that_is_understood_opens_a_partition_whose_state_is_known(tmp_path: Path) -> None:
    room = signing.crowd(4)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        commit, after = room.commit(1)
        proposal = plain(room.propose(1, Remove(2)))
        pushed = opened(room, proposal, leading(commit, KEYS[1], after.info()))
        await receiver.receive_push(HUB, PushRequest((pushed,)))
        assert receiver.statistics() == FollowerStatistics(messages=2, duplicates=0, gaps=0, contradictions=0)
        kinds = await rows(running, "SELECT kind, group_info IS NOT NULL FROM messages ORDER BY seq")
        assert kinds == [(ContentType.PROPOSAL, 0), (ContentType.COMMIT, 1)]
        opened_by = "SELECT detached, epoch, root_hash FROM partitions WHERE parent IS NOT NULL"
        assert await rows(running, opened_by) == [(0, after.epoch, after.tree.tree_hash())]


async def test_a_commit_tells_the_state_of_a_partition_that_was_pushed_before_it(tmp_path: Path) -> None:
    room = signing.crowd(4)
    commit, after = room.commit(1)
    sealed = PrivateMessage(room.group_id, after.epoch, ContentType.APPLICATION, b"", bytes(28), bytes(200))
    said = Epoch((plain(MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, sealed)),))
    child = PushedEpoch(room.group_id, KEYS[1].mask(32), Counter(0), None, said)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        for each in (child, opened(room, leading(commit, KEYS[1]))):
            await receiver.receive_push(HUB, PushRequest((each,)))
        known = await rows(running, "SELECT parent, knowledge, root_hash FROM partitions ORDER BY id")
        assert known[0] == (2, "claimed", after.tree.tree_hash())
        assert receiver.statistics().contradictions == 0


async def test_messages_after_the_start_of_an_unknown_partition_are_a_gap(tmp_path: Path) -> None:
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        push = PushRequest((epoch(room, room.key, ["5"], 5),))
        assert (await receiver.receive_push(HUB, push)).next_counters == (0,)
        assert receiver.statistics() == FollowerStatistics(messages=0, duplicates=0, gaps=1, contradictions=0)
        assert await rows(running, "SELECT 1 FROM partitions") == []


def test_every_contradiction_of_its_own_name_is_provoked() -> None:
    """Those that are not named after a broken rule or a problem."""
    source = inspect.getsource(intake)
    assert set(re.findall(r'Contradiction\(.*"([a-z-]+)"\)', source)) <= set(LIES.values())


# --- recorded conversations ---------------------------------------------------------------------------------------


def pushed(recording: Recording) -> list[PushedEpoch]:
    """Return the messages of a recording, each as an epoch, including those that a correct hub refuses."""
    creation, found, counters = recording.creation(), list[PushedEpoch](), dict[PartitionKey, int]()
    for recorded in recording.messages():
        counter = counters.get(recorded.key, 0)
        counters[recorded.key] = counter + 1
        opening = None
        if recorded.key == creation.partition_key and not counter and creation.group_info is not None:
            opening = GroupInfoResponse(creation.group_info, None)
        masked, message = (
            recorded.key.mask(recording.mask_size),
            Message(recorded.request.message, hint_of(recorded, recording.mask_size)),
        )
        found.append(PushedEpoch(creation.group_id, masked, Counter(counter), opening, Epoch((message,))))
    return found


def hint_of(recorded: Recorded, size: int) -> CommitHint | None:
    data = getattr(recorded.request, "commit_data", None)
    return None if data is None else CommitHint(data.next_partition_key.mask(size), data.group_info)


def joined(epochs: Sequence[PushedEpoch]) -> list[PushedEpoch]:
    """Return the same messages, with neighbouring epochs of one partition joined."""
    found: list[PushedEpoch] = []
    for each in epochs:
        if found and each.masked_partition_key == found[-1].masked_partition_key:
            last = found.pop()
            messages = last.epoch.messages + each.epoch.messages
            each = PushedEpoch(last.group_id, last.masked_partition_key, last.counter, last.opening, Epoch(messages))
        found.append(each)
    return found


async def stored(running: Assembled) -> dict[str, list[tuple[Any, ...]]]:
    found = {}
    for name, columns in TABLES.items():
        found[name] = await rows(running, f"SELECT {columns} FROM {name} ORDER BY 1, 2")  # noqa: S608
    return found


@pytest.mark.parametrize("name", RECORDINGS)
async def test_one_push_of_many_messages_stores_what_many_pushes_of_one_do(name: str, tmp_path: Path) -> None:
    epochs, dice = pushed(Recording(name)), random.Random(name)
    group_id = epochs[0].group_id
    for directory in ("singly", "together"):
        (tmp_path / directory).mkdir()
    async with (
        follower(tmp_path / "singly", group_id) as (plain, singly),
        follower(tmp_path / "together", group_id) as (batched, together),
    ):
        for each in epochs:
            await singly.receive_push(HUB, PushRequest((each,)))
        while epochs:
            count = dice.randint(1, 30)
            await together.receive_push(HUB, PushRequest(tuple(joined(epochs[:count]))))
            epochs = epochs[count:]
        assert singly.statistics() == together.statistics()
        found = await stored(plain)
        assert await stored(batched) == found
        if name in ("public", "rules"):
            assert found["proposals"]
            assert singly.statistics().contradictions
