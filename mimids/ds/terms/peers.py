"""Calls to other providers that check bans and exchange revisions of terms (semantics: terms-and-reports)."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Final

from mimids.ds.ports import PeerAnswer, PeerTransport, RelayedAnswer
from mimids.ds.terms.accepted import AcceptedTerms
from mimids.ds.terms.banned_providers import BannedProviders
from mimids.ds.terms.offered import OfferedTerms
from mimids.errors import StorageUnavailable
from mimids.wire.ids import ProviderId

HUB_PATHS: Final = frozenset({"/ds/v1/push", "/ds/v1/welcome/init", "/ds/v1/welcome"})


class PeersUnderTerms:
    """`ports.Peers` that calls no banned provider, and passes on the terms revision that each answer names.

    The calls that we make as hub name the revision of our own terms, so a follower learns of a new revision from a
    call that we make anyway.
    """

    def __init__(
        self, transport: PeerTransport, accepted: AcceptedTerms, offered: OfferedTerms, banned: BannedProviders
    ) -> None:
        self._transport = transport
        self._accepted = accepted
        self._offered = offered
        self._banned = banned

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
        """Exchange one request as `Peers.call` does; raise `ProviderNotAllowed` if the provider is banned."""
        await self._banned.check_allowed(provider)
        revision = None
        if path in HUB_PATHS:
            with suppress(StorageUnavailable):  # the call does not depend on the revision
                await self._offered.load(provider)
                revision = self._offered.revision(provider)
        return await self._transport.call(
            provider,
            method,
            path,
            body,
            media_type=media_type,
            timeout_seconds=timeout_seconds,
            wait_seconds=wait_seconds,
            on_terms_revision=partial(self._accepted.note_revision, provider),
            terms_revision=revision,
        )

    async def call_plainly(
        self, provider: ProviderId, method: str, path: str, body: bytes = b"", *, media_type: str
    ) -> RelayedAnswer:
        """Exchange one request as `Peers.call_plainly` does."""
        return await self._transport.call_plainly(provider, method, path, body, media_type=media_type)
