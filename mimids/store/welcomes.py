"""Welcomes: a row for the body, a row for each provider that gets the Welcome, and a row for each device here.

The file is a little long because rows of providers and devices share the body, and the rules for when the body can be
dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

import attrs

from mimids.store.engine.transaction import Tx
from mimids.store.messages import digest_of
from mimids.values import DeviceRow, Milliseconds, hour_of
from mimids.wire.codec import vector
from mimids.wire.ids import KEY_PACKAGE_REF, KeyPackageRef, ProviderId

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
    octets: int  # of the Welcome


@attrs.frozen
class Offered:
    """A Welcome (MLSMessage) as it was sent to us, and the references in it that a provider was offered."""

    body: bytes
    refs: frozenset[KeyPackageRef]


@attrs.frozen
class InInbox:
    """A Welcome that one device has not acknowledged yet."""

    id: int
    hub: ProviderId
    body: bytes


def keep_welcome(tx: Tx, body: bytes, now: Milliseconds) -> int:
    """Store a Welcome's body once; return its row. If the body was dropped before, it is stored again."""
    digest = digest_of(body)
    found = tx.one("SELECT id, length(body) FROM welcomes WHERE digest = ?", (digest,))
    if found is None:
        row = (digest, body, hour_of(now))
        return tx.insert("INSERT INTO welcomes (digest, body, stored_at) VALUES (?, ?, ?) RETURNING id", row)
    if not found[1]:
        tx.execute("UPDATE welcomes SET body = ? WHERE id = ?", (body, found[0]))
    return int(found[0])


def drop_served(tx: Tx, rows: Iterable[int]) -> None:
    """Delete the bodies of those of these Welcomes that each device has acknowledged, and that no provider may need.

    A provider needs a Welcome that it does not have yet, or that it may lose by a restore (semantics: restore). This
    server itself does not count as such a provider. `inbox.hub` tells whether a Welcome is of a group of ours. The
    digest stays, so that a repeat is not delivered again.
    """
    tx.executemany(
        "UPDATE welcomes SET body = ? WHERE id = ? AND length(body) > 0"
        " AND NOT EXISTS (SELECT 1 FROM inbox WHERE welcome = welcomes.id AND acknowledged_at IS NULL)"
        " AND NOT EXISTS (SELECT 1 FROM outgoing_welcomes o WHERE o.welcome = welcomes.id"
        "  AND (o.state IN ('held', 'due', 'offered') OR (o.state = 'delivered'"
        "   AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.welcome = welcomes.id AND i.hub = o.provider))))",
        [(b"", row) for row in rows],
    )


def unsent(tx: Tx, row: int) -> Offered | None:
    """Return a Welcome and the references that its provider was offered; None if it must not be sent any more."""
    found = tx.one(
        "SELECT body, refs FROM outgoing_welcomes o JOIN welcomes ON welcomes.id = o.welcome"
        " WHERE o.id = ? AND state IN ('due', 'offered')",
        (row,),
    )
    return None if found is None else Offered(found[0], frozenset(_REFS.decode(found[1])))


def add_outgoing(
    tx: Tx,
    *,
    welcome: int,
    partition: int,
    provider: int,
    refs: Sequence[KeyPackageRef],
    sender: int = 0,
    held: bool,
    now: Milliseconds,
) -> None:
    """Queue a Welcome for one provider; with `held`, it waits until its branch has a message.

    `sender` is the row of a device of ours, or minus the row of another provider (semantics: welcomes-and-leaving).
    """
    tx.execute(
        "INSERT INTO outgoing_welcomes (welcome, partition, provider, refs, state, created_at, sender)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (welcome, partition, provider, _REFS.encode(tuple(refs)), "held" if held else "due", now, sender),
    )
    if held:
        tx.execute("UPDATE partitions SET held_welcomes = held_welcomes + 1 WHERE id = ?", (partition,))


