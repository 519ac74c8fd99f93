"""Notifications: whoever commits notifies, whoever waits looks again.

The rows are the truth, and a notification may be lost with the process, so a waiter always looks before it waits.
Notify after the commit, and commit with `Store.write_shielded`: a handler is cancelled when its client hangs up, and
what was committed must be notified all the same.

    with notifier.listen(topic) as waiter:
        while not (found := await look()):
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

DELIVERY: Final = "delivery"  # wakes the job that pushes
OUTGOING: Final = "welcomes"  # wakes the job that sends Welcomes


def partition_topic(key: MaskedPartitionKey) -> tuple[str, MaskedPartitionKey]:
    """Return the topic that wakes whoever waits for messages of a partition."""
    return ("partition", key)


def presented_topic(provider: ProviderId, key: MaskedPartitionKey) -> tuple[str, ProviderId, MaskedPartitionKey]:
    """Return the topic that tells that another provider presents the key of a partition."""
    return ("presented", provider, key)


def inbox_topic(device: DeviceRow) -> tuple[str, int]:
    """Return the topic that wakes whoever waits for a device's Welcomes."""
    return ("inbox", device)


def stock_topic(device: DeviceRow) -> tuple[str, int]:
    """Return the topic that wakes a device's streams when its stock is low."""
    return ("stock", device)


class Waiter:
    """Remembers what rang until it is waited for; `topics` is what it listens to."""

    def __init__(self) -> None:
        self.topics: set[Hashable] = set()
        self._heard: set[Hashable] = set()
        self._notified = trio.Event()

    def notify(self, topic: Hashable) -> None:
        """Wake whoever waits, now or next."""
        self._heard.add(topic)
        self._notified.set()

    @property
    def heard(self) -> frozenset[Hashable]:
        """Return what rang since the last wait."""
        return frozenset(self._heard)

    async def wait(self) -> set[Hashable]:
        """Wait until it was rung since the last wait, and return by what; what is committed later rings it again."""
        await self._notified.wait()
        heard, self._heard, self._notified = self._heard, set(), trio.Event()
        return heard

    async def wait_at_most(self, clock: Clock, seconds: float) -> set[Hashable]:
        """Wait as `wait` does, or until `clock` has moved on by `seconds`; then return nothing."""
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
    """Topics that are listened to, and by how many."""

    topics: int
    listeners: int


class Notifier:
    """The bells of one provider, by topic: the name of a job, or what a request waits for."""

    def __init__(self) -> None:
        self._waiters: dict[Hashable, set[Waiter]] = {}
        self._ending = False

    def notify(self, *topics: Hashable) -> None:
        """Wake all that listen to any of `topics`. To be called after the commit, never within it."""
        for topic in topics:
            for waiter in self._waiters.get(topic, ()):
                waiter.notify(topic)

    def end(self) -> None:
        """Wake everybody, now and once more whoever comes later: requests that wait are to answer at shutdown."""
        self._ending = True
        self.notify(*self._waiters)

    @contextmanager
    def listen(self, *topics: Hashable) -> Iterator[Waiter]:
        """Give a bell that hears every ring of `topics`, and of what is added, from here on, and `end`."""
        waiter = Waiter()
        if self._ending:
            waiter.notify(None)
        self.add(waiter, *topics)
        try:
            yield waiter
        finally:
            self.remove(waiter, *waiter.topics)

    def add(self, waiter: Waiter, *topics: Hashable) -> None:
        """Let a bell hear `topics` too."""
        for topic in topics:
            waiter.topics.add(topic)
            self._waiters.setdefault(topic, set()).add(waiter)

    def remove(self, waiter: Waiter, *topics: Hashable) -> None:
        """Let a bell hear `topics` no more."""
        for topic in topics:
            waiter.topics.discard(topic)
            waiters = self._waiters.get(topic, set())
            waiters.discard(waiter)
            if not waiters:
                self._waiters.pop(topic, None)

    def statistics(self) -> NotifierStatistics:
        """Return how much is waited for."""
        return NotifierStatistics(len(self._waiters), sum(map(len, self._waiters.values())))
