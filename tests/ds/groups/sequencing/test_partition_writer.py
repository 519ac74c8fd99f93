"""Partitions within one batch: what a commit changes holds for the messages after it."""

from __future__ import annotations

from pathlib import Path

import attrs

from mimids.errors import PolicyRefused
from mimids.mls.code_points import ContentType, WireFormat
from mimids.mls.framing import MLSMessage
from mimids.wire.ids import MLS10
from mimids.wire.messages import CommitData, SendRequest, SendResponse
from tests.support import signing
from tests.support.chats import private_message
from tests.support.federation import Room
from tests.support.hub import ALICE, create, running_hub
from tests.support.rooms import ALICE as USER
from tests.support.rooms import MEMBER, MUTED, dictionary, sets

WORDS = ContentType.APPLICATION


async def test_a_message_is_judged_by_the_state_that_a_commit_gave_its_partition_in_the_same_batch(
    tmp_path: Path,
) -> None:
    room, apart = signing.Room.create(signing.Client.of(1, "alice"), dictionary({USER: MEMBER})), Room.new_key()
    message, after = room.commit(0, signing.by_value(sets({USER: MUTED})))
    info = MLSMessage(MLS10, WireFormat.GROUP_INFO, after.info())
    async with running_hub(tmp_path) as hub:
        key = await create(hub, room)
        before, commit, muted = await hub.send_batch(
            [
                SendRequest(private_message(after, WORDS), apart, None),
                SendRequest(message, key, CommitData(apart, info, None)),
                SendRequest(private_message(after, WORDS), apart, None),
            ],
            attrs.evolve(ALICE, user_id=USER),
        )
        assert isinstance(before, SendResponse)
        assert isinstance(commit, SendResponse)
        assert isinstance(muted, PolicyRefused)