def count_waiting(tx: Tx, sender: int, *, at_most: int) -> int:
    """Return how many Welcomes of a sender still wait to be sent; stop at `at_most`."""
    found = tx.one(
        "SELECT count(*) FROM (SELECT 1 FROM outgoing_welcomes"
        " WHERE sender = ? AND state IN ('held', 'due', 'offered') LIMIT ?) counted",
        (sender, at_most),
    )
    return int(found[0]) if found else 0


def release_held(tx: Tx, partition: int) -> None:
    """Make the held Welcomes of a branch due."""
    tx.execute("UPDATE outgoing_welcomes SET state = 'due' WHERE partition = ? AND state = 'held'", (partition,))
    tx.execute("UPDATE partitions SET held_welcomes = 0 WHERE id = ?", (partition,))


def cancel_unsent(tx: Tx, partition: int) -> None:
    """Cancel the undelivered Welcomes that lead to a terminated partition."""
    cancelled = tx.all(
        "UPDATE outgoing_welcomes SET state = 'cancelled', sender = 0"
        " WHERE partition = ? AND state IN ('held', 'due', 'offered') RETURNING welcome",
        (partition,),
    )
    tx.execute("UPDATE partitions SET held_welcomes = 0 WHERE id = ?", (partition,))
    drop_served(tx, {welcome for (welcome,) in cancelled})


def drop_held(tx: Tx, partition: int) -> None:
    """Delete the held Welcomes of a branch, with bodies that no other row uses."""
    held = tx.all("SELECT welcome FROM outgoing_welcomes WHERE partition = ? AND state = 'held'", (partition,))
    tx.execute("DELETE FROM outgoing_welcomes WHERE partition = ? AND state = 'held'", (partition,))
    tx.execute("UPDATE partitions SET held_welcomes = 0 WHERE id = ? AND held_welcomes > 0", (partition,))
    for (welcome,) in held:
        drop_unreferenced(tx, welcome)


def expire_unsent(tx: Tx, *, held_before: Milliseconds, due_before: Milliseconds) -> int:
    """Expire undelivered Welcomes that were queued before these moments; return how many."""
    held = tx.all(
        "UPDATE outgoing_welcomes SET state = 'expired', sender = 0 WHERE state = 'held' AND created_at < ?"
        " RETURNING welcome, partition",
        (held_before,),
    )
    tx.executemany(
        "UPDATE partitions SET held_welcomes = (SELECT count(*) FROM outgoing_welcomes w"
        " WHERE w.partition = partitions.id AND w.state = 'held') WHERE id = ?",
        {(partition,) for _, partition in held},
    )
    due = tx.all(
        "UPDATE outgoing_welcomes SET state = 'expired', sender = 0"
        " WHERE state IN ('due', 'offered') AND created_at < ? RETURNING welcome, partition",
        (due_before,),
    )
    drop_served(tx, {welcome for welcome, _ in (*held, *due)})
    return len(held) + len(due)


