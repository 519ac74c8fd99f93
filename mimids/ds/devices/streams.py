"""Live streams to devices: the frames of docs/wire.md over one connection each.

Messages that are sent to a device are read from the store, from a cursor of the stream. A notification only says where
to read: it may be lost with the connection, and no message is. A device that reads slowly blocks only the task that
sends to it, and falls behind in its cursor, so nothing is queued in memory. Sends to one hub keep their order
(`ds.devices.send_queue`). Partition keys are kept as long as the stream is open.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Final, Protocol

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.devices.hub_router import HubRouter
from mimids.ds.devices.hubs import Hub
from mimids.ds.devices.send_queue import SendQueue
from mimids.ds.following.cursors import Cursors
from mimids.ds.following.incoming_welcomes import IncomingWelcomes
from mimids.ds.key_packages.stock import KeyPackageStock
from mimids.ds.notifier import Notifier, Waiter, inbox_topic, partition_topic, stock_topic
from mimids.ds.ports import Clock
from mimids.errors import Malformed, MimiError, PeerFailed, PeerUnavailable, QuotaExceeded, TooMany, UnknownPartition
from mimids.mls.framing import MLSMessage
from mimids.values import Device, DeviceRow
from mimids.wire.codec import WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
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

PRESENTED_KEYS: Final = 4096  # by one stream
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


@attrs.define(eq=False)
class _Watch:
    """A partition whose key the device presented; `counter` is the index of the next message to send."""

    hub: Hub
    key: PartitionKey
    counter: Counter
    frame: int  # the id of the frame that presented the key


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
        batch_messages: int,
        device_streams: int,
    ) -> None:
        """`problem` encodes a refusal as JSON; `is_known` tells whether a device still has its account."""
        self.hub_router = hub_router
        self.welcomes = welcomes
        self.key_packages = key_packages
        self.cursors = cursors
        self.notifier = notifier
        self.clock = clock
        self.backoff = backoff
        self.problem = problem
        self.is_known = is_known
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
    """One stream: a task that reads frames, one that sends events, and one for each hub that is sent to."""

    def __init__(self, streams: Streams, device: Device, connection: FrameChannel, waiter: Waiter) -> None:
        self._streams = streams
        self._device = device
        self._connection = connection
        self._waiter = waiter
        self._writing = trio.Lock()
        self._watches: dict[PartitionKey, _Watch] = {}
        self._by_mask: dict[MaskedPartitionKey, _Watch] = {}
        self._queues: dict[ProviderId, SendQueue] = {}
        self._last_welcome = 0

    async def run(self) -> None:
        async with trio.open_nursery() as tasks:
            self._tasks = tasks
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
                    await self._handle(frame)
                except MimiError as error:
                    await self._refuse(frame.id, error)

    # --- frames from the device ---------------------------------------------------------------------------------

    async def _handle(self, frame: Frame) -> None:
        body = frame.body
        if isinstance(body, Present):
            self._present(frame.id, body)
        elif isinstance(body, Withdraw):
            self._withdraw(body.keys)
        elif isinstance(body, Send):
            await self._send_queue(body.hub).put(frame.id, body)
        elif isinstance(body, Ack):
            await self._streams.welcomes.acknowledge(self._device.row, *body.welcome_ids)
        else:
            raise Malformed("a device may send only the frames present, withdraw, send and ack")

    def _present(self, frame: int, present: Present) -> None:
        new = {position.partition_key for position in present.positions} - self._watches.keys()
        if len(self._watches) + len(new) > PRESENTED_KEYS:
            raise TooMany("presented_keys", len(self._watches) + len(new))
        hub = self._streams.hub_router.hub(present.hub)
        for position in present.positions:
            watch = _Watch(hub, position.partition_key, position.counter, frame)
            self._streams.cursors.note(self._device, hub.provider, position)
            self._watches[watch.key] = watch
            for mask in watch.key.masks():
                self._by_mask[mask] = watch
                topic = partition_topic(mask)
                self._streams.notifier.add(self._waiter, topic)
                self._waiter.notify(topic)
            if hub.needs_keys:
                self._tasks.start_soon(self._present_to_hub, watch)

    async def _present_to_hub(self, watch: _Watch) -> None:
        """Present a key to its hub; retry with back-off until the hub answers or the key is withdrawn."""
        failures = 0
        while self._watches.get(watch.key) is watch:
            try:
                await watch.hub.present(self._device, watch.key)
                return
            except (PeerUnavailable, PeerFailed):
                failures += 1
                await self._streams.clock.sleep(self._streams.backoff.seconds(failures))
            except MimiError as error:
                await self._refuse(watch.frame, error)
                return

    def _withdraw(self, keys: Iterable[PartitionKey]) -> None:
        for key in keys:
            if self._watches.pop(key, None) is not None:
                for mask in key.masks():
                    del self._by_mask[mask]
                    self._streams.notifier.remove(self._waiter, partition_topic(mask))

    def _send_queue(self, provider: ProviderId) -> SendQueue:
        queue = self._queues.get(provider)
        if queue is None:
            hub = self._streams.hub_router.hub(provider)
            queue = SendQueue(hub, self._device, self._answer_send, batch_messages=self._streams.batch_messages)
            self._queues[provider] = queue
            self._tasks.start_soon(queue.run)
        return queue

    async def _answer_send(self, frame: int, answer: Result | MimiError) -> None:
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
        due: dict[PartitionKey, _Watch] = {}
        for topic in topics:
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

    async def _send_page(self, watch: _Watch) -> bool:
        """Send the next messages of a partition; return True if there are more."""
        request = ReceiveRequest(watch.key, watch.counter)
        try:
            found = await watch.hub.page(self._device, request, limit_octets=PAGE_OCTETS)
        except UnknownPartition as error:
            await self._refuse(watch.frame, error)  # but keep the watch: the partition may be created later
            return False
        except MimiError as error:
            self._withdraw([watch.key])
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
