"""What the Delivery Service asks of the world around it: the time, and other providers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import attrs

from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId


class Clock(Protocol):
    """The one clock that semantics depend on: lifetimes, rotation, retention, back-off. Tests move it."""

    def now(self) -> Milliseconds:
        """Return the time in milliseconds since the epoch."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait until this clock has moved on by `seconds`."""
        ...


@attrs.frozen
class PeerAnswer:
    """What another provider answered, its status 2xx."""

    body: bytes
    headers: Mapping[str, str]  # lower-case names


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
        """Exchange one request; `wait_seconds` becomes `Prefer: wait`.

        Raises the `MimiError` that the peer's problem document names, `PeerUnavailable` where it does not answer
        or answers 5xx (`retry_after` from its Retry-After), `PeerFailed` where its answer makes no sense,
        `ProviderNotAllowed` where it may not be called.
        """
        ...

    async def call_plainly(
        self, provider: ProviderId, method: str, path: str, body: bytes = b"", *, media_type: str
    ) -> PeerAnswer:
        """Exchange one request without a client certificate and without any header that names us or a client.

        For the relay and key configurations: one pool for all users, status and body passed on as they are
        (a problem document of the target is returned, not raised, with its status in header ``:status``).
        """
        ...
