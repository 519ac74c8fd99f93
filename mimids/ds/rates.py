"""Rates: so many at once, and so many a second after that. Kept in memory only: a restart forgives."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from math import ceil
from typing import Final

import attrs

from mimids.errors import RateLimited
from mimids.values import Milliseconds

KEYS_REMEMBERED: Final = 10_000


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
        self._rate = rate
        self._keys = keys
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def take(self, key: Hashable, now: Milliseconds) -> None:
        """Count one; raise `RateLimited` if the key has none left at `now`, which costs it nothing further."""
        rate = self._rate
        if not rate.per_second:
            return
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(rate.burst, now)
            if len(self._buckets) > self._keys:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        left = min(rate.burst, bucket.left + max(0, now - bucket.at) / 1000 * rate.per_second)
        if left < 1:
            raise RateLimited(rate.limit, ceil((1 - left) / rate.per_second))
        bucket.left, bucket.at = left - 1, now
