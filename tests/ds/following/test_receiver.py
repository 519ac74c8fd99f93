"""What a receiver stores, for whom, and what it does before and after the transaction."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mimids.ds.following import slices
from mimids.ds.following.intake import RESTORED_JUMP
from mimids.ds.following.receiver import OCTETS_OF_AN_EPOCH, octets_of_epoch
from mimids.ds.notifier import partition_topic
from mimids.mls.code_points import ContentType, WireFormat
from mimids.mls.framing import MLSMessage, PrivateMessage
from mimids.store import moved, providers, requested_partitions
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Successor
from mimids.store.moved import Looked
from mimids.values import DeviceRow
from mimids.wire.ids import (
    MLS10,
    NO_LONGER_FOLLOWED,
    Counter,
    GroupId,
    MaskedPartitionKey,
    PartitionKey,
    ProviderId,
)
from mimids.wire.messages import CommitHint, Epoch, GroupInfoResponse, Message, PushedEpoch, PushRequest, RatchetTree
from tests.support import signing
from tests.support.federation import Room, device
from tests.support.followers import HUB, epoch, follower
from tests.support.patience import patience
from tests.support.stored import rows

KEYS = [PartitionKey(bytes([number]) * 16) for number in range(1, 5)]


def request(key: PartitionKey, device: int, linear: bool, tx: Tx) -> None:
    """Note that a device requested a partition of the hub."""
    hub = providers.ensure_provider(tx, HUB)
    requested_partitions.add(tx, hub, key.masks(), DeviceRow(device), linear=linear)


def info_of(room: signing.Room, *, tree: bool = True) -> MLSMessage:
    return MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info(tree=tree))


def opened(
    room: signing.Room, key: PartitionKey, *messages: Message, ratchet_tree: RatchetTree | None = None
) -> PushedEpoch:
    opening = GroupInfoResponse(info_of(room), ratchet_tree)
    return PushedEpoch(room.group_id, key.mask(32), Counter(0), opening, Epoch(messages))


async def test_only_openings_that_the_transaction_reads_are_verified_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = signing.crowd(4)
    commit, after = room.commit(1)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        prepared: list[tuple[int | None, Any]] = []
        prepare = receiver._mls.prepare_claim

        async def note(group: Any, epoch: int | None, opening: GroupInfoResponse) -> None:
            prepared.append((epoch, opening))
            await prepare(group, epoch, opening)

        monkeypatch.setattr(receiver._mls, "prepare_claim", note)
        message = Message(commit, CommitHint(KEYS[1].mask(32), None))
        without = PushedEpoch(room.group_id, KEYS[0].mask(32), Counter(0), None, Epoch(()))
        first, second = opened(room, KEYS[0], message), opened(after, KEYS[1])
        unknown = PushedEpoch(GroupId(b"unknown"), KEYS[3].mask(32), Counter(0), first.opening, Epoch(()))
        answer = await receiver.receive_push(HUB, PushRequest((unknown, without, first)))
        assert answer.next_counters == (NO_LONGER_FOLLOWED, 0, 1)
        assert prepared == [(None, first.opening)], "not what has no opening, and no group that is unknown"
        await receiver.receive_push(HUB, PushRequest((first, second)))
        states = "SELECT epoch, knowledge = 'unknown' FROM partitions ORDER BY id"
        assert await rows(running, states) == [(room.epoch, 0), (room.epoch + 1, 0)]
        assert prepared == [(None, first.opening)], "not where the state is known"


async def test_an_opening_is_verified_in_the_epoch_that_its_partition_is_known_to_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = signing.crowd(4)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        epochs: list[int | None] = []

        async def note(group: object, epoch: int | None, opening: GroupInfoResponse) -> None:
            epochs.append(epoch)

        monkeypatch.setattr(receiver._mls, "prepare_claim", note)
        sealed = PrivateMessage(room.group_id, room.epoch, ContentType.COMMIT, b"", bytes(28), bytes(200))
        hidden = MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, sealed)
        first = opened(room, KEYS[0], Message(hidden, CommitHint(KEYS[1].mask(32), None)))
        await receiver.receive_push(HUB, PushRequest((first,)))
        known = await rows(running, "SELECT epoch, knowledge FROM partitions ORDER BY id")
        assert known[1] == (room.epoch + 1, "unknown")
        await receiver.receive_push(HUB, PushRequest((opened(room.commit(1)[1], KEYS[1]),)))
        assert epochs == [None, room.epoch + 1]


@pytest.mark.parametrize("messages_in_a_part", [1, 2, 3])
async def test_the_rest_of_an_epoch_is_not_stored_after_a_part_that_did_not_fit(
    messages_in_a_part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push is stored in parts; each of the other epochs is stored to its end."""
    monkeypatch.setattr(slices, "COST_OF_A_PART", slices.COST_OF_AN_EPOCH + messages_in_a_part)
    room, other = Room(hub=HUB), Room("other", HUB)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        await running.services.following.note_sent(device(running), HUB, other.group_id, [])
        texts = [f"{number}" for number in range(4)]
        ahead, whole = epoch(room, room.key, texts, 2), epoch(other, other.key, texts)
        answer = await receiver.receive_push(HUB, PushRequest((ahead, whole)))
        assert answer.next_counters == (0, 4)
        assert receiver.statistics().gaps == 1, "the parts after the first are not tried"
        assert len(await rows(running, "SELECT 1 FROM messages")) == 4


