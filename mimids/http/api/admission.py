"""Who asks: other providers by certificate, our own users' devices by token (http: devices).

(http: between-providers)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import attrs

from mimids.config import FederationSettings
from mimids.errors import ProviderNotAllowed, Unauthenticated
from mimids.http.api.endpoints import Access
from mimids.http.server.tls import caller
from mimids.values import Anyone, Caller, Device, Follower
from mimids.wire.ids import ProviderId, Secret

SUBPROTOCOL: Final = "mimids.bearer."  # a browser's WebSocket cannot send Authorization
_NOBODY: Final = Anyone()


class PresentedToken(Secret):
    """What a device shows, as it was written."""


def device_token(headers: Mapping[str, str]) -> PresentedToken:
    """Return the token of `Authorization: Bearer`, or of a WebSocket's subprotocol; raise `Unauthenticated`."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":  # RFC 9110 section 11.1: the scheme's case means nothing
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
    """Finds out who asks, and whether that is who may. `find_device` knows the tokens; None is a stranger."""

    provider: ProviderId  # our own
    federation: FederationSettings
    find_device: Callable[[PresentedToken], Awaitable[Device | None]]

    async def admit(self, access: Access, headers: Mapping[str, str], names: frozenset[ProviderId] | None) -> Caller:
        """Return the caller, or raise the refusal; `names` are those of its certificate, None without one."""
        if access is Access.DEVICE:
            device = await self.find_device(device_token(headers))
            if device is None:
                raise Unauthenticated
            return device
        if access is Access.PROVIDER:
            provider = caller(names, headers.get("from"))
            if not self.federation.allows(provider, us=self.provider):
                raise ProviderNotAllowed
            return Follower(provider)
        return _NOBODY
