"""Budgets: how many octets a sender may have stored, as a burst and a daily refill (semantics: limits-and-retention).

Which octets count:

- Against a device, at its own provider, for groups of any hub: the messages, external commits and external proposals
  that it sends, and the groups that it creates (`ds.devices.gate`).
- Against another provider, here as hub: the messages, external commits and external proposals that it sends
  (`ds.groups.hub`).
- Against another provider, here as follower or after a restore: everything that it pushes, or returns to us when we ask
  (`ds.following.receiver`).

Octets never count against a group or partition: if they did, one sender of junk could block a group. Each provider has
a budget of its own, which other providers cannot use up.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from mimids.config import Limits
from mimids.ds.limits.rates import ConfiguredRate, Rates
from mimids.ds.ports import Clock
from mimids.errors import RateLimited
from mimids.mls.framing import MLSMessage
from mimids.values import Device, Sender
from mimids.wire.messages import CommitData


def octets_of(message: MLSMessage, data: CommitData | None) -> int:
    """Return how many octets are stored for a message with its GroupInfo and its Welcome."""
    octets = len(message.encoded)
    if data is not None and data.group_info is not None:
        octets += len(data.group_info.encoded)
    if data is not None and data.welcome_data is not None:
        octets += len(data.welcome_data.welcome.encoded)
    return octets


class Budgets:
    """The budgets of our devices and of other providers."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._clock = clock
        self._devices = Rates(ConfiguredRate.of(limits, "device_bytes_per_day", "device_bytes_burst"))
        self._providers = Rates(ConfiguredRate.of(limits, "provider_bytes_per_day", "provider_bytes_burst"))

    @property
    def all(self) -> tuple[Rates, ...]:
        """Return all rates, for `KeptRates`."""
        return (self._devices, self._providers)

    def take(self, sender: Sender, octets: Sequence[int]) -> tuple[int, RateLimited | None]:
        """Count the octets of messages, in order, while the budget lasts.

        Return how many messages, and the refusal of the rest.
        """
        rates = self._devices if isinstance(sender, Device) else self._providers
        key = str(sender.row) if isinstance(sender, Device) else sender.provider
        now = self._clock.now()
        with suppress(RateLimited):  # nearly always the budget lasts for all
            rates.take(key, now, sum(octets))
            return len(octets), None
        for counted, each in enumerate(octets):
            try:
                rates.take(key, now, each)
            except RateLimited as refusal:
                return counted, refusal
        return len(octets), None
