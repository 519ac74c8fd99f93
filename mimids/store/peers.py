"""Followers: each follower's cursor, a stamp of `store.moved`, and when to try to reach the follower again."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId


@attrs.frozen
class PeerState:
    """One provider that follows partitions here."""

    provider: int
    domain: ProviderId
    next_stamp: int  # nothing with a lower stamp is due to it
    failures: int
    next_attempt_at: Milliseconds


_COLUMNS = "peers.provider, domain, next_stamp, failures, next_attempt_at"


def every_peer(tx: Tx) -> list[PeerState]:
    """Return all providers that follow partitions here."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM peers JOIN providers ON providers.id = peers.provider ORDER BY peers.provider"
    )
    return [PeerState(*row) for row in rows]


def find_peer(tx: Tx, provider: int) -> PeerState | None:
    """Return a provider that follows partitions here; None if it follows no partition."""
    row = tx.one(
        f"SELECT {_COLUMNS} FROM peers JOIN providers ON providers.id = peers.provider WHERE peers.provider = ?",
        (provider,),
    )
    return None if row is None else PeerState(*row)


def count_peers(tx: Tx) -> int:
    """Count the providers that follow partitions here."""
    found = tx.one("SELECT count(*) FROM peers")
    return int(found[0]) if found else 0


def ensure_peer(tx: Tx, provider: int, *, next_stamp: int) -> None:
    """Add a provider's row with `next_stamp` as cursor, if there is none."""
    tx.execute("INSERT INTO peers (provider, next_stamp) VALUES (?, ?) ON CONFLICT DO NOTHING", (provider, next_stamp))


def move_cursors(tx: Tx, next_stamp: int, *, but: Collection[int]) -> None:
    """Move the cursors that are below `next_stamp` up to it, except those of the providers in `but`."""
    moved = [peer for peer in every_peer(tx) if peer.next_stamp < next_stamp and peer.provider not in but]
    tx.executemany(
        "UPDATE peers SET next_stamp = ? WHERE provider = ?", [(next_stamp, peer.provider) for peer in moved]
    )


def note_success(tx: Tx, provider: int, next_stamp: int) -> None:
    """Record an answer, and that the provider needs no push of a partition whose stamp is below `next_stamp`."""
    tx.executemany(
        "UPDATE peers SET failures = 0, failing_since = NULL, next_attempt_at = 0,"
        " next_stamp = CASE WHEN next_stamp < ?1 THEN ?1 ELSE next_stamp END WHERE provider = ?2",
        [(next_stamp, provider)],
    )


def note_failure(tx: Tx, peer: PeerState, failures: int, next_attempt_at: Milliseconds, now: Milliseconds) -> None:
    """Record that a provider did not answer, when to try it again, and its cursor."""
    tx.execute(
        "UPDATE peers SET failures = ?1, next_attempt_at = ?2, failing_since = coalesce(failing_since, ?3),"
        " next_stamp = CASE WHEN next_stamp < ?4 THEN ?4 ELSE next_stamp END WHERE provider = ?5",
        (failures, next_attempt_at, now, peer.next_stamp, peer.provider),
    )


def try_soon(tx: Tx, provider: int) -> None:
    """Reset the back-off, because the provider has just called and so is reachable."""
    tx.execute("UPDATE peers SET next_attempt_at = 0 WHERE provider = ?", (provider,))
