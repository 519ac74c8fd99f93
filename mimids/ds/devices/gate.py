"""Counts what our own devices do, against this provider's limits and the rates in a hub's terms.

A device is identified by its token, so its own rates and byte budgets apply in the groups of every hub
(semantics: limits-and-retention). Only the counters are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mimids.ds.limits.budgets import Budgets, octets_of
from mimids.ds.limits.rates import HubRates, Rates, UserRates
from mimids.ds.ports import Clock
from mimids.ds.terms.hub_terms import HubTerms
from mimids.errors import MimiError
from mimids.values import Device
from mimids.wire.messages import CreateGroupRequest, ExternalJoinRequest, ExternalProposalRequest, SendRequest


class Gate:
    """Counts each request of a device; `terms` are the terms that we accepted from another hub, if there are any."""

    def __init__(
        self,
        clock: Clock,
        rates: UserRates,
        budgets: Budgets,
        share: Callable[[str, Rates], None] = lambda name, rates: None,
    ) -> None:
        """`share` is called with the rates of each hub, so that other processes are told of them."""
        self._rates = rates
        self._budgets = budgets
        self._hub_rates = HubRates(clock, share)

    def count_sends(
        self, device: Device, requests: Sequence[SendRequest], *, terms: HubTerms | None = None
    ) -> list[MimiError | None]:
        """Count messages in order; return for each the refusal if a limit is reached, else None."""
        in_rate, refusal = self._rates.take_sends(device, len(requests))
        at_hub, hub_refusal = in_rate, None
        if terms is not None:
            rate = terms.rate("device_sends", 1)
            at_hub, hub_refusal = self._hub_rates.take_sends(terms.hub, rate, device, in_rate)
        sizes = [octets_of(each.message, each.commit_data) for each in requests[:at_hub]]
        in_budget, full = self._budgets.take(device, sizes)
        verdicts: list[MimiError | None] = [None for _ in range(in_budget)]
        verdicts += [full] * (at_hub - in_budget)
        return [*verdicts, *[hub_refusal] * (in_rate - at_hub), *[refusal] * (len(requests) - in_rate)]

    def count_join(self, device: Device, request: ExternalJoinRequest, *, terms: HubTerms | None = None) -> None:
        """Count an external commit; raise `RateLimited`."""
        self._rates.take_join(device)
        self._count_octets(device, octets_of(request.message, request.commit_data))
        if terms is not None:
            self._hub_rates.take_join(terms.hub, terms.rate("device_joins", 3600), device)

    def count_proposal(self, device: Device, request: ExternalProposalRequest) -> None:
        """Count an external proposal; raise `RateLimited`."""
        _, refusal = self._rates.take_sends(device, 1)
        if refusal is not None:
            raise refusal
        self._count_octets(device, octets_of(request.message, None))

    def count_status(self, device: Device) -> None:
        """Count a request for the status of Welcomes as one message; raise `RateLimited`."""
        _, refusal = self._rates.take_sends(device, 1)
        if refusal is not None:
            raise refusal

    def count_creation(self, device: Device, request: CreateGroupRequest) -> None:
        """Count the octets that the creation of a group stores; raise `RateLimited`."""
        parts = (request.group_info, None if request.welcome_data is None else request.welcome_data.welcome)
        self._count_octets(device, sum(len(each.encoded) for each in parts if each is not None))

    def count_fetch(self, device: Device) -> None:
        """Count a KeyPackage request through the relay; raise `RateLimited`."""
        self._rates.take_fetch(device)

    def _count_octets(self, device: Device, octets: int) -> None:
        _, refusal = self._budgets.take(device, [octets])
        if refusal is not None:
            raise refusal
