"""Authentication of callers: other providers by certificate, devices of our users by token.

(http: between-providers) (http: devices)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import attrs

from mimids.config import FederationSettings
from mimids.ds.limits.rates import ConfiguredRate, Rate, Rates
from mimids.ds.ports import Clock
from mimids.errors import ProviderNotAllowed, RateLimited, Unauthenticated
from mimids.http.server.tls import caller
from mimids.telemetry import Telemetry
from mimids.values import Anyone, Caller, Device, Follower, Operator
from mimids.wire.ids import ProviderId, Secret

ANSWER_OCTETS: Final = 32 * 1024  # each full 32 KiB of an answer to a device counts as one more request
PROVIDER_ANSWERS_PER_SECOND: Final = 4 * 1024 * 1024  # octets of answers to one other provider, after the burst
PROVIDER_ANSWERS_BURST: Final = 256 * 1024 * 1024
SUBPROTOCOL: Final = "mimids.bearer."  # a browser's WebSocket cannot send Authorization
_ANYONE: Final = Anyone()
_OPERATOR: Final = Operator()


class PresentedToken(Secret):
    """A device token, as the request has it."""


def device_token(headers: Mapping[str, str]) -> PresentedToken:
    """Return the token in `Authorization: Bearer` or in a WebSocket's subprotocol.

    Raises `Unauthenticated` if there is none.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":  # RFC 9110 section 11.1: case-insensitive
        return _token(token.strip())
    for offered in headers.get("sec-websocket-protocol", "").split(","):
        if offered.strip().startswith(SUBPROTOCOL):
            return _token(offered.strip().removeprefix(SUBPROTOCOL))
    raise Unauthenticated


def _token(text: str) -> PresentedToken:
    if not text or not text.isascii():
        raise Unauthenticated
    return PresentedToken(text.encode())


@attrs.frozen
class Authenticator:
    """Authenticates callers. `find_device` returns the device of a token, None for an unknown token."""

    provider: ProviderId  # our own
    federation: FederationSettings
    find_device: Callable[[PresentedToken], Awaitable[Device | None]]

    async def admit(
        self, kind: type[Caller], headers: Mapping[str, str], names: frozenset[ProviderId] | None
    ) -> Caller:
        """Return the caller, an instance of `kind`.

        `names` are the provider names in the caller's certificate, None without a certificate.

        Raises `Unauthenticated` for a device without a valid token, and `CertificateRequired`, `CertificateMismatch`
        and `ProviderNotAllowed` for another provider. An `Operator` is not authenticated: the address of the listener,
        or the mode of the socket's file, keeps others out (http: operator).
        """
        if kind is Device:
            device = await self.find_device(device_token(headers))
            if device is None:
                raise Unauthenticated
            return device
        if kind is Follower:
            provider = caller(names, headers.get("from"))
            if not self.federation.allows(provider, us=self.provider):
                raise ProviderNotAllowed
            return Follower(provider)
        return _OPERATOR if kind is Operator else _ANYONE


class CallerRates:
    """Counts what callers ask for: requests and frames of devices, and octets of answers.

    An answer of many small messages costs far more than its request. So a device's answers above `ANSWER_OCTETS` count
    as further requests, and the answers to another provider have a rate in octets. The cost of an answer is known only
    once the answer is made, so it is booked as a debt: the caller's next requests wait or are refused until the debt is
    refilled. 0 requests a minute means no limit for devices.
    """

    def __init__(self, requests: Rate | ConfiguredRate, clock: Clock, telemetry: Telemetry) -> None:
        """Begin with empty counts; `requests` is the rate at which each device may send requests."""
        self._requests = Rates(requests)
        self._answers = Rates(Rate("provider_answers", PROVIDER_ANSWERS_PER_SECOND, PROVIDER_ANSWERS_BURST))
        self._clock = clock
        self._telemetry = telemetry

    @property
    def all(self) -> tuple[Rates, ...]:
        """Return the rates of requests and of answers."""
        return (self._requests, self._answers)

    def take(self, caller: Caller) -> None:
        """Count a request; raise `RateLimited` if the caller made too many, or if its debt for answers is too large."""
        if isinstance(caller, Device):
            self._requests.take(caller.row, self._clock.now())
        elif isinstance(caller, Follower):
            try:
                self._answers.take(caller.provider, self._clock.now())
            except RateLimited:
                self._telemetry.bound_hit("provider-answers")
                raise

    def owe(self, caller: Caller, octets: int) -> None:
        """Count the octets of an answer, or of a frame to a device, as a debt of the caller."""
        if isinstance(caller, Device):
            self._requests.owe(caller.row, self._clock.now(), octets // ANSWER_OCTETS)
        elif isinstance(caller, Follower):
            self._answers.owe(caller.provider, self._clock.now(), octets)

    async def wait(self, caller: Caller) -> None:
        """Count a frame as a request of its device; wait until the device's rate allows the request."""
        while isinstance(caller, Device):
            try:
                self.take(caller)
            except RateLimited as error:
                self._telemetry.bound_hit("device-frames")
                await self._clock.sleep(error.retry_after)
            else:
                return
