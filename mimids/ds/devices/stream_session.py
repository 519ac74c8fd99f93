"""One live stream to a device: the frames of docs/wire.md over one connection.

Messages that are sent to a device are read from the store, from a cursor of the stream. A notification only says where
to read, so no message is lost if a notification is lost with the connection. A device that reads slowly blocks only the
task that sends to it. The stream's cursor then falls behind, but nothing is queued in memory. Sends to one hub keep
their order (`ds.devices.hub_calls`). Partition keys are kept as long as the stream is open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from mimids.ds.devices.hub_calls import WORKERS, HubCalls, Watch
from mimids.ds.devices.rechecks import RECHECK_SECONDS
from mimids.ds.notifier import Waiter, inbox_topic, partition_topic, stock_topic
from mimids.errors import Malformed, MimiError, UnknownPartition
from mimids.mls.framing import MLSMessage
from mimids.tracebacks import release_frames
from mimids.values import Device
from mimids.wire.codec import WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, MaskedPartitionKey, PartitionKey
from mimids.wire.messages import (
    MOST_MISSING,
    Ack,
    CaughtUp,
    Frame,
    FrameBody,
    FrameType,
    Heartbeat,
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

if TYPE_CHECKING:
    from mimids.ds.devices.streams import Streams

CAUGHT_UP: Final = "caught up"  # a topic of the stream's own waiter
PUSH_SECONDS: Final = 10  # for a hub to push the messages that it had when a key was presented
SLICE: Final = 64  # items of a frame between two checkpoints: at most a millisecond
PAGE_OCTETS: Final = 262_144  # octets of messages in one frame, unless one message is larger


class DeviceGone(Exception):
    """The connection is closed."""


class FrameChannel(Protocol):
    """The part of a WebSocket that a stream needs; both methods raise `DeviceGone` if it is closed."""

    @property
    def heard_at(self) -> float:
        """The time (of trio's clock) at which the device last sent anything, even an answer to a ping."""
        ...

    async def receive(self) -> bytes:
        """Wait for the next frame."""
        ...

    async def send(self, frame: bytes) -> None:
        """Send a frame; wait while the device does not read."""
        ...


@attrs.define(eq=False)
class OpenStream:
    """A stream of a device; cancelling its scope ends the stream."""

    connection: FrameChannel
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    keys: int = 0  # presented
    exceeded: str = "device_streams"  # the bound that ends it in favour of another stream


@attrs.frozen
class _Asked:
    """The device's last `caught_up` frame, and when it came, in milliseconds."""

    frame: int
    at: int


class StreamSession:
    """One stream: a task that reads frames, a task that sends new messages, and the workers that call hubs."""

    def __init__(self, streams: Streams, device: Device, opened: OpenStream, waiter: Waiter) -> None:
        self._streams = streams
        self._device = device
        self._opened = opened
        self._connection = opened.connection
        self._waiter = waiter
        self._writing = trio.Lock()
        self._watches: dict[PartitionKey, Watch] = {}
        self._by_mask: dict[MaskedPartitionKey, Watch] = {}
        self._last_welcome = 0
        self._caught_up: _Asked | None = None

    async def run(self) -> None:
        """Serve the stream; raise `DeviceGone` when the connection is closed."""
        try:
            async with trio.open_nursery() as tasks:
                self._own_calls = self._hub_calls(tasks, workers=1)  # these do not wait for calls to other hubs
                self._calls = self._hub_calls(tasks, workers=WORKERS)
                tasks.start_soon(self._push)
                while True:
                    await self._receive(await self._connection.receive())
        finally:
            with trio.CancelScope(shield=True):
                await self._forget_all()

    async def _forget_all(self) -> None:
        """Drop the keys, and all that refers to them.

        The tasks and calls of a stream refer to each other. So without this, thousands of keys would stay in memory
        until the garbage collector runs.
        """
        for done, mask in enumerate(list(self._by_mask), 1):
            self._forget_mask(mask)
            await _pause(done)
        for calls in self._own_calls, self._calls:
            calls.close()
        for done in range(1, len(self._watches) + 1):
            self._watches.popitem()
            await _pause(done)

    async def _receive(self, octets: bytes) -> None:
        """Serve one frame.

        This is not a part of `run`, where a variable would keep the frame's keys in memory until the next frame comes.
        """
        self._streams.frames_in += 1
        try:
            frame = await self._streams.decode(octets)
        except WireError as error:
            await self._refuse(0, Malformed(str(error)))
            return
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
            streams.notifier,
            streams.backoff,
            batch_messages=streams.batch_messages,
            asked_all=lambda: self._waiter.notify(CAUGHT_UP),
            send_batch=streams.send_batch,
            workers=workers,
        )

    # --- frames from the device ---------------------------------------------------------------------------------

    async def _handle(self, frame: Frame, octets: int) -> None:
        body = frame.body
        if isinstance(body, Present):
            await self._present(frame.id, body)
        elif isinstance(body, Withdraw):
            for done, key in enumerate(body.keys, 1):
                self._withdraw(key)
                await _pause(done)
        elif isinstance(body, Send):
            hub = self._streams.hub_router.hub(body.hub)
            await (self._calls if hub.needs_keys else self._own_calls).send(hub, frame.id, body, octets)
        elif isinstance(body, Ack):
            await self._streams.welcomes.acknowledge(self._device.row, *body.welcome_ids)
        elif isinstance(body, Heartbeat):
            await self._reply(frame.id, FrameType.HEARTBEAT, body)
        elif isinstance(body, CaughtUp):
            self._caught_up = _Asked(frame.id, self._streams.clock.running())
            self._waiter.notify(CAUGHT_UP)
        else:
            raise Malformed("a device may send only the frames present, withdraw, send, ack, heartbeat and caught_up")

    async def _present(self, frame: int, present: Present) -> None:
        """Watch partitions from the given positions; if a key occurs twice, its last position counts."""
        positions = {position.partition_key: position for position in present.positions}
        keys = len(self._watches) + sum(key not in self._watches for key in positions)
        self._streams.make_room(self._device, self._opened, keys)
        hub = self._streams.hub_router.hub(present.hub)
        for done, position in enumerate(positions.values(), 1):
            self._watch(Watch(hub, position.partition_key, position.counter, frame))
            await _pause(done)

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
        self._opened.keys -= 1  # other keys may be reserved for a frame that is being presented
        for mask in key.masks():
            self._forget_mask(mask)

    def _forget_mask(self, mask: MaskedPartitionKey) -> None:
        if self._by_mask.pop(mask, None) is not None:
            self._streams.notifier.remove(self._waiter, partition_topic(mask))

    async def _answer_call(self, frame: int, answer: Result | MimiError) -> None:
        if isinstance(answer, MimiError):
            await self._refuse(frame, answer)
        else:
            await self._reply(frame, FrameType.RESULT, answer)

    # --- frames to the device -----------------------------------------------------------------------------------

    async def _push(self) -> None:
        """Send waiting Welcomes and stock warnings. Then wait for notifications, and send new messages."""
        await self._send_welcomes()
        await self._send_stock()
        while True:
            seconds = RECHECK_SECONDS if self._caught_up is None else PUSH_SECONDS
            topics = await self._waiter.wait_at_most(self._streams.clock, seconds)
            if not topics and not await self._streams.is_known(self._device):
                raise DeviceGone
            await self._streams.rechecks.notify_again()
            await self._send_news(topics or {inbox_topic(self._device.row), stock_topic(self._device.row)})
            await self._send_caught_up()

    async def _send_news(self, topics: Iterable[Hashable]) -> None:
        due: dict[PartitionKey, Watch] = {}
        for done, topic in enumerate(topics, 1):
            if topic == inbox_topic(self._device.row):
                await self._send_welcomes()
            elif topic == stock_topic(self._device.row):
                await self._send_stock()
            elif isinstance(topic, tuple) and (watch := self._by_mask.get(topic[1])) is not None:
                due[watch.key] = watch
            await _pause(done)
        waiting = deque(due.values())
        while waiting:  # one page of each partition in turn, so that a long backlog does not delay other partitions
            watch = waiting.popleft()
            if self._watches.get(watch.key) is watch and not watch.withdrawn and await self._send_page(watch):
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
            self._streams.cursors.note_refusal(self._device, watch.hub.provider, request, error)
            self._withdraw(watch.key)
            await self._refuse(watch.frame, error)
            return False
        if found is None:
            return False
        group_id, page = found
        if watch.unknown:  # the commit that opens the partition has arrived since, so the hub knows it now
            watch.unknown = False
            self._calls.present(watch)
        for mask in watch.key.masks():
            if mask != page.partition.masked_key:
                self._forget_mask(mask)  # a partition has one mask, and each topic takes memory
        if not watch.noted and watch.counter <= page.partition.next_counter:
            watch.noted = True
            self._streams.cursors.note(self._device, watch.hub.provider, request)
        if not page.messages:
            return False
        epoch = pushed_epoch_parts(group_id, page.partition.masked_key, page.counter, None, page.messages)
        await self._write(encode_messages_frame(watch.hub.provider, epoch))
        watch.counter = Counter(page.counter + len(page.messages))
        self._calls.note_sent(watch)
        return not page.complete

    async def _send_welcomes(self) -> None:
        while found := await self._streams.welcomes.inbox(self._device.row, after=self._last_welcome):
            for each in found:
                welcome = InboxWelcome(each.id, each.hub, decode(MLSMessage, each.body))
                await self._reply(0, FrameType.WELCOME, welcome)
                self._last_welcome = each.id

    async def _send_caught_up(self) -> None:
        """Answer the device's `caught_up` frame, unless more messages may come soon.

        The answer waits until each hub has answered or cannot be reached. For messages that hubs have yet to push, it
        waits PUSH_SECONDS at most.
        """
        asked = self._caught_up
        if asked is None or self._calls.is_asking:
            return
        if self._calls.is_awaiting and self._streams.clock.running() < asked.at + PUSH_SECONDS * 1000:
            return
        self._caught_up = None
        await self._reply(asked.frame, FrameType.CAUGHT_UP, CaughtUp(self._calls.missing(MOST_MISSING)))

    async def _send_stock(self) -> None:
        for row in await self._streams.key_packages.stock(self._device):
            if self._streams.key_packages.is_low(row):
                await self._reply(0, FrameType.STOCK, Stock(row.version, row.cipher_suite, row.left))

    async def _refuse(self, frame: int, error: MimiError) -> None:
        release_frames(error)
        await self._reply(frame, FrameType.PROBLEM, self._streams.problem(error))

    async def _reply(self, frame: int, type_: FrameType, body: FrameBody) -> None:
        await self._write(encode(Frame(frame, type_, body)))

    async def _write(self, octets: bytes) -> None:
        async with self._writing:
            await self._connection.send(octets)
        self._streams.frames_out += 1


async def _pause(done: int) -> None:
    """Let other tasks run after each SLICE items of a frame; `done` is the number of processed items."""
    if done % SLICE == 0:
        await trio.lowlevel.checkpoint()
