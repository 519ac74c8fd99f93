"""Wake-ups: whoever commits rings, whoever waits looks again.

The rows are the truth and a ring may be lost with the process, so a waiter always looks before it waits. It is not lost
with whoever rings: `commit` comes back though its caller was cancelled, as a handler is whose client hangs up.

    with wakes.listen(topic) as bell:
        while not (found := await look()):
            await bell.wait()
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import attrs
import trio

from mimids.ds.ports import Clock
from mimids.store.db import Store, Tx
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


async def commit(store: Store, work: Callable[[Tx], T]) -> T:
    """Write as `Store.write` does, and wait for it, cancelled or not: what is committed is to be rung for."""
    with trio.CancelScope(shield=True):
        return await store.write(work)
    raise AssertionError("nobody cancels this scope")


class Bell:
    """Remembers what rang until it is waited for; `topics` is what it listens to."""

    def __init__(self) -> None:
        self.topics: set[Hashable] = set()
        self._heard: set[Hashable] = set()
        self._rung = trio.Event()

    def ring(self, topic: Hashable) -> None:
        """Wake whoever waits, now or next."""
        self._heard.add(topic)
        self._rung.set()

    @property
    def heard(self) -> frozenset[Hashable]:
        """Return what rang since the last wait."""
        return frozenset(self._heard)

    async def wait(self) -> set[Hashable]:
        """Wait until it was rung since the last wait, and return by what; what is committed later rings it again."""
        await self._rung.wait()
        heard, self._heard, self._rung = self._heard, set(), trio.Event()
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
class WakeStatistics:
    """Topics that are listened to, and by how many."""

    topics: int
    listeners: int


class Wakes:
    """The bells of one provider, by topic: the name of a job, or what a request waits for."""

    def __init__(self) -> None:
        self._bells: dict[Hashable, set[Bell]] = {}
        self._ending = False

    def ring(self, *topics: Hashable) -> None:
        """Wake all that listen to any of `topics`. To be called after the commit, never within it."""
        for topic in topics:
            for bell in self._bells.get(topic, ()):
                bell.ring(topic)

    def end(self) -> None:
        """Wake everybody, now and once more whoever comes later: requests that wait are to answer at shutdown."""
        self._ending = True
        self.ring(*self._bells)

    @contextmanager
    def listen(self, *topics: Hashable) -> Iterator[Bell]:
        """Give a bell that hears every ring of `topics`, and of what is added, from here on, and `end`."""
        bell = Bell()
        if self._ending:
            bell.ring(None)
        self.add(bell, *topics)
        try:
            yield bell
        finally:
            self.remove(bell, *bell.topics)

    def add(self, bell: Bell, *topics: Hashable) -> None:
        """Let a bell hear `topics` too."""
        for topic in topics:
            bell.topics.add(topic)
            self._bells.setdefault(topic, set()).add(bell)

    def remove(self, bell: Bell, *topics: Hashable) -> None:
        """Let a bell hear `topics` no more."""
        for topic in topics:
            bell.topics.discard(topic)
            bells = self._bells.get(topic, set())
            bells.discard(bell)
            if not bells:
                self._bells.pop(topic, None)

    def statistics(self) -> WakeStatistics:
        """Return how much is waited for."""
        return WakeStatistics(len(self._bells), sum(map(len, self._bells.values())))
