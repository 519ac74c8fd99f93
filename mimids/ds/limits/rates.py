"""Rates: token buckets, each with a burst and a refill a second (semantics: limits-and-retention).

Each key of a rate has a bucket of its own. `kept_rates` saves buckets, so that a restart does not refill them, and
`shared_rates` tells other processes what was taken.

`UserRates` limits our own users and devices, which are known by their tokens. It takes only a `Device`, because it is
not known for certain which user of another provider sends a message (DS draft section 4: "A DS MUST NOT reject messages
based on criteria that are not unambiguously known by the DS"). `ProviderRates` limits the sum of what another provider
sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from math import ceil
from typing import Final

import attrs

from mimids.config import Limits
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.ports import Clock
from mimids.errors import RateLimited
from mimids.store.rates import StoredBucket, Taken
from mimids.values import Device, Follower, Milliseconds
from mimids.wire.ids import ProviderId

UNIT_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
KEYS_REMEMBERED: Final = 100_000  # keys of each rate
LONGEST_WAIT_SECONDS: Final = 366 * 86_400  # the longest Retry-After, because another hub may set a very low rate
RESTART_SECONDS: Final = 600  # a rate that refills within this time is not stored: a restart changes little
# Messages that are pushed to a follower again because it asked for them. After a restore it may have lost many.
REPEATED_PER_SECOND: Final = 2_000
REPEATED_BURST: Final = 200_000
TOLD_PARTS: Final = 8  # other processes are told of every eighth of a burst that a key has taken
STORED_STEP_SECONDS: Final = 60  # stored times are multiples of this, or of more for rates that refill slowly
STORED_STEPS: Final = 24  # at least, in the time that a rate needs to refill


@attrs.frozen
class Rate:
    """At most `burst` tokens, refilled at `per_second`; 0 a second means no limit. `limit` is its name in refusals."""

    limit: str
    per_second: float
    burst: int


@attrs.frozen
class ConfiguredRate:
    """The rate of a key of `[limits]` such as `device_sends_per_second`; a reload of the configuration changes it.

    Its burst is the value of another key, such as `device_sends_burst`, or the value of its own key.
    """

    limits: Limits
    limit: str
    _seconds: int
    _burst: str
    _more: int  # tokens that are added to the burst

    @classmethod
    def of(cls, limits: Limits, limit: str, burst: str | None = None, *, more: int = 0) -> ConfiguredRate:
        """Return the rate of a key; `burst` is the key of its burst."""
        return cls(limits, limit, UNIT_SECONDS[limit.rpartition("_per_")[2]], burst or limit, more)

    @property
    def per_second(self) -> float:
        """See `Rate`."""
        return self.limits[self.limit] / self._seconds

    @property
    def burst(self) -> int:
        """See `Rate`."""
        return self.limits[self._burst] + self._more


@attrs.define
class _Bucket:
    left: float  # tokens
    at: Milliseconds


class Rates:
    """One bucket for each key.

    At most `keys` buckets are kept; if a bucket was evicted, its key starts with a full bucket again.
    """

    def __init__(self, rate: Rate | ConfiguredRate, *, keys: int = KEYS_REMEMBERED) -> None:
        self.rate = rate
        self._keys = keys
        self._buckets = LeastRecentlyUsed[str, _Bucket](keys)
        self._taken: dict[str, int] = {}  # tokens by key, since the last save
        self._due: set[str] | None = None  # keys of which other processes must be told; None: there are no others

    def take(self, key: object, now: Milliseconds, count: int = 1) -> None:
        """Take `count` tokens; raise `RateLimited`, and take none, if the key has fewer at `now`."""
        if not self.rate.per_second or not count:
            return
        name = str(key)
        left = self._left(name, now)
        if left < count:
            seconds = min((count - left) / self.rate.per_second, LONGEST_WAIT_SECONDS)
            raise RateLimited(self.rate.limit, ceil(seconds))
        self._take(name, left, count, now)

    def owe(self, key: object, now: Milliseconds, count: int) -> None:
        """Take `count` tokens even if the key has fewer: it has none until the debt is refilled."""
        if self.rate.per_second and count:
            name = str(key)
            self._take(name, self._left(name, now), count, now)

    def left(self, key: object, now: Milliseconds, *, at_most: int) -> int:
        """Return how many tokens a key has at `now`, at most `at_most`."""
        return at_most if not self.rate.per_second else min(at_most, int(self._left(str(key), now)))

    def _take(self, name: str, left: float, count: int, now: Milliseconds) -> None:
        self._buckets.put(name, _Bucket(left - count, now))
        self._taken[name] = taken = self._taken.get(name, 0) + count
        if self._due is not None and taken * TOLD_PARTS >= self.rate.burst:
            self._due.add(name)
        if len(self._taken) > 2 * self._keys:  # bounds the mapping for rates that are never drained
            self._taken = {each: taken for each, taken in self._taken.items() if each in self._buckets}
            self._due = None if self._due is None else self._due & self._taken.keys()

    def _left(self, name: str, now: Milliseconds) -> float:
        bucket = self._buckets.peek(name)
        if bucket is None:
            return self.rate.burst
        bucket.at = min(bucket.at, now)  # a clock that was ahead for a while must not stop the refill for that long
        return min(self.rate.burst, bucket.left + (now - bucket.at) / 1000 * self.rate.per_second)

    # --- across restarts ----------------------------------------------------------------------------------------

    def restore(self, name: str, left: float, at: Milliseconds) -> None:
        """Restore a bucket that was saved."""
        self._buckets.put(name, _Bucket(left, at))

    def drain(self, now: Milliseconds) -> tuple[list[StoredBucket], list[tuple[str, str]]]:
        """Return the buckets that changed since the last call, and drop those that are full again.

        The second result names the full buckets, by limit and key: they need not be stored. Only the least recently
        used buckets are checked, up to the first that is not full.

        A bucket says when its key was last used. With such times one could match the devices here with their fetches at
        another provider (docs/privacy.md). So only the values that a restart needs are returned: whole tokens and a
        coarse time. Rates that refill quickly are left out.
        """
        full, changed = self._drop_full(now), []
        for name in self._taken if self.is_stored() else ():
            bucket = self._buckets.peek(name)
            if bucket is not None:
                changed.append(StoredBucket(self.rate.limit, name, int(bucket.left), self._roughly(bucket.at)))
        self._taken.clear()
        return changed, [(self.rate.limit, name) for name in full]

    def drain_taken(self, now: Milliseconds) -> tuple[list[Taken], list[Taken]]:
        """Return what was taken from each bucket since the last call, and drop the buckets that are full again.

        Several processes take from the stored buckets (`KeptRates`). The second result names the full buckets.
        """
        rate, at = self.rate, self._roughly(now)
        full = self._drop_full(now)
        names: dict[str, int] = {}
        if self.is_stored():
            names, self._taken = self._taken, {}
            self._due = None if self._due is None else set()  # `KeptRates` tells the others
        taken = [Taken(rate.limit, name, count, at, rate.per_second, rate.burst) for name, count in names.items()]
        return taken, [Taken(rate.limit, name, 0, at, rate.per_second, rate.burst) for name in full]

    def put_back(self, taken: Taken) -> None:
        """Put back drained buckets that could not be saved, so that the next save includes them."""
        self._taken[taken.key] = self._taken.get(taken.key, 0) + taken.count

    def lower(self, stored: StoredBucket, now: Milliseconds) -> None:
        """Lower a bucket to its stored tokens, if other processes have taken from it."""
        left = stored.left + max(0, now - stored.at) / 1000 * self.rate.per_second
        left = min(self.rate.burst, left) - self._taken.get(stored.key, 0)
        if left < self._left(stored.key, now):
            self._buckets.put(stored.key, _Bucket(left, now))

    # --- with other processes -----------------------------------------------------------------------------------

    def share(self) -> None:
        """Note from now on of which tokens other processes must be told."""
        self._due = set()

    def drain_due(self, at_most: int) -> list[tuple[str, int]]:
        """Return keys of which other processes must be told, and the tokens taken since they were last told."""
        names = [] if self._due is None else [self._due.pop() for _ in range(min(at_most, len(self._due)))]
        return [(name, taken) for name in names if (taken := self._taken.pop(name, 0))]

    def take_elsewhere(self, name: str, count: int, now: Milliseconds) -> None:
        """Take tokens that a key took at another process, even if it has fewer."""
        if self.rate.per_second:
            self._buckets.put(name, _Bucket(self._left(name, now) - count, now))

    def _drop_full(self, now: Milliseconds) -> list[str]:
        full = list(takewhile(lambda name: self._left(name, now) >= self.rate.burst, self._buckets))
        for name in full:
            self._buckets.pop(name)
        return full

    def _refill_seconds(self) -> float:
        return self.rate.burst / self.rate.per_second if self.rate.per_second else 0

    def is_stored(self) -> bool:
        """Tell whether the rate refills so slowly that a restart must not refill it."""
        return self._refill_seconds() > RESTART_SECONDS

    def _roughly(self, at: Milliseconds) -> Milliseconds:
        step = 1000 * max(STORED_STEP_SECONDS, int(self._refill_seconds() / STORED_STEPS))
        return Milliseconds(at - at % step)


def take_all(wanted: Iterable[tuple[Rates, object, int]], now: Milliseconds) -> Rates | None:
    """Take tokens of several rates, each of one key. If a rate has too few, take none and return that rate."""
    taken = []
    for rates, key, count in wanted:
        if rates.rate.per_second and count:
            name = str(key)
            left = rates._left(name, now)
            if left < count:
                return rates
            taken.append((rates, name, left, count))
    for rates, name, left, count in taken:
        rates._take(name, left, count, now)
    return None


class UserRates:
    """The rates of our own users and devices."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._clock = clock
        self._sends = (
            Rates(ConfiguredRate.of(limits, "device_sends_per_second", "device_sends_burst")),
            Rates(ConfiguredRate.of(limits, "user_sends_per_second", "user_sends_burst")),
        )
        self._joins = (
            Rates(ConfiguredRate.of(limits, "device_joins_per_hour", "device_joins_burst")),
            Rates(ConfiguredRate.of(limits, "user_joins_per_hour", "user_joins_burst")),
        )
        self._fetches = Rates(ConfiguredRate.of(limits, "user_fetches_per_minute", "user_fetches_burst"))

    @property
    def kept(self) -> tuple[Rates, ...]:
        """Return the rates for `KeptRates`, except for fetches: their rows would show who fetched (docs/privacy.md)."""
        return (*self._sends, *self._joins)

    def take_sends(self, device: Device, wanted: int) -> tuple[int, RateLimited | None]:
        """Count messages as far as device and user may send them.

        Return the number, and the refusal if it is less than `wanted`.
        """
        return _take_some(list(zip(self._sends, _keys(device), strict=True)), wanted, self._clock.now())

    def take_join(self, device: Device) -> None:
        """Count an external join; raise `RateLimited`."""
        _, refusal = _take_some(list(zip(self._joins, _keys(device), strict=True)), 1, self._clock.now())
        if refusal is not None:
            raise refusal

    def take_fetch(self, device: Device) -> None:
        """Count a KeyPackage request against the user's rate (the relay also counts it); raise `RateLimited`."""
        self._fetches.take(_keys(device)[1], self._clock.now())


