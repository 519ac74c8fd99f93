"""What the tests of a device's stream share: a group, problems, and steps on both sides of the stream."""

from __future__ import annotations

import json

import trio
import trio.testing

from mimids.client import Arrived, Stream
from mimids.client.events import Event
from mimids.testing import PretendGroup, content_of
from mimids.wire.ids import Counter, MaskedPartitionKey, PartitionKey
from mimids.wire.messages import (
    Epoch,
    FrameType,
    Message,
    Present,
    SendResponse,
    SendResult,
    SendStatus,
)
from tests.support.fake_provider import HUB, Peer
from tests.support.patience import patience

GROUP = PretendGroup.at(HUB)
UNKNOWN = json.dumps({"type": "urn:mimids:problem:unknown-partition", "status": 404}).encode()
TERMINATED = json.dumps({"type": "urn:mimids:problem:branch-terminated", "status": 409}).encode()
BUSY = json.dumps({"type": "urn:mimids:problem:busy", "status": 503}).encode()
GONE = json.dumps({"type": "urn:mimids:problem:messages-expired", "status": 410, "next_counter": 7}).encode()

AHEAD = json.dumps({"type": "urn:mimids:problem:counter-ahead", "status": 409, "next_counter": 3}).encode()


def said(*contents: str) -> Epoch:
    return Epoch(tuple(Message(GROUP.message(each.encode()).message, None) for each in contents))


async def next_event(stream: Stream) -> Event:
    with patience():
        return await anext(stream)


async def arrived(stream: Stream) -> tuple[int, list[str]]:
    event = await next_event(stream)
    assert isinstance(event, Arrived), event
    return event.counter, [content_of(each).decode() for each in event.messages]


async def presented(peer: Peer) -> tuple[PartitionKey, int]:
    body = (await peer.hear(FrameType.PRESENT)).body
    assert isinstance(body, Present)
    assert body.hub == HUB
    (position,) = body.positions
    return position.partition_key, position.counter


async def quiet(stream: Stream) -> None:
    """Check that there is no event."""
    with trio.move_on_after(0.1) as waited:
        raise AssertionError(await anext(stream))
    assert waited.cancelled_caught


def accepted(counter: int) -> SendResult:
    partition = MaskedPartitionKey(GROUP.key.mask(32))
    return SendResult(SendStatus.ACCEPTED, SendResponse(Counter(counter), 0, partition, 0, ()))
