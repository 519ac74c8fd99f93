"""Limits on the Welcomes that one sender can make this server send (semantics: limits-and-retention).

A Welcome goes to each provider that its sender names. So the number of providers of one Welcome is bounded. Each
provider counts against a rate of the sender. A provider that this server has never contacted also counts as a new
provider.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mimids.config import Limits
from mimids.ds.limits.new_providers import NewProviders
from mimids.ds.limits.rates import Rate, Rates
from mimids.ds.ports import Clock
from mimids.errors import MimiError, TooMany
from mimids.tracebacks import release_frames
from mimids.values import Device, Sender
from mimids.wire.messages import WelcomeData

SECRETS: Final = 16_384  # of all Welcomes of one commit
DEVICE_PER_SECOND: Final = 10  # for each device; a Welcome counts once for each provider that it names
DEVICE_BURST: Final = 2000
PROVIDER_PER_SECOND: Final = 200  # the same for each other provider, all its users together
PROVIDER_BURST: Final = 20_000
DEVICE_WAITING: Final = 2000  # Welcomes that are not delivered yet, for each device
PROVIDER_WAITING: Final = 20_000


class WelcomeLimits:
    """Counts the Welcomes of each sender."""

    def __init__(
        self,
        limits: Limits,
        clock: Clock,
        new_providers: NewProviders,
        on_bound: Callable[[str], None] = lambda bound: None,
    ) -> None:
        self._on_bound = on_bound
        self._limits = limits
        self._clock = clock
        self._new_providers = new_providers
        self._devices = Rates(Rate("device_welcomes", DEVICE_PER_SECOND, DEVICE_BURST))
        self._providers = Rates(Rate("provider_welcomes", PROVIDER_PER_SECOND, PROVIDER_BURST))

    @property
    def all(self) -> tuple[Rates, ...]:
        """Return all rates."""
        return (self._devices, self._providers)

    def count(self, sender: Sender, data: WelcomeData | None) -> MimiError | None:
        """Count a Welcome; return `TooMany` or `RateLimited` if the sender may not send it."""
        refusal = None if data is None else self._count(sender, data)
        if refusal is not None:
            self._on_bound("welcomes")
        return refusal

    def _count(self, sender: Sender, data: WelcomeData) -> MimiError | None:
        named = set(data.service_providers)
        if len(named) > self._limits.welcome_providers:
            return TooMany("welcome_providers", len(named))
        try:
            self._new_providers.take(sender, named)
            if isinstance(sender, Device):
                self._devices.take(sender.row, self._clock.now(), len(named))
            else:
                self._providers.take(sender.provider, self._clock.now(), len(named))
        except MimiError as refusal:
            return release_frames(refusal)
        return None
