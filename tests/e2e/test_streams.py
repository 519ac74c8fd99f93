"""Streams of one device at a live provider."""

from __future__ import annotations

from contextlib import AsyncExitStack

import trio

from mimids.client import Arrived
from mimids.testing import PretendGroup, Session, content_of, open_federation
from tests.support.patience import patience
from tests.support.stage import HUB


async def test_connections_that_say_nothing_do_not_keep_their_device_out(mimids_session: Session) -> None:
    async with open_federation(HUB, session=mimids_session) as (hub,), AsyncExitStack() as stack:
        alice = hub.add_device("alice")
        device = await stack.enter_async_context(alice.client())
        group = PretendGroup.at(HUB)
        await device.create_group(group.creation())
        silent = [await stack.enter_async_context(device.stream()) for _ in range(4)]
        assert len(silent) == hub.config.limits.device_streams
        await trio.sleep(0.2)
        stream = await stack.enter_async_context(device.stream())
        stream.present(HUB, group.key)
        await device.send(HUB, group.message(b"hello"))
        with patience():
            async for event in stream:
                if isinstance(event, Arrived):
                    assert [content_of(each) for each in event.messages] == [b"hello"]
                    break
