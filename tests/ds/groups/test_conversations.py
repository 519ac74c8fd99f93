"""Recorded conversations through a hub: each message in its branch, with the recorded verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimids.ds.groups.hub import LocalHub
from mimids.errors import MimiError, PolicyRefused, UnknownPartition
from mimids.wire.declare import decode
from mimids.wire.ids import Counter, PartitionKey
from mimids.wire.messages import (
    ReceiveRequest,
    ReceiveResponse,
    SendResponse,
)
from tests.support.hub import ALICE, offer, running_hub
from tests.support.recordings import Recorded, Recording, expected, fits

STORIES = ("public", "private", "policy", "policy-private", "rules", "rooms")
NAMES = (*STORIES, "suite-2", "suite-5", "suite-6", "suite-7")


async def received(hub: LocalHub, key: PartitionKey) -> list[bytes]:
    answer = decode(ReceiveResponse, await hub.receive(ReceiveRequest(key, Counter(0)), ALICE))
    assert answer.hints == ()
    return [message.message.encoded for message in answer.epoch.messages]


@pytest.mark.parametrize("name", NAMES)
async def test_each_message_is_sequenced_in_its_branch_or_refused_by_the_recorded_rule(
    name: str, tmp_path: Path
) -> None:
    recording = Recording(name)
    sequenced: dict[PartitionKey, list[bytes]] = {}
    async with running_hub(tmp_path) as hub:
        await hub.create_group(recording.creation(), ALICE)
        for recorded in recording.messages():
            if expected(recorded.line) == "refuse":
                with pytest.raises(MimiError) as refused:
                    await offer(hub, recorded)
                assert recorded.line["expect"] != "reject" or fits(recorded.line, refused.value), recorded.name
                by_policy = isinstance(refused.value, PolicyRefused)
                assert by_policy == (recorded.line["expect"] == "reject_policy"), recorded.name
                continue
            answer = await offer(hub, recorded)
            assert answer.partition == recorded.key.mask(recording.mask_size), recorded.name
            assert answer.detached == 0, recorded.name
            messages = sequenced.setdefault(recorded.key, [])
            assert answer.counter == len(messages), recorded.name
            messages.append(recorded.request.message.encoded)
        assert sequenced
        for key, messages in sequenced.items():
            assert await received(hub, key) == messages


@pytest.mark.parametrize("name", NAMES)
async def test_a_repeat_gets_the_first_answer_also_after_a_restart(name: str, tmp_path: Path) -> None:
    recording = Recording(name)
    answers: list[tuple[Recorded, SendResponse]] = []
    async with running_hub(tmp_path) as hub:
        await hub.create_group(recording.creation(), ALICE)
        for recorded in recording.messages():
            if expected(recorded.line) == "accept":
                answers.append((recorded, await offer(hub, recorded)))
    async with running_hub(tmp_path) as hub:
        for recorded, answer in answers:
            assert await offer(hub, recorded) == answer, recorded.name


async def test_a_branch_is_read_with_its_own_keys_only(tmp_path: Path) -> None:
    recording = Recording("public")
    async with running_hub(tmp_path) as hub:
        await hub.create_group(recording.creation(), ALICE)
        for recorded in recording.messages():
            if expected(recorded.line) == "accept":
                await offer(hub, recorded)
        with pytest.raises(UnknownPartition):
            await received(hub, PartitionKey(bytes(16)))
        branches = {line["branch"]: line["partition_key"] for line in recording.lines if line["kind"] == "application"}
        texts = {branch: await received(hub, PartitionKey.from_hex(key)) for branch, key in branches.items()}
        assert set(texts) >= {"A", "B", "C"}
        assert len({message for messages in texts.values() for message in messages}) == sum(map(len, texts.values()))
