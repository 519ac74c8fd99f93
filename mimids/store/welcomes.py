"""Welcomes: the body once, a row for each provider that it goes to, and a row for each device that it came for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import attrs

from mimids.store.engine.transaction import Tx
from mimids.store.messages import digest_of
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.codec import vector
from mimids.wire.ids import KEY_PACKAGE_REF, KeyPackageRef

LAST_ROW: Final = (1 << 63) - 1  # the largest row number; a welcome_id from a client may be any uint64

_REFS = vector(KEY_PACKAGE_REF)


@attrs.frozen
class Outgoing:
    """A Welcome for one provider; its state is `offered` once the provider accepted the references."""

    id: int
    provider: int
    partition: int
    refs: tuple[KeyPackageRef, ...]
    state: str
    failures: int


@attrs.frozen
class InInbox:
    """A Welcome that one device has not acknowledged yet."""

    id: int
    hub: int
    body: bytes


def keep_welcome(tx: Tx, body: bytes, now: Milliseconds) -> int:
    """Store a Welcome's body once; return its row."""
    digest = digest_of(body)
    found = tx.one("SELECT id FROM welcomes WHERE digest = ?", (digest,))
    if found is not None:
        return int(found[0])
    return tx.insert("INSERT INTO welcomes (digest, body, stored_at) VALUES (?, ?, ?)", (digest, body, now))


def offered_body(tx: Tx, row: int) -> bytes | None:
    """Return a Welcome (MLSMessage) whose references its provider accepted; None if it must not be sent any more."""
    found = tx.one(
        "SELECT body FROM outgoing_welcomes o JOIN welcomes ON welcomes.id = o.welcome"
        " WHERE o.id = ? AND state = 'offered'",
        (row,),
    )
    return None if found is None else found[0]


def add_outgoing(
    tx: Tx,
    *,
    welcome: int,
    partition: int,
    provider: int,
    refs: Sequence[KeyPackageRef],
    held: bool,
    now: Milliseconds,
) -> None:
    """Queue a Welcome for one provider; with `held`, it waits until its branch has a message.

    (semantics: welcomes-and-leaving)
    """
    tx.execute(
        "INSERT INTO outgoing_welcomes (welcome, partition, provider, refs, state, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (welcome, partition, provider, _REFS.encode(tuple(refs)), "held" if held else "due", now),
    )
    if held:
        tx.execute("UPDATE partitions SET held_welcomes = held_welcomes + 1 WHERE id = ?", (partition,))


def release_held(tx: Tx, partition: int) -> None:
    """Make the held Welcomes of a branch due."""
    tx.execute("UPDATE outgoing_welcomes SET state = 'due' WHERE partition = ? AND state = 'held'", (partition,))
    tx.execute("UPDATE partitions SET held_welcomes = 0 WHERE id = ?", (partition,))


def cancel_unsent(tx: Tx, partition: int) -> None:
    """Cancel the undelivered Welcomes that lead to a terminated partition."""
    tx.execute(
        "UPDATE outgoing_welcomes SET state = 'cancelled' WHERE partition = ? AND state IN ('held', 'due', 'offered')",
        (partition,),
    )
    tx.execute("UPDATE partitions SET held_welcomes = 0 WHERE id = ?", (partition,))


def drop_held(tx: Tx, partition: int) -> None:
    """Delete the held Welcomes of a branch, with bodies that no other row uses."""
    held = tx.all("SELECT welcome FROM outgoing_welcomes WHERE partition = ? AND state = 'held'", (partition,))
    tx.execute("DELETE FROM outgoing_welcomes WHERE partition = ? AND state = 'held'", (partition,))
    tx.execute("UPDATE partitions SET held_welcomes = 0 WHERE id = ? AND held_welcomes > 0", (partition,))
    for (welcome,) in held:
        _drop_unreferenced(tx, welcome)


