"""Followers: the position of each in the global sequence, and when to try to reach it again."""

from __future__ import annotations

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId


@attrs.frozen
class PeerState:
    """One provider that follows something here."""

    provider: int
    domain: ProviderId
    cursor_seq: int
    failures: int
    next_attempt_at: Milliseconds


def every_peer(tx: Tx) -> list[PeerState]:
    """Return all providers that follow something here."""
    rows = tx.all(
        "SELECT peers.provider, domain, cursor_seq, failures, next_attempt_at FROM peers"
        " JOIN providers ON providers.id = peers.provider ORDER BY peers.provider"
    )
    return [PeerState(*row) for row in rows]


def ensure_peer(tx: Tx, provider: int) -> None:
    """Add a provider's row, if it has none."""
    tx.execute("INSERT INTO peers (provider) VALUES (?) ON CONFLICT DO NOTHING", (provider,))


def note_success(tx: Tx, provider: int, cursor_seq: int | None) -> None:
    """Record an answer; with `cursor_seq`, it has acknowledged everything it follows up to that seq."""
    tx.execute(
        "UPDATE peers SET failures = 0, failing_since = NULL, next_attempt_at = 0, cursor_seq = max(cursor_seq, ?)"
        " WHERE provider = ?",
        (cursor_seq or 0, provider),
    )


def note_failure(tx: Tx, provider: int, failures: int, next_attempt_at: Milliseconds, now: Milliseconds) -> None:
    """Record that a provider did not answer, and when to try again."""
    tx.execute(
        "UPDATE peers SET failures = ?, next_attempt_at = ?, failing_since = coalesce(failing_since, ?)"
        " WHERE provider = ?",
        (failures, next_attempt_at, now, provider),
    )


def try_soon(tx: Tx, provider: int) -> None:
    """Reset the back-off, because the provider has just called and so is reachable."""
    tx.execute("UPDATE peers SET next_attempt_at = 0 WHERE provider = ?", (provider,))