class ProviderRates:
    """The rates of other providers, each for all its users together."""

    def __init__(self, limits: Limits, clock: Clock, on_bound: Callable[[str], None] = lambda bound: None) -> None:
        """Begin with full buckets; `on_bound` is called with the name of a bound that a provider hits."""
        self._clock = clock
        self._on_bound = on_bound
        self._sends = Rates(ConfiguredRate.of(limits, "provider_sends_per_second", "provider_sends_burst"))
        self._joins = Rates(ConfiguredRate.of(limits, "provider_joins_per_hour", "provider_joins_burst"))
        self._repeats = Rates(Rate("provider_repeats", REPEATED_PER_SECOND, REPEATED_BURST))

    @property
    def all(self) -> tuple[Rates, ...]:
        """Return all rates, for `KeptRates`."""
        return (self._sends, self._joins, self._repeats)

    def take_sends(self, follower: Follower, wanted: int) -> tuple[int, RateLimited | None]:
        """Count messages as far as the provider may send them; return how many, and the refusal if not all `wanted`."""
        return _take_some([(self._sends, follower.provider)], wanted, self._clock.now())

    def take_join(self, follower: Follower) -> None:
        """Count an external join; raise `RateLimited`."""
        self._joins.take(follower.provider, self._clock.now())

    def take_repeat(self, follower: Follower) -> None:
        """Count a request to be pushed to; raise `RateLimited` after requests for too many messages."""
        try:
            self._repeats.take(follower.provider, self._clock.now())
        except RateLimited:
            self._on_bound("repeated-pushes")
            raise

    def owe_repeats(self, follower: Follower, messages: int) -> None:
        """Count messages that are pushed to the provider again, because it asked for them."""
        self._repeats.owe(follower.provider, self._clock.now(), messages)


