"""Rates: so many at once, and so many a second after that.

A bucket is a key's; a restart does not refill those that `KeptRates` keeps. `UserRates` take a `Device`, one of our own
and known by its token: a hub that wanted to hold another provider's user to a rate would have to guess who sends, and
has nothing that it could pass here (DS draft section 4: "A DS MUST NOT reject messages based on criteria that are not
unambiguously known by the DS"). Of another provider the sum of its calls is known, and `ProviderRates` hold that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from math import ceil
from typing import Final

import attrs
import trio

from mimids.config import Limits
from mimids.ds.ports import Clock
from mimids.errors import MimiError, RateLimited
from mimids.store import rates as stored
from mimids.store.engine.store import Store
from mimids.store.rates import StoredBucket
from mimids.values import Device, Follower, Milliseconds
from mimids.wire.ids import ProviderId

KEYS_REMEMBERED: Final = 100_000
SAVE_SECONDS: Final = 10.0  # what a killed process may forget
LAST_SAVE_SECONDS: Final = 5.0


@attrs.frozen
class Rate:
    """`burst` at once, refilled at `per_second`; a `per_second` of 0 lifts the limit, named `limit` in refusals."""

    limit: str
    per_second: float
    burst: int


@attrs.define
class _Bucket:
    left: float
    at: Milliseconds


class Rates:
    """One bucket for each key; of keys that were not seen for longest, the buckets are dropped, and so refilled."""

    def __init__(self, rate: Rate, *, keys: int = KEYS_REMEMBERED) -> None:
        self.rate = rate
        self._keys = keys
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._changed: set[str] = set()

    def take(self, key: object, now: Milliseconds, count: int = 1) -> None:
        """Count `count`; raise `RateLimited` if the key has fewer left at `now`, which costs it nothing further."""
        if not self.rate.per_second or not count:
            return
        name = str(key)
        left = self._left(name, now)
        if left < count:
            raise RateLimited(self.rate.limit, ceil((count - left) / self.rate.per_second))
        self._buckets[name] = _Bucket(left - count, now)
        self._buckets.move_to_end(name)
        self._changed.add(name)
        if len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)

    def left(self, key: object, now: Milliseconds, *, at_most: int) -> int:
        """Return how many a key may count at `now`, at most `at_most`."""
        return at_most if not self.rate.per_second else min(at_most, int(self._left(str(key), now)))

    def _left(self, name: str, now: Milliseconds) -> float:
        bucket = self._buckets.get(name)
        if bucket is None:
            return self.rate.burst
        return min(self.rate.burst, bucket.left + max(0, now - bucket.at) / 1000 * self.rate.per_second)

    # --- across restarts ----------------------------------------------------------------------------------------

    def restore(self, name: str, left: float, at: Milliseconds) -> None:
        """Take up a bucket that was saved."""
        self._buckets[name] = _Bucket(left, at)

    def drain(self, now: Milliseconds) -> tuple[list[StoredBucket], list[tuple[str, str]]]:
        """Return the buckets that changed since the last call, and of the least used those that are full again."""
        changed = [(name, self._buckets[name]) for name in self._changed if name in self._buckets]
        self._changed.clear()
        full = list(takewhile(lambda name: self._left(name, now) >= self.rate.burst, self._buckets))
        for name in full:
            del self._buckets[name]
        limit = self.rate.limit
        kept = [StoredBucket(limit, name, each.left, each.at) for name, each in changed if name in self._buckets]
        return kept, [(limit, name) for name in full]


class UserRates:
    """What each of our own users and devices may do. All of this takes a `Device`; there is no other way in."""

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
        """Return all of them, to be kept."""
        return (*self._sends, *self._joins, self._fetches)

    def take_sends(self, device: Device, wanted: int) -> tuple[int, RateLimited | None]:
        """Count as many of `wanted` messages as device and user have left; return how many, and why not more."""
        return _take_some(list(zip(self._sends, _keys(device), strict=True)), wanted, self._clock.now())

    def take_join(self, device: Device) -> None:
        """Count an external join; raise `RateLimited`."""
        _, refusal = _take_some(list(zip(self._joins, _keys(device), strict=True)), 1, self._clock.now())
        if refusal is not None:
            raise refusal

    def take_fetch(self, device: Device) -> None:
        """Count a KeyPackage request through the relay, which counts for the device itself; raise `RateLimited`."""
        self._fetches.take(_keys(device)[1], self._clock.now())


class ProviderRates:
    """What each other provider may do in sum; which of its users sends is not known, and not asked."""

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
        """Return all of them, to be kept."""
        return (self._sends, self._joins)

    def take_sends(self, follower: Follower, wanted: int) -> tuple[int, RateLimited | None]:
        """Count as many of `wanted` messages as the provider has left; return how many, and why not more."""
        return _take_some([(self._sends, follower.provider)], wanted, self._clock.now())

    def take_join(self, follower: Follower) -> None:
        """Count an external join; raise `RateLimited`."""
        self._joins.take(follower.provider, self._clock.now())


class HubRates:
    """What a hub lets each of a follower's users do, by the terms that the follower accepted.

    (semantics: terms-and-reports)
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._of: dict[tuple[ProviderId, str], Rates] = {}

    def take_sends(
        self, hub: ProviderId, rate: Rate | None, device: Device, wanted: int
    ) -> tuple[int, RateLimited | None]:
        """Count as many of `wanted` messages as a device has left at a hub; return how many, and why not more."""
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
    """Count from all buckets alike as many as each has left."""
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
    raise AssertionError("one bucket had too few")


class KeptRates:
    """Saves buckets now and then, and takes them up again at the start; `run` is the job."""

    def __init__(self, store: Store, clock: Clock, rates: Sequence[Rates]) -> None:
        self._store = store
        self._clock = clock
        self._rates = {each.rate.limit: each for each in rates}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take up what was saved, then save every SAVE_SECONDS and at the end."""
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
        """Save what changed; a disk that takes nothing costs no more than the memory of it."""
        now = self._clock.now()
        drained = [each.drain(now) for each in self._rates.values()]
        changed = [bucket for kept, _ in drained for bucket in kept]
        full = [key for _, keys in drained for key in keys]
        if changed or full:
            with suppress(MimiError):
                await self._store.write(lambda tx: stored.save(tx, changed, full=full))
