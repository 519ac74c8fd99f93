"""Groups, identified by (hub, group_id)."""

from __future__ import annotations

from typing import Any

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.ids import CipherSuite, GroupId, ProtocolVersion, ProviderId


@attrs.frozen
class Successor:
    """The group that replaces another group."""

    group_id: GroupId
    hub: ProviderId


@attrs.frozen
class Group:
    """One group as it is stored; at a follower, version and suite are 0 until a GroupInfo arrives."""

    id: int
    hub: int
    group_id: GroupId
    version: ProtocolVersion
    cipher_suite: CipherSuite
    creation_digest: bytes | None
    created_at: Milliseconds
    encrypted_handshakes: bool
    held: bool  # after a restore, until the group's followers have answered which messages they have
    linear: bool = False  # an epoch has one commit (semantics: linear-groups)
    successor: Successor | None = None


_COLUMNS = (
    "id, hub, group_id, version, cipher_suite, creation_digest, created_at, encrypted_handshakes,"
    " EXISTS (SELECT 1 FROM recoveries r WHERE r.group_ref = groups.id AND r.answered = 0),"
    " linear, successor_group_id, successor_hub"
)


def _group(row: tuple[Any, ...] | None) -> Group | None:
    if row is None:
        return None
    successor = None if row[10] is None else Successor(row[10], row[11])
    return Group(
        row[0], row[1], row[2], row[3], row[4], row[5], row[6], bool(row[7]), bool(row[8]), bool(row[9]), successor
    )


def find_group(tx: Tx, hub: int, group_id: GroupId) -> Group | None:
    """Return a hub's group, None if it is not stored."""
    return _group(tx.one(f"SELECT {_COLUMNS} FROM groups WHERE hub = ? AND group_id = ?", (hub, group_id)))


def creator_of(tx: Tx, group: int) -> DeviceRow | None:
    """Return the row of the device that created a group here, None if it is not known."""
    found = tx.one("SELECT creator_device FROM groups WHERE id = ?", (group,))
    return None if found is None else found[0]


def group_by_row(tx: Tx, row: int) -> Group:
    """Return the group of a row that must exist; raise `LookupError` otherwise."""
    found = _group(tx.one(f"SELECT {_COLUMNS} FROM groups WHERE id = ?", (row,)))
    if found is None:
        raise LookupError("no such group")
    return found


def group_ids_of_hub(tx: Tx, hub: int, *, after: GroupId, limit: int) -> list[GroupId]:
    """Return a page of the ids of a hub's groups, from above `after` on, in byte order, without deleted groups."""
    rows = tx.all(
        "SELECT group_id FROM groups WHERE hub = ? AND group_id > ? AND deleted_at IS NULL ORDER BY group_id LIMIT ?",
        (hub, after, limit),
    )
    return [row[0] for row in rows]


def add_group(
    tx: Tx,
    *,
    hub: int,
    group_id: GroupId,
    version: ProtocolVersion,
    cipher_suite: CipherSuite,
    creation_digest: bytes | None,
    creator: DeviceRow | None,
    now: Milliseconds,
    linear: bool = False,
) -> Group:
    """Add a group that does not exist yet."""
    row = tx.insert(
        "INSERT INTO groups (hub, group_id, version, cipher_suite, creation_digest, creator_device, created_at, linear)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (hub, group_id, version, cipher_suite, creation_digest, creator, now, int(linear)),
    )
    return group_by_row(tx, row)


def remove_without_partitions(tx: Tx, group: int) -> None:
    """Delete a group if it has no partitions, and only its id is known, from another provider."""
    tx.execute(
        "DELETE FROM groups WHERE id = ?1 AND creation_digest IS NULL"
        " AND NOT EXISTS (SELECT 1 FROM partitions WHERE group_ref = ?1)",
        (group,),
    )


def count_created(tx: Tx, device: DeviceRow, *, at_most: int) -> int:
    """Count the groups that a device of ours created, up to `at_most`."""
    found = tx.one(
        "SELECT count(*) FROM (SELECT 1 FROM groups WHERE creator_device = ? LIMIT ?) counted",
        (device, at_most),
    )
    return int(found[0]) if found else 0


def unmatched_bytes(tx: Tx, hub: int) -> tuple[int, int]:
    """Return octets and number of the groups that a hub pushed although none of our devices is known to be in them."""
    found = tx.one(
        "SELECT coalesce(sum(unmatched_bytes), 0), count(*) FROM groups WHERE hub = ? AND unmatched_bytes > 0",
        (hub,),
    )
    return (int(found[0]), int(found[1])) if found else (0, 0)


def add_unmatched(tx: Tx, group: int, octets: int) -> None:
    """Add octets of a group that were pushed before any of our devices was known to be in the group."""
    tx.execute("UPDATE groups SET unmatched_bytes = unmatched_bytes + ? WHERE id = ?", (octets, group))


def note_matched(tx: Tx, group: int) -> None:
    """Record that one of our devices is in the group: its pushed octets no longer count against the hub."""
    tx.execute("UPDATE groups SET unmatched_bytes = 0 WHERE id = ? AND unmatched_bytes > 0", (group,))


def note_departure(tx: Tx, group: int) -> None:
    """Record that a device of ours left: retention plans the group again, because fewer devices wait for messages."""
    tx.execute("UPDATE groups SET retention_due_at = 0 WHERE id = ? AND retention_waits = 1", (group,))


def learn_suite(tx: Tx, group: int, version: ProtocolVersion, cipher_suite: CipherSuite) -> None:
    """Record version and suite of another hub's group, read from its first GroupInfo."""
    tx.execute(
        "UPDATE groups SET version = ?, cipher_suite = ? WHERE id = ? AND cipher_suite = 0",
        (version, cipher_suite, group),
    )


def learn_linear(tx: Tx, group: int) -> None:
    """Record that a group which was not created here is linear, as another provider says."""
    tx.execute("UPDATE groups SET linear = 1 WHERE id = ? AND linear = 0 AND creation_digest IS NULL", (group,))


def replace(tx: Tx, group: int, successor: Successor) -> None:
    """Record which group replaces a group."""
    tx.execute(
        "UPDATE groups SET successor_group_id = ?, successor_hub = ? WHERE id = ?",
        (successor.group_id, successor.hub, group),
    )


def clear_successor(tx: Tx, group: int) -> None:
    """Forget which group replaces a group."""
    tx.execute("UPDATE groups SET successor_group_id = NULL, successor_hub = NULL WHERE id = ?", (group,))


def note_encrypted_handshakes(tx: Tx, group: int) -> None:
    """Record that this group encrypts its handshakes."""
    tx.execute("UPDATE groups SET encrypted_handshakes = 1 WHERE id = ?", (group,))
