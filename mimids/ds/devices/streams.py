"""Live streams to devices: the frames of docs/wire.md over one connection each.

Messages that are sent to a device are read from the store, from a cursor of the stream. A notification only says where
to read: if it is lost with the connection, no message is lost. A device that reads slowly blocks only the task that
sends to it, and falls behind in its cursor, so nothing is queued in memory. Sends to one hub keep their order
(`ds.devices.hub_calls`). Partition keys are kept as long as the stream is open.

A frame may have thousands of items. They are worked through in slices, with a checkpoint after each, so that other
tasks can run in between.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Final, Protocol, TypeVar

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.devices.hub_calls import WORKERS, HubCalls, Watch
from mimids.ds.devices.hub_router import HubRouter
from mimids.ds.following.cursors import Cursors
from mimids.ds.following.incoming_welcomes import IncomingWelcomes
from mimids.ds.key_packages.stock import KeyPackageStock
from mimids.ds.notifier import Notifier, Waiter, inbox_topic, partition_topic, stock_topic
from mimids.ds.ports import Clock
from mimids.errors import Malformed, MimiError, QuotaExceeded, TooMany, UnknownPartition
from mimids.mls.framing import MLSMessage
from mimids.values import Device, DeviceRow
from mimids.wire.codec import WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, MaskedPartitionKey, PartitionKey
from mimids.wire.messages import (
    FRAME_ITEMS,
    Ack,
    Frame,
    FrameBody,
    FrameType,
    InboxWelcome,
    Present,
    ReceiveRequest,
    Result,
    Send,
    Stock,
    Withdraw,
    encode_messages_frame,
    pushed_epoch_parts,
)

T = TypeVar("T")

PRESENTED_KEYS: Final = FRAME_ITEMS  # by one stream
SLICE: Final = 64  # items of a frame between two checkpoints: at most a millisecond
PAGE_OCTETS: Final = 262_144  # of messages in one frame, unless one message is larger
LONG_FRAME_OCTETS: Final = 16 * 1024
DECODING_THREADS: Final = 2
RECHECK_SECONDS: Final = 60.0  # all topics are checked this often, in case a notification was lost


class DeviceGone(Exception):
    """The device's connection is closed."""


class FrameChannel(Protocol):
    """The part of a WebSocket that a stream needs; both methods raise `DeviceGone` if it is closed."""

    async def receive(self) -> bytes:
        """Wait for the next frame."""
        ...

    async def send(self, frame: bytes) -> None:
        """Send a frame; wait while the device does not read."""
        ...


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
        *,
        backoff: Backoff,
        problem: Callable[[MimiError], bytes],
        is_known: Callable[[Device], Awaitable[bool]],
        bound_hit: Callable[[str], None],
        batch_messages: int,
        device_streams: int,
    ) -> None:
        """`problem` encodes a refusal as JSON; `is_known` tells whether a device still has its account.

        `bound_hit` counts that a device reached a bound (`metrics.BOUNDS`).
        """
        self.hub_router = hub_router
        self.welcomes = welcomes
        self.key_packages = key_packages
        self.cursors = cursors
        self.notifier = notifier
        self.clock = clock
        self.backoff = backoff
        self.problem = problem
        self.is_known = is_known
        self.bound_hit = bound_hit
        self.batch_messages = batch_messages
        self._device_streams = device_streams
        self._open: Tally[DeviceRow] = Tally()
        self._decoding = trio.CapacityLimiter(DECODING_THREADS)
        self.frames_in = self.frames_out = 0

    def statistics(self) -> StreamStatistics:
        """Return the counts so far."""
        return StreamStatistics(self._open.total(), self.frames_in, self.frames_out)

    async def decode(self, octets: bytes) -> Frame:
        """Return the frame; a long one is decoded off the event loop (architecture: tasks)."""
        if len(octets) <= LONG_FRAME_OCTETS:
            return decode(Frame, octets)
        return await trio.to_thread.run_sync(decode, Frame, octets, limiter=self._decoding)

    async def serve(self, device: Device, connection: FrameChannel) -> None:
        """Serve one device until its connection is closed; raise `QuotaExceeded` before the first frame."""
        if self._device_streams and self._open[device.row] >= self._device_streams:
            self.bound_hit("device-streams")
            raise QuotaExceeded("device_streams")
        self._open[device.row] += 1
        try:
            with self.notifier.listen(inbox_topic(device.row), stock_topic(device.row)) as waiter:
                await _Session(self, device, connection, waiter).run()
        except* DeviceGone:
            pass
        finally:
            self._open[device.row] -= 1
            if not self._open[device.row]:
                del self._open[device.row]


