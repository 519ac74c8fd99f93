"""Rates: token buckets, each with a burst and a refill a second (semantics: limits-and-retention).

Each key of a rate has a bucket of its own. `KeptRates` saves buckets, so that a restart does not refill them.

`UserRates` limits our own users and devices, which are known by their tokens. It takes a `Device` and nothing else,
because which of another provider's users sends a message is not known for certain (DS draft section 4: "A DS MUST NOT
reject messages based on criteria that are not unambiguously known by the DS"). `ProviderRates` limits the sum of what
another provider sends.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from math import ceil
from typing import Final

import attrs
import trio

from mimids.config import Limits
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.ports import Clock
from mimids.errors import MimiError, RateLimited
from mimids.store import rates as stored
from mimids.store.engine.store import Store
from mimids.store.rates import StoredBucket
from mimids.values import Device, Follower, Milliseconds
from mimids.wire.ids import ProviderId

KEYS_REMEMBERED: Final = 100_000  # of each rate
SAVE_SECONDS: Final = 10.0  # a killed process loses the changes of this time
LAST_SAVE_SECONDS: Final = 5.0  # at most, at shutdown


@attrs.frozen
class Rate:
    """At most `burst` tokens, refilled at `per_second`; 0 a second is no limit. `limit` is its name in refusals."""

    limit: str
    per_second: float
    burst: int


@attrs.define
class _Bucket:
    left: float  # tokens
    at: Milliseconds


class Rates:
    """One bucket for each key. At most `keys` are kept; an evicted bucket is full when its key comes again."""

    def __init__(self, rate: Rate, *, keys: int = KEYS_REMEMBERED) -> None:
        self.rate = rate
        self._buckets = LeastRecentlyUsed[str, _Bucket](keys)
        self._changed: set[str] = set()

    def take(self, key: object, now: Milliseconds, count: int = 1) -> None:
        """Take `count` tokens; raise `RateLimited`, and take none, if the key has fewer at `now`."""
        if not self.rate.per_second or not count:
            return
        name = str(key)
        left = self._left(name, now)
        if left < count:
            raise RateLimited(self.rate.limit, ceil((count - left) / self.rate.per_second))
        self._buckets.put(name, _Bucket(left - count, now))
        self._changed.add(name)

    def left(self, key: object, now: Milliseconds, *, at_most: int) -> int:
        """Return how many tokens a key has at `now`, at most `at_most`."""
        return at_most if not self.rate.per_second else min(at_most, int(self._left(str(key), now)))

    def _left(self, name: str, now: Milliseconds) -> float:
        bucket = self._buckets.peek(name)
        if bucket is None:
            return self.rate.burst
        return min(self.rate.burst, bucket.left + max(0, now - bucket.at) / 1000 * self.rate.per_second)

    # --- across restarts ----------------------------------------------------------------------------------------

    def restore(self, name: str, left: float, at: Milliseconds) -> None:
        """Restore a bucket that was saved."""
        self._buckets.put(name, _Bucket(left, at))

    def drain(self, now: Milliseconds) -> tuple[list[StoredBucket], list[tuple[str, str]]]:
        """Return the buckets that changed since the last call, and drop those that are full again.

        The full ones are returned second, by limit and key: they need not be stored. Only the least recently used
        buckets are looked at, up to the first that is not full.
        """
        full = list(takewhile(lambda name: self._left(name, now) >= self.rate.burst, self._buckets))
        for name in full:
            self._buckets.pop(name)
        limit = self.rate.limit
        changed = []
        for name in self._changed:
            bucket = self._buckets.peek(name)
            if bucket is not None:
                changed.append(StoredBucket(limit, name, bucket.left, bucket.at))
        self._changed.clear()
        return changed, [(limit, name) for name in full]


class UserRates:
    """The rates of our own users and devices."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._clock = clock
        self._sends = (
            Rates(Rate("device_sends_per_second", limits.device_sends_per_second, limits.device_sends_burst)),
            Rates(Rate("user_sends_per_second", limits.user_sends_per_second, limits.user_sends_burst)),
        )
        self._joins = (
            Rates(Rate("device_joins_per_hour", limits.device_joins_per_hour / 3600, limits.device_joins_burst)),
            Rates(Rate("user_joins_per_hour", limits.user_joins_per_hour / 3600, limits.user_joins_burst)),
        )
        self._fetches = Rates(
            Rate("user_fetches_per_minute", limits.user_fetches_per_minute / 60, limits.user_fetches_burst)
        )

    @property
    def all(self) -> tuple[Rates, ...]:
        """Return all rates, for `KeptRates`."""
        return (*self._sends, *self._joins, self._fetches)

    def take_sends(self, device: Device, wanted: int) -> tuple[int, RateLimited | None]:
        """Count as many of `wanted` messages as device and user may send; return how many, and why not more."""
        return _take_some(list(zip(self._sends, _keys(device), strict=True)), wanted, self._clock.now())

    def take_join(self, device: Device) -> None:
        """Count an external join; raise `RateLimited`."""
        _, refusal = _take_some(list(zip(self._joins, _keys(device), strict=True)), 1, self._clock.now())
        if refusal is not None:
            raise refusal

    def take_fetch(self, device: Device) -> None:
        """Count a KeyPackage request of the device's user (the relay counts the device's); raise `RateLimited`."""
        self._fetches.take(_keys(device)[1], self._clock.now())


