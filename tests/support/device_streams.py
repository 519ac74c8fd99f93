"""Device streams without sockets: the device's end of a stream, and what arrives there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from mimids.ds.devices.stream_session import DeviceGone
from mimids.values import Device
from mimids.wire.declare import decode, encode
from mimids.wire.messages import Frame, FrameBody, FrameType, Messages
from tests.support.federation import said
from tests.support.patience import patience
from tests.support.provider import Assembled


class Wire:
    """The device's end of a stream; `slow` lets what is sent to it wait."""

    def __init__(self) -> None:
        self._to_server, self._from_device = trio.open_memory_channel[bytes](0)
        self._to_device, self._from_server = trio.open_memory_channel[bytes](0)
        self.delivered = 0
        self.heard_at = trio.current_time()

    async def receive(self) -> bytes:
        try:
            return await self._from_device.receive()
        except trio.EndOfChannel:
            raise DeviceGone from None

    async def send(self, frame: bytes) -> None:
        await self._to_device.send(frame)
        self.delivered += 1

    async def say(self, type_: FrameType, body: FrameBody, frame: int = 7) -> None:
        self.heard_at = trio.current_time()
        await self._to_server.send(encode(Frame(frame, type_, body)))

    async def say_octets(self, octets: bytes) -> None:
        await self._to_server.send(octets)

    async def hear(self) -> Frame:
        with patience():
            return decode(Frame, await self._from_server.receive())

    def hang_up(self) -> None:
        self._to_server.close()


@asynccontextmanager
async def streaming(provider: Assembled, who: Device) -> AsyncIterator[Wire]:
    wire = Wire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(provider.services.streams.serve, who, wire)
        try:
            yield wire
        finally:
            wire.hang_up()  # in a test that fails, too: the stream would wait for the device for ever


async def heard(wire: Wire) -> tuple[int, list[str]]:
    """Return the counter and texts of the next messages."""
    frame = await wire.hear()
    assert isinstance(frame.body, Messages), frame
    assert frame.id == 0
    return frame.body.epoch.counter, said(frame.body.epoch.epoch.messages)
