"""The terms between hubs and followers: the terms that we offered as hub, and the terms we accepted as follower."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mimids.store.bans import EVERY_GROUP
from mimids.store.engine.transaction import Tx
from mimids.store.ohttp import put_setting, setting
from mimids.values import Milliseconds
from mimids.wire.ids import GroupId, ProviderId, UserId

SKIPPED = 1_000_000  # revisions: more than the terms can change between two backups
_UNKNOWN = Milliseconds(0)
_FIRST_REVISION = "first_revision"  # a setting that only a restored database has


@attrs.frozen
class OfferedTermsRow:
    """The terms that we as hub last offered another provider, and the revision that it accepted."""

    revision: int
    digest: bytes
    changed_at: Milliseconds
    accepted_revision: int | None
    accepted_at: Milliseconds | None


@attrs.frozen
class AcceptedTermsRow:
    """The newest terms that a hub offers us, and the terms that we accepted from the hub; both as JSON."""

    hub: ProviderId
    offered_revision: int
    offered: str
    fetched_at: Milliseconds
    accepted_revision: int | None
    accepted: str | None
    accepted_at: Milliseconds | None
    acknowledged: int  # 1: the hub has confirmed that it knows which revision we accepted


@attrs.frozen
class Restriction:
    """How accepted terms restrict one of our users: a ban (`group_id` None), or a mute (empty: in all groups)."""

    user_id: UserId
    group_id: GroupId | None


def find_offered(tx: Tx, provider: int) -> OfferedTermsRow | None:
    """Return the terms that we last offered a provider."""
    row = tx.one(
        "SELECT revision, digest, changed_at, accepted_revision, accepted_at FROM offered_terms WHERE provider = ?",
        (provider,),
    )
    return None if row is None else OfferedTermsRow(*row)


def offer(tx: Tx, provider: int, revision: int, digest: bytes, now: Milliseconds) -> None:
    """Record a new revision of the terms offered to a provider; its accepted revision is not changed."""
    tx.execute(
        "INSERT INTO offered_terms (provider, revision, digest, changed_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (provider) DO UPDATE SET revision = excluded.revision, digest = excluded.digest,"
        " changed_at = excluded.changed_at",
        (provider, revision, digest, now),
    )


def first_revision(tx: Tx) -> int:
    """Return the revision for a provider's first terms: higher than all revisions that it may have got earlier."""
    stored = setting(tx, _FIRST_REVISION)
    return 1 if stored is None else int(stored)


def skip_revisions(tx: Tx, now: Milliseconds = _UNKNOWN, *, more: int = 0) -> None:
    """After a restore: skip the revisions that may have been offered since the backup.

    Revisions continue at the time in seconds, so that two restores of one backup do not offer the same revision. `more`
    are skipped in addition: a random number, because the clock may show the same time again.
    """
    found = tx.one("SELECT coalesce(max(revision), 0) FROM offered_terms")
    first = max(now // 1000, first_revision(tx) + SKIPPED, (0 if found is None else int(found[0])) + SKIPPED) + more
    tx.execute(
        "UPDATE offered_terms SET accepted_revision = accepted_revision + (?1 - revision), revision = ?1", (first,)
    )
    put_setting(tx, _FIRST_REVISION, b"%d" % first)


def note_accepted(tx: Tx, provider: int, revision: int, now: Milliseconds) -> None:
    """Record that a provider accepted a revision of our terms."""
    tx.execute(
        "UPDATE offered_terms SET accepted_revision = ?, accepted_at = ? WHERE provider = ?", (revision, now, provider)
    )


_ACCEPTED = (
    "SELECT domain, offered_revision, offered, fetched_at, accepted_revision, accepted, accepted_at, acknowledged"
    " FROM accepted_terms JOIN providers ON providers.id = accepted_terms.hub"
)


def find_accepted(tx: Tx, hub: int) -> AcceptedTermsRow | None:
    """Return the terms that a hub offers and the terms that we accepted from it."""
    row = tx.one(f"{_ACCEPTED} WHERE hub = ?", (hub,))
    return None if row is None else AcceptedTermsRow(*row)


def every_accepted(tx: Tx) -> list[AcceptedTermsRow]:
    """Return the terms that each hub offers and the terms that we accepted from it."""
    return [AcceptedTermsRow(*row) for row in tx.all(f"{_ACCEPTED} ORDER BY domain")]


def store_offer(tx: Tx, hub: int, revision: int, offered: str, now: Milliseconds) -> None:
    """Store a hub's newest terms; the terms that we accepted stay in force."""
    tx.execute(
        "INSERT INTO accepted_terms (hub, offered_revision, offered, fetched_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (hub) DO UPDATE SET offered_revision = excluded.offered_revision, offered = excluded.offered,"
        " fetched_at = excluded.fetched_at",
        (hub, revision, offered, now),
    )


def accept(tx: Tx, hub: int, restrictions: Iterable[Restriction], now: Milliseconds) -> None:
    """Put a hub's newest terms in force, with their restrictions of our users."""
    tx.execute(
        "UPDATE accepted_terms SET accepted_revision = offered_revision, accepted = offered, accepted_at = ?,"
        " acknowledged = 0 WHERE hub = ?",
        (now, hub),
    )
    tx.execute("DELETE FROM accepted_restrictions WHERE hub = ?", (hub,))
    tx.executemany(
        "INSERT INTO accepted_restrictions (hub, user_id, group_id) VALUES (?, ?, ?)",
        [(hub, each.user_id, each.group_id) for each in restrictions],
    )


def note_acknowledged(tx: Tx, hub: int, revision: int) -> None:
    """Record that a hub confirmed which revision we accepted."""
    tx.execute("UPDATE accepted_terms SET acknowledged = 1 WHERE hub = ? AND accepted_revision = ?", (hub, revision))


def banned_by(tx: Tx, hub: int, users: Iterable[UserId]) -> frozenset[UserId]:
    """Return which of these users of ours are banned by a hub's accepted terms."""
    sql = "SELECT 1 FROM accepted_restrictions WHERE hub = ? AND user_id = ? AND group_id IS NULL"
    return frozenset(user for user in users if tx.one(sql, (hub, user)) is not None)


def muted_by(tx: Tx, hub: int, users: Iterable[UserId], group_id: GroupId) -> frozenset[UserId]:
    """Return which of these users of ours are muted in a group by a hub's accepted terms."""
    sql = "SELECT 1 FROM accepted_restrictions WHERE hub = ? AND user_id = ? AND group_id IN (?, ?)"
    return frozenset(user for user in users if tx.one(sql, (hub, user, group_id, EVERY_GROUP)) is not None)
