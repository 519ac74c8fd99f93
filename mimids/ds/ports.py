"""What the Delivery Service needs from outside: the time, and other providers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs

from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId


class Clock(Protocol):
    """The clock of lifetimes, key rotation, retention and back-off. Tests have one that they can move."""

    def now(self) -> Milliseconds:
        """Return the time in milliseconds since the epoch."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait until this clock has moved on by `seconds`."""
        ...


@attrs.frozen
class PeerAnswer:
    """What another provider answered to a call that succeeded."""

    body: bytes


@attrs.frozen(kw_only=True)
class RelayedAnswer:
    """What another provider's OHTTP gateway answered, success or not: the relay passes it on (semantics: ohttp)."""

    status: int  # of HTTP; a refusal keeps its own on the way to the client
    media_type: str  # in lower case, without parameters
    body: bytes = attrs.field(repr=False)
    retry_after: str = ""  # seconds or a date, as the gateway wrote it
    max_age_seconds: int = 0  # for how long the answer may be cached
    keys_signature: str = ""  # of key configurations (docs/ohttp-keys.md)


class Peers(Protocol):
    """Other providers, over mutual TLS (http: between-providers)."""

    async def call(
        self,
        provider: ProviderId,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        media_type: str = "application/mimi-ds",
        timeout_seconds: float = 30,
        wait_seconds: int | None = None,
    ) -> PeerAnswer:
        """Exchange one request; with `wait_seconds` the peer may wait that long for something to answer.

        Raises the `MimiError` that the peer refuses with, `PeerUnavailable` if it does not answer or has a fault
        (`retry_after` is what it asks for), `PeerFailed` if its answer makes no sense, and `ProviderNotAllowed` if we
        may not call it.
        """
        ...

    async def call_plainly(
        self, provider: ProviderId, method: str, path: str, body: bytes = b"", *, media_type: str
    ) -> RelayedAnswer:
        """Exchange one request without a client certificate and without any header that names us or a client.

        For the relay and for key configurations. All users share one pool of connections. A refusal of the gateway is
        returned, not raised. Raises `PeerUnavailable`, `PeerFailed` (the answer is too large) and
        `ProviderNotAllowed`.
        """
        ...


class PeerTransport(Peers, Protocol):
    """`Peers` as the network offers them: each answer may also name the current revision of the peer's terms for us."""

    async def call(
        self,
        provider: ProviderId,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        media_type: str = "application/mimi-ds",
        timeout_seconds: float = 30,
        wait_seconds: int | None = None,
        on_terms_revision: Callable[[int], None] | None = None,
    ) -> PeerAnswer:
        """Exchange one request, as `Peers.call` does.

        `on_terms_revision` is called with the revision that the answer names, if it names one, also when the peer
        refuses the request (semantics: terms-and-reports).
        """
        ...
