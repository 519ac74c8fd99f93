"""Slots for calls to other providers, so that a slow provider does not delay the calls to others.

There are two pools, each with a number of calls and of octets in flight. A call starts in the *quick* pool. If it is
still running after `PATIENCE_SECONDS`, and another call waits for a quick slot, the call moves to the *slow* pool. If
the slow pool is full, the call is cancelled and raises `CallTooSlow`. Calls to a provider whose last call was slow
begin in the slow pool, until several calls in a row were quick. So a quick provider waits for a slot only while all
quick slots are taken by providers whose last calls were quick, and about `PATIENCE_SECONDS` at most.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import attrs
import trio

from mimids.ds.lru import LeastRecentlyUsed

T = TypeVar("T")

PATIENCE_SECONDS: Final = 1.0
QUICK_CALLS: Final = 112  # the slots of all jobs together must be fewer than the connections that `http/peers` has
SLOW_CALLS: Final = 32
QUICK_OCTETS: Final = 64 << 20
SLOW_OCTETS: Final = 32 << 20
QUICK_IN_A_ROW: Final = 8  # calls after which a slow provider is quick again
PROVIDERS_REMEMBERED: Final = 10_000


class CallTooSlow(Exception):
    """The call was cancelled, because it took long while other calls waited and the slow pool was full. Try again."""


@attrs.define
class _Pool:
    calls: int  # calls that may still start
    octets: int  # octets that may still be in flight; below 0 if a call was larger than its reservation
    most_octets: int
    turn: trio.Lock = attrs.field(factory=trio.Lock)  # first come, first served
    freed: trio.Event = attrs.field(factory=trio.Event)

    def fits(self, octets: int) -> bool:
        return self.calls > 0 and self.octets >= min(octets, self.most_octets)

    def reserve(self, octets: int) -> None:
        self.calls -= 1
        self.octets -= octets

    def release(self, octets: int, *, calls: int = 1) -> None:
        self.calls += calls
        self.octets += octets
        self.freed.set()
        self.freed = trio.Event()


class Slot:
    """One slot; `call` makes a call in it."""

    def __init__(self, slots: CallSlots, key: Hashable, pool: _Pool, octets: int) -> None:
        self._slots = slots
        self._key = key
        self._octets = octets
        self.pool = pool
        self.began = 0.0
        self.scope = trio.CancelScope()

    def resize(self, octets: int) -> None:
        """Change the number of octets that the slot has reserved."""
        spare, self._octets = self._octets - octets, octets
        self.pool.release(spare, calls=0)

    def move(self, pool: _Pool) -> None:
        """Exchange the slot for a slot of another pool."""
        pool.reserve(self._octets)
        self.release()
        self.pool = pool

    def release(self) -> None:
        """Return the slot to its pool."""
        self.pool.release(self._octets)

    def can_move(self, pool: _Pool) -> bool:
        """Tell whether the other pool has room for this slot."""
        return pool.fits(self._octets)

    async def call(self, make: Callable[[], Awaitable[T]]) -> T:
        """Await `make()`; raise `CallTooSlow` if the call was cancelled because other calls waited."""
        self.began = trio.current_time()
        self._slots.started(self)
        try:
            with self.scope:
                return await make()
        finally:
            self._slots.ended(self, self._key, trio.current_time() - self.began)
        raise CallTooSlow


class CallSlots:
    """The slots of one job; a key stands for a provider."""

    def __init__(self, *, quick_calls: int = QUICK_CALLS, slow_calls: int = SLOW_CALLS) -> None:
        self._quick = _Pool(quick_calls, QUICK_OCTETS, QUICK_OCTETS)
        self._slow = _Pool(slow_calls, SLOW_OCTETS, SLOW_OCTETS)
        self._slow_calls = slow_calls
        self._running: dict[Slot, None] = {}  # calls in the quick pool, the oldest first
        self._until_quick: LeastRecentlyUsed[Hashable, int] = LeastRecentlyUsed(PROVIDERS_REMEMBERED)

    def is_slow(self, key: Hashable) -> bool:
        """Tell whether calls to a provider begin in the slow pool."""
        return bool(self._until_quick.peek(key))

    @property
    def slow_are_few(self) -> bool:
        """Tell whether less than half of the slow pool is in use; then a slow provider may have several calls."""
        return self._slow.calls > self._slow_calls // 2

    @property
    def slow_providers(self) -> int:
        """Return how many of the remembered providers are slow."""
        return len(self._until_quick)

    @asynccontextmanager
    async def slot(self, key: Hashable, octets: int) -> AsyncIterator[Slot]:
        """Wait for a slot with this many octets, and provide it for the block."""
        pool = self._slow if self.is_slow(key) else self._quick
        async with pool.turn:
            while not pool.fits(octets):
                await self._wait_for_room(pool)
            pool.reserve(octets)
        slot = Slot(self, key, pool, octets)
        try:
            yield slot
        finally:
            slot.release()

    async def _wait_for_room(self, pool: _Pool) -> None:
        """Wait until a slot is released, or move a call that takes long out of the quick pool."""
        oldest = next(iter(self._running), None) if pool is self._quick else None
        if oldest is None:
            await pool.freed.wait()
            return
        if trio.current_time() < oldest.began + PATIENCE_SECONDS:
            with trio.move_on_at(oldest.began + PATIENCE_SECONDS):
                await pool.freed.wait()
            return
        del self._running[oldest]
        if oldest.can_move(self._slow):
            oldest.move(self._slow)
        else:
            oldest.scope.cancel()
            with trio.move_on_after(PATIENCE_SECONDS):
                await pool.freed.wait()  # wait for the slot of that call, so that the next call is not cancelled too

    def started(self, slot: Slot) -> None:
        """Record the start of a slot's call, and wake tasks that wait for a slot."""
        if slot.pool is self._quick:
            self._running[slot] = None
            slot.pool.release(0, calls=0)  # the waiting tasks now know how long to wait

    def ended(self, slot: Slot, key: Hashable, seconds: float) -> None:
        """Record how long a slot's call took, which decides whether its provider counts as slow."""
        self._running.pop(slot, None)
        if seconds > PATIENCE_SECONDS:
            self._until_quick.put(key, QUICK_IN_A_ROW)
        elif (left := self._until_quick.peek(key)) is not None:
            if left > 1:
                self._until_quick.put(key, left - 1)
            else:
                self._until_quick.pop(key)
