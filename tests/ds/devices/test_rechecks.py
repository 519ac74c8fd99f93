"""A lost notification delays a message by a minute, and looking for it costs what moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest  # noqa: TC002
import trio
import trio.testing

from mimids.ds.devices.rechecks import RECHECK_SECONDS
from mimids.ds.groups.hub import LocalHub
from mimids.ds.notifier import Notifier
from mimids.wire.ids import MaskedPartitionKey, PartitionKey
from mimids.wire.messages import FrameType
from tests.support.device_streams import heard, streaming
from tests.support.doubles import stopped_clock
from tests.support.federation import Room, device, federated, present


async def test_what_came_without_its_notification_comes_within_a_minute_and_quiet_keys_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, pages = stopped_clock(), 0
    page = LocalHub.page

    async def counted(self: LocalHub, *args: Any, **kwargs: Any) -> Any:
        nonlocal pages
        pages += 1
        return await page(self, *args, **kwargs)

    async with federated(tmp_path, "a.example", clock=clock, jobs_of=()) as (a,):
        await a.add_device()
        alice, rooms = device(a), [Room(f"room {number}") for number in range(20)]
        for room in rooms:
            await a.services.hub.create_group(room.creation(), alice)
        monkeypatch.setattr(LocalHub, "page", counted)
        async with streaming(a, alice) as wire, streaming(a, alice) as other:
            for each in (wire, other):
                await each.say(FrameType.PRESENT, present(rooms[0].hub, *[(room.key, 0) for room in rooms]))
            await trio.testing.wait_all_tasks_blocked(0.05)
            pages = 0
            with monkeypatch.context() as lost:
                lost.setattr(Notifier, "notify", lambda self, *topics: None)
                await a.services.hub.send(rooms[3].send("unannounced"), alice)
            for _ in range(3):
                clock.advance(RECHECK_SECONDS)
                await trio.testing.wait_all_tasks_blocked(0.02)
            for each in (wire, other):
                assert await heard(each) == (0, ["unannounced"])
            assert pages == 2


async def test_a_stream_listens_to_one_topic_for_a_partition_that_it_has_found(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=()) as (a,):
        alice, room = device(a), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await a.services.hub.send(room.send("one"), alice)
        async with streaming(a, alice) as wire:
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            assert await heard(wire) == (0, ["one"])
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert watched(a.services.notifier, room.key) == 1
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            assert await heard(wire) == (0, ["one"])
            await wire.say(FrameType.PRESENT, present(room.hub, (Room.new_key(), 0)))
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert watched(a.services.notifier, room.key) == 1


def watched(notifier: Notifier, key: PartitionKey) -> int:
    topics = {("partition", MaskedPartitionKey(mask)) for mask in key.masks()}
    return len(topics & notifier._waiters.keys())
