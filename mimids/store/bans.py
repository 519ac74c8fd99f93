"""Users and providers that the operator bans from the groups of this hub, and users muted in these groups."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mimids.store.engine.transaction import Row, Tx
from mimids.values import Milliseconds
from mimids.wire.ids import GroupId, ProviderId, UserId

EVERY_GROUP = GroupId(b"")  # the group id of a mute in all groups


@attrs.frozen
class Ban:
    """A user, or a whole provider, who is banned from all our groups."""

    subject: UserId | ProviderId
    reason: str
    created_at: Milliseconds
    expires_at: Milliseconds | None


@attrs.frozen
class Mute:
    """A user who may not send application messages in one of our groups, or in all of them (`EVERY_GROUP`)."""

    user_id: UserId
    group_id: GroupId
    reason: str
    created_at: Milliseconds
    expires_at: Milliseconds | None


def put_ban(tx: Tx, ban: Ban) -> None:
    """Store a ban; if this subject is banned already, replace the reason and expiry of the ban."""
    column = "user_id" if isinstance(ban.subject, bytes) else "provider"
    tx.execute(
        f"INSERT INTO bans ({column}, reason, created_at, expires_at) VALUES (?, ?, ?, ?)"
        f" ON CONFLICT ({column}) DO UPDATE SET reason = excluded.reason, expires_at = excluded.expires_at",
        (ban.subject, ban.reason, ban.created_at, ban.expires_at),
    )


def remove_ban(tx: Tx, subject: UserId | ProviderId) -> bool:
    """Delete a ban; return False if there is none."""
    column = "user_id" if isinstance(subject, bytes) else "provider"
    return tx.execute(f"DELETE FROM bans WHERE {column} = ?", (subject,)) > 0


def every_ban(tx: Tx) -> list[Ban]:
    """Return all bans, oldest first, including expired bans that were not swept yet."""
    rows = tx.all("SELECT user_id, provider, reason, created_at, expires_at FROM bans ORDER BY id")
    return [Ban(provider if user_id is None else user_id, *others) for user_id, provider, *others in rows]


def banned_users(tx: Tx, users: Iterable[UserId], now: Milliseconds) -> frozenset[UserId]:
    """Return which of these users are banned."""
    sql = "SELECT expires_at FROM bans WHERE user_id = ?"
    return frozenset(user for user in users if _in_force(tx.all(sql, (user,)), now))


def banned_providers(tx: Tx) -> dict[ProviderId, Milliseconds | None]:
    """Return all banned providers with the expiry of each ban, including expired bans that were not swept yet."""
    rows = tx.all("SELECT provider, expires_at FROM bans WHERE provider IS NOT NULL")
    return {row[0]: row[1] for row in rows}


def put_mute(tx: Tx, mute: Mute) -> None:
    """Store a mute; if this user is muted in this group already, replace the reason and expiry of the mute."""
    tx.execute(
        "INSERT INTO mutes (user_id, group_id, reason, created_at, expires_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (user_id, group_id) DO UPDATE SET reason = excluded.reason, expires_at = excluded.expires_at",
        (mute.user_id, mute.group_id, mute.reason, mute.created_at, mute.expires_at),
    )


def remove_mute(tx: Tx, user: UserId, group_id: GroupId) -> bool:
    """Delete a mute; return False if there is none."""
    return tx.execute("DELETE FROM mutes WHERE user_id = ? AND group_id = ?", (user, group_id)) > 0


def every_mute(tx: Tx) -> list[Mute]:
    """Return all mutes, oldest first, including expired mutes that were not swept yet."""
    rows = tx.all("SELECT user_id, group_id, reason, created_at, expires_at FROM mutes ORDER BY id")
    return [Mute(*row) for row in rows]


def muted_users(tx: Tx, users: Iterable[UserId], group_id: GroupId, now: Milliseconds) -> frozenset[UserId]:
    """Return which of these users are muted in a group."""
    sql = "SELECT expires_at FROM mutes WHERE user_id = ? AND group_id IN (?, ?)"
    return frozenset(user for user in users if _in_force(tx.all(sql, (user, group_id, EVERY_GROUP)), now))


def _in_force(expiries: Iterable[Row], now: Milliseconds) -> bool:
    return any(expires_at is None or expires_at > now for (expires_at,) in expiries)
