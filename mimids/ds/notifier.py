"""Notifications between tasks: a task that has committed a row notifies the tasks that wait for such rows.

A task acts on the rows, not on the notifications. A notification is lost when the process ends, so a task always reads
before it waits. Notify after the commit, and commit with `Store.write_shielded`: a handler is cancelled when its client
disconnects, and a commit without its notification would leave others waiting.

    with notifier.listen(topic) as waiter:
        while not (found := await read()):
            await waiter.wait()
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import attrs
import trio

from mimids.ds.ports import Clock
from mimids.values import DeviceRow
from mimids.wire.ids import MaskedPartitionKey, ProviderId

T = TypeVar("T")

DELIVERY: Final = "delivery"  # wakes the job that pushes messages to followers
OUTGOING: Final = "welcomes"  # wakes the job that sends Welcomes
DEPARTURES: Final = "departures"  # wakes the job that has removed devices leave their groups
SWEEP: Final = "sweep"  # wakes the sweeper
EVERYTHING: Final = "everything"  # tells other processes to notify all their listeners
TOPICS_FOR_OTHERS: Final = 10_000  # if there are more, all listeners in the other processes are notified
OPEN: Final = "open"  # tells other processes how many streams a device has open here
TELL_OPEN: Final = "tell-open"  # asks other processes to send `OPEN` again for all devices
WAKE_UPS: Final = "wake-ups"  # wakes the job that wakes devices, as DELIVERY does


def partition_topic(key: MaskedPartitionKey) -> tuple[str, MaskedPartitionKey]:
    """Return the topic for new messages of a partition."""
    return ("partition", key)


def inbox_topic(device: DeviceRow) -> tuple[str, int]:
    """Return the topic for new Welcomes of a device."""
    return ("inbox", device)


def stock_topic(device: DeviceRow) -> tuple[str, int]:
    """Return the topic for low KeyPackage stock of a device."""
    return ("stock", device)


def heard_topic(provider: ProviderId) -> tuple[str, ProviderId]:
    """Return the topic for authenticated calls of another provider: they show that this provider can be reached."""
    return ("heard", provider)


def asleep_topic(device: DeviceRow) -> tuple[str, int]:
    """Return the topic for the end of a device's connection, for the process that wakes devices."""
    return ("asleep", device)


def is_call(topic: Hashable) -> bool:
    """Tell whether a topic is one that `heard_topic` returns."""
    return isinstance(topic, tuple) and topic[0] == "heard"


class Waiter:
    """Collects notifications of its `topics` until the next wait."""

    def __init__(self) -> None:
        self.topics: set[Hashable] = set()
        self._heard: set[Hashable] = set()
        self._notified = trio.Event()

    def notify(self, topic: Hashable) -> None:
        """Record a notification: the current wait returns, or the next wait returns at once."""
        self._heard.add(topic)
        self._notified.set()

    @property
    def heard(self) -> frozenset[Hashable]:
        """The topics notified since the last wait."""
        return frozenset(self._heard)

    async def wait(self) -> set[Hashable]:
        """Wait until a topic has been notified since the last wait; return the topics notified, and clear them."""
        await self._notified.wait()
        heard, self._heard, self._notified = self._heard, set(), trio.Event()
        return heard

    async def wait_at_most(self, clock: Clock, seconds: float) -> set[Hashable]:
        """Wait like `wait`, but at most until `clock` has advanced by `seconds`; return an empty set then."""
        if self._notified.is_set():
            return await self.wait()
        with clock.move_on_after(seconds):
            return await self.wait()
        return set()


@attrs.frozen
class NotifierStatistics:
    """How many topics have listeners, and how many listeners all topics have together."""

    topics: int
    listeners: int


