"""Whom the operator of this hub bans from its groups, and mutes in them."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import GroupId, ProviderId, UserId

EVERY_GROUP = GroupId(b"")  # of a mute


@attrs.frozen
class Ban:
    """A user, or a provider as a whole, who is kept out of all our groups."""

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


_IN_FORCE = "(expires_at IS NULL OR expires_at > ?)"


def put_ban(tx: Tx, ban: Ban) -> None:
    """Ban somebody; a ban that is there already gets the new reason and end."""
    column = "user_id" if isinstance(ban.subject, bytes) else "provider"
    tx.execute(
        f"INSERT INTO bans ({column}, reason, created_at, expires_at) VALUES (?, ?, ?, ?)"
        f" ON CONFLICT ({column}) DO UPDATE SET reason = excluded.reason, expires_at = excluded.expires_at",
        (ban.subject, ban.reason, ban.created_at, ban.expires_at),
    )


def remove_ban(tx: Tx, subject: UserId | ProviderId) -> bool:
    """Lift a ban; False if there is none."""
    column = "user_id" if isinstance(subject, bytes) else "provider"
    return tx.execute(f"DELETE FROM bans WHERE {column} = ?", (subject,)) > 0


def every_ban(tx: Tx) -> list[Ban]:
    """Return all bans, ended ones that were not swept too, oldest first."""
    rows = tx.all("SELECT coalesce(user_id, provider), reason, created_at, expires_at FROM bans ORDER BY id")
    return [Ban(*row) for row in rows]


def banned_users(tx: Tx, users: Iterable[UserId], now: Milliseconds) -> frozenset[UserId]:
    """Return those of these users who are banned."""
    sql = f"SELECT 1 FROM bans WHERE user_id = ? AND {_IN_FORCE}"
    return frozenset(user for user in users if tx.one(sql, (user, now)) is not None)


def banned_providers(tx: Tx) -> dict[ProviderId, Milliseconds | None]:
    """Return the providers that are banned, with the end of each ban."""
    rows = tx.all("SELECT provider, expires_at FROM bans WHERE provider IS NOT NULL")
    return {row[0]: row[1] for row in rows}


def put_mute(tx: Tx, mute: Mute) -> None:
    """Mute somebody; a mute that is there already gets the new reason and end."""
    tx.execute(
        "INSERT INTO mutes (user_id, group_id, reason, created_at, expires_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET reason = excluded.reason, expires_at = excluded.expires_at",
        (mute.user_id, mute.group_id, mute.reason, mute.created_at, mute.expires_at),
    )


def remove_mute(tx: Tx, user: UserId, group_id: GroupId) -> bool:
    """Lift a mute; False if there is none."""
    return tx.execute("DELETE FROM mutes WHERE user_id = ? AND group_id = ?", (user, group_id)) > 0


def every_mute(tx: Tx) -> list[Mute]:
    """Return all mutes, ended ones that were not swept too, oldest first."""
    rows = tx.all("SELECT user_id, group_id, reason, created_at, expires_at FROM mutes ORDER BY id")
    return [Mute(*row) for row in rows]


def muted_users(tx: Tx, users: Iterable[UserId], group_id: GroupId, now: Milliseconds) -> frozenset[UserId]:
    """Return those of these users who are muted in a group."""
    sql = f"SELECT 1 FROM mutes WHERE user_id = ? AND group_id IN (?, ?) AND {_IN_FORCE}"
    return frozenset(user for user in users if tx.one(sql, (user, group_id, EVERY_GROUP, now)) is not None)


def drop_ended(tx: Tx, now: Milliseconds) -> None:
    """Drop bans and mutes that are over."""
    tx.execute("DELETE FROM bans WHERE expires_at <= ?", (now,))
    tx.execute("DELETE FROM mutes WHERE expires_at <= ?", (now,))
