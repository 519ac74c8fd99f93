"""The providers that the operator banned, cached for every call from and to another provider."""

from __future__ import annotations

from collections.abc import Mapping

from mimids.ds.ports import Clock
from mimids.errors import ProviderNotAllowed
from mimids.store import bans
from mimids.store.engine.store import Store
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId


class BannedProviders:
    """A cache of the provider bans; `forget` makes it read the store again."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._banned: Mapping[ProviderId, Milliseconds | None] | None = None
        self._generation = 0
        store.when_changed(self.forget, "bans")

    async def check_allowed(self, provider: ProviderId) -> None:
        """Raise `ProviderNotAllowed` if the provider is banned now."""
        banned = self._banned
        if banned is None:
            generation = self._generation
            banned = await self._store.read(bans.banned_providers)
            if generation == self._generation:  # if they differ, the snapshot may be older than a change
                self._banned = banned
        if provider in banned and not is_over(banned[provider], self._clock.now()):
            raise ProviderNotAllowed

    def forget(self) -> None:
        """Drop the cache; call this after a commit that changed bans."""
        self._generation += 1
        self._banned = None


def is_over(expires_at: Milliseconds | None, now: Milliseconds) -> bool:
    """Tell whether a ban or mute has ended; `expires_at` None means that it does not end."""
    return expires_at is not None and expires_at <= now
