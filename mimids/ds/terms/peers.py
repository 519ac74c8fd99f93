"""Calls to other providers, with the checks and notes that terms need (semantics: terms-and-reports)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mimids.ds.ports import PeerAnswer, Peers
from mimids.ds.terms.accepted import AcceptedTerms
from mimids.ds.terms.banned_providers import BannedProviders
from mimids.ds.terms.offered import REVISION_HEADER
from mimids.errors import MimiError
from mimids.wire.ids import ProviderId

REVISION_DIGITS: Final = 19  # a revision with this many digits or more is ignored: it may not fit a row


class PeersUnderTerms:
    """`ports.Peers` that calls no banned provider and notes the terms revision that each answer names."""

    def __init__(self, peers: Peers, accepted: AcceptedTerms, banned: BannedProviders) -> None:
        self._peers = peers
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
        try:
            answer = await self._peers.call(
                provider,
                method,
                path,
                body,
                media_type=media_type,
                timeout_seconds=timeout_seconds,
                wait_seconds=wait_seconds,
            )
        except MimiError as error:
            self._note_revision(provider, error.heard)
            raise
        self._note_revision(provider, answer.headers)
        return answer

    async def call_plainly(
        self, provider: ProviderId, method: str, path: str, body: bytes = b"", *, media_type: str
    ) -> PeerAnswer:
        """Exchange one request as `Peers.call_plainly` does."""
        return await self._peers.call_plainly(provider, method, path, body, media_type=media_type)

    def _note_revision(self, provider: ProviderId, headers: Mapping[str, str]) -> None:
        revision = headers.get(REVISION_HEADER, "")
        if revision.isascii() and revision.isdigit() and len(revision) < REVISION_DIGITS:
            self._accepted.note_revision(provider, int(revision))
