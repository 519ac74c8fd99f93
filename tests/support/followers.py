"""A follower, and epochs that a hub pushes to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mimids.ds.following.receiver import EpochReceiver
from mimids.wire.ids import Counter, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import CommitHint, Epoch, Message, PushedEpoch
from tests.support.federation import COMMIT, Room, device
from tests.support.provider import Assembled, Authority, assembled

HUB = ProviderId("b.example")


@asynccontextmanager
async def follower(
    directory: Path, group_id: GroupId, **sections: Mapping[str, Any]
) -> AsyncIterator[tuple[Assembled, EpochReceiver]]:
    """Run a provider with a device that takes part in a group of the hub."""
    config = Authority(directory).config("a.example", federation={"allow": [HUB]}, **sections)
    async with assembled(config) as running:
        await running.add_device()
        await running.services.following.note_sent(device(running), HUB, group_id, [])
        yield running, running.services.epoch_receiver


def epoch(
    room: Room, key: PartitionKey, texts: Sequence[str], counter: int = 0, next_key: PartitionKey | None = None
) -> PushedEpoch:
    """Return an epoch of application messages, or of commits that lead to `next_key`."""
    hint = None if next_key is None else CommitHint(next_key.mask(32), None)
    kind = {} if next_key is None else {"kind": COMMIT}
    messages = tuple(Message(room.message(text, **kind), hint) for text in texts)
    return PushedEpoch(room.group_id, key.mask(32), Counter(counter), None, Epoch(messages))