class _Session:
    """One stream: a task that reads frames, one that sends what is new, and the workers that call hubs."""

    def __init__(self, streams: Streams, device: Device, connection: FrameChannel, waiter: Waiter) -> None:
        self._streams = streams
        self._device = device
        self._connection = connection
        self._waiter = waiter
        self._writing = trio.Lock()
        self._watches: dict[PartitionKey, Watch] = {}
        self._by_mask: dict[MaskedPartitionKey, Watch] = {}
        self._last_welcome = 0

    async def run(self) -> None:
        async with trio.open_nursery() as tasks:
            self._own_calls = self._hub_calls(tasks, workers=1)  # no call to another hub delays those to our own
            self._calls = self._hub_calls(tasks, workers=WORKERS)
            tasks.start_soon(self._push)
            while True:
                octets = await self._connection.receive()
                self._streams.frames_in += 1
                try:
                    frame = await self._streams.decode(octets)
                except WireError as error:
                    await self._refuse(0, Malformed(str(error)))
                    continue
                try:
                    await self._handle(frame, len(octets))
                except MimiError as error:
                    await self._refuse(frame.id, error)

    def _hub_calls(self, tasks: trio.Nursery, *, workers: int) -> HubCalls:
        streams = self._streams
        return HubCalls(
            self._device,
            tasks,
            self._answer_call,
            streams.clock,
            streams.backoff,
            batch_messages=streams.batch_messages,
            workers=workers,
        )

    # --- frames from the device ---------------------------------------------------------------------------------

    async def _handle(self, frame: Frame, octets: int) -> None:
        body = frame.body
        if isinstance(body, Present):
            await self._present(frame.id, body)
        elif isinstance(body, Withdraw):
            async for keys in _slices(list(dict.fromkeys(body.keys))):
                for key in keys:
                    self._withdraw(key)
        elif isinstance(body, Send):
            hub = self._streams.hub_router.hub(body.hub)
            await (self._calls if hub.needs_keys else self._own_calls).send(hub, frame.id, body, octets)
        elif isinstance(body, Ack):
            await self._streams.welcomes.acknowledge(self._device.row, *body.welcome_ids)
        else:
            raise Malformed("a device may send only the frames present, withdraw, send and ack")

    async def _present(self, frame: int, present: Present) -> None:
        """Watch partitions from the positions given; of positions with the same key, the last one counts."""
        positions = {position.partition_key: position for position in present.positions}
        keys = len(self._watches) + sum(key not in self._watches for key in positions)
        if keys > PRESENTED_KEYS:
            self._streams.bound_hit("presented-keys")
            raise TooMany("presented_keys", keys)
        hub = self._streams.hub_router.hub(present.hub)
        async for part in _slices(list(positions.values())):
            for position in part:
                self._streams.cursors.note(self._device, hub.provider, position)
                self._watch(Watch(hub, position.partition_key, position.counter, frame))

    def _watch(self, watch: Watch) -> None:
        before = self._watches.get(watch.key)
        if before is not None:
            self._calls.withdraw(before)
        self._watches[watch.key] = watch
        for mask in watch.key.masks():
            self._by_mask[mask] = watch
            topic = partition_topic(mask)
            self._streams.notifier.add(self._waiter, topic)
            self._waiter.notify(topic)
        if watch.hub.needs_keys:
            self._calls.present(watch)

    def _withdraw(self, key: PartitionKey) -> None:
        watch = self._watches.pop(key, None)
        if watch is None:
            return
        self._calls.withdraw(watch)
        for mask in key.masks():
            del self._by_mask[mask]
            self._streams.notifier.remove(self._waiter, partition_topic(mask))

    async def _answer_call(self, frame: int, answer: Result | MimiError) -> None:
        if isinstance(answer, MimiError):
            await self._refuse(frame, answer)
        else:
            await self._reply(frame, FrameType.RESULT, answer)

    # --- frames to the device -----------------------------------------------------------------------------------

    async def _push(self) -> None:
        """Send waiting Welcomes and stock warnings; then wait for notifications, and send what they announce."""
        await self._send_welcomes()
        await self._send_stock()
        while True:
            topics = await self._waiter.wait_at_most(self._streams.clock, RECHECK_SECONDS)
            if not topics and not await self._streams.is_known(self._device):
                raise DeviceGone
            await self._send_news(topics or self._waiter.topics.copy())

    async def _send_news(self, topics: Iterable[Hashable]) -> None:
        due: dict[PartitionKey, Watch] = {}
        async for part in _slices(list(topics)):
            for topic in part:
                if topic == inbox_topic(self._device.row):
                    await self._send_welcomes()
                elif topic == stock_topic(self._device.row):
                    await self._send_stock()
                elif isinstance(topic, tuple) and (watch := self._by_mask.get(topic[1])) is not None:
                    due[watch.key] = watch
        waiting = deque(due.values())
        while waiting:  # one page of each in turn, so that a long backlog does not delay the others
            watch = waiting.popleft()
            if self._watches.get(watch.key) is watch and await self._send_page(watch):
                waiting.append(watch)

    async def _send_page(self, watch: Watch) -> bool:
        """Send the next messages of a partition; return True if there are more."""
        request = ReceiveRequest(watch.key, watch.counter)
        try:
            found = await watch.hub.page(self._device, request, limit_octets=PAGE_OCTETS)
        except UnknownPartition as error:
            await self._refuse(watch.frame, error)  # but keep the watch: the partition may be created later
            return False
        except MimiError as error:
            self._withdraw(watch.key)
            await self._refuse(watch.frame, error)
            return False
        if found is None or not found[1].messages:
            return False
        group_id, page = found
        epoch = pushed_epoch_parts(group_id, page.partition.masked_key, page.counter, None, page.messages)
        await self._write(encode_messages_frame(watch.hub.provider, epoch))
        watch.counter = Counter(page.counter + len(page.messages))
        return not page.complete

    async def _send_welcomes(self) -> None:
        while found := await self._streams.welcomes.inbox(self._device.row, after=self._last_welcome):
            for each in found:
                welcome = InboxWelcome(each.id, decode(MLSMessage, each.body))
                await self._reply(0, FrameType.WELCOME, welcome)
                self._last_welcome = each.id

    async def _send_stock(self) -> None:
        for row in await self._streams.key_packages.stock(self._device):
            if self._streams.key_packages.is_low(row):
                await self._reply(0, FrameType.STOCK, Stock(row.version, row.cipher_suite, row.left))

    async def _refuse(self, frame: int, error: MimiError) -> None:
        await self._reply(frame, FrameType.PROBLEM, self._streams.problem(error))

    async def _reply(self, frame: int, type_: FrameType, body: FrameBody) -> None:
        await self._write(encode(Frame(frame, type_, body)))

    async def _write(self, octets: bytes) -> None:
        async with self._writing:
            await self._connection.send(octets)
        self._streams.frames_out += 1


async def _slices(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """Yield the items in slices, with a checkpoint between two slices."""
    for start in range(0, len(items), SLICE):
        if start:
            await trio.lowlevel.checkpoint()
        yield items[start : start + SLICE]
