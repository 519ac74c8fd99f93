"""A limit on how many new providers one sender makes this server contact (semantics: limits-and-retention).

A provider is new until somebody here has named it: as the target of the relay, as a hub, or in a Welcome. A provider
that this server may not contact does not count, because it is never contacted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from mimids.config import Limits
from mimids.ds.limits.rates import ConfiguredRate, Rate, Rates
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.ports import Clock
from mimids.errors import RateLimited
from mimids.values import Device, DeviceRow, Sender
from mimids.wire.ids import ProviderId

PROVIDERS_REMEMBERED: Final = 10_000


class NewProviders:
    """Counts new providers for each device of ours, and for each other provider that sends to our groups."""

    def __init__(
        self,
        devices: Rate | ConfiguredRate,
        providers: Rate | ConfiguredRate,
        clock: Clock,
        allowed: Callable[[ProviderId], bool] = lambda _: True,
        on_bound: Callable[[str], None] = lambda bound: None,
    ) -> None:
        """Make the counts; `allowed` tells whether we may contact a provider; it is false for this server itself."""
        self._on_bound = on_bound
        self._clock = clock
        self._allowed = allowed
        self._devices = Rates(devices)
        self._providers = Rates(providers)
        self._known: LeastRecentlyUsed[ProviderId, None] = LeastRecentlyUsed(PROVIDERS_REMEMBERED)

    @classmethod
    def of(
        cls,
        limits: Limits,
        clock: Clock,
        allowed: Callable[[ProviderId], bool],
        on_bound: Callable[[str], None] = lambda bound: None,
    ) -> NewProviders:
        """Return the counts that the configuration asks for."""
        return cls(
            ConfiguredRate.of(limits, "device_new_providers_per_day"),
            ConfiguredRate.of(limits, "provider_new_providers_per_day"),
            clock,
            allowed,
            on_bound,
        )

    @property
    def all(self) -> tuple[Rates, ...]:
        """Return all rates, for `KeptRates`."""
        return (self._devices, self._providers)

    def take(self, sender: Sender | DeviceRow, named: Iterable[ProviderId]) -> None:
        """Count the new providers among `named`; if there are too many, raise `RateLimited` and count none."""
        contacted = [provider for provider in dict.fromkeys(named) if self._allowed(provider)]
        if new := sum(provider not in self._known for provider in contacted):
            try:
                self._count(sender, new)
            except RateLimited:
                self._on_bound("new-providers")
                raise
        for provider in contacted:
            self._known.put(provider, None)

    def affordable(self, sender: Sender, named: Iterable[ProviderId]) -> set[ProviderId]:
        """Count new providers in `named` while the rate allows; return those counted or known that we may contact."""
        contacted = set()
        for provider in named:
            try:
                self.take(sender, [provider])
            except RateLimited:
                continue  # later ones may be known already
            if self._allowed(provider):
                contacted.add(provider)
        return contacted

    def _count(self, sender: Sender | DeviceRow, new: int) -> None:
        now = self._clock.now()
        if isinstance(sender, int):
            self._devices.take(sender, now, new)
        elif isinstance(sender, Device):
            self._devices.take(sender.row, now, new)
        else:
            self._providers.take(sender.provider, now, new)

    def restore(self, domains: Iterable[ProviderId]) -> None:
        """Remember providers that were named before a restart; if there are too many, the first ones are forgotten."""
        for domain in domains:
            self._known.put(domain, None)
