"""Early retries: a provider that calls us can be reached, so it is tried again before its back-off ends.

A job that tries providers again after a back-off has an `EarlyRetries`. Each authenticated call of another provider is
passed to `Callers`, which tells every `EarlyRetries`. A call during an attempt counts too, if that attempt fails.

The first early retry is due at once. If the provider keeps calling us and failing, the next early retries are due after
0.5 s, then after 1 s, and so on up to `SPACING_CAP_SECONDS`. A provider that answered 429 is not tried before the time
that it asked for (RFC 9110 section 10.2.3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.notifier import Waiter
from mimids.ds.ports import Clock
from mimids.errors import MimiError, RateLimited
from mimids.wire.ids import ProviderId

FIRST_SPACING_SECONDS: Final = 0.5
SPACING_CAP_SECONDS: Final = 30.0
PROVIDERS_REMEMBERED: Final = 10_000


def spacing_seconds(early: int) -> float:
    """Return how long to wait after `early` (1 or more) early retries before the next one."""
    return min(SPACING_CAP_SECONDS, FIRST_SPACING_SECONDS * 2.0 ** min(early - 1, 16))


async def wait_for_call(waiter: Waiter, clock: Clock, seconds: float, *, early: int) -> int:
    """Wait for the end of a back-off, or for a call of the provider; return the number of early retries so far.

    `waiter` listens to the `heard_topic` of the provider; `early` is the number of early retries before this wait.
    """
    if not await waiter.wait_at_most(clock, seconds):
        return early
    if early:
        await clock.sleep(min(seconds, spacing_seconds(early)))
    return early + 1


class Callers:
    """Tells its listeners when another provider has called us."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[ProviderId], None]] = []

    def listen(self, heard: Callable[[ProviderId], None]) -> None:
        """Have `heard` called with each provider that calls us, from now on; it must not wait."""
        self._listeners.append(heard)

    def note(self, provider: ProviderId) -> None:
        """Tell all listeners that a provider has made an authenticated call."""
        for heard in self._listeners:
            heard(provider)


@attrs.define
class _Tried:
    """A provider that a job is trying, or will try again after a back-off."""

    trying: bool = False
    has_called: bool = False  # the provider has called since the last attempt began
    early: int = 0  # attempts that a call made due, since the last success
    not_before: int = 0  # on the monotonic clock, in milliseconds


class EarlyRetries:
    """The providers that one job tries again after a back-off, and which providers have called since.

    `wake` wakes the job. The job then calls `take_due`, and tries the providers that it returns.
    """

    def __init__(self, clock: Clock, wake: Callable[[], None]) -> None:
        self._clock = clock
        self._wake = wake
        self._tried = LeastRecentlyUsed[ProviderId, _Tried](PROVIDERS_REMEMBERED)
        self._called: set[ProviderId] = set()  # the providers in `_tried` that `take_due` may return

    def heard(self, provider: ProviderId) -> None:
        """Make a provider that has called us due for an early retry; do next to nothing if it is not in back-off."""
        tried = self._tried.peek(provider)
        if tried is None or tried.has_called:
            return
        tried.has_called = True
        if not tried.trying:
            self._offer(provider)

    def begin(self, provider: ProviderId) -> None:
        """Mark a provider as being tried; several attempts may run at a time."""
        tried = self._remember(provider)
        if not tried.trying:
            tried.trying, tried.has_called = True, False
        self._called.discard(provider)

    def failed(self, provider: ProviderId, error: MimiError | None = None) -> None:
        """Mark a provider as in back-off, because an attempt failed now or before a restart."""
        tried = self._remember(provider)
        tried.trying = False
        retry_after = error.members.get("retry_after") if isinstance(error, RateLimited) else None
        if isinstance(retry_after, int | float):
            tried.not_before = max(tried.not_before, self._after(retry_after))
        if tried.has_called:
            self._offer(provider)

    def end(self, provider: ProviderId) -> None:
        """Forget a provider whose attempt has ended, unless `failed` was called: then it stays in back-off."""
        tried = self._tried.peek(provider)
        if tried is not None and tried.trying:
            self._tried.pop(provider)

    def take_due(self) -> list[ProviderId]:
        """Return the providers whose back-off ends now because they have called."""
        now = self._clock.running()
        due = [provider for provider in self._called if self._due_at(provider) <= now]
        for provider in due:
            self._called.discard(provider)
            tried = self._remember(provider)
            tried.has_called = False
            tried.early += 1
            tried.not_before = self._after(spacing_seconds(tried.early))
        return due

    def seconds_left(self) -> list[float]:
        """Return, for each provider that has called, the seconds until `take_due` can return that provider."""
        now = self._clock.running()
        return [(self._due_at(provider) - now) / 1000 for provider in self._called]

    def _offer(self, provider: ProviderId) -> None:
        if provider not in self._called:  # so that a job does not wake itself at each failure
            self._called.add(provider)
            self._wake()

    def _due_at(self, provider: ProviderId) -> int:
        tried = self._tried.peek(provider)
        return 0 if tried is None else tried.not_before

    def _remember(self, provider: ProviderId) -> _Tried:
        tried = self._tried.get(provider)
        if tried is None:
            tried = _Tried()
            self._tried.put(provider, tried)
        return tried

    def _after(self, seconds: float) -> int:
        return self._clock.running() + int(seconds * 1000)
