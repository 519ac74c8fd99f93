"""Octets that a sender may have stored: so many at once, and so many a day after that.

(semantics: limits-and-retention)

They count against the authenticated device, at its own provider and whatever the hub, and against the calling provider
at the hub; never against a group or a partition, or one junk sender could block a group. No two providers share a
budget, so each has what it needs reserved, whatever the others do.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from mimids.config import Limits
from mimids.ds.limits.rates import Rate, Rates
from mimids.ds.ports import Clock
from mimids.errors import RateLimited
from mimids.mls.framing import MLSMessage
from mimids.values import Device, Sender
from mimids.wire.messages import CommitData

DAY_SECONDS: Final = 86_400


def octets_of(message: MLSMessage, data: CommitData | None) -> int:
    """Return what storing a message takes: itself, its GroupInfo and its Welcome."""
    octets = len(message.encoded)
    if data is not None and data.group_info is not None:
        octets += len(data.group_info.encoded)
    if data is not None and data.welcome_data is not None:
        octets += len(data.welcome_data.welcome.encoded)
    return octets


class Budgets:
    """What each device and each other provider may still store."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._clock = clock
        self._devices = Rates(
            Rate("device_bytes_per_day", limits.device_bytes_per_day / DAY_SECONDS, limits.device_bytes_burst)
        )
        self._providers = Rates(
            Rate("provider_bytes_per_day", limits.provider_bytes_per_day / DAY_SECONDS, limits.provider_bytes_burst)
        )

    @property
    def all(self) -> tuple[Rates, ...]:
        """Return all of them, to be kept."""
        return (self._devices, self._providers)

    def take(self, sender: Sender, octets: Sequence[int]) -> tuple[int, RateLimited | None]:
        """Count as many of these, in order, as the sender has room for; return how many, and why not more."""
        rates = self._devices if isinstance(sender, Device) else self._providers
        key = str(sender.row) if isinstance(sender, Device) else sender.provider
        now = self._clock.now()
        with suppress(RateLimited):  # nearly always there is room for all
            rates.take(key, now, sum(octets))
            return len(octets), None
        for taken, each in enumerate(octets):
            try:
                rates.take(key, now, each)
            except RateLimited as refusal:
                return taken, refusal
        return len(octets), None
