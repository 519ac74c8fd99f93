"""A cache for what the operator's listener shows, if that takes long to read or would show single changes."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, thread_time
from typing import Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx

T = TypeVar("T")

QUICK_SECONDS: Final = 0.1  # a value that is read in at most this time is not cached
SHARE: Final = 20  # any other value is kept for 20 times its reading time, so that reading takes a twentieth of a core


class KeptPage(Generic[T]):
    """A cache of the value that one page reads from the database; each store has its own value."""

    def __init__(self, *, quick_seconds: float = QUICK_SECONDS, share: int = SHARE, period_seconds: int = 0) -> None:
        """Cache a value for `share` times as long as reading it took, if that was more than `quick_seconds`.

        With `period_seconds`, every value is kept at least until the clock shows a multiple of that period. Otherwise
        somebody could read the page again and again, and see single changes.
        """
        self._quick_seconds = quick_seconds
        self._share = share
        self._period_seconds = period_seconds
        self._kept: WeakKeyDictionary[Store, tuple[float, T]] = (
            WeakKeyDictionary()
        )  # the time until which the value is kept, and the value

    async def read(self, store: Store, work: Callable[[Tx], T]) -> T:
        """Return what `work` returns, or the cached value."""
        kept = self._kept.get(store)
        if kept is not None and monotonic() < kept[0]:
            return kept[1]
        value, took = await store.read_apart(lambda tx: _timed(work, tx))
        now = until = monotonic()
        if took > self._quick_seconds:
            until += self._share * took
        if self._period_seconds:
            until = max(until, (now // self._period_seconds + 1) * self._period_seconds)
        if until > now:
            self._kept[store] = (until, value)
        return value


def _timed(work: Callable[[Tx], T], tx: Tx) -> tuple[T, float]:
    """Return the result of `work`, and the seconds of CPU time that it took in its thread."""
    began = thread_time()
    return work(tx), thread_time() - began
