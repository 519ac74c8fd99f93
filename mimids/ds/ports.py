"""What the Delivery Service needs from outside: the time, and other providers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

import attrs

from mimids.values import Milliseconds
from mimids.web_push.subscription import EndpointUrl
from mimids.wire.ids import ProviderId

# Waits until this many octets may be kept for an answer; raises `Busy` if there is no room for them.
Reserve: TypeAlias = Callable[[int], Awaitable[None]]


async def no_reserve(octets: int) -> None:
    """Reserve nothing; callers without a budget use this."""


class Clock(Protocol):
    """The clock of lifetimes, key rotation, retention and back-off. Tests use a clock that they can set."""

    def now(self) -> Milliseconds:
        """Return the time in milliseconds since the epoch."""
        ...

    def running(self) -> Milliseconds:
        """Return the milliseconds since the start of the machine: setting the clock does not change them."""
        ...

    def boot(self) -> str:
        """Return a name for this start of the machine."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait until this clock has moved on by `seconds`; do not wait if `seconds` is negative."""
        ...

    def move_on_after(self, seconds: float) -> AbstractContextManager[object]:
        """Cancel the block once this clock has moved on by `seconds`, as `trio.move_on_after` does by trio's clock."""
        ...


@attrs.frozen
class PeerAnswer:
    """What another provider answered to a call that succeeded."""

    body: bytes
    linear: bool = False  # the answer is about a linear group (semantics: linear-groups)


@attrs.frozen(kw_only=True)
class RelayedAnswer:
    """The answer of a provider's OHTTP gateway, which the relay passes on, even a refusal (semantics: ohttp)."""

    status: int  # the HTTP status, which the client gets unchanged, also for a refusal
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
        timeout_seconds: float | None = None,
        wait_seconds: int | None = None,
    ) -> PeerAnswer:
        """Exchange one request; with `wait_seconds` the peer may wait that long before it answers.

        Without `timeout_seconds`, the complete answer must come within `[federation] answer_seconds`, plus
        `wait_seconds`.

        Raises the `MimiError` with which the peer refuses. Raises `PeerUnavailable` if the peer does not answer or has
        a fault (`retry_after` is the delay that it asks for), `PeerFailed` if its answer makes no sense, and
        `ProviderNotAllowed` if we may not call it.
        """
        ...

    async def call_plainly(
        self, provider: ProviderId, method: str, path: str, body: bytes = b"", *, media_type: str
    ) -> RelayedAnswer:
        """Exchange one request without a client certificate and without any header that names us or a client.

        The relay uses this, also for key configurations. All users share one pool of connections. A refusal of the
        gateway is returned, not raised. Raises `PeerUnavailable`, `PeerFailed` (the answer is too large) and
        `ProviderNotAllowed`.
        """
        ...


class PeerTransport(Peers, Protocol):
    """`Peers` as the network offers them: requests and answers may also name a revision of terms."""

    async def call(
        self,
        provider: ProviderId,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        media_type: str = "application/mimi-ds",
        timeout_seconds: float | None = None,
        wait_seconds: int | None = None,
        on_terms_revision: Callable[[int], None] | None = None,
        terms_revision: int | None = None,
    ) -> PeerAnswer:
        """Exchange one request, as `Peers.call` does. The request names `terms_revision`, the revision of our terms.

        `on_terms_revision` is called with the revision that the answer names, if it names one, also when the peer
        refuses the request (semantics: terms-and-reports).
        """
        ...


@attrs.frozen
class PushAnswer:
    """What a push service answered."""

    status: int
    retry_after: int = 0  # seconds; 0 if it does not say


class PushServices(Protocol):
    """The push services of our devices (RFC 8030)."""

    async def push(self, endpoint: EndpointUrl, headers: Sequence[tuple[str, str]], body: bytes) -> PushAnswer:
        """Send one push, and follow no redirect. Raises `PeerUnavailable` if there is no answer that makes sense."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...