def sweep_page(tx: Tx, before: Milliseconds, *, limit: int) -> bool:
    """Delete up to `limit` old rows from each table of Welcomes; return whether there may be more.

    Old rows are finished deliveries, inbox entries and expected Welcomes from before `before`, and bodies that no row
    uses.
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
            ("unsendable_welcomes", "id", "created_at < ?", (before, limit)),
            (
                "welcomes",
                "id",
                "stored_at < ? AND NOT EXISTS (SELECT 1 FROM outgoing_welcomes o WHERE o.welcome = welcomes.id)"
                " AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.welcome = welcomes.id)",
                (before, limit),
            ),
        )
    ]
    # By both columns of the key, row by row: for `(hub, ref) IN (...)`, SQLite reads all rows of a hub.
    expected = tx.all("SELECT hub, ref FROM expected_welcomes WHERE accepted_at < ? LIMIT ?", (before, limit))
    tx.executemany("DELETE FROM expected_welcomes WHERE hub = ? AND ref = ?", expected)
    return limit in (*dropped, len(expected))


def drop_references(tx: Tx, refs: Collection[KeyPackageRef], read: Iterable[int]) -> None:
    """Forget KeyPackage references of removed devices: in expected Welcomes, and in our deliveries to our own devices.

    `read` has the Welcomes that were in the inboxes of the devices.
    """
    welcomes, columns = set(read), "o.id, o.refs, o.state, o.partition, o.welcome FROM outgoing_welcomes o"
    outgoing = tx.all(
        f"SELECT {columns} JOIN partitions p ON p.id = o.partition"
        " WHERE o.state IN ('held', 'due', 'offered') AND o.provider = p.hub"
    )
    for welcome in welcomes:
        outgoing += tx.all(f"SELECT {columns} WHERE o.welcome = ?", (welcome,))
    for row, encoded, state, partition, welcome in outgoing:
        before = _REFS.decode(encoded)
        left = tuple(ref for ref in before if ref not in refs)
        if left:
            if left != before:
                tx.execute("UPDATE outgoing_welcomes SET refs = ? WHERE id = ?", (_REFS.encode(left), row))
            continue
        welcomes.add(welcome)
        tx.execute("DELETE FROM outgoing_welcomes WHERE id = ?", (row,))
        if state == "held":
            tx.execute("UPDATE partitions SET held_welcomes = held_welcomes - 1 WHERE id = ?", (partition,))
    for welcome in welcomes:
        drop_unreferenced(tx, welcome)
    drop_served(tx, welcomes)


def drop_unreferenced(tx: Tx, welcome: int) -> None:
    """Delete a Welcome that no provider and no device has any more."""
    tx.execute(
        "DELETE FROM welcomes WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM outgoing_welcomes WHERE welcome = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM inbox WHERE welcome = ?1)",
        (welcome,),
    )


def due_pairs(tx: Tx, now: Milliseconds) -> list[tuple[int, int]]:
    """Return the providers with a due Welcome, each with the sender of the Welcome; a provider may occur repeatedly."""
    rows = tx.all(
        "SELECT DISTINCT provider, sender FROM outgoing_welcomes"
        " WHERE state IN ('due', 'offered') AND next_attempt_at <= ?",
        (now,),
    )
    return [(row[0], row[1]) for row in rows]


def due_senders(tx: Tx, provider: int, now: Milliseconds) -> list[int]:
    """Return the senders of the Welcomes that are due for a provider, in ascending order."""
    rows = tx.all(
        "SELECT DISTINCT sender FROM outgoing_welcomes"
        " WHERE state IN ('due', 'offered') AND provider = ? AND next_attempt_at <= ? ORDER BY sender",
        (provider, now),
    )
    return [row[0] for row in rows]


def next_due(tx: Tx, provider: int, sender: int, now: Milliseconds) -> Outgoing | None:
    """Return the next Welcome of a sender to a provider, None if no Welcome is due."""
    row = tx.one(
        "SELECT o.id, provider, partition, refs, state, failures, length(body)"
        " FROM outgoing_welcomes o JOIN welcomes ON welcomes.id = o.welcome"
        " WHERE state IN ('due', 'offered') AND next_attempt_at <= ? AND provider = ? AND sender = ?"
        " ORDER BY next_attempt_at, o.id LIMIT 1",
        (now, provider, sender),
    )
    return None if row is None else Outgoing(row[0], row[1], row[2], _REFS.decode(row[3]), row[4], row[5], row[6])


def next_outgoing_at(tx: Tx, *, after: Milliseconds) -> Milliseconds | None:
    """Return when the next Welcome that is not due at `after` becomes due; None if there is no such Welcome."""
    found = tx.one(
        "SELECT min(next_attempt_at) FROM outgoing_welcomes WHERE state IN ('due', 'offered') AND next_attempt_at > ?",
        (after,),
    )
    return None if found is None or found[0] is None else Milliseconds(found[0])


def settle_outgoing(tx: Tx, row: int, state: str, outcome: str | None) -> None:
    """Record the result of an attempt; `outcome` is the code of the reason.

    A Welcome that was cancelled or expired meanwhile stays cancelled or expired, unless it was delivered. A Welcome
    counts against its sender until no part of it has to be sent any more. Then the sender is forgotten, and the body is
    deleted unless another provider or device needs it. This is checked here as well, because our own device may have
    acknowledged the Welcome before its delivery was recorded.
    """
    settled = tx.all(
        "UPDATE outgoing_welcomes SET state = ?1, outcome = ?2,"
        " sender = CASE WHEN ?1 IN ('due', 'offered') THEN sender ELSE 0 END"
        " WHERE id = ?3 AND (state IN ('due', 'offered') OR ?1 = 'delivered') RETURNING welcome",
        (state, outcome, row),
    )
    if state not in ("due", "offered"):
        drop_served(tx, [welcome for (welcome,) in settled])


def deliver_again(tx: Tx, provider: int, *, limit: int) -> int:
    """Make the newest Welcomes delivered to a provider due again, because it lost them; return how many.

    These Welcomes count against no sender. Welcomes of terminated branches, and Welcomes without a body, are not
    changed.
    """
    return tx.execute(
        "UPDATE outgoing_welcomes SET state = 'due', outcome = NULL, failures = 0, next_attempt_at = 0, sender = 0"
        " WHERE id IN (SELECT o.id FROM outgoing_welcomes o JOIN partitions p ON p.id = o.partition"
        "  JOIN welcomes w ON w.id = o.welcome WHERE o.provider = ? AND o.state = 'delivered'"
        "  AND p.terminated_by IS NULL AND length(w.body) > 0 ORDER BY o.id DESC LIMIT ?)",
        (provider, limit),
    )


def put_off(tx: Tx, row: int, state: str, failures: int, next_attempt_at: Milliseconds, outcome: str) -> None:
    """Record a failed attempt and when to try again; `state` is "offered" if the provider accepted references."""
    settle_outgoing(tx, row, state, outcome)
    tx.execute(
        "UPDATE outgoing_welcomes SET failures = ?, next_attempt_at = ? WHERE id = ?", (failures, next_attempt_at, row)
    )


def providers_put_off(tx: Tx, *, now: Milliseconds) -> list[ProviderId]:
    """Return the providers that have a Welcome which is tried again only after `now`."""
    rows = tx.all(
        "SELECT DISTINCT domain FROM outgoing_welcomes o JOIN providers ON providers.id = o.provider"
        " WHERE state IN ('due', 'offered') AND next_attempt_at > ?",
        (now,),
    )
    return [row[0] for row in rows]


def try_soon(tx: Tx, provider: int) -> None:
    """Reset the back-offs of a provider's Welcomes, because the provider has just called and so is reachable."""
    tx.execute(
        "UPDATE outgoing_welcomes SET next_attempt_at = 0"
        " WHERE state IN ('due', 'offered') AND provider = ? AND next_attempt_at > 0",
        (provider,),
    )


