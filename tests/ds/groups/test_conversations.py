"""Recorded conversations through a hub: each message in its branch, with the recorded verdict."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mimids.config import parse
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.judging import MlsJudge
from mimids.ds.groups.states import States
from mimids.ds.notifier import Notifier
from mimids.errors import MimiError, PolicyRefused, UnknownPartition
from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import open_store
from mimids.values import Device, DeviceRow
from mimids.wire.declare import decode
from mimids.wire.ids import Counter, PartitionKey, ProviderId, local_user_id
from mimids.wire.messages import (
    ExternalJoinRequest,
    ExternalProposalRequest,
    ReceiveRequest,
    ReceiveResponse,
    SendResponse,
)
from tests.support.doubles import FakeClock
from tests.support.recordings import Recorded, Recording, expected, fits

A = ProviderId("a.example")
ALICE = Device(A, local_user_id(A, "alice"), DeviceRow(1), "1")
STORIES = ("public", "private", "policy", "policy-private", "rules", "rooms")
NAMES = (*STORIES, "suite-2", "suite-5", "suite-6", "suite-7")


@asynccontextmanager
async def running_hub(directory: Path, **sections: Mapping[str, object]) -> AsyncIterator[LocalHub]:
    database = directory / "mimids.sqlite3"
    migrate(database)
    config = parse({"provider": A, "data_dir": str(directory), **sections}, directory)
    async with open_store(database) as store, trio.open_nursery() as jobs:
        await jobs.start(store.run)
        yield LocalHub(config, store, FakeClock(), MlsJudge(States()), Notifier())
        jobs.cancel_scope.cancel()


async def offer(hub: LocalHub, recorded: Recorded) -> SendResponse:
    request = recorded.request
    if isinstance(request, ExternalJoinRequest):
        return await hub.join(request, ALICE)
    if isinstance(request, ExternalProposalRequest):
        return await hub.propose(request, ALICE)
    return await hub.send(request, ALICE)


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