def test_an_epoch_takes_the_octets_of_its_opening_its_messages_and_their_group_infos() -> None:
    room = signing.crowd(4)
    commit, after = room.commit(1)
    info, next_info = info_of(room), info_of(after)
    hinted = Message(commit, CommitHint(KEYS[1].mask(32), next_info))
    bare = Message(commit, CommitHint(KEYS[1].mask(32), None))
    message = len(commit.encoded)
    for epoch_, octets in (
        (PushedEpoch(room.group_id, KEYS[0].mask(32), Counter(0), None, Epoch(())), 0),
        (opened(room, KEYS[0]), len(info.encoded)),
        (opened(room, KEYS[0], ratchet_tree=RatchetTree(b"tree")), len(info.encoded) + 4),
        (opened(room, KEYS[0], Message(commit, None), bare), len(info.encoded) + 2 * message),
        (opened(room, KEYS[0], hinted), len(info.encoded) + message + len(next_info.encoded)),
    ):
        assert octets_of_epoch(epoch_) == OCTETS_OF_AN_EPOCH + octets


# --- which epochs are wanted --------------------------------------------------------------------------------------


async def test_a_push_waits_for_answers_that_decide_whether_it_is_wanted_and_for_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, left = Room(hub=HUB), Room("left", HUB)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        phone, following = device(running), running.services.following
        await following.note_sent(phone, HUB, left.group_id, [])
        await receiver.receive_push(HUB, PushRequest((epoch(room, room.key, ["0"]), epoch(left, left.key, ["0"]))))
        await following.leave(phone, HUB, left.group_id)
        requested, unknown = room.new_key(), room.new_key()
        await running.services.store.write(partial(request, requested, 1, False))
        waited: list[set[MaskedPartitionKey]] = []

        async def note(hub: ProviderId, masks: Iterable[MaskedPartitionKey]) -> None:
            waited.append(set(masks))

        monkeypatch.setattr(receiver.pending, "wait_for_answers", note)
        epochs = [epoch(room, key, []) for key in (room.key, requested, unknown)] + [epoch(left, left.key, [])]
        with ExitStack() as requests:
            for key in (room.key, requested, unknown, left.key):
                requests.enter_context(receiver.pending.waiting_for(HUB, key.masks(), phone.row))
            answer = await receiver.receive_push(HUB, PushRequest(tuple(epochs)))
        assert waited == [{unknown.mask(32), left.key.mask(32)}]
        assert answer.next_counters == (1, 0, 0, NO_LONGER_FOLLOWED), "no device is in the last group any more"


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("way", ["its first message", "a commit"])
async def test_a_device_that_requested_a_partition_is_in_the_group_once_the_partition_is_here(
    way: str, linear: bool, tmp_path: Path
) -> None:
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        await running.add_device(name="tablet")
        key = room.new_key()
        await running.services.store.write(partial(request, key, 2, linear))
        by_commit = epoch(room, room.key, ["to it"], next_key=key)
        await receiver.receive_push(HUB, PushRequest((by_commit if way == "a commit" else epoch(room, key, ["0"]),)))
        assert await rows(running, "SELECT device FROM participations ORDER BY 1") == [(1,), (2,)]
        assert await rows(running, "SELECT 1 FROM requested_partitions") == []
        assert await rows(running, "SELECT linear FROM groups") == [(int(linear),)]


