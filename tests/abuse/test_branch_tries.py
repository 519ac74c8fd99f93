"""Junk signatures in a group with many branches: they are not verified in every branch, message by message."""

from __future__ import annotations

import secrets
import threading
from pathlib import Path
from typing import Any

import pytest

from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.judging import BRANCH_TRIES, MANY_MESSAGES, MlsJudge
from mimids.errors import InvalidMessage, WrongBranch
from mimids.mls.code_points import SenderType, WireFormat
from mimids.mls.framing import MLSMessage, Sender
from mimids.mls.knowledge import judge
from mimids.store import proposals
from mimids.wire.ids import MLS10, PartitionKey
from mimids.wire.messages import CommitData, CreateGroupRequest, SendRequest, SendResponse
from tests.support.hub import ALICE, running_hub
from tests.support.signing import Client, Room, crowd, proposal

BRANCHES = 12
MESSAGES = 40
JUNK = Client.of(9).signer


def new_key() -> PartitionKey:
    return PartitionKey(secrets.token_bytes(16))


async def branched(hub: LocalHub, branches: int) -> list[tuple[Room, PartitionKey]]:
    """Create a group with branches of one epoch; return the room and the key of each."""
    room, key = crowd(2, path=False), new_key()
    info = MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info())
    await hub.create_group(CreateGroupRequest(room.group_id, MLS10, room.suite.code, key, info, None, None), ALICE)
    found = []
    for _ in range(branches):
        (message, after), following = room.commit(0), new_key()
        await hub.send(SendRequest(message, key, CommitData(following, None, None)), ALICE)
        found.append((after, following))
    return found


def signed(room: Room, key: PartitionKey, *, junk: bool = False) -> SendRequest:
    by = JUNK if junk else room.clients[0].signer
    changed = {"authenticated_data": secrets.token_bytes(8)}
    return SendRequest(
        room.send(Sender(SenderType.MEMBER, 0), by, proposal(b"custom"), **changed),
        key,
        None,
    )


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list with one item for each verification in another branch."""
    found: list[int] = []
    fits = MlsJudge.signature_fits

    def counted(*args: object) -> bool:
        found.append(1)
        return fits(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(MlsJudge, "signature_fits", counted)
    return found


async def test_a_batch_of_junk_signatures_is_not_verified_in_every_branch(tmp_path: Path, verified: list[int]) -> None:
    async with running_hub(tmp_path) as hub:
        (room, key), *_ = await branched(hub, BRANCHES)
        verified.clear()
        answers = await hub.send_batch([signed(room, key, junk=True) for _ in range(MESSAGES)], ALICE)
    assert {type(answer) for answer in answers} == {InvalidMessage}
    assert len(verified) <= BRANCH_TRIES + MESSAGES, f"{BRANCHES - 1} for each message would be too many"


async def test_each_message_of_a_batch_for_another_branch_is_told_so(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        (room, _), (_, other) = await branched(hub, 2)
        answers = await hub.send_batch([signed(room, other) for _ in range(MESSAGES)], ALICE)
    assert {type(answer) for answer in answers} == {WrongBranch}


async def test_a_batch_after_junk_has_tries_of_its_own(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        (room, key), (_, other), *_ = await branched(hub, BRANCH_TRIES)
        await hub.send_batch([signed(room, key, junk=True) for _ in range(MESSAGES)], ALICE)
        (answer,) = await hub.send_batch([signed(room, other)], ALICE)
    assert isinstance(answer, WrongBranch)


@pytest.mark.parametrize("junk", [False, True])
async def test_the_signatures_of_many_messages_are_verified_beside_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, junk: bool
) -> None:
    """A batch of 1,024 held all writes for half a second; all refused proposals were counted for each message."""
    writing: list[bool] = []
    counted: list[int] = []
    count = proposals.count_refused

    def judged(*args: Any) -> Any:
        writing.append("_connection_worker" in threading.current_thread().name)
        return judge(*args)

    def counting(*args: Any) -> int:
        counted.append(1)
        return count(*args)

    monkeypatch.setattr("mimids.ds.groups.judging.judge", judged)
    monkeypatch.setattr(proposals, "count_refused", counting)
    async with running_hub(tmp_path) as hub:
        ((room, key),) = await branched(hub, 1)
        writing.clear()
        batch = [signed(room, key, junk=junk) for _ in range(2 * MANY_MESSAGES + 1)]
        answers = await hub.send_batch(batch, ALICE)
    assert {type(answer) for answer in answers} == {InvalidMessage if junk else SendResponse}
    assert len(writing) == len(batch)
    assert not any(writing)
    assert len(counted) <= 1
