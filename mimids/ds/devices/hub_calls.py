"""The calls that one stream makes to hubs: a bounded number of workers that serve the hubs in turn.

Messages to one hub are sent in the order of their frames, one batch at a time; the frames that wait form the next
batch. Keys are presented one call each. A hub that cannot be reached is tried again with one key, with back-off, and
its other keys wait until it answers. So a hub that is down costs the same whether the device presented one of its keys
or 4,096.

A hub has no task and no queue of its own while nothing waits for it. A worker serves one call of a hub and goes on with
the next hub, so that a hub with many calls does not delay the others.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.devices.hubs import Hub
from mimids.ds.notifier import Waiter
from mimids.ds.ports import Clock
from mimids.errors import MimiError, PeerFailed, PeerUnavailable, TooMany
from mimids.values import Device
from mimids.wire.ids import Counter, PartitionKey, ProviderId
from mimids.wire.messages import Result, Send, SendResult, SendStatus

WORKERS: Final = 16  # calls of one stream to other hubs at the same time
KEYS_AT_A_HUB: Final = 4  # presented at the same time, to a hub that has just answered quickly
QUICK_SECONDS: Final = 1.0  # of an answer; a slower hub gets one key at a time
WAITING_FRAMES: Final = 64  # with so many, the stream is not read until a hub answers
WAITING_OCTETS: Final = 8 * 1024 * 1024  # of frames that are not answered yet; one frame may exceed it
RESUME = "resume"

Answer = Callable[[int, Result | MimiError], Awaitable[None]]  # to the frame with this id


@attrs.define(eq=False)
class Watch:
    """A partition whose key the device presented; `counter` is the index of the next message to send."""

    hub: Hub
    key: PartitionKey
    counter: Counter
    frame: int  # the id of the frame that presented the key
    withdrawn: bool = False


@attrs.frozen
class _WaitingSend:
    frame: int
    send: Send
    octets: int


@attrs.define(eq=False)
class _HubCalls:
    """What waits for one hub."""

    hub: Hub
    sends: deque[_WaitingSend] = attrs.field(factory=deque)
    keys: dict[PartitionKey, Watch] = attrs.field(factory=dict)  # to present
    sending: bool = False
    presenting: int = 0
    quick: bool = False
    failures: int = 0  # in a row
    paused: bool = False  # the hub cannot be reached: no key is presented until the back-off is over
    queued: bool = False  # in the ring of hubs that a worker can serve

    @property
    def ready(self) -> bool:
        """Whether a worker can start a call now."""
        if self.sends and not self.sending:
            return True
        return bool(self.keys) and not self.paused and self.presenting < (KEYS_AT_A_HUB if self.quick else 1)

    @property
    def idle(self) -> bool:
        """Whether nothing waits for the hub and no call is in flight."""
        return not (self.sends or self.keys or self.sending or self.presenting or self.paused)


class HubCalls:
    """Presents keys and sends messages to hubs, for one stream; `tasks` is the stream's nursery."""

    def __init__(
        self,
        device: Device,
        tasks: trio.Nursery,
        answer: Answer,
        clock: Clock,
        backoff: Backoff,
        *,
        batch_messages: int,
        workers: int = WORKERS,
    ) -> None:
        self._device = device
        self._tasks = tasks
        self._answer = answer
        self._clock = clock
        self._backoff = backoff
        self._batch_messages = batch_messages
        self._workers = workers
        self._hubs: dict[ProviderId, _HubCalls] = {}
        self._ring: deque[_HubCalls] = deque()
        self._running = 0
        self._frames = self._octets = 0  # of sends that wait; octets are counted until the answer
        self._room = trio.Event()
        self._resumptions: list[tuple[int, int, _HubCalls]] = []  # a heap, by the time in milliseconds
        self._serial = count()
        self._timer: Waiter | None = None

    async def send(self, hub: Hub, frame: int, send: Send, octets: int) -> None:
        """Append a frame of `octets`; wait while too much waits for answers. Raise `TooMany`."""
        if len(send.requests) > self._batch_messages:
            raise TooMany("send_batch_messages", len(send.requests))
        while self._frames >= WAITING_FRAMES or (self._octets and self._octets + octets > WAITING_OCTETS):
            self._room = trio.Event()
            await self._room.wait()
        self._frames += 1
        self._octets += octets
        calls = self._calls_to(hub)
        calls.sends.append(_WaitingSend(frame, send, octets))
        self._schedule(calls)

    def present(self, watch: Watch) -> None:
        """Present a key to its hub, if it does not wait for that already."""
        calls = self._calls_to(watch.hub)
        calls.keys[watch.key] = watch
        self._schedule(calls)

    def withdraw(self, watch: Watch) -> None:
        """Don't present a key any more."""
        watch.withdrawn = True
        calls = self._hubs.get(watch.hub.provider)
        if calls is not None and calls.keys.get(watch.key) is watch:
            del calls.keys[watch.key]
            self._drop_if_idle(calls)

    # --- the workers --------------------------------------------------------------------------------------------

    def _calls_to(self, hub: Hub) -> _HubCalls:
        calls = self._hubs.get(hub.provider)
        if calls is None:
            calls = self._hubs[hub.provider] = _HubCalls(hub)
        return calls

    def _drop_if_idle(self, calls: _HubCalls) -> None:
        if calls.idle and self._hubs.get(calls.hub.provider) is calls:
            del self._hubs[calls.hub.provider]

    def _schedule(self, calls: _HubCalls) -> None:
        """Put a hub at the end of the ring if a call to it can start, and start a worker if there is none for it."""
        if calls.ready and not calls.queued:
            calls.queued = True
            self._ring.append(calls)
            if self._running < self._workers:
                self._running += 1
                self._tasks.start_soon(self._work)

    async def _work(self) -> None:
        """Make one call of each hub in turn, until no call can start."""
        while self._ring:
            calls = self._ring.popleft()
            calls.queued = False
            if not calls.ready:  # its keys were withdrawn
                self._drop_if_idle(calls)
            elif calls.sends and not calls.sending:
                await self._send_batch(calls)
            else:
                await self._present_next(calls)
        self._running -= 1

    async def _send_batch(self, calls: _HubCalls) -> None:
        batch = self._next_batch(calls)
        calls.sending = True
        self._schedule(calls)
        requests = [request for each in batch for request in each.send.requests]
        try:
            outcomes = await calls.hub.send_batch(self._device, requests)
        except MimiError as error:
            for each in batch:
                await self._answer(each.frame, error)
        else:
            results = iter(
                [
                    SendResult(SendStatus.REFUSED if isinstance(each, bytes) else SendStatus.ACCEPTED, each)
                    for each in outcomes
                ]
            )
            for each in batch:
                await self._answer(each.frame, Result(tuple(next(results) for _ in each.send.requests)))
        self._octets -= sum(each.octets for each in batch)
        self._room.set()
        calls.sending = False
        self._schedule(calls)
        self._drop_if_idle(calls)

    def _next_batch(self, calls: _HubCalls) -> list[_WaitingSend]:
        """Return the first frame with the frames after it that fit into one batch."""
        batch: list[_WaitingSend] = []
        messages = 0
        while calls.sends and (not batch or messages + len(calls.sends[0].send.requests) <= self._batch_messages):
            batch.append(calls.sends.popleft())
            messages += len(batch[-1].send.requests)
        self._frames -= len(batch)
        self._room.set()
        return batch

    # --- presenting keys ----------------------------------------------------------------------------------------

    async def _present_next(self, calls: _HubCalls) -> None:
        key, watch = next(iter(calls.keys.items()))
        del calls.keys[key]
        calls.presenting += 1
        self._schedule(calls)
        began = trio.current_time()
        try:
            await calls.hub.present(self._device, key)
        except (PeerUnavailable, PeerFailed):
            calls.quick = False
            if not watch.withdrawn:
                calls.keys.setdefault(key, watch)
            self._pause(calls)
        except MimiError as error:
            calls.failures = 0
            await self._answer(watch.frame, error)
        else:
            calls.failures = 0
            calls.quick = trio.current_time() - began < QUICK_SECONDS
        calls.presenting -= 1
        self._schedule(calls)
        self._drop_if_idle(calls)

    def _pause(self, calls: _HubCalls) -> None:
        """Present no keys to a hub until its back-off is over."""
        if calls.paused:
            return
        calls.paused = True
        calls.failures += 1
        due = self._clock.now() + int(self._backoff.seconds(calls.failures) * 1000)
        heapq.heappush(self._resumptions, (due, next(self._serial), calls))
        if self._timer is None:
            self._timer = Waiter()
            self._tasks.start_soon(self._resume_paused, self._timer)
        elif self._resumptions[0][2] is calls:  # it is due before all others
            self._timer.notify(RESUME)

    async def _resume_paused(self, timer: Waiter) -> None:
        """End the back-offs that are over, until there are none."""
        while self._resumptions:
            seconds = (self._resumptions[0][0] - self._clock.now()) / 1000
            if seconds > 0 and await timer.wait_at_most(self._clock, min(seconds, self._backoff.cap_seconds)):
                continue
            _, _, calls = heapq.heappop(self._resumptions)
            calls.paused = False
            self._schedule(calls)
            self._drop_if_idle(calls)
        self._timer = None