async def test_a_hub_that_sequences_again_in_a_replaced_group_ends_the_replacement(tmp_path: Path) -> None:
    """Not one that only repeats what it sequenced before: it may have pushed that before the replacement."""
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        first, second = epoch(room, room.key, ["0"]), epoch(room, room.key, ["1"], 1)
        await receiver.receive_push(HUB, PushRequest((first,)))
        await running.services.following.note_replaced(HUB, room.group_id, Successor(GroupId(b"next"), HUB))
        for pushed, successor in ((first, b"next"), (second, None)):
            await receiver.receive_push(HUB, PushRequest((pushed,)))
            assert await rows(running, "SELECT successor_group_id FROM groups") == [(successor,)]


# --- who is notified ----------------------------------------------------------------------------------------------


async def test_readers_of_a_partition_and_of_the_one_that_a_commit_leads_to_are_notified(tmp_path: Path) -> None:
    room, following = Room(hub=HUB), Room.new_key()
    topics = [partition_topic(key.mask(32)) for key in (room.key, following)]
    async with follower(tmp_path, room.group_id) as (running, receiver):
        with running.services.notifier.listen(*topics) as waiter:
            await receiver.receive_push(HUB, PushRequest((epoch(room, room.key, ["0"], next_key=following),)))
            with patience():
                assert await waiter.wait() == set(topics)


# --- after a restore ----------------------------------------------------------------------------------------------


async def test_of_what_a_provider_returns_nothing_is_stored_from_the_first_wrong_message_on(tmp_path: Path) -> None:
    room, other = Room(), Room("other")
    async with follower(tmp_path, room.group_id) as (running, receiver):
        await running.services.hub.create_group(room.creation(), device(running))
        sent = [Message(message, None) for message in (room.message("0"), other.message("1"), room.message("2"))]
        returned = PushedEpoch(room.group_id, room.key.mask(32), Counter(0), None, Epoch(tuple(sent)))
        assert await receiver.restore_from_peer(HUB, [returned]) == [1]
        assert await rows(running, "SELECT body FROM messages") == [(sent[0].message.encoded,)]


async def test_a_provider_that_returns_a_counter_may_skip_a_million_and_a_hub_may_skip_more(tmp_path: Path) -> None:
    """The followers of our group are then told that counters are skipped."""
    own, followed = Room(), Room(hub=HUB)
    async with follower(tmp_path, followed.group_id) as (running, receiver):
        await running.services.hub.create_group(own.creation(), device(running))
        read = running.services.store.read
        before = Looked.up_to(await read(moved.settled))
        for counter in (RESTORED_JUMP, RESTORED_JUMP + 1):
            assert await receiver.restore_from_peer(HUB, [epoch(own, own.key, [], counter)]) == [RESTORED_JUMP]
        assert await read(lambda tx: moved.keys_on(tx, moved.next_page(tx, before, limit=9))) == [own.key.mask(32)]
        pushed = PushRequest((epoch(followed, followed.key, [], RESTORED_JUMP + 1),))
        assert (await receiver.receive_push(HUB, pushed)).next_counters == (RESTORED_JUMP + 1,)
