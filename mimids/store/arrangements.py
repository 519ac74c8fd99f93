"""The terms between hubs and followers: which were given, which were taken, what they say of our users."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import GroupId, ProviderId, UserId

SKIPPED = 1_000_000  # revisions: more than there are changes between two backups


@attrs.frozen
class Given:
    """What another provider was given by us as hub, and which revision it accepted."""

    revision: int
    digest: bytes
    changed_at: Milliseconds
    accepted_revision: int | None
    accepted_at: Milliseconds | None


@attrs.frozen
class Taken:
    """What a hub offers us, and what of it we accepted; both as JSON."""

    hub: ProviderId
    offered_revision: int
    offered: str
    fetched_at: Milliseconds
    accepted_revision: int | None
    accepted: str | None
    accepted_at: Milliseconds | None
    told: int  # 1: the hub has confirmed that it knows


@attrs.frozen
class HubTerm:
    """What accepted terms say of one of our users: banned (`group_id` None), or muted there (empty: everywhere)."""

    user_id: UserId
    group_id: GroupId | None


def given(tx: Tx, provider: int) -> Given | None:
    """Return what a provider was given last."""
    row = tx.one(
        "SELECT revision, digest, changed_at, accepted_revision, accepted_at FROM terms_given WHERE provider = ?",
        (provider,),
    )
    return None if row is None else Given(*row)


def give(tx: Tx, provider: int, revision: int, digest: bytes, now: Milliseconds) -> None:
    """Record a new revision; what was accepted stays."""
    tx.execute(
        "INSERT INTO terms_given (provider, revision, digest, changed_at) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET revision = excluded.revision, digest = excluded.digest, changed_at = excluded.changed_at",
        (provider, revision, digest, now),
    )


def outrun_revisions(tx: Tx) -> None:
    """Go on with revisions that were not given yet, after a restore: others may have been since the backup."""
    tx.execute(
        "UPDATE terms_given SET revision = revision + ?1, accepted_revision = accepted_revision + ?1", (SKIPPED,)
    )


def note_accepted(tx: Tx, provider: int, revision: int, now: Milliseconds) -> None:
    """Record that a provider accepted a revision."""
    tx.execute(
        "UPDATE terms_given SET accepted_revision = ?, accepted_at = ? WHERE provider = ?", (revision, now, provider)
    )


_TAKEN = (
    "SELECT domain, offered_revision, offered, fetched_at, accepted_revision, accepted, accepted_at, told"
    " FROM terms_taken JOIN providers ON providers.id = terms_taken.hub"
)


def taken(tx: Tx, hub: int) -> Taken | None:
    """Return a hub's terms as we know them."""
    row = tx.one(f"{_TAKEN} WHERE hub = ?", (hub,))
    return None if row is None else Taken(*row)


def all_taken(tx: Tx) -> list[Taken]:
    """Return the terms of all hubs."""
    return [Taken(*row) for row in tx.all(f"{_TAKEN} ORDER BY domain")]


def note_offer(tx: Tx, hub: int, revision: int, offered: str, now: Milliseconds) -> None:
    """Keep a hub's newest terms; those that we accepted stay in force."""
    tx.execute(
        "INSERT INTO terms_taken (hub, offered_revision, offered, fetched_at) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET offered_revision = excluded.offered_revision, offered = excluded.offered,"
        " fetched_at = excluded.fetched_at",
        (hub, revision, offered, now),
    )


def accept(tx: Tx, hub: int, terms: Iterable[HubTerm], now: Milliseconds) -> None:
    """Put a hub's newest terms in force, and what they say of our users."""
    tx.execute(
        "UPDATE terms_taken SET accepted_revision = offered_revision, accepted = offered, accepted_at = ?, told = 0"
        " WHERE hub = ?",
        (now, hub),
    )
    tx.execute("DELETE FROM hub_terms WHERE hub = ?", (hub,))
    tx.executemany(
        "INSERT INTO hub_terms (hub, user_id, group_id) VALUES (?, ?, ?)",
        [(hub, each.user_id, each.group_id) for each in terms],
    )


def note_told(tx: Tx, hub: int, revision: int) -> None:
    """Record that the hub knows which revision we accepted."""
    tx.execute("UPDATE terms_taken SET told = 1 WHERE hub = ? AND accepted_revision = ?", (hub, revision))


def banned_by(tx: Tx, hub: int, users: Iterable[UserId]) -> frozenset[UserId]:
    """Return those of these users of ours whom a hub's accepted terms ban."""
    sql = "SELECT 1 FROM hub_terms WHERE hub = ? AND user_id = ? AND group_id IS NULL"
    return frozenset(user for user in users if tx.one(sql, (hub, user)) is not None)


def muted_by(tx: Tx, hub: int, users: Iterable[UserId], group_id: GroupId) -> frozenset[UserId]:
    """Return those of these users of ours whom a hub's accepted terms mute in a group."""
    sql = "SELECT 1 FROM hub_terms WHERE hub = ? AND user_id = ? AND group_id IN (?, x'')"
    return frozenset(user for user in users if tx.one(sql, (hub, user, group_id)) is not None)
