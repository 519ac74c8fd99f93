"""The streams of devices: which are open, and which stream ends when a device has too many.

`stream_session` serves one stream. A frame may have thousands of items, which are processed in slices, with a
checkpoint after each slice. A long frame is decoded in a thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from itertools import count
from typing import Final

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.devices.hub_calls import SendBatch
from mimids.ds.devices.hub_router import HubRouter
from mimids.ds.devices.rechecks import Rechecks
from mimids.ds.devices.stream_session import DeviceGone, FrameChannel, OpenStream, StreamSession
from mimids.ds.devices.streams_elsewhere import StreamsElsewhere, surplus_at
from mimids.ds.following.cursors import Cursors
from mimids.ds.following.incoming_welcomes import IncomingWelcomes
from mimids.ds.key_packages.stock import KeyPackageStock
from mimids.ds.notifier import OPEN, Notifier, inbox_topic, stock_topic
from mimids.ds.ports import Clock
from mimids.errors import MimiError, QuotaExceeded, TooMany
from mimids.tracebacks import release_frames
from mimids.values import Device, DeviceRow
from mimids.wire.declare import decode
from mimids.wire.messages import (
    Frame,
)

PRESENTED_KEYS: Final = 32_768  # keys on all streams of a device: enough for the newest epochs of very many groups
LONG_FRAME_OCTETS: Final = 16 * 1024
DECODING_THREADS: Final = 2


@attrs.frozen
class StreamStatistics:
    """The open streams, and the frames of all streams since the start."""

    open: int
    frames_in: int
    frames_out: int


class Streams:
    """The streams of one provider's devices."""

    def __init__(
        self,
        hub_router: HubRouter,
        welcomes: IncomingWelcomes,
        key_packages: KeyPackageStock,
        cursors: Cursors,
        notifier: Notifier,
        clock: Clock,
        rechecks: Rechecks,
        *,
        backoff: Backoff,
        problem: Callable[[MimiError], bytes],
        is_known: Callable[[Device], Awaitable[bool]],
        bound_hit: Callable[[str], None],
        send_batch: SendBatch,
        batch_messages: int,
        device_streams: int,
        process: str | None = None,
    ) -> None:
        """`problem` encodes a refusal as JSON; `is_known` tells whether a device may still act.

        `bound_hit` is called when a device reaches a bound (`metrics.BOUNDS`). `send_batch` sends messages of a device
        to a hub. `process` is the name of this process, None if the provider has no others.
        """
        self.hub_router = hub_router
        self.welcomes = welcomes
        self.key_packages = key_packages
        self.cursors = cursors
        self.notifier = notifier
        self.clock = clock
        self.rechecks = rechecks
        self.backoff = backoff
        self.problem = problem
        self.is_known = is_known
        self.bound_hit = bound_hit
        self.send_batch = send_batch
        self.change_limits(batch_messages=batch_messages, device_streams=device_streams)
        self._open: dict[DeviceRow, list[OpenStream]] = {}
        self._process = process
        self._turns = count()
        self._elsewhere = StreamsElsewhere()
        self._decoding = trio.CapacityLimiter(DECODING_THREADS)
        self.frames_in = self.frames_out = 0

    def change_limits(self, *, batch_messages: int, device_streams: int) -> None:
        """Use other limits from now on; open streams are not ended."""
        self.batch_messages, self._device_streams = batch_messages, device_streams

    def statistics(self) -> StreamStatistics:
        """Return the counts so far."""
        return StreamStatistics(sum(map(len, self._open.values())), self.frames_in, self.frames_out)

    def open_of(self, device: DeviceRow) -> int:
        """Return how many streams of a device are open, in all processes."""
        return len(self._open.get(device, ())) + sum(self._elsewhere.of(device).values())

    async def decode(self, octets: bytes) -> Frame:
        """Return the frame; a long one is decoded off the event loop (architecture: tasks)."""
        if len(octets) <= LONG_FRAME_OCTETS:
            return decode(Frame, octets)
        return await trio.to_thread.run_sync(decode, Frame, octets, limiter=self._decoding)

    async def serve(self, device: Device, connection: FrameChannel) -> None:
        """Serve one device until its connection is closed.

        If the device already has `device_streams` streams, the stream from which nothing was received for longest ends
        and raises `QuotaExceeded`. If the new stream were refused instead, a device that lost its connection could not
        come back until that connection times out.
        """
        others = self._open.setdefault(device.row, [])
        while self._device_streams and len(others) >= self._device_streams:
            self.bound_hit("device-streams")
            _end_most_silent(others, others, "device_streams")
        opened = OpenStream(connection)
        others.append(opened)
        self._tell(device.row)
        try:
            with opened.scope, self.notifier.listen(inbox_topic(device.row), stock_topic(device.row)) as waiter:
                await self.rechecks.begin()
                await StreamSession(self, device, opened, waiter).run()
        except* DeviceGone as gone:
            release_frames(gone)
        finally:
            if opened in others:
                others.remove(opened)
            if not others:
                self._open.pop(device.row, None)
            self._tell(device.row)
        if opened.scope.cancelled_caught:
            raise QuotaExceeded(opened.exceeded)

    # --- with other processes -----------------------------------------------------------------------------------

    def _tell(self, device: DeviceRow) -> None:
        """Tell the other processes how many streams of a device are open here."""
        if self._process is not None:
            turn = f"{next(self._turns):016}"  # notifications of one moment are sorted, so the last number comes last
            self.notifier.notify((OPEN, self._process, turn, device, len(self._open.get(device, ()))))

    def tell_all(self) -> None:
        """Tell the other processes how many streams each device has open here, because one of them does not know."""
        for device in self._open:
            self._tell(device)

    def hear_open(self, process: str, _turn: str, row: int, streams: int) -> None:
        """Record how many streams of a device are open at another process; end some here if there are too many."""
        device = DeviceRow(row)
        here = self._open.get(device, [])
        if not self._elsewhere.note(process, device, streams) or self._process is None or not self._device_streams:
            return
        everywhere = {**self._elsewhere.of(device), self._process: len(here)}
        for _ in range(surplus_at(self._process, process, everywhere, self._device_streams)):
            self.bound_hit("device-streams")
            _end_most_silent(here, here, "device_streams")

    def forget_processes(self, alive: Collection[str]) -> None:
        """Forget the streams at processes that are not alive."""
        self._elsewhere.forget_all_but(alive)

    # --- keys ---------------------------------------------------------------------------------------------------

    def make_room(self, device: Device, stream: OpenStream, keys: int) -> None:
        """Let a stream present `keys` keys in all.

        If necessary, end the other streams of the device that were silent for longest. Raises `TooMany` beyond
        PRESENTED_KEYS.
        """
        if keys > PRESENTED_KEYS:
            self.bound_hit("presented-keys")
            raise TooMany("presented_keys", keys)
        others = [each for each in self._open[device.row] if each is not stream and each.keys]
        while others and keys + sum(each.keys for each in others) > PRESENTED_KEYS:
            self.bound_hit("presented-keys")
            others.remove(_end_most_silent(self._open[device.row], others, "presented_keys"))
        stream.keys = keys


def _end_most_silent(opened: list[OpenStream], some: list[OpenStream], exceeded: str) -> OpenStream:
    """End the stream in `some` from which nothing was received for longest, and return it."""
    silent = min(some, key=lambda each: each.connection.heard_at)
    opened.remove(silent)
    silent.exceeded = exceeded
    silent.scope.cancel()
    return silent
