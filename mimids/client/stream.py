"""A live stream of a device that reconnects by itself: messages, Welcomes and stock warnings in, messages out.

What happens when a connection is lost
    The stream connects again after a back-off. It presents the keys with the counters that it had reached, and sends
    all messages without an answer again. The hub answers a repeat as it answered the first copy
    (semantics: sequencing). Messages that come twice are dropped. So the device gets every event once, and nothing is
    lost while the `Stream` exists.

When a hub lost messages in a restore
    The stream goes back to the counter that the hub names, and the device gets the event `StartedAgain`.

What the device has to do
    The device has to store `Arrived.next_counter` together with the messages, and to acknowledge a Welcome only when it
    is stored.

When the device does not look at its events
    The queue of events is bounded (event_queue.py). When the queue has no room, the stream reads nothing more, except
    while a task waits for an answer. When the queue is full, the stream closes the connection; once there is room, it
    connects and presents the partitions again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Final, Self

import anyio
import attrs

from mimids.client.connection import Address, CounterAhead, Problem, Unreachable
from mimids.client.event_queue import EventQueue
from mimids.client.events import Event, LowStock, NotServed, StartedAgain
from mimids.client.positions import Positions, StreamPosition
from mimids.client.sending import Outbox, Sending, SendLimits
from mimids.client.websocket import WebSocket, open_websocket
from mimids.ds.backoff import Backoff
from mimids.wire.codec import WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, PartitionKey, ProviderId
from mimids.wire.messages import (
    Ack,
    CaughtUp,
    Frame,
    FrameType,
    InboxWelcome,
    Messages,
    Result,
    SendRequest,
    SendResponse,
    Stock,
)

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

PATH: Final = "/client/v1/stream"
BACKOFF: Final = Backoff(first_seconds=0.5, cap_seconds=30.0)
OVER_SECONDS: Final = 600.0  # for messages of an epoch from members who have not seen the commit that ended it


@attrs.frozen
class StreamStatistics:
    """What a stream is doing, and what it did."""

    connected: bool
    connections: int  # opened so far
    presented: int  # partitions
    waiting_octets: int  # of events that the device has not looked at
    in_flight: int  # messages without an answer


class Stream:
    """The events of a device, by iterating; `open_stream` makes it. Methods that are not `async` never wait."""

    def __init__(
        self, address: Address, limits: Callable[[], Awaitable[SendLimits]], *, backoff: Backoff, caught_up: bool
    ) -> None:
        self._address = address
        self._find_limits = limits
        self._limits = SendLimits(0, 0)
        self._backoff = backoff
        self._asks_caught_up = caught_up
        self._ask_caught_up = False  # whether to ask on this connection, once all keys are presented
        self._positions = Positions()
        self._outbox = Outbox()
        self._events = EventQueue()
        self._welcomes: set[int] = set()  # the Welcomes that the device was given
        self._acknowledged: set[int] = set()
        self._to_acknowledge: list[int] = []
        self._paused = False  # while true, nothing is presented: the queue of events has no room
        self._connections = 0
        self._frame_numbers = count(1)  # for this connection; the server uses 0
        self._heard = False  # whether anything came on this connection
        self._disconnect: Callable[[], None] | None = None  # ends this connection, so that another one is opened
        self._disconnecting = False
        self._failure: Problem | None = None
        self.last_loss: Unreachable | Problem | None = None
        self._work = anyio.Event()  # set when there are frames to write
        self._over: dict[PartitionKey, float] = {}  # keys of epochs that are over, and when to withdraw each
        self._left_epoch = anyio.Event()  # `_over` has a key

    # --- what the device says -----------------------------------------------------------------------------------

    def present(
        self, hub: ProviderId, key: PartitionKey, counter: int = 0, *, after: PartitionKey | None = None
    ) -> None:
        """Ask for the messages of a partition from `counter` on, and for later ones.

        `after` is the key of the previous epoch, which the device has left. The stream withdraws that key OVER_SECONDS
        later, because a provider accepts a limited number of keys from a device.
        """
        self._over.pop(key, None)
        if after is not None:
            self._over.setdefault(after, anyio.current_time() + OVER_SECONDS)
            self._left_epoch.set()
        if self._positions.present(hub, key, Counter(counter)) and self._disconnect is not None:
            self._disconnecting = True
            self._disconnect()
        self._work.set()

    def withdraw(self, *keys: PartitionKey) -> None:
        """Ask for no more messages of these partitions."""
        for key in keys:
            self._over.pop(key, None)
            self._positions.withdraw(key)
        self._work.set()

    def acknowledge(self, *welcome_ids: int) -> None:
        """Tell the provider that Welcomes are stored; it then deletes them. A lost acknowledgement is sent again."""
        self._acknowledged.update(welcome_ids)
        self._to_acknowledge += welcome_ids
        self._work.set()

    def send_nowait(self, hub: ProviderId, requests: Sequence[SendRequest]) -> Sending:
        """Begin to send messages to a hub, after all earlier messages to that hub.

        One frame can carry many messages.
        """
        sending = self._outbox.put(hub, requests)
        self._work.set()
        self._events.look_again()
        return sending

    async def send_batch(self, hub: ProviderId, requests: Sequence[SendRequest]) -> tuple[SendResponse | Problem, ...]:
        """Send messages in order; wait for one answer for each.

        If the hub cannot be reached, the answer is a `Problem` with the code `peer-unavailable`. The provider queues
        nothing: send the same messages again later. Cancelling the wait does not cancel messages that were sent.
        """
        return await self.send_nowait(hub, requests).wait()

    async def send(self, hub: ProviderId, request: SendRequest) -> SendResponse:
        """Send one message and wait until it is durable; raise `Problem` if it is refused."""
        (result,) = await self.send_batch(hub, [request])
        if isinstance(result, Problem):
            raise result
        return result

    # --- what the device reads ----------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event; raise `Problem` once the provider permanently refuses the device."""
        event = await self._events.get()
        if self._paused and self._events.has_room:
            self._paused = False
            self._positions.present_all()
            self._work.set()
        return event

    def statistics(self) -> StreamStatistics:
        """Return what the stream is doing."""
        return StreamStatistics(
            self._disconnect is not None,
            self._connections,
            len(self._positions),
            self._events.octets,
            len(self._outbox),
        )

    # --- the connection -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection until cancelled, or until the provider permanently refuses the device."""
        failures = 0
        try:
            while True:
                self._heard, began, retry_after = False, anyio.current_time(), None
                try:
                    if not self._limits.frame_octets:
                        self._limits = await self._find_limits()
                    async with open_websocket(self._address, PATH) as socket:
                        await self._converse(socket)
                    continue  # we closed it ourselves
                except Unreachable as lost:
                    self.last_loss = lost
                except Problem as problem:
                    self.last_loss = problem
                    if not problem.is_temporary:
                        self._failure = problem
                        return
                    retry_after = _retry_after(problem)
                was_good = self._heard or anyio.current_time() - began > self._backoff.cap_seconds
                failures = 1 if was_good else failures + 1
                await anyio.sleep(self._backoff.seconds(failures, retry_after))
        finally:
            self._events.close(self._failure)
            self._outbox.close(self._failure or Unreachable("the stream was closed before the answer came"))

    async def _converse(self, socket: WebSocket) -> None:
        """Use one connection until it is lost (then raise `Unreachable`), or until a new one is needed."""
        lost: list[Unreachable] = []
        try:
            async with anyio.create_task_group() as tasks:
                self._start_connection(tasks)
                tasks.start_soon(self._write_frames, socket, tasks, lost)
                tasks.start_soon(self._withdraw_what_is_over)
                try:
                    await self._read_frames(socket, tasks)
                except Unreachable as error:
                    lost.append(error)
                tasks.cancel_scope.cancel()
        finally:
            self._disconnect = None
        if lost:
            raise lost[0]

    def _start_connection(self, tasks: TaskGroup) -> None:
        """Begin a new connection: queue everything that must be sent to the provider again."""
        self._disconnect, self._disconnecting = tasks.cancel_scope.cancel, False
        self._connections += 1
        self._frame_numbers = count(1)
        self._positions.forget_connection()
        if not self._paused:
            self._positions.present_all()
        self._to_acknowledge.clear()  # Welcomes that were not acknowledged come again
        self._outbox.requeue_unanswered()
        self._ask_caught_up = self._asks_caught_up
        self._work.set()

    async def _read_frames(self, socket: WebSocket, tasks: TaskGroup) -> None:
        """Read until the queue of events is full."""
        while self._paused or not self._events.is_full:
            octets = await socket.receive()
            self._heard = True
            self._handle(_decode_frame(octets), len(octets), tasks)
            # The task that reads the events may wait for an answer instead: then go on reading.
            await self._events.wait_for_room(unless=lambda: len(self._outbox))
        self._paused = True

    async def _write_frames(self, socket: WebSocket, tasks: TaskGroup, lost: list[Unreachable]) -> None:
        try:
            while True:
                if frames := self._next_frames():
                    await socket.send(map(encode, frames))
                else:
                    self._work = anyio.Event()
                    await self._work.wait()
        except Unreachable as error:
            lost.append(error)
            tasks.cancel_scope.cancel()

    async def _withdraw_what_is_over(self) -> None:
        """Withdraw the keys of epochs that the device has left, each at its time."""
        while True:
            while self._over:
                await anyio.sleep_until(min(self._over.values()))
                now = anyio.current_time()
                self.withdraw(*[key for key, at in self._over.items() if at <= now])
            self._left_epoch = anyio.Event()
            await self._left_epoch.wait()

    def _next_frames(self) -> list[Frame]:
        """Return the frames to send now: at most one frame of messages for each hub, so that no hub waits long."""
        frames = [*self._positions.next_frames(self._frame_numbers)]
        if self._ask_caught_up and not self._paused:
            self._ask_caught_up = False
            frames.append(Frame(next(self._frame_numbers), FrameType.CAUGHT_UP, CaughtUp(())))
        if self._to_acknowledge:
            frames.append(Frame(next(self._frame_numbers), FrameType.ACK, Ack(tuple(self._to_acknowledge))))
            self._to_acknowledge.clear()
        return [*frames, *self._outbox.next_frames(self._limits, self._frame_numbers)]

    # --- frames from the provider -------------------------------------------------------------------------------

    def _handle(self, frame: Frame, octets: int, tasks: TaskGroup) -> None:
        body = frame.body
        if isinstance(body, Messages):
            arrived = None if self._disconnecting else self._positions.receive(body.epoch)
            if arrived is not None:
                self._events.put(arrived, octets)
        elif isinstance(body, Result):
            self._outbox.answer(frame.id, body.results)
        elif isinstance(body, InboxWelcome):
            if body.welcome_id in self._acknowledged:
                self.acknowledge(body.welcome_id)
            elif body.welcome_id not in self._welcomes:
                self._welcomes.add(body.welcome_id)
                self._events.put(body, octets)
        elif isinstance(body, Stock):
            self._events.put(LowStock(body.version, body.cipher_suite, body.left), octets)
        elif isinstance(body, CaughtUp):
            self._events.put(body, octets)
        elif isinstance(body, bytes):
            self._handle_problem(frame.id, Problem.from_json(None, body), tasks)
        else:
            raise Unreachable("the provider sent a frame that only devices send")

    def _handle_problem(self, frame: int, problem: Problem, tasks: TaskGroup) -> None:
        if self._outbox.refuse(frame, problem):
            return
        position = self._positions.presented_in(frame)
        if position is None:
            self._events.put(NotServed(None, None, problem), 0)
        elif not self._positions.is_current(position):
            pass  # the device withdrew it meanwhile
        elif problem.is_temporary:
            tasks.start_soon(self._present_later, position)
        elif isinstance(problem, CounterAhead) and problem.next_counter < position.counter:
            self._start_again(position, Counter(problem.next_counter))
        elif problem.code == "unknown-partition":
            if not position.reported_unknown:
                position.reported_unknown = True
                self._events.put(NotServed(position.hub, position.key, problem), 0)
        else:
            self._positions.withdraw_refused(position)
            self._work.set()
            self._events.put(NotServed(position.hub, position.key, problem), 0)

    def _start_again(self, position: StreamPosition, next_counter: Counter) -> None:
        """Go back to the counter that the hub names, and tell the device."""
        self._events.put(StartedAgain(position.hub, position.key, position.counter, next_counter), 0)
        position.counter = next_counter
        self._positions.present_again(position)
        self._work.set()

    async def _present_later(self, position: StreamPosition) -> None:
        await anyio.sleep(self._backoff.seconds(1))
        if self._positions.is_current(position):
            self._positions.present_again(position)
            self._work.set()


@asynccontextmanager
async def open_stream(
    address: Address, limits: Callable[[], Awaitable[SendLimits]], *, backoff: Backoff, caught_up: bool = False
) -> AsyncIterator[Stream]:
    """Yield a stream once the limits are known; it connects by itself, and is closed at the end of the block."""
    stream = Stream(address, limits, backoff=backoff, caught_up=caught_up)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.run)
        try:
            yield stream
        except Exception as error:  # raised below: within the task group it would become an ExceptionGroup
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _decode_frame(octets: bytes) -> Frame:
    try:
        return decode(Frame, octets)
    except WireError as error:
        raise Unreachable("the provider sent something that is not a frame") from error


def _retry_after(problem: Problem) -> float | None:
    seconds = problem.members.get("retry_after")
    return seconds if isinstance(seconds, int | float) else None