class HubRates:
    """The rates that the terms of a hub set for each of our devices (semantics: terms-and-reports)."""

    def __init__(self, clock: Clock, share: Callable[[str, Rates], None]) -> None:
        """`share` is called with the rates of each hub, so that other processes are told of them."""
        self._clock = clock
        self._share = share
        self._of: dict[tuple[ProviderId, str], Rates] = {}

    def take_sends(
        self, hub: ProviderId, rate: Rate | None, device: Device, wanted: int
    ) -> tuple[int, RateLimited | None]:
        """Count messages as far as a device may send them to a hub.

        Return the number, and the refusal if it is less than `wanted`.
        """
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
            self._share(f"hub {hub} {rate.limit}", found)
        return found


def _keys(device: Device) -> tuple[str, str]:
    return str(device.row), device.user_id.decode("utf-8", "replace")


def _take_some(buckets: Sequence[tuple[Rates, str]], wanted: int, now: Milliseconds) -> tuple[int, RateLimited | None]:
    """Take as many tokens as every bucket has, at most `wanted`; return how many, and the refusal if not all."""
    found = [(rates, key, rates._left(key, now)) for rates, key in buckets if rates.rate.per_second]
    count = max(0, min([wanted, *(int(left) for _, _, left in found)]))
    for rates, key, left in found if count else ():
        rates._take(key, left, count, now)
    if count == wanted:
        return count, None
    for rates, key in buckets:
        try:
            if rates.left(key, now, at_most=1) < 1:
                rates.take(key, now)
        except RateLimited as refusal:
            return count, refusal
    raise AssertionError("no bucket refused the next token")
