"""The rows that a restore takes over from the newer database that it replaces (semantics: restore).

A removed device, a revoked token or a lifted ban must not come back with the backup. A used KeyPackage reference or
Welcome must not become unused again. The database that is replaced has all these changes, if it can be read. New users,
devices, tokens, groups and messages are not taken over, because an operator who restores a backup wants the data of the
backup.

The newer database is a later state of the database that was backed up (`store.restores.descends`), so a row has the
same id in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from mimids.store import removed, welcomes
from mimids.store.engine.transaction import Row, Tx
from mimids.store.ohttp import put_setting, setting
from mimids.values import Milliseconds, hour_of

_PAGE: Final = 500  # rows in memory
_REPLACED: Final = (
    "provider_keys",
    "federation_rules",
    "bans",
    "mutes",
    "accepted_restrictions",
    "accepted_terms",
    "offered_terms",
)
# Made at the first start, and never changed: devices and other providers know the public keys.
_KEYS: Final = ("vapid_private", "ohttp_identity", "ohttp_identity_public")


@attrs.frozen
class CarriedOver:
    """How many rows of the backup changed, and how many were added."""

    users_removed: int
    devices_removed: int
    tokens_ended: int
    references_added: int  # references of KeyPackages
    welcomes_added: int  # Welcomes in inboxes
    welcomes_acknowledged: int


def carry_over(tx: Tx, newer: Tx, now: Milliseconds) -> CarriedOver:
    """Take over removals, keys, revocations, bans, terms, references, acknowledged Welcomes and the audit table."""
    _add_missing(tx, newer, "providers")
    users = _delete_missing(tx, newer, "users")
    devices = _delete_missing(tx, newer, "devices")
    _update(tx, newer, "users", "suspended_at")
    _update(tx, newer, "devices", "token_digest", "seen_on")
    _drop_subscriptions(tx, newer)
    for table in ("reserved_names", "reserved_groups"):
        _add_missing(tx, newer, table)
    ended = _carry_tokens(tx, newer, now)
    for table in reversed(_REPLACED):
        tx.execute(f"DELETE FROM {table}")
    for table in _REPLACED:
        _add_missing(tx, newer, table)
    for table in ("removals", "removal_keys"):  # the groups of this database are searched for leaves of removed devices
        _add_missing(tx, newer, table)
    _add_signature_keys(tx, newer)
    _add_keys(tx, newer)
    _add_missing(tx, newer, "audit")
    added = _add_missing(tx, newer, "key_package_refs")
    _update(tx, newer, "key_package_refs", "claimed_at", "turn", "token")
    arrived, acknowledged = _carry_welcomes(tx, newer)
    _carry_decisions(tx, newer)
    removed.forget_missing(tx)
    welcomes.drop_served(tx, [row for (row,) in tx.all("SELECT id FROM welcomes WHERE length(body) > 0")])
    return CarriedOver(users, devices, ended, added, arrived, acknowledged)


def _add_keys(tx: Tx, newer: Tx) -> None:
    """Take over keys that were made since the backup."""
    for name in _KEYS:
        made = setting(newer, name)
        if made is not None and setting(tx, name) is None:
            put_setting(tx, name, made)


def _add_signature_keys(tx: Tx, newer: Tx) -> None:
    """Take over the digests of signature keys, of devices that the backup has."""
    tx.executemany(
        "INSERT INTO device_signature_keys (id, device, digest)"
        " SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM devices WHERE id = ?2) ON CONFLICT DO NOTHING",
        _rows(newer, "device_signature_keys", ("id", "device", "digest")),
    )


def _drop_subscriptions(tx: Tx, newer: Tx) -> None:
    """Drop push subscriptions that have ended since the backup: for example, a new token ends a subscription."""
    kept = newer.all("SELECT device, endpoint FROM push_subscriptions")
    mine = tx.all("SELECT device, endpoint FROM push_subscriptions")
    ended = sorted({*mine} - {*kept})
    tx.executemany("DELETE FROM push_subscriptions WHERE device = ? AND endpoint = ?", ended)


def _carry_tokens(tx: Tx, newer: Tx, now: Milliseconds) -> int:
    """Take over the state of bearer tokens.

    Revoke tokens that `newer` no longer has, because they ended and were swept.
    """
    live = "SELECT count(*) FROM tokens WHERE state = 'live'"
    before = tx.one(live)
    _update(tx, newer, "tokens", "state", "ended_at", "uses_left", "rate_started_at", "rate_used")
    _update(tx, newer, "tokens", "abuse_started_at", "unanswered_claims", "warned_at")
    kept = {row[0] for row in newer.all("SELECT id FROM tokens")}
    live_here = tx.all("SELECT id FROM tokens WHERE state = 'live'")
    swept = [(hour_of(now), row[0]) for row in live_here if row[0] not in kept]
    tx.executemany("UPDATE tokens SET state = 'revoked', ended_at = ? WHERE id = ?", swept)
    after = tx.one(live)
    return (before[0] if before else 0) - (after[0] if after else 0)


def _carry_welcomes(tx: Tx, newer: Tx) -> tuple[int, int]:
    """Take over the inboxes; return how many Welcomes were added, and how many are acknowledged now."""
    _add_missing(tx, newer, "welcomes")
    acknowledged = tx.one("SELECT count(*) FROM inbox WHERE acknowledged_at IS NOT NULL")
    _update(tx, newer, "inbox", "acknowledged_at")
    since = tx.one("SELECT count(*) FROM inbox WHERE acknowledged_at IS NOT NULL")
    added = _add_missing(tx, newer, "inbox")
    gone = tx.execute("DELETE FROM inbox WHERE device NOT IN (SELECT id FROM devices)")
    _add_missing(tx, newer, "expected_welcomes")
    # If the backup lacks the group, the hub pushes the group again, which needs the reference once more.
    tx.execute("UPDATE expected_welcomes SET matched_group = NULL WHERE matched_group NOT IN (SELECT id FROM groups)")
    return added - gone, (since[0] if since else 0) - (acknowledged[0] if acknowledged else 0)


def _carry_decisions(tx: Tx, newer: Tx) -> None:
    """Take over the operator's decisions, which Welcomes were sent, and which devices left which groups."""
    _update(tx, newer, "outgoing_welcomes", "refs", "state", "outcome", "sender")
    _add_refused(tx, newer)
    tx.execute(
        "UPDATE partitions SET held_welcomes ="
        " (SELECT count(*) FROM outgoing_welcomes w WHERE w.partition = partitions.id AND w.state = 'held')"
    )
    _update(tx, newer, "partitions", "terminated_by", "terminated_at", "terminated_reason")
    tx.execute(
        "UPDATE partitions SET terminated_by = NULL, terminated_at = NULL, terminated_reason = NULL"
        " WHERE terminated_by NOT IN (SELECT id FROM partitions)"
    )
    _update(tx, newer, "groups", "successor_group_id", "successor_hub")
    _update(tx, newer, "reports", "passed_on_at", "passed_on_to", "closed_at", "outcome")
    left = newer.all("SELECT group_ref, device, joined_at, left_at FROM participations WHERE left_at IS NOT NULL")
    tx.executemany(
        "INSERT INTO participations (group_ref, device, joined_at, left_at) SELECT ?1, ?2, ?3, ?4"
        " WHERE EXISTS (SELECT 1 FROM groups WHERE id = ?1)"
        " ON CONFLICT (group_ref, device) DO UPDATE SET left_at = excluded.left_at",
        left,
    )


