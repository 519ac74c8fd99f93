"""What a hub pushes, right or wrong: one push of many messages, and many pushes of one."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mimids.ds.following.receiver import EpochReceiver, FollowerStatistics, RequestedKeys
from mimids.values import DeviceRow
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import CommitHint, Epoch, GroupInfoResponse, Message, PushedEpoch, PushRequest
from tests.support.federation import COMMIT, Room, device
from tests.support.provider import Assembled, Authority, assembled
from tests.support.recordings import Recorded, Recording

HUB = ProviderId("b.example")
RECORDINGS = ("public", "private", "policy", "rules", "rooms", "suite-2", "suite-5")
TABLES = {
    "groups": "group_id, version, cipher_suite, encrypted_handshakes, unmatched_bytes",
    "messages": "seq, partition, counter, kind, digest, digest_key, next_masked_key, group_info, body",
    "partitions": "id, masked_key, parent, opened_by, detached, epoch, next_counter, last_seq, knowledge, root_hash,"
    " group_context, confirmation_tag, reinitialized, group_info",
    "proposals": "partition, ref, seq, proposal_type, refusal",
}


@asynccontextmanager
async def follower(directory: Path, group_id: GroupId) -> AsyncIterator[tuple[Assembled, EpochReceiver]]:
    """Run a provider with a device that takes part in a group of the hub."""
    config = Authority(directory).config("a.example", federation={"allow": [HUB]})
    async with assembled(config) as running:
        await running.add_device()
        await running.services.following.note_sent(device(running), HUB, group_id, [])
        yield running, running.services.epoch_receiver


async def rows(running: Assembled, sql: str) -> list[tuple[Any, ...]]:
    return await running.services.store.read(lambda tx: tx.all(sql))


def epoch(
    room: Room, key: PartitionKey, texts: Sequence[str], counter: int = 0, next_key: PartitionKey | None = None
) -> PushedEpoch:
    """Return an epoch of application messages, or of commits that lead to `next_key`."""
    hint = None if next_key is None else CommitHint(next_key.mask(32), None)
    kind = {} if next_key is None else {"kind": COMMIT}
    messages = tuple(Message(room.message(text, **kind), hint) for text in texts)
    return PushedEpoch(room.group_id, key.mask(32), Counter(counter), None, Epoch(messages))


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
        assert await push(epoch(Room("unknown", HUB), room.new_key(), ["0"])) == (NO_LONGER_FOLLOWED,)
        assert receiver.statistics() == FollowerStatistics(messages=3, duplicates=2, gaps=2, contradictions=1)


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


def test_the_key_that_was_requested_longest_ago_is_forgotten_first() -> None:
    requested, keys = RequestedKeys(6), [Room.new_key() for _ in range(3)]
    for key, row in zip((keys[0], keys[1], keys[0], keys[2]), (1, 2, 1, 1), strict=True):
        requested.add(key.masks(), DeviceRow(row))
    assert [requested.device_of(key.mask(32)) for key in keys] == [1, None, 1]
    requested.forget_device(DeviceRow(1))
    assert [requested.device_of(key.mask(32)) for key in keys] == [None, None, None]


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
