"""Notifications between tasks: a task that has committed a row notifies, and a task that waits for rows wakes.

The rows decide, not the notifications. A notification is lost when the process ends, so a task always reads before it
waits. Notify after the commit, and commit with `Store.write_shielded`: a handler is cancelled when its client
disconnects, and a commit without its notification would leave others waiting.

    with notifier.listen(topic) as waiter:
        while not (found := await read()):
            await waiter.wait()
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
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


def partition_topic(key: MaskedPartitionKey) -> tuple[str, MaskedPartitionKey]:
    """Return the topic for new messages of a partition."""
    return ("partition", key)


def presented_topic(provider: ProviderId, key: MaskedPartitionKey) -> tuple[str, ProviderId, MaskedPartitionKey]:
    """Return the topic for another provider presenting the key of a partition."""
    return ("presented", provider, key)


def inbox_topic(device: DeviceRow) -> tuple[str, int]:
    """Return the topic for new Welcomes of a device."""
    return ("inbox", device)


def stock_topic(device: DeviceRow) -> tuple[str, int]:
    """Return the topic for low KeyPackage stock of a device."""
    return ("stock", device)


class Waiter:
    """Collects notifications of its `topics` until the next wait."""

    def __init__(self) -> None:
        self.topics: set[Hashable] = set()
        self._heard: set[Hashable] = set()
        self._notified = trio.Event()

    def notify(self, topic: Hashable) -> None:
        """Record a notification: the present wait returns, or the next one returns at once."""
        self._heard.add(topic)
        self._notified.set()

    @property
    def heard(self) -> frozenset[Hashable]:
        """The topics notified since the last wait."""
        return frozenset(self._heard)

    async def wait(self) -> set[Hashable]:
        """Wait for a notification; one since the last wait counts. Return the topics notified, and clear them."""
        await self._notified.wait()
        heard, self._heard, self._notified = self._heard, set(), trio.Event()
        return heard

    async def wait_at_most(self, clock: Clock, seconds: float) -> set[Hashable]:
        """Wait like `wait`, but at most until `clock` has advanced by `seconds`; return an empty set then."""
        heard: set[Hashable] = set()
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await clock.sleep(seconds)
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            heard = await self.wait()
            nursery.cancel_scope.cancel()
        return heard


@attrs.frozen
class NotifierStatistics:
    """How many topics have listeners, and how many listeners there are on all of them together."""

    topics: int
    listeners: int


class Notifier:
    """The notifications of one provider. A topic is the name of a job, or one of the `..._topic` values."""

    def __init__(self) -> None:
        self._waiters: dict[Hashable, set[Waiter]] = {}
        self._shutting_down = False

    def notify(self, *topics: Hashable) -> None:
        """Notify all listeners of `topics`. Call it after the commit, never within the transaction."""
        for topic in topics:
            for waiter in self._waiters.get(topic, ()):
                waiter.notify(topic)

    def shut_down(self) -> None:
        """Wake all listeners, and each later listener once, so that waiting requests are answered at shutdown."""
        self._shutting_down = True
        self.notify(*self._waiters)

    @contextmanager
    def listen(self, *topics: Hashable) -> Iterator[Waiter]:
        """Provide a waiter that gets all notifications of `topics` during the block, and that of `shut_down`."""
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
            waiter.topics.add(topic)
            self._waiters.setdefault(topic, set()).add(waiter)

    def remove(self, waiter: Waiter, *topics: Hashable) -> None:
        """Unsubscribe a waiter from topics."""
        for topic in topics:
            waiter.topics.discard(topic)
            waiters = self._waiters.get(topic, set())
            waiters.discard(waiter)
            if not waiters:
                self._waiters.pop(topic, None)

    def statistics(self) -> NotifierStatistics:
        """Return the numbers of topics and listeners."""
        return NotifierStatistics(len(self._waiters), sum(map(len, self._waiters.values())))
