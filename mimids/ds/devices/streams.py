"""Live streams to devices: the frames of docs/wire.md over one connection each.

Whatever is sent down a stream is read from the store by cursor: a ring says where to look, and may be lost with the
connection, a message may not. A device that reads slowly makes the one task that sends to it wait, and falls behind
in its cursor, not in memory. Sends of a stream to one hub keep their order; those that wait for the hub go together.
Partition keys live as long as the stream.
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
WAITING_SENDS: Final = 64  # frames to one hub that wait for their turn; then the stream is not read
PAGE_OCTETS: Final = 262_144  # of messages in one frame, unless one message is larger
LONG_OCTETS: Final = 16 * 1024
DECODERS: Final = 2
LOOK_AGAIN_SECONDS: Final = 60.0  # a lost ring costs no more than this


class DeviceGone(Exception):
    """The device is not there any more."""


class FrameChannel(Protocol):
    """A WebSocket, as far as a stream needs it; both raise `DeviceGone` when the device is."""

    async def receive(self) -> bytes:
        """Wait for the next frame."""
        ...

    async def send(self, frame: bytes) -> None:
        """Send a frame; waits while the device does not read."""
        ...


@attrs.frozen
class StreamStatistics:
    """Open streams, and what went through all of them."""

    open: int
    frames_in: int
    frames_out: int


@attrs.define(eq=False)
class _Watch:
    """A partition that the device presented the key of; `counter` is the index it wants next."""

    hub: ProviderId
    key: PartitionKey
    counter: Counter
    frame: int  # that presented it


class Streams:
    """The streams of one provider's devices."""

    def __init__(
        self,
        hub_router: HubRouter,
        welcomes: IncomingWelcomes,
        key_packages: KeyPackageStock,
        notifier: Notifier,
        clock: Clock,
        *,
        backoff: Backoff,
        problem: Callable[[MimiError], bytes],
        is_known: Callable[[Device], Awaitable[bool]],
        batch_messages: int,
        device_streams: int,
    ) -> None:
        self.hub_router = hub_router
        self.welcomes = welcomes
        self.key_packages = key_packages
        self.notifier = notifier
        self.clock = clock
        self.backoff = backoff
        self.problem = problem
        self.is_known = is_known
        self.batch_messages = batch_messages
        self._device_streams = device_streams
        self._open: Tally[DeviceRow] = Tally()
        self._decoding = trio.CapacityLimiter(DECODERS)
        self.frames_in = self.frames_out = 0

    def statistics(self) -> StreamStatistics:
        """Return the counts so far."""
        return StreamStatistics(self._open.total(), self.frames_in, self.frames_out)

    async def decode(self, octets: bytes) -> Frame:
        """Return the frame; a long one is decoded off the event loop (architecture: tasks)."""
        if len(octets) <= LONG_OCTETS:
            return decode(Frame, octets)
        return await trio.to_thread.run_sync(decode, Frame, octets, limiter=self._decoding)

    async def serve(self, device: Device, connection: FrameChannel) -> None:
        """Serve one device until it is gone; raises `QuotaExceeded` before the first frame."""
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
    """One stream: a task that reads frames, one that sends what there is, one for each hub that is sent to."""

    def __init__(self, streams: Streams, device: Device, connection: FrameChannel, waiter: Waiter) -> None:
        self._streams = streams
        self._device = device
        self._connection = connection
        self._waiter = waiter
        self._writing = trio.Lock()
        self._watches: dict[PartitionKey, _Watch] = {}
        self._by_mask: dict[MaskedPartitionKey, _Watch] = {}
        self._sends: dict[ProviderId, trio.MemorySendChannel[tuple[int, Send]]] = {}
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
                    await self._take(frame)
                except MimiError as error:
                    await self._refuse(frame.id, error)

    # --- what the device says -----------------------------------------------------------------------------------

    async def _take(self, frame: Frame) -> None:
        body = frame.body
        if isinstance(body, Present):
            self._present(frame.id, body)
        elif isinstance(body, Withdraw):
            self._withdraw(body.keys)
        elif isinstance(body, Send):
            await self._queue(frame.id, body)
        elif isinstance(body, Ack):
            await self._streams.welcomes.acknowledge(self._device.row, *body.welcome_ids)
        else:
            raise Malformed("devices send present, withdraw, send and ack")

    def _present(self, frame: int, present: Present) -> None:
        new = {position.partition_key for position in present.positions} - self._watches.keys()
        if len(self._watches) + len(new) > PRESENTED_KEYS:
            raise TooMany("presented_keys", len(self._watches) + len(new))
        for position in present.positions:
            watch = _Watch(present.hub, position.partition_key, position.counter, frame)
            self._streams.hub_router.note(self._device, present.hub, position)
            self._watches[watch.key] = watch
            for mask in watch.key.masks():
                self._by_mask[mask] = watch
                topic = partition_topic(mask)
                self._streams.notifier.add(self._waiter, topic)
                self._waiter.notify(topic)
            if not self._streams.hub_router.is_here(watch.hub):
                self._tasks.start_soon(self._ask, watch)

    def _withdraw(self, keys: Iterable[PartitionKey]) -> None:
        for key in keys:
            if self._watches.pop(key, None) is not None:
                for mask in key.masks():
                    del self._by_mask[mask]
                    self._streams.notifier.remove(self._waiter, partition_topic(mask))

    async def _queue(self, frame: int, send: Send) -> None:
        if len(send.requests) > self._streams.batch_messages:
            raise TooMany("send_batch_messages", len(send.requests))
        channel = self._sends.get(send.hub)
        if channel is None:
            channel, waiting = trio.open_memory_channel[tuple[int, Send]](WAITING_SENDS)
            self._sends[send.hub] = channel
            self._tasks.start_soon(self._send, send.hub, waiting)
        await channel.send((frame, send))

    async def _send(self, hub: ProviderId, waiting: trio.MemoryReceiveChannel[tuple[int, Send]]) -> None:
        """Send in order what the device gave for one hub; what waits meanwhile goes in the next batch."""
        held: tuple[int, Send] | None = None
        while True:
            batch = [held or await waiting.receive()]
            held = None
            count = len(batch[0][1].requests)
            while held is None:
                try:
                    held = waiting.receive_nowait()
                except trio.WouldBlock:
                    break
                if count + len(held[1].requests) <= self._streams.batch_messages:
                    count += len(held[1].requests)
                    batch.append(held)
                    held = None
            requests = [request for _, send in batch for request in send.requests]
            try:
                results = await self._streams.hub_router.results(self._device, hub, requests)
            except MimiError as error:
                for frame, _ in batch:
                    await self._refuse(frame, error)
                continue
            for frame, send in batch:
                mine, results = results[: len(send.requests)], results[len(send.requests) :]
                await self._reply(frame, FrameType.RESULT, Result(tuple(mine)))

    # --- what the device gets -----------------------------------------------------------------------------------

    async def _push(self) -> None:
        """Send what there is, and wait for more."""
        await self._send_welcomes()
        await self._send_stock()
        while True:
            heard = await self._waiter.wait_at_most(self._streams.clock, LOOK_AGAIN_SECONDS)
            if not heard and not await self._streams.is_known(self._device):
                raise DeviceGone
            await self._look(heard or self._waiter.topics.copy())

    async def _look(self, topics: Iterable[Hashable]) -> None:
        due: dict[PartitionKey, _Watch] = {}
        for topic in topics:
            if topic == inbox_topic(self._device.row):
                await self._send_welcomes()
            elif topic == stock_topic(self._device.row):
                await self._send_stock()
            elif isinstance(topic, tuple) and (watch := self._by_mask.get(topic[1])) is not None:
                due[watch.key] = watch
        waiting = deque(due.values())
        while waiting:  # a page of each in turn: a long backlog holds up nobody
            watch = waiting.popleft()
            if self._watches.get(watch.key) is watch and await self._send_page(watch):
                waiting.append(watch)

    async def _send_page(self, watch: _Watch) -> bool:
        """Send the next messages of a partition; True if there are more."""
        request = ReceiveRequest(watch.key, watch.counter)
        try:
            found = await self._streams.hub_router.page(self._device, watch.hub, request, limit_octets=PAGE_OCTETS)
        except MimiError as error:
            self._withdraw([watch.key])
            await self._refuse(watch.frame, error)
            return False
        if found is None:
            if self._streams.hub_router.is_here(watch.hub):
                await self._refuse(watch.frame, UnknownPartition())  # it may come yet: it stays watched
            return False
        group_id, page = found
        if not page.messages:
            return False
        epoch = pushed_epoch_parts(group_id, page.partition.masked_key, page.counter, None, page.messages)
        await self._write(encode_messages_frame(watch.hub, epoch))
        watch.counter = Counter(page.counter + len(page.messages))
        return not page.complete

    async def _ask(self, watch: _Watch) -> None:
        """Present the key to its hub, so that its messages come here; again until the hub answers."""
        failures = 0
        while self._watches.get(watch.key) is watch:
            try:
                await self._streams.hub_router.present(self._device, watch.hub, watch.key)
                return
            except (PeerUnavailable, PeerFailed):
                failures += 1
                await self._streams.clock.sleep(self._streams.backoff.seconds(failures))
            except MimiError as error:
                await self._refuse(watch.frame, error)
                return

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
