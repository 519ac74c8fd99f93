"""The calls that one stream makes to hubs: a bounded number of workers that serve the hubs in turn.

Messages to one hub are sent in the order of their frames, one batch at a time. The frames that wait form the next
batch, up to and including a frame with a commit. A message in a commit's own batch does not release the commit's
Welcome (semantics: welcomes-and-leaving). So later frames always go into another batch than the commit, however busy
the hub is.

Each key is presented in a call of its own. If a hub cannot be reached, one of its keys is presented after a back-off,
and all others wait until the hub answers. The back-off ends when the hub calls us or answers a send. So a hub that is
down costs the same whether the device presented one of its keys or thousands.

A hub has no task and no queue of its own while nothing waits for it. A worker serves one call of a hub and goes on with
the next hub, so that a hub with many calls does not delay other hubs.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain, count, islice
from typing import Final

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.devices.hubs import Hub
from mimids.ds.early_retries import spacing_seconds
from mimids.ds.notifier import Notifier, Waiter, heard_topic
from mimids.ds.ports import Clock
from mimids.errors import CounterAhead, GroupReplaced, MimiError, PeerFailed, PeerUnavailable, TooMany, UnknownPartition
from mimids.tracebacks import release_frames
from mimids.values import Device
from mimids.wire.ids import FIRST_COUNTER, Counter, PartitionKey, ProviderId
from mimids.wire.messages import Result, Send, SendRequest, SendResponse, SendResult, SendStatus

WORKERS: Final = 16  # calls of one stream to other hubs at the same time
KEYS_AT_A_HUB: Final = 4  # presented at the same time, to a hub that has just answered quickly
QUICK_SECONDS: Final = 1.0  # a hub that takes longer to answer gets one key at a time
WAITING_FRAMES: Final = 64  # while this many frames wait, the stream is not read
WAITING_OCTETS: Final = 8 * 1024 * 1024  # octets of frames without an answer; a single frame may be larger
RESUME = "resume"

Answer = Callable[[int, Result | MimiError], Awaitable[None]]  # sends the answer to the frame with this id
SendBatch = Callable[[Device, Hub, Sequence[SendRequest]], Awaitable[list[SendResponse | bytes]]]


@attrs.define(eq=False)
class Watch:
    """A partition whose key the device presented; `counter` is the index of the next message to send."""

    hub: Hub
    key: PartitionKey
    counter: Counter
    frame: int  # the id of the frame that presented the key
    withdrawn: bool = False
    unknown: bool = False  # the hub did not know the partition when the key was presented
    awaited: Counter = FIRST_COUNTER  # the hub has still to push the messages up to this counter
    noted: bool = False  # ds.following.cursors has noted that the device has the messages before the first `counter`


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
    keys: dict[PartitionKey, Watch] = attrs.field(factory=dict)  # keys to present
    sending: bool = False
    presenting: int = 0
    quick: bool = False
    failures: int = 0  # failures in a row
    paused: bool = False  # the hub cannot be reached: no key is presented until the back-off is over
    resume_at: int = 0  # in milliseconds, while it is paused
    early: int = 0  # back-offs that ended because the hub called, since the last success
    resumed_at: int = -1 << 62  # when the last such back-off ended
    queued: bool = False  # the hub is in the queue of hubs that a worker can serve

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

    @property
    def asking(self) -> bool:
        """Whether keys wait for an answer of the hub, or for a call to it."""
        return bool(self.presenting or (self.keys and not self.paused))


class HubCalls:
    """Presents keys and sends messages to hubs for one stream; `tasks` is the stream's nursery."""

    def __init__(
        self,
        device: Device,
        tasks: trio.Nursery,
        answer: Answer,
        clock: Clock,
        notifier: Notifier,
        backoff: Backoff,
        *,
        batch_messages: int,
        asked_all: Callable[[], None],
        send_batch: SendBatch,
        workers: int = WORKERS,
    ) -> None:
        """Make the calls of a stream.

        `asked_all` is called when every key has been presented; keys for hubs that cannot be reached do not count.
        `send_batch` sends messages of the device to a hub.
        """
        self._send_messages = send_batch
        self._device = device
        self._asked_all = asked_all
        self._asking: set[ProviderId] = set()  # hubs with keys to present that are not in back-off
        self._awaited: dict[PartitionKey, Watch] = {}  # partitions with messages that their hub has still to push
        self._tasks = tasks
        self._answer = answer
        self._clock = clock
        self._notifier = notifier
        self._backoff = backoff
        self._batch_messages = batch_messages
        self._workers = workers
        self._hubs: dict[ProviderId, _HubCalls] = {}
        self._ring: deque[_HubCalls] = deque()
        self._running = 0
        self._frames = self._octets = 0  # frames that wait, and octets of the frames without an answer
        self._room = trio.Event()
        self._resumptions: list[tuple[int, int, _HubCalls]] = []  # a heap, by the time in milliseconds
        self._serial = count()
        self._timer: Waiter | None = None

    @property
    def is_asking(self) -> bool:
        """Whether a key waits for the answer of a hub that is not in back-off."""
        return bool(self._asking)

    @property
    def is_awaiting(self) -> bool:
        """Whether a hub still has to push messages that it had when a key was presented."""
        return bool(self._awaited)

    def missing(self, most: int) -> tuple[ProviderId, ...]:
        """Return the hubs in back-off and the hubs that have yet to push messages, at most `most` of them."""
        paused = (name for name, calls in self._hubs.items() if calls.paused)
        awaited = (watch.hub.provider for watch in self._awaited.values())
        return tuple(islice(dict.fromkeys(chain(paused, awaited)), most))

    def note_sent(self, watch: Watch) -> None:
        """Stop awaiting messages of a partition if those that were awaited have been sent to the device."""
        if watch.counter >= watch.awaited:
            self._awaited.pop(watch.key, None)

    async def send(self, hub: Hub, frame: int, send: Send, octets: int) -> None:
        """Append a frame of `octets` octets; wait while too many frames wait for answers. Raise `TooMany`."""
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
        """Queue a key to be presented to its hub, unless it is queued already."""
        calls = self._calls_to(watch.hub)
        calls.keys[watch.key] = watch
        self._schedule(calls)

    def withdraw(self, watch: Watch) -> None:
        """Stop presenting a key."""
        watch.withdrawn = True
        self._awaited.pop(watch.key, None)
        calls = self._hubs.get(watch.hub.provider)
        if calls is not None and calls.keys.get(watch.key) is watch:
            del calls.keys[watch.key]
            self._drop_if_idle(calls)

    def close(self) -> None:
        """Drop what waits, once all tasks of the stream have ended."""
        for calls in self._hubs.values():
            calls.keys.clear()
            calls.sends.clear()
        for waiting in self._hubs, self._ring, self._awaited, self._resumptions:
            waiting.clear()

    # --- the workers --------------------------------------------------------------------------------------------

    def _calls_to(self, hub: Hub) -> _HubCalls:
        calls = self._hubs.get(hub.provider)
        if calls is None:
            calls = self._hubs[hub.provider] = _HubCalls(hub)
        return calls

    def _note_asking(self, calls: _HubCalls) -> None:
        if calls.asking:
            self._asking.add(calls.hub.provider)
        elif calls.hub.provider in self._asking:
            self._asking.remove(calls.hub.provider)
            if not self._asking:
                self._asked_all()

    def _drop_if_idle(self, calls: _HubCalls) -> None:
        self._note_asking(calls)
        if calls.idle and self._hubs.get(calls.hub.provider) is calls:
            del self._hubs[calls.hub.provider]

    def _schedule(self, calls: _HubCalls) -> None:
        """Queue a hub for the workers if a call to it can start, and start a worker unless all are running."""
        self._note_asking(calls)
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
            outcomes = await self._send_messages(self._device, calls.hub, requests)
        except MimiError as error:
            for each in batch:
                await self._answer(each.frame, error)
        else:
            self._end_pause(calls)
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
            if any(request.commit_data is not None for request in batch[-1].send.requests):
                break
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
            counter = watch.counter
            watch.awaited = Counter(counter + await calls.hub.present(self._device, key, counter))
            if watch.counter < watch.awaited and not watch.withdrawn:
                self._awaited[key] = watch
        except (PeerUnavailable, PeerFailed) as error:
            release_frames(error)
            calls.quick = False
            if not watch.withdrawn:
                calls.keys.setdefault(key, watch)
            self._pause(calls)
        except MimiError as error:
            release_frames(error)
            calls.failures = calls.early = 0
            # After CounterAhead the device presents the key again, at another counter.
            watch.withdrawn |= isinstance(error, CounterAhead | GroupReplaced)
            watch.unknown = isinstance(error, UnknownPartition)
            await self._answer(watch.frame, error)
        else:
            calls.failures = calls.early = 0
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
        self._resume_later(calls, self._clock.running() + int(self._backoff.seconds(calls.failures) * 1000))

    def _resume_later(self, calls: _HubCalls, due: int) -> None:
        calls.resume_at = due
        heapq.heappush(self._resumptions, (due, next(self._serial), calls))
        if self._timer is None:
            self._timer = Waiter()
            self._tasks.start_soon(self._resume_paused, self._timer)
        elif self._resumptions[0][2] is calls:  # its back-off ends before all others
            self._timer.notify(RESUME)
        self._notifier.add(self._timer, heard_topic(calls.hub.provider))

    def _end_pause(self, calls: _HubCalls) -> None:
        """End the back-off of a hub that has just called or answered; if early retries have failed, end it later."""
        if not calls.paused:
            return
        due: int = self._clock.running()
        if calls.early:
            due = max(due, calls.resumed_at + int(spacing_seconds(calls.early) * 1000))
        if due < calls.resume_at:
            calls.early, calls.resumed_at = calls.early + 1, due
            self._resume_later(calls, due)

    async def _resume_paused(self, timer: Waiter) -> None:
        """Wait for the end of each back-off and schedule its hub; return when no hub is in back-off."""
        try:
            while self._resumptions:
                seconds = (self._resumptions[0][0] - self._clock.running()) / 1000
                if seconds > 0:
                    topics = await timer.wait_at_most(self._clock, min(seconds, self._backoff.cap_seconds))
                    heard = [calls for calls in self._hubs.values() if heard_topic(calls.hub.provider) in topics]
                    for calls in heard:
                        self._end_pause(calls)
                    if topics:
                        continue
                due, _, calls = heapq.heappop(self._resumptions)
                if calls.paused and due == calls.resume_at:
                    calls.paused = False
                    self._schedule(calls)
                    self._drop_if_idle(calls)
        finally:
            self._notifier.remove(timer, *timer.topics)
            self._timer = None