def _add_refused(tx: Tx, newer: Tx) -> None:
    """Add the rows of refused references, for Welcomes that were queued before the backup."""
    columns = ("id", "welcome", "partition", "provider", "refs", "state", "outcome", "created_at")
    refused = (row for row in _rows(newer, "outgoing_welcomes", columns) if row[5] == "refused")
    tx.executemany(
        "INSERT INTO outgoing_welcomes (id, welcome, partition, provider, refs, state, outcome, created_at)"
        " SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE EXISTS"
        " (SELECT 1 FROM outgoing_welcomes WHERE welcome = ?2 AND partition = ?3 AND provider = ?4)"
        " ON CONFLICT DO NOTHING",
        refused,
    )


# --- tables -----------------------------------------------------------------------------------------------------


def _add_missing(tx: Tx, newer: Tx, table: str) -> int:
    """Add the rows of a table that are in `newer` only; return how many."""
    columns = [row[0] for row in newer.all("SELECT name FROM pragma_table_info(?)", (table,))]
    places = ", ".join("?" * len(columns))
    sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places}) ON CONFLICT DO NOTHING"
    return sum(tx.execute(sql, row) for row in _rows(newer, table, columns))


def _update(tx: Tx, newer: Tx, table: str, *columns: str) -> None:
    """Set columns of the rows that both databases have to the values in `newer`."""
    sets = ", ".join(f"{name} = ?" for name in columns)
    tx.executemany(f"UPDATE {table} SET {sets} WHERE id = ?", _rows(newer, table, [*columns, "id"]))


def _delete_missing(tx: Tx, newer: Tx, table: str) -> int:
    """Delete the rows that `newer` no longer has, with the rows that depend on them; return how many."""
    kept = {row[0] for row in newer.all(f"SELECT id FROM {table}")}
    gone = [(row[0],) for row in tx.all(f"SELECT id FROM {table}") if row[0] not in kept]
    tx.executemany(f"DELETE FROM {table} WHERE id = ?", gone)
    return len(gone)


def _rows(newer: Tx, table: str, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a table, page by page if the table has an id, because bodies are large."""
    names = ", ".join(columns)
    if "id" not in columns:
        yield from newer.all(f"SELECT {names} FROM {table}")
        return
    last, at = 0, list(columns).index("id")
    while page := newer.all(f"SELECT {names} FROM {table} WHERE id > ? ORDER BY id LIMIT ?", (last, _PAGE)):
        yield from page
        last = page[-1][at]
