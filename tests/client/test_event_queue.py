"""The events that a device has not looked at are bounded."""

from __future__ import annotations

import trio
import trio.testing

from mimids.client.event_queue import FULL_OCTETS, WAITING_OCTETS
from mimids.wire.messages import (
    FrameType,
    Result,
)
from tests.support.fake_provider import HUB, HungUp, faked
from tests.support.patience import patience
from tests.support.stream_steps import (
    GROUP,
    accepted,
    arrived,
    presented,
    said,
)


# Over 40 lines: one scenario, whose provider and device share all of its objects.
# Longer than 40 lines: one story, in which each step needs the one before.
async def test_the_queue_of_events_is_bounded_and_nothing_is_lost() -> None:
    """The device sends and does not read its events: it has to get the answer without queueing everything before."""
    big = "x" * 1_000_000
    async with faked() as provider, trio.open_nursery() as nursery:
        stream = provider.stream
        stream.present(HUB, GROUP.key)
        sending = stream.send_nowait(HUB, [GROUP.message(b"hello")])
        total = 40
        most = 0
        answered = trio.Event()

        async def serve() -> None:
            nonlocal most
            is_first = True
            while True:
                peer = await provider.next()
                try:
                    counter = None
                    if is_first:
                        counter = (await presented(peer))[1]
                    frame = await peer.hear(FrameType.SEND) if not answered.is_set() else None
                    if frame is not None and not is_first:
                        await peer.say(FrameType.RESULT, Result((accepted(0),)), frame.id)
                        answered.set()
                    if counter is None:
                        counter = (await presented(peer))[1]
                    for number in range(counter, total):
                        await peer.push(GROUP.key, number, said(f"{number} {big}"))
                    return
                except (HungUp, trio.BrokenResourceError):
                    is_first = False
                    most = max(most, stream.statistics().waiting_octets)

        nursery.start_soon(serve)
        with patience():
            assert len(await sending.wait()) == 1
        got: list[str] = []
        while len(got) < total:
            most = max(most, stream.statistics().waiting_octets)
            got += [text.split()[0] for text in (await arrived(stream))[1]]
        assert got == [str(number) for number in range(total)]
        assert WAITING_OCTETS < most < FULL_OCTETS + 2_000_000
