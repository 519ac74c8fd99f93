"""The messages that one stream sends to one hub."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from mimids.ds.devices.hubs import Hub
from mimids.errors import MimiError, TooMany
from mimids.values import Device
from mimids.wire.messages import Result, Send, SendResult, SendStatus

WAITING_FRAMES: Final = 64  # then the stream is not read until the hub answers

Answer = Callable[[int, Result | MimiError], Awaitable[None]]  # to the frame with this id


class SendQueue:
    """Sends messages in the order of their frames; the frames that wait for the hub form the next batch."""

    def __init__(self, hub: Hub, device: Device, answer: Answer, *, batch_messages: int) -> None:
        self._hub = hub
        self._device = device
        self._answer = answer
        self._batch_messages = batch_messages
        self._append, self._waiting = trio.open_memory_channel[tuple[int, Send]](WAITING_FRAMES)
        self._next: tuple[int, Send] | None = None  # received, but it did not fit into the batch

    async def put(self, frame: int, send: Send) -> None:
        """Append a frame; wait while WAITING_FRAMES others wait. Raise `TooMany`."""
        if len(send.requests) > self._batch_messages:
            raise TooMany("send_batch_messages", len(send.requests))
        await self._append.send((frame, send))

    async def run(self) -> None:
        """Send batch after batch and answer each frame, until cancelled."""
        while True:
            batch = await self._next_batch()
            requests = [request for _, send in batch for request in send.requests]
            try:
                outcomes = await self._hub.send_batch(self._device, requests)
            except MimiError as error:
                for frame, _ in batch:
                    await self._answer(frame, error)
                continue
            results = iter(
                [
                    SendResult(SendStatus.REFUSED if isinstance(each, bytes) else SendStatus.ACCEPTED, each)
                    for each in outcomes
                ]
            )
            for frame, send in batch:
                await self._answer(frame, Result(tuple(next(results) for _ in send.requests)))

    async def _next_batch(self) -> list[tuple[int, Send]]:
        """Wait for a frame; return it with the frames after it that fit into one batch."""
        batch = [self._next or await self._waiting.receive()]
        self._next = None
        count = len(batch[0][1].requests)
        while True:
            try:
                following = self._waiting.receive_nowait()
            except trio.WouldBlock:
                return batch
            count += len(following[1].requests)
            if count > self._batch_messages:
                self._next = following
                return batch
            batch.append(following)