def expire_unsent(tx: Tx, *, held_before: Milliseconds, due_before: Milliseconds) -> int:
    """Expire undelivered Welcomes that were queued before these moments; return how many."""
    held = tx.all(
        "SELECT DISTINCT partition FROM outgoing_welcomes WHERE state = 'held' AND created_at < ? LIMIT 1000",
        (held_before,),
    )
    expired = tx.execute(
        "UPDATE outgoing_welcomes SET state = 'expired' WHERE state = 'held' AND created_at < ?", (held_before,)
    )
    tx.executemany(
        "UPDATE partitions SET held_welcomes = (SELECT count(*) FROM outgoing_welcomes w"
        " WHERE w.partition = partitions.id AND w.state = 'held') WHERE id = ?",
        held,
    )
    return expired + tx.execute(
        "UPDATE outgoing_welcomes SET state = 'expired' WHERE state IN ('due', 'offered') AND created_at < ?",
        (due_before,),
    )


def sweep_page(tx: Tx, before: Milliseconds, *, limit: int) -> bool:
    """Delete up to `limit` old rows from each table of Welcomes; return whether there may be more.

    Old are: finished deliveries, inbox entries and expected Welcomes from before `before`, and bodies that no row uses.
    """
    dropped = [
        tx.execute(f"DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} WHERE {condition} LIMIT ?)", params)
        for table, key, condition, params in (
            (
                "outgoing_welcomes",
                "id",
                "created_at < ? AND state NOT IN ('held', 'due', 'offered')",
                (before, limit),
            ),
            ("inbox", "id", "arrived_at < ? AND coalesce(acknowledged_at, 0) < ?", (before, before, limit)),
            (
                "welcomes",
                "id",
                "stored_at < ? AND NOT EXISTS (SELECT 1 FROM outgoing_welcomes o WHERE o.welcome = welcomes.id)"
                " AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.welcome = welcomes.id)",
                (before, limit),
            ),
        )
    ]
    dropped.append(
        tx.execute(
            "DELETE FROM expected_welcomes WHERE (hub, ref) IN"
            " (SELECT hub, ref FROM expected_welcomes WHERE accepted_at < ? LIMIT ?)",
            (before, limit),
        )
    )
    return limit in dropped


def _drop_unreferenced(tx: Tx, welcome: int) -> None:
    tx.execute(
        "DELETE FROM welcomes WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM outgoing_welcomes WHERE welcome = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM inbox WHERE welcome = ?1)",
        (welcome,),
    )


def due_providers(tx: Tx, now: Milliseconds) -> list[int]:
    """Return the providers for which a Welcome is due."""
    rows = tx.all(
        "SELECT DISTINCT provider FROM outgoing_welcomes WHERE state IN ('due', 'offered') AND next_attempt_at <= ?",
        (now,),
    )
    return [row[0] for row in rows]


def next_due(tx: Tx, provider: int, now: Milliseconds) -> Outgoing | None:
    """Return the Welcome to send to a provider next, None if none is due."""
    row = tx.one(
        "SELECT id, provider, partition, refs, state, failures FROM outgoing_welcomes"
        " WHERE state IN ('due', 'offered') AND next_attempt_at <= ? AND provider = ?"
        " ORDER BY next_attempt_at, id LIMIT 1",
        (now, provider),
    )
    return None if row is None else Outgoing(row[0], row[1], row[2], _REFS.decode(row[3]), row[4], row[5])


def next_outgoing_at(tx: Tx) -> Milliseconds | None:
    """Return when the next Welcome is due, None if none is queued."""
    found = tx.one("SELECT min(next_attempt_at) FROM outgoing_welcomes WHERE state IN ('due', 'offered')")
    return None if found is None or found[0] is None else Milliseconds(found[0])