class Notifier:
    """The notifications of one provider. A topic is the name of a job, or one of the `..._topic` values."""

    def __init__(self) -> None:
        # Most topics have one waiter, and no set: this halves the memory for the keys that devices present.
        self._waiters: dict[Hashable, Waiter | set[Waiter]] = {}
        self._listeners_of_all = 0
        self._shutting_down = False

    def notify(self, *topics: Hashable) -> None:
        """Notify all listeners of `topics`. Call it after the commit, never within the transaction."""
        for topic in topics:
            for waiter in self._listeners(topic):
                waiter.notify(topic)

    notify_here = notify  # only in this process

    def notify_all(self) -> None:
        """Notify all listeners, for a rare event that may concern any listener."""
        self.notify_all_here()

    def notify_all_here(self) -> None:
        """Notify all listeners in this process."""
        self.notify_here(*self._waiters)

    @contextmanager
    def only_here(self) -> Iterator[None]:
        """Send notifications in the block to this process only."""
        yield

    def shut_down(self) -> None:
        """Wake all listeners, and each later listener once, so that waiting requests are answered at shutdown."""
        self._shutting_down = True
        self.notify_all_here()

    @contextmanager
    def listen(self, *topics: Hashable) -> Iterator[Waiter]:
        """Provide a waiter that gets all notifications of `topics` and of `shut_down` during the block."""
        waiter = Waiter()
        if self._shutting_down:
            waiter.notify(None)
        self.add(waiter, *topics)
        try:
            yield waiter
        finally:
            self.remove(waiter, *waiter.topics)

    def add(self, waiter: Waiter, *topics: Hashable) -> None:
        """Subscribe a waiter to more topics."""
        for topic in topics:
            if topic in waiter.topics:
                continue
            waiter.topics.add(topic)
            self._listeners_of_all += 1
            others = self._waiters.setdefault(topic, waiter)
            if isinstance(others, set):
                others.add(waiter)
            elif others is not waiter:
                self._waiters[topic] = {others, waiter}

    def remove(self, waiter: Waiter, *topics: Hashable) -> None:
        """Unsubscribe a waiter from topics."""
        for topic in topics:
            if topic not in waiter.topics:
                continue
            waiter.topics.remove(topic)
            self._listeners_of_all -= 1
            waiters = self._waiters.get(topic)
            if isinstance(waiters, set):
                waiters.discard(waiter)
            if waiters is waiter or not waiters:
                self._waiters.pop(topic, None)

    def statistics(self) -> NotifierStatistics:
        """Return the numbers of topics and listeners."""
        return NotifierStatistics(len(self._waiters), self._listeners_of_all)

    def _listeners(self, topic: Hashable) -> Collection[Waiter]:
        found = self._waiters.get(topic, ())
        return (found,) if isinstance(found, Waiter) else found


class SharedNotifier(Notifier):
    """A notifier of a provider with several processes: it also collects the topics for the other processes."""

    def __init__(self) -> None:
        super().__init__()
        self._for_others: set[Hashable] = set()
        self._is_due = trio.Event()
        self._tells_others = True

    def notify(self, *topics: Hashable) -> None:
        """Notify all listeners of `topics`, in all processes. Call it after the commit."""
        self.notify_here(*topics)
        if self._tells_others:
            self.for_others(*topics)

    def notify_all(self) -> None:
        """Notify all listeners in all processes."""
        self.notify(*self._waiters, EVERYTHING)

    def for_others(self, *topics: Hashable) -> None:
        """Collect topics for the other processes.

        Topics for calls of providers wait until a topic of another kind is collected, or until `tell_calls`.
        """
        self._for_others.update(topics)
        if len(self._for_others) > TOPICS_FOR_OTHERS:
            self._for_others = {EVERYTHING}
        if not self._is_due.is_set() and any(not is_call(topic) for topic in topics):
            self._is_due.set()

    def tell_calls(self) -> None:
        """Make `wait_for_others` return even if only topics for calls of other providers are collected."""
        if self._for_others:
            self._is_due.set()

    async def wait_for_others(self) -> set[Hashable]:
        """Wait for topics of which the other processes must be notified; return and clear them."""
        await self._is_due.wait()
        topics, self._for_others, self._is_due = self._for_others, set(), trio.Event()
        return topics

    @contextmanager
    def only_here(self) -> Iterator[None]:
        """See `Notifier.only_here`."""
        self._tells_others = False
        try:
            yield
        finally:
            self._tells_others = True
