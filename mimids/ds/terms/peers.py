"""Calls to other providers, with the checks and notes that terms need (semantics: terms-and-reports)."""

from __future__ import annotations

from functools import partial

from mimids.ds.ports import PeerAnswer, PeerTransport, RelayedAnswer
from mimids.ds.terms.accepted import AcceptedTerms
from mimids.ds.terms.banned_providers import BannedProviders
from mimids.wire.ids import ProviderId


class PeersUnderTerms:
    """`ports.Peers` that calls no banned provider and notes the terms revision that each answer names."""

    def __init__(self, transport: PeerTransport, accepted: AcceptedTerms, banned: BannedProviders) -> None:
        self._transport = transport
        self._accepted = accepted
        self._banned = banned

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
        """Exchange one request as `Peers.call` does; raise `ProviderNotAllowed` if the provider is banned."""
        await self._banned.check_allowed(provider)
        return await self._transport.call(
            provider,
            method,
            path,
            body,
            media_type=media_type,
            timeout_seconds=timeout_seconds,
            wait_seconds=wait_seconds,
            on_terms_revision=partial(self._accepted.note_revision, provider),
        )

    async def call_plainly(
        self, provider: ProviderId, method: str, path: str, body: bytes = b"", *, media_type: str
    ) -> RelayedAnswer:
        """Exchange one request as `Peers.call_plainly` does."""
        return await self._transport.call_plainly(provider, method, path, body, media_type=media_type)
