"""A live stream of a device that mends itself: messages, Welcomes and stock warnings in, messages out.

A connection that is lost is opened again, with back-off; the keys are presented from the counters reached, what has no
answer yet is sent again (the hub answers a repeat as it did the first time), and what came twice is dropped. So every
event is seen once, and nothing is lost while the `Stream` lives. What outlives it is up to the device: to store
`Arrived.next_counter` with what it made of the messages, and to acknowledge a Welcome only then.

What waits to be looked at is bounded. Beyond WAITING_OCTETS nothing is read, unless an answer is waited for; beyond
FULL_OCTETS the connection is given up, and partitions are presented again once there is room.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Self

import anyio
import attrs

from mimids.client.connection import Address, Problem, Unreachable
from mimids.client.events import Arrived, Event, LowStock, NotServed
from mimids.client.sending import Outbox, Sending, SendLimits
from mimids.client.websocket import WebSocket, open_websocket
from mimids.wire.codec import WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    Ack,
    Frame,
    FrameBody,
    FrameType,
    InboxWelcome,
    Messages,
    Present,
    ReceiveRequest,
    Result,
    SendRequest,
    SendResponse,
    Stock,
    Withdraw,
)

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

PATH: Final = "/client/v1/stream"
WAITING_OCTETS: Final = 4 * 1024 * 1024
FULL_OCTETS: Final = 16 * 1024 * 1024
BACKOFF_FIRST_SECONDS: Final = 0.5
BACKOFF_CAP_SECONDS: Final = 30.0


@attrs.frozen
class StreamStatistics:
    """What a stream is doing, and did."""

    connected: bool
    connections: int  # so far
    presented: int
    waiting_octets: int  # that arrived and were not looked at
    in_flight: int  # messages without an answer


@attrs.define(eq=False)
class _Position:
    """How far a partition has been received."""

    hub: ProviderId
    key: PartitionKey
    counter: Counter
    frame: int = 0  # that presented it on this connection
    told_unknown: bool = False


class Stream:
    """The events of a device, by iterating; `open_stream` makes it. None of its methods but the waits blocks."""

    def __init__(self, address: Address, limits: Callable[[], Awaitable[SendLimits]], *, backoff: Backoff) -> None:
        self._address = address
        self._find_limits = limits
        self._limits = SendLimits(0, 0)
        self._backoff = backoff
        self._positions: dict[PartitionKey, _Position] = {}
        self._by_mask: dict[MaskedPartitionKey, _Position] = {}
        self._by_frame: dict[int, _Position] = {}
        self._to_present: dict[PartitionKey, None] = {}
        self._presented: set[PartitionKey] = set()  # on this connection
        self._to_withdraw: list[PartitionKey] = []
        self._to_acknowledge: list[int] = []
        self._welcomes: set[int] = set()  # seen
        self._acknowledged: set[int] = set()
        self._outbox = Outbox()
        self._events: deque[tuple[Event, int]] = deque()
        self._waiting_octets = 0
        self._held = False  # partitions are presented again once there is room
        self._last_frame = 0
        self._connections = 0
        self._connected = False
        self._heard = False  # anything, on this connection
        self._ended = False
        self._failure: Problem | None = None
        self.last_loss: Unreachable | Problem | None = None
        self._arrived = anyio.Event()
        self._work = anyio.Event()
        self._room = anyio.Event()
        self._give_up: Callable[[], None] | None = None  # the connection, for another one
        self._given_up = False

    # --- what the device says -----------------------------------------------------------------------------------

    def present(self, hub: ProviderId, key: PartitionKey, counter: int = 0) -> None:
        """Ask for the messages of a partition from `counter` on, and for those to come."""
        held = self._positions.get(key)
        if held is not None and held.counter == counter and held.hub == hub:
            return
        position = _Position(hub, key, Counter(counter))
        self._positions[key] = position
        for mask in key.masks():
            self._by_mask[mask] = position
        self._to_present[key] = None
        if key in self._presented and self._give_up is not None:
            self._given_up = True  # messages under way could be taken for those that are asked for now
            self._give_up()
        self._work.set()

    def withdraw(self, *keys: PartitionKey) -> None:
        """Ask for no more messages of these partitions."""
        for key in keys:
            if self._positions.pop(key, None) is not None:
                for mask in key.masks():
                    del self._by_mask[mask]
                self._to_present.pop(key, None)
                self._to_withdraw.append(key)
        self._work.set()

    def acknowledge(self, *welcome_ids: int) -> None:
        """Say that Welcomes are stored: they leave the inbox. A word that gets lost is said again."""
        self._acknowledged.update(welcome_ids)
        self._to_acknowledge += welcome_ids
        self._work.set()

    def send_nowait(self, hub: ProviderId, requests: Sequence[SendRequest]) -> Sending:
        """Begin to send messages to a hub, after all that was sent to it before; many fit into one frame."""
        sending = self._outbox.put(hub, requests)
        self._work.set()
        self._room.set()
        return sending

    async def send_batch(self, hub: ProviderId, requests: Sequence[SendRequest]) -> tuple[SendResponse | Problem, ...]:
        """Send messages in order; wait for one answer for each.

        A hub that is away is a `Problem` with `peer-unavailable`: nobody queues for it, so send the same again later.
        Whoever stops waiting does not recall what is under way.
        """
        return await self.send_nowait(hub, requests).wait()

    async def send(self, hub: ProviderId, request: SendRequest) -> SendResponse:
        """Send one message and wait until it is durable; raise `Problem` where it is refused."""
        (result,) = await self.send_batch(hub, [request])
        if isinstance(result, Problem):
            raise result
        return result

    # --- what it gets -------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event; raise `Problem` once the provider refuses the device for good."""
        while not self._events:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                raise StopAsyncIteration
            await self._arrived.wait()
        event, octets = self._events.popleft()
        self._waiting_octets -= octets
        if self._waiting_octets < WAITING_OCTETS:
            self._room.set()
            if self._held:
                self._held = False
                self._to_present = dict.fromkeys(self._positions)
                self._work.set()
        return event

    def statistics(self) -> StreamStatistics:
        """Return what the stream is doing."""
        return StreamStatistics(
            self._connected, self._connections, len(self._positions), self._waiting_octets, len(self._outbox)
        )

    # --- the connection -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection until cancelled, or until the provider refuses the device for good."""
        failures = 0
        try:
            while True:
                self._heard, began, wait = False, anyio.current_time(), 0.0
                try:
                    if not self._limits.frame_octets:
                        self._limits = await self._find_limits()
                    async with open_websocket(self._address, PATH) as socket:
                        await self._converse(socket)
                except Unreachable as lost:
                    self.last_loss = lost
                except Problem as problem:
                    self.last_loss = problem
                    if not problem.passes:
                        self._failure = problem
                        return
                    asked = problem.members.get("retry_after")
                    wait = float(asked) if isinstance(asked, int | float) else 0.0
                else:
                    continue  # we gave it up ourselves
                finally:
                    self._connected = False
                was_good = self._heard or anyio.current_time() - began > self._backoff.cap_seconds
                failures = 1 if was_good else failures + 1
                await anyio.sleep(self._backoff(failures, wait))
        finally:
            self._end()

    async def _converse(self, socket: WebSocket) -> None:
        """Talk over one connection until it is lost (`Unreachable`), or we want another one."""
        self._begin()
        lost: list[Unreachable] = []
        async with anyio.create_task_group() as tasks:
            self._give_up = tasks.cancel_scope.cancel
            tasks.start_soon(self._write, socket, tasks, lost)
            try:
                while self._held or self._waiting_octets < FULL_OCTETS:
                    octets = await socket.receive()
                    self._heard = True
                    self._take(_decoded(octets), len(octets), tasks)
                    await self._wait_for_room()
                self._held = True
            except Unreachable as error:
                lost.append(error)
            tasks.cancel_scope.cancel()
        self._give_up = None
        if lost:
            raise lost[0]

    def _begin(self) -> None:
        """Say everything again that counts on a new connection."""
        self._connected, self._given_up = True, False
        self._connections += 1
        self._by_frame.clear()
        self._presented.clear()
        self._to_withdraw.clear()
        self._to_acknowledge.clear()  # Welcomes that are still there come again
        self._to_present = {} if self._held else dict.fromkeys(self._positions)
        self._outbox.take_back()
        self._last_frame = 0
        self._work.set()

    def _end(self) -> None:
        self._ended = True
        self._connected = False
        self._arrived.set()
        self._outbox.end(self._failure or Unreachable("the stream ended before the answer"))

    async def _wait_for_room(self) -> None:
        """Wait while much is to be looked at; not while an answer is waited for, perhaps by who is to look."""
        while self._waiting_octets >= WAITING_OCTETS and not self._outbox:
            self._room = anyio.Event()
            await self._room.wait()

    # --- frames out ---------------------------------------------------------------------------------------------

    async def _write(self, socket: WebSocket, tasks: TaskGroup, lost: list[Unreachable]) -> None:
        try:
            while True:
                if frames := self._next_frames():
                    await socket.send(frames)
                else:
                    self._work = anyio.Event()
                    await self._work.wait()
        except Unreachable as error:
            lost.append(error)
            tasks.cancel_scope.cancel()

    def _next_frames(self) -> list[bytes]:
        """Return what is to be said next: at most one frame of messages for each hub, so that all get their turn."""
        frames = []
        if self._to_withdraw:
            frames.append(self._frame(FrameType.WITHDRAW, Withdraw(tuple(self._to_withdraw))))
            self._to_withdraw.clear()
        for key in self._to_present:  # one to a frame: a refusal of the frame names the partition
            position = self._positions[key]
            frames.append(self._frame(FrameType.PRESENT, _present(position)))
            self._by_frame.pop(position.frame, None)
            position.frame = self._last_frame
            self._by_frame[position.frame] = position
            self._presented.add(key)
        self._to_present.clear()
        if self._to_acknowledge:
            frames.append(self._frame(FrameType.ACK, Ack(tuple(self._to_acknowledge))))
            self._to_acknowledge.clear()
        for frame, send in self._outbox.next_frames(self._limits, self._last_frame + 1):
            frames.append(encode(Frame(frame, FrameType.SEND, send)))
            self._last_frame = frame
        return frames

    def _frame(self, kind: FrameType, body: FrameBody) -> bytes:
        self._last_frame += 1  # 0 is the server's
        return encode(Frame(self._last_frame, kind, body))

    # --- frames in ----------------------------------------------------------------------------------------------

    def _take(self, frame: Frame, octets: int, tasks: TaskGroup) -> None:
        body = frame.body
        if isinstance(body, Messages):
            self._take_messages(body, octets)
        elif isinstance(body, Result):
            self._outbox.answer(frame.id, body.results)
        elif isinstance(body, InboxWelcome):
            if body.welcome_id in self._acknowledged:
                self.acknowledge(body.welcome_id)
            elif body.welcome_id not in self._welcomes:
                self._welcomes.add(body.welcome_id)
                self._put(body, octets)
        elif isinstance(body, Stock):
            self._put(LowStock(body.version, body.cipher_suite, body.left), octets)
        elif isinstance(body, bytes):
            self._take_problem(frame.id, Problem.from_json(None, body), tasks)
        else:
            raise Unreachable("the provider sends what only devices send")

    def _take_messages(self, body: Messages, octets: int) -> None:
        position = self._by_mask.get(body.epoch.masked_partition_key)
        if position is None or self._given_up:
            return  # withdrawn meanwhile
        pushed = body.epoch
        messages = pushed.epoch.messages[max(0, position.counter - pushed.counter) :]
        if not messages:
            return
        first = Counter(max(position.counter, pushed.counter))
        skipped = first - position.counter
        arrived = Arrived(position.hub, pushed.group_id, position.key, first, messages, skipped)
        position.counter = arrived.next_counter
        self._put(arrived, octets)

    def _take_problem(self, frame: int, problem: Problem, tasks: TaskGroup) -> None:
        position = self._by_frame.get(frame)
        if self._outbox.refuse(frame, problem):
            return
        if position is None:
            self._put(NotServed(None, None, problem), 0)
        elif self._positions.get(position.key) is not position:
            pass  # withdrawn meanwhile
        elif problem.passes:
            tasks.start_soon(self._present_later, position)
        elif problem.code == "unknown-partition":
            if not position.told_unknown:
                position.told_unknown = True
                self._put(NotServed(position.hub, position.key, problem), 0)
        else:
            self.withdraw(position.key)
            self._presented.discard(position.key)  # nothing of it is under way
            self._put(NotServed(position.hub, position.key, problem), 0)

    async def _present_later(self, position: _Position) -> None:
        await anyio.sleep(self._backoff(1, 0.0))
        if self._positions.get(position.key) is position:
            self._to_present[position.key] = None
            self._work.set()

    def _put(self, event: Event, octets: int) -> None:
        self._events.append((event, octets))
        self._waiting_octets += octets
        self._arrived.set()
        self._arrived = anyio.Event()


