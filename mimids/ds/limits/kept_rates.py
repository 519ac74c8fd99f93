"""Rates across restarts: buckets that refill slowly are saved and restored (semantics: limits-and-retention)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from mimids.ds.limits.rates import KEYS_REMEMBERED, Rates
from mimids.ds.ports import Clock
from mimids.ds.saving import save_regularly
from mimids.errors import MimiError
from mimids.store import providers
from mimids.store import rates as stored
from mimids.store.engine.store import Store
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId

PROVIDERS_RESTORED: Final = 10_000
SAVED_AT_ONCE: Final = 500
SAVE_SECONDS: Final = 10.0  # between saves; a killed process loses the changes since the last save
LAST_SAVE_SECONDS: Final = 5.0  # at most, at shutdown


class KeptRates:
    """Saves the buckets of some rates every `SAVE_SECONDS` and restores them at the start; `run` is the job."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        rates: Sequence[Rates],
        *,
        restore_providers: Callable[[Iterable[ProviderId]], None] = lambda domains: None,
        shared: bool = False,
    ) -> None:
        """`restore_providers` is called with the providers that the store knows, before `run` has started.

        With `shared`, other processes save the same rates. Then each save subtracts the tokens taken here from the
        stored tokens, and lowers the bucket here to the result. Between saves a process does not know what others took:
        each further process allows at most one burst more. Rates that are not stored are shared by `SharedRates`.
        """
        self._store = store
        self._clock = clock
        self._rates = {each.rate.limit: each for each in rates}
        self._restore_providers = restore_providers
        self._shared = shared

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Restore the buckets, then save them until cancelled, and once more at the end."""
        for bucket in await self._store.read(lambda tx: stored.load(tx, limit=KEYS_REMEMBERED)):
            if bucket.rate in self._rates:
                self._rates[bucket.rate].restore(bucket.key, bucket.left, bucket.at)
        self._restore_providers(await self._store.read(lambda tx: providers.newest_domains(tx, PROVIDERS_RESTORED)))
        task_status.started()
        await save_regularly(self.save, self._clock, every=SAVE_SECONDS, at_most=LAST_SAVE_SECONDS)

    async def save(self) -> None:
        """Save the buckets that changed; if the store refuses, a restart restores older buckets."""
        now = self._clock.now()
        if self._shared:
            await self._save_taken(now)
            return
        drained = [each.drain(now) for each in self._rates.values()]
        changed = [bucket for kept, _ in drained for bucket in kept]
        full = [key for _, keys in drained for key in keys]
        if changed or full:
            with suppress(MimiError):
                await self._store.write(lambda tx: stored.save(tx, changed, full=full))

    async def _save_taken(self, now: Milliseconds) -> None:
        drained = [each.drain_taken(now) for each in self._rates.values()]
        full = [bucket for _, buckets in drained for bucket in buckets]
        unsaved = [each for taken, _ in drained for each in taken]
        with suppress(MimiError):
            if full:
                await self._store.write(lambda tx: stored.forget_full(tx, full, now))
            while unsaved:
                page = unsaved[:SAVED_AT_ONCE]
                await self._store.write(partial(stored.add, taken=page))
                del unsaved[:SAVED_AT_ONCE]
                for limit in {each.rate for each in page}:
                    keys = [each.key for each in page if each.rate == limit]
                    for bucket in await self._store.read(partial(stored.buckets_of, rate=limit, keys=keys)):
                        self._rates[limit].lower(bucket, now)
        for each in unsaved:
            self._rates[each.rate].put_back(each)
