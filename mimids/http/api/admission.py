"""Authentication of callers: other providers by certificate, devices of our users by token.

(http: between-providers) (http: devices)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import attrs

from mimids.config import FederationSettings
from mimids.errors import ProviderNotAllowed, Unauthenticated
from mimids.http.server.tls import caller
from mimids.values import Anyone, Caller, Device, Follower, Operator
from mimids.wire.ids import ProviderId, Secret

SUBPROTOCOL: Final = "mimids.bearer."  # a browser's WebSocket cannot send Authorization
_ANYONE: Final = Anyone()
_OPERATOR: Final = Operator()


class PresentedToken(Secret):
    """A device token, as the request has it."""


def device_token(headers: Mapping[str, str]) -> PresentedToken:
    """Return the token in `Authorization: Bearer` or in a WebSocket's subprotocol; raise `Unauthenticated`."""
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
        """Return the caller, an instance of `kind`; `names` are those of its certificate, None without one.

        Raises `Unauthenticated` for a device, and `CertificateRequired`, `CertificateMismatch` and
        `ProviderNotAllowed` for another provider. An `Operator` is not authenticated: the address of the listener, or
        the mode of the socket's file, keeps others out (http: operator).
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