def try_all_after(tx: Tx, latest: Milliseconds) -> None:
    """Reset the back-offs that end after `latest`: no back-off is that long, so the clock was ahead when it began."""
    tx.execute(
        "UPDATE outgoing_welcomes SET next_attempt_at = 0 WHERE state IN ('due', 'offered') AND next_attempt_at > ?",
        (latest,),
    )


def expect(
    tx: Tx, hub: int, ref: KeyPackageRef, device: DeviceRow, now: Milliseconds, *, another_group: bool = False
) -> None:
    """Record that we accepted a reference for a Welcome from this hub.

    If the reference was accepted before, the hub may push one more group for it only if `another_group` is true
    (`match_group`).
    """
    tx.execute(
        "INSERT INTO expected_welcomes (hub, ref, device, accepted_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (hub, ref) DO UPDATE SET accepted_at = excluded.accepted_at,"
        "  matched_group = CASE WHEN ? = 1 THEN NULL ELSE expected_welcomes.matched_group END",
        (hub, ref, device, hour_of(now), int(another_group)),
    )


def first_hub(tx: Tx, ref: KeyPackageRef) -> int | None:
    """Return the hub from which we first accepted a reference; None if there is none."""
    found = tx.one("SELECT hub FROM expected_welcomes WHERE ref = ? ORDER BY accepted_at, hub LIMIT 1", (ref,))
    return None if found is None else int(found[0])


