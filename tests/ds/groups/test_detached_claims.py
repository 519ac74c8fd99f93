"""What a GroupInfo claims in a detached partition, where no epoch is known (semantics: public-group-state)."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from mimids.errors import GroupInfoMismatch
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.proposals import Remove
from mimids.wire.ids import MLS10, CipherSuite, PartitionKey
from mimids.wire.messages import CommitData, CreateGroupRequest, SendRequest
from tests.support import signing
from tests.support.hub import ALICE, running_hub

FIRST, DETACHED, CLAIMED, REAL = (PartitionKey(bytes([number]) * 16) for number in range(1, 5))


def carried(info: object) -> MLSMessage:
    return MLSMessage(MLS10, WireFormat.GROUP_INFO, info)  # type: ignore[arg-type]


async def test_a_claim_has_the_epoch_after_its_commit_and_refuses_no_message_of_another(tmp_path: Path) -> None:
    room = signing.crowd(4)
    for _ in range(8):
        _, room = room.commit(1)
    assert room.epoch == 9
    async with running_hub(tmp_path) as hub:
        creation = CreateGroupRequest(room.group_id, MLS10, CipherSuite(1), FIRST, None, None, None)
        await hub.create_group(creation, ALICE)
        commit, after = room.commit(1)
        ahead = attrs.evolve(after, epoch=17)
        with pytest.raises(GroupInfoMismatch):
            await hub.send(SendRequest(commit, DETACHED, CommitData(CLAIMED, carried(ahead.info()), None)), ALICE)
        lie = CommitData(CLAIMED, carried(after.info()), None)
        assert (await hub.send(SendRequest(commit, DETACHED, lie), ALICE)).detached == 1
        # The partition is really that of epoch 17: its messages contradict the claim, and are sequenced.
        message = ahead.propose(1, Remove(2))
        assert (await hub.send(SendRequest(message, CLAIMED, None), ALICE)).counter == 0
        following, later = ahead.commit(2)
        data = CommitData(REAL, carried(later.info()), None)
        assert (await hub.send(SendRequest(following, CLAIMED, data), ALICE)).counter == 1