class ProviderRates:
    """The rates of other providers, each for all its users together."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._clock = clock
        self._sends = Rates(
            Rate("provider_sends_per_second", limits.provider_sends_per_second, limits.provider_sends_burst)
        )
        self._joins = Rates(
            Rate("provider_joins_per_hour", limits.provider_joins_per_hour / 3600, limits.provider_joins_burst)
        )

    @property
    def all(self) -> tuple[Rates, ...]:
        """Return all rates, for `KeptRates`."""
        return (self._sends, self._joins)

    def take_sends(self, follower: Follower, wanted: int) -> tuple[int, RateLimited | None]:
        """Count as many of `wanted` messages as the provider may send; return how many, and why not more."""
        return _take_some([(self._sends, follower.provider)], wanted, self._clock.now())

    def take_join(self, follower: Follower) -> None:
        """Count an external join; raise `RateLimited`."""
        self._joins.take(follower.provider, self._clock.now())


class HubRates:
    """The rates that the terms of a hub set for each of our devices (semantics: terms-and-reports)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._of: dict[tuple[ProviderId, str], Rates] = {}

    def take_sends(
        self, hub: ProviderId, rate: Rate | None, device: Device, wanted: int
    ) -> tuple[int, RateLimited | None]:
        """Count as many of `wanted` messages as a device may send to a hub; return how many, and why not more."""
        if rate is None:
            return wanted, None
        return _take_some([(self._rates(hub, rate), str(device.row))], wanted, self._clock.now())

    def take_join(self, hub: ProviderId, rate: Rate | None, device: Device) -> None:
        """Count an external join at a hub; raise `RateLimited`."""
        if rate is not None:
            self._rates(hub, rate).take(device.row, self._clock.now())

    def _rates(self, hub: ProviderId, rate: Rate) -> Rates:
        found = self._of.get((hub, rate.limit))
        if found is None or found.rate != rate:
            found = self._of[hub, rate.limit] = Rates(rate)
        return found


def _keys(device: Device) -> tuple[str, str]:
    return str(device.row), device.user_id.decode("utf-8", "replace")


def _take_some(buckets: Sequence[tuple[Rates, str]], wanted: int, now: Milliseconds) -> tuple[int, RateLimited | None]:
    """Take as many tokens as every bucket has, at most `wanted`; return how many, and why not more."""
    count = min((rates.left(key, now, at_most=wanted) for rates, key in buckets), default=wanted)
    for rates, key in buckets:
        rates.take(key, now, count)
    if count == wanted:
        return count, None
    for rates, key in buckets:
        try:
            if rates.left(key, now, at_most=1) < 1:
                rates.take(key, now)
        except RateLimited as refusal:
            return count, refusal
    raise AssertionError("no bucket refused the next token")


class KeptRates:
    """Saves the buckets of some rates every `SAVE_SECONDS` and restores them at the start; `run` is the job."""

    def __init__(self, store: Store, clock: Clock, rates: Sequence[Rates]) -> None:
        self._store = store
        self._clock = clock
        self._rates = {each.rate.limit: each for each in rates}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Restore the buckets, then save them until cancelled, and once more at the end."""
        for bucket in await self._store.read(lambda tx: stored.load(tx, limit=KEYS_REMEMBERED)):
            if bucket.rate in self._rates:
                self._rates[bucket.rate].restore(bucket.key, bucket.left, bucket.at)
        task_status.started()
        try:
            while True:
                await self._clock.sleep(SAVE_SECONDS)
                await self.save()
        finally:
            with trio.move_on_after(LAST_SAVE_SECONDS, shield=True):
                await self.save()

    async def save(self) -> None:
        """Save the buckets that changed; if the store refuses, a restart restores older ones."""
        now = self._clock.now()
        drained = [each.drain(now) for each in self._rates.values()]
        changed = [bucket for kept, _ in drained for bucket in kept]
        full = [key for _, keys in drained for key in keys]
        if changed or full:
            with suppress(MimiError):
                await self._store.write(lambda tx: stored.save(tx, changed, full=full))