@attrs.frozen
class Backoff:
    """Delays between connections: doubling up to a cap, half of it chance, so that not all devices return at once."""

    first_seconds: float = BACKOFF_FIRST_SECONDS
    cap_seconds: float = BACKOFF_CAP_SECONDS
    chance: Callable[[], float] = random.random

    def __call__(self, failures: int, at_least: float) -> float:
        """Return how long to wait after so many failures in a row, and as long as the provider asked for."""
        delay = min(self.cap_seconds, self.first_seconds * 2.0 ** min(failures - 1, 32))
        return max(delay * (0.5 + self.chance() / 2), min(at_least, self.cap_seconds))


@asynccontextmanager
async def open_stream(
    address: Address, limits: Callable[[], Awaitable[SendLimits]], *, backoff: Backoff
) -> AsyncIterator[Stream]:
    """Give a stream that connects by itself, once it knows the limits; it ends with the block."""
    stream = Stream(address, limits, backoff=backoff)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.run)
        try:
            yield stream
        except Exception as error:  # the group would put it into a group of exceptions
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _decoded(octets: bytes) -> Frame:
    try:
        return decode(Frame, octets)
    except WireError as error:
        raise Unreachable("what the provider sends is no frame") from error


def _present(position: _Position) -> Present:
    return Present(position.hub, (ReceiveRequest(position.key, position.counter),))