def settle_outgoing(tx: Tx, row: int, state: str, outcome: str | None) -> None:
    """Record the result of an attempt; `outcome` is for the operator.

    A Welcome that was cancelled or expired meanwhile stays so, unless it was delivered.
    """
    tx.execute(
        "UPDATE outgoing_welcomes SET state = ?1, outcome = ?2"
        " WHERE id = ?3 AND (state IN ('due', 'offered') OR ?1 = 'delivered')",
        (state, outcome, row),
    )


def put_off(tx: Tx, row: int, failures: int, next_attempt_at: Milliseconds, outcome: str) -> None:
    """Record a failed attempt and when to try again."""
    tx.execute(
        "UPDATE outgoing_welcomes SET failures = ?, next_attempt_at = ?, outcome = ? WHERE id = ?",
        (failures, next_attempt_at, outcome, row),
    )


def expect(tx: Tx, hub: int, ref: KeyPackageRef, device: DeviceRow, now: Milliseconds) -> None:
    """Record that we accepted a reference for a Welcome from this hub."""
    tx.execute(
        "INSERT INTO expected_welcomes (hub, ref, device, accepted_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (hub, ref) DO UPDATE SET accepted_at = excluded.accepted_at, arrived_at = NULL,"
        " matched_group = NULL",
        (hub, ref, device, now),
    )


def expected_device(tx: Tx, hub: int, ref: KeyPackageRef) -> DeviceRow | None:
    """Return the device whose reference we accepted, None if we did not; several Welcomes may name it.

    (semantics: welcomes-and-leaving)
    """
    found = tx.one("SELECT device FROM expected_welcomes WHERE hub = ? AND ref = ?", (hub, ref))
    return None if found is None else DeviceRow(found[0])


def note_arrival(tx: Tx, hub: int, ref: KeyPackageRef, now: Milliseconds) -> None:
    """Record that a Welcome for a reference arrived."""
    tx.execute("UPDATE expected_welcomes SET arrived_at = ? WHERE hub = ? AND ref = ?", (now, hub, ref))


def match_group(tx: Tx, hub: int, group_of: Callable[[], int]) -> int | None:
    """Match a group that a hub starts to push to a reference that we accepted from it; return None if none is left.

    `group_of` adds the group and returns its row. Each accepted reference admits one group.
    """
    found = tx.one(
        "SELECT ref FROM expected_welcomes WHERE hub = ? AND matched_group IS NULL ORDER BY accepted_at LIMIT 1", (hub,)
    )
    if found is None:
        return None
    group = group_of()
    tx.execute("UPDATE expected_welcomes SET matched_group = ? WHERE hub = ? AND ref = ?", (group, hub, found[0]))
    return group


def put_in_inbox(tx: Tx, device: DeviceRow, welcome: int, hub: int, now: Milliseconds) -> bool:
    """Put a Welcome into a device's inbox; return False if it is or was there already."""
    added = tx.execute(
        "INSERT INTO inbox (device, welcome, hub, arrived_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (device, welcome, hub, now),
    )
    return added > 0


def inbox_of(tx: Tx, device: DeviceRow, *, after: int = 0, limit: int = 100) -> list[InInbox]:
    """Return the Welcomes that a device has not acknowledged, oldest first."""
    rows = tx.all(
        "SELECT inbox.id, inbox.hub, welcomes.body FROM inbox JOIN welcomes ON welcomes.id = inbox.welcome"
        " WHERE device = ? AND inbox.id > ? AND acknowledged_at IS NULL ORDER BY inbox.id LIMIT ?",
        (device, after, limit),
    )
    return [InInbox(*row) for row in rows]


def acknowledge(tx: Tx, device: DeviceRow, row: int, now: Milliseconds) -> bool:
    """Mark a Welcome in a device's inbox as acknowledged; return False if it is not there."""
    if row > LAST_ROW:
        return False
    changed = tx.execute(
        "UPDATE inbox SET acknowledged_at = ? WHERE id = ? AND device = ? AND acknowledged_at IS NULL",
        (now, row, device),
    )
    return changed > 0
