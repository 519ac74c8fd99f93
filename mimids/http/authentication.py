"""Who asks: other providers by certificate (4.2), our own users' devices by token (4.3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import attrs

from mimids.config import Federation
from mimids.errors import ProviderNotAllowed, Unauthenticated
from mimids.http.endpoints import Access
from mimids.http.tls import caller
from mimids.values import Anyone, Caller, Device, Follower
from mimids.wire.ids import ProviderId, Secret

SUBPROTOCOL: Final = "mimids.bearer."  # a browser's WebSocket cannot send Authorization
_NOBODY: Final = Anyone()


class DeviceToken(Secret):
    """What a device shows, as it was written."""


def may_federate(federation: Federation, us: ProviderId, provider: ProviderId) -> bool:
    """Tell whether we deal with `provider` at all, in either direction; never with one that claims to be us."""
    return provider != us and (federation.mode == "open" or provider in federation.allow)


def device_token(headers: Mapping[str, str]) -> DeviceToken:
    """Return the token of `Authorization: Bearer`, or of a WebSocket's subprotocol; raise `Unauthenticated`."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":  # RFC 9110 section 11.1: the scheme's case means nothing
        return _token(token.strip())
    for offered in headers.get("sec-websocket-protocol", "").split(","):
        if offered.strip().startswith(SUBPROTOCOL):
            return _token(offered.strip().removeprefix(SUBPROTOCOL))
    raise Unauthenticated


def _token(text: str) -> DeviceToken:
    if not text or not text.isascii():
        raise Unauthenticated
    return DeviceToken(text.encode())


@attrs.frozen
class Doorkeeper:
    """Finds out who asks, and whether that is who may. `find_device` knows the tokens; None is a stranger."""

    provider: ProviderId  # our own
    federation: Federation
    find_device: Callable[[DeviceToken], Awaitable[Device | None]]

    async def admit(self, access: Access, headers: Mapping[str, str], names: frozenset[ProviderId] | None) -> Caller:
        """Return the caller, or raise the refusal; `names` are those of its certificate, None without one."""
        if access is Access.DEVICE:
            device = await self.find_device(device_token(headers))
            if device is None:
                raise Unauthenticated
            return device
        if access is Access.PROVIDER:
            provider = caller(names, headers.get("from"))
            if not may_federate(self.federation, self.provider, provider):
                raise ProviderNotAllowed
            return Follower(provider)
        return _NOBODY