def expected_device(tx: Tx, hub: int, ref: KeyPackageRef) -> DeviceRow | None:
    """Return the device whose reference we accepted, or None; several Welcomes may name the reference.

    (semantics: welcomes-and-leaving)
    """
    found = tx.one("SELECT device FROM expected_welcomes WHERE hub = ? AND ref = ?", (hub, ref))
    return None if found is None else DeviceRow(found[0])


def match_group(tx: Tx, hub: int, group_of: Callable[[], int]) -> int | None:
    """Use up one reference that we accepted from a hub, because this hub starts to push a group.

    `group_of` adds the group and returns its row. For each accepted reference the hub may push one group. Returns None
    if no reference is left.
    """
    found = tx.one(
        "SELECT ref FROM expected_welcomes WHERE hub = ? AND matched_group IS NULL ORDER BY accepted_at LIMIT 1", (hub,)
    )
    if found is None:
        return None
    group = group_of()
    tx.execute("UPDATE expected_welcomes SET matched_group = ? WHERE hub = ? AND ref = ?", (group, hub, found[0]))
    return group


def is_group_expected(tx: Tx, hub: int) -> bool:
    """Tell whether a hub may push another group, because of a reference that we accepted and that has no group yet."""
    return tx.one("SELECT 1 FROM expected_welcomes WHERE hub = ? AND matched_group IS NULL LIMIT 1", (hub,)) is not None


def put_in_inbox(tx: Tx, device: DeviceRow, welcome: int, hub: int, now: Milliseconds) -> bool:
    """Put a Welcome into a device's inbox; return False if it is or was there.

    Only a work that runs alone may do so: streams and `push_subscriptions` use the ids as cursors, so a row must not
    become visible after a row with a higher id.
    """
    tx.run_alone()
    added = tx.execute(
        "INSERT INTO inbox (device, welcome, hub, arrived_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (device, welcome, hub, hour_of(now)),
    )
    return added > 0


def inbox_of(tx: Tx, device: DeviceRow, *, after: int = 0, limit: int = 100) -> list[InInbox]:
    """Return the Welcomes that a device has not acknowledged, oldest first."""
    rows = tx.all(
        "SELECT inbox.id, providers.domain, welcomes.body FROM inbox JOIN welcomes ON welcomes.id = inbox.welcome"
        " JOIN providers ON providers.id = inbox.hub"
        " WHERE device = ? AND inbox.id > ? AND acknowledged_at IS NULL ORDER BY inbox.id LIMIT ?",
        (device, after, limit),
    )
    return [InInbox(*row) for row in rows]


def acknowledge(tx: Tx, device: DeviceRow, rows: Sequence[int], now: Milliseconds) -> int:
    """Mark Welcomes in a device's inbox as acknowledged, and drop their bodies; return how many were in the inbox."""
    rows = [row for row in rows if row <= LAST_ROW]
    places = ", ".join("?" * len(rows))
    of_device = f"device = ? AND acknowledged_at IS NULL AND id IN ({places})"
    read = tx.all(f"SELECT welcome FROM inbox WHERE {of_device}", (device, *rows))
    tx.execute(f"UPDATE inbox SET acknowledged_at = ? WHERE {of_device}", (hour_of(now), device, *rows))
    drop_served(tx, [welcome for (welcome,) in read])
    return len(read)
