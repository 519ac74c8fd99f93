"""The groups of other hubs in which our devices are, as far as the devices' requests have shown."""

from __future__ import annotations

import attrs

from mimids.store import groups
from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds, hour_of


@attrs.frozen
class Participants:
    """How many of our devices are in a group, and whether any device has left the group or was removed."""

    present: int
    left: bool


def take_part(tx: Tx, group: int, device: DeviceRow, now: Milliseconds) -> None:
    """Record that a device presented a key of this group: it is in the group, even if it had left the group before."""
    tx.execute(
        "INSERT INTO participations (group_ref, device, joined_at) VALUES (?, ?, ?)"
        " ON CONFLICT (group_ref, device) DO UPDATE SET left_at = NULL WHERE participations.left_at IS NOT NULL",
        (group, device, hour_of(now)),
    )
    groups.note_matched(tx, group)


def takes_part(tx: Tx, group: int, device: DeviceRow) -> bool:
    """Return whether a device is in a group."""
    query = "SELECT 1 FROM participations WHERE group_ref = ? AND device = ? AND left_at IS NULL"
    return tx.one(query, (group, device)) is not None


def without_cursor(tx: Tx, group: int) -> list[Milliseconds]:
    """Return our devices that are in a group without a stored position in it, each with the hour in which it joined."""
    rows = tx.all(
        "SELECT joined_at FROM participations t WHERE group_ref = ?1 AND left_at IS NULL"
        " AND EXISTS (SELECT 1 FROM devices d WHERE d.id = t.device) AND NOT EXISTS (SELECT 1 FROM device_cursors c"
        " JOIN partitions p ON p.id = c.partition WHERE c.device = t.device AND p.group_ref = ?1)",
        (group,),
    )
    return [row[0] for row in rows]


def leave(tx: Tx, group: int, device: DeviceRow, now: Milliseconds) -> bool:
    """Record that a device left a group; if the device never was in the group, change nothing and return False."""
    changed = tx.execute(
        "UPDATE participations SET left_at = ? WHERE group_ref = ? AND device = ?",
        (now, group, device),
    )
    groups.note_departure(tx, group)
    return changed > 0


def begin_again(tx: Tx, group: int, now: Milliseconds) -> None:
    """Forget that all our devices left a group, because one of them was added again; set `created_at` to `now`."""
    tx.execute("DELETE FROM participations WHERE group_ref = ? AND left_at IS NOT NULL", (group,))
    tx.execute("UPDATE groups SET departed = 0, created_at = ? WHERE id = ?", (now, group))


def leave_hosted(tx: Tx, group: int, device: DeviceRow, now: Milliseconds) -> None:
    """Record that a device left a group that we host; for such groups, only leaving is recorded."""
    tx.execute(
        "INSERT INTO participations (group_ref, device, joined_at, left_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (group_ref, device) DO UPDATE SET left_at = excluded.left_at",
        (group, device, hour_of(now), now),
    )
    groups.note_departure(tx, group)


def end_of_device(tx: Tx, device: DeviceRow, now: Milliseconds) -> None:
    """Record that a device has left all its groups."""
    tx.execute("UPDATE participations SET left_at = ? WHERE device = ? AND left_at IS NULL", (now, device))


def of_refused(tx: Tx) -> list[DeviceRow]:
    """Return the devices that are in a group or requested a partition, and whose users are suspended.

    Also return devices that were removed while one of their requests was served.
    """
    rows = tx.all(
        "SELECT d.id FROM users u CROSS JOIN devices d WHERE u.suspended_at IS NOT NULL"
        " AND d.owner = u.id"
        " AND (EXISTS (SELECT 1 FROM participations p WHERE p.device = d.id AND p.left_at IS NULL)"
        " OR EXISTS (SELECT 1 FROM requested_partitions r WHERE r.device = d.id))"
        " UNION SELECT device FROM requested_partitions r WHERE NOT EXISTS (SELECT 1 FROM devices WHERE id = r.device)"
    )
    return [row[0] for row in rows]


def forget_left(tx: Tx, before: Milliseconds, *, limit: int) -> int:
    """Delete up to `limit` rows of devices that left a group before `before`, and their positions there.

    The group's mark `departed` stays. Returns how many rows were deleted.
    """
    left = tx.all(
        "SELECT group_ref, device FROM participations WHERE left_at < ? ORDER BY left_at LIMIT ?", (before, limit)
    )
    tx.executemany("UPDATE groups SET departed = 1 WHERE id = ?", {(group,) for group, _ in left})
    tx.executemany(
        "DELETE FROM device_cursors WHERE device = ?2"
        " AND partition IN (SELECT id FROM partitions WHERE group_ref = ?1)",
        left,
    )
    tx.executemany("DELETE FROM participations WHERE group_ref = ? AND device = ?", left)
    return len(left)


def participants(tx: Tx, group: int) -> Participants:
    """Count our devices in a group."""
    row = tx.one(
        "SELECT count(*) FILTER (WHERE left_at IS NULL), count(*) FILTER (WHERE left_at IS NOT NULL)"
        " + (SELECT departed FROM groups WHERE id = ?1) FROM participations WHERE group_ref = ?1",
        (group,),
    )
    return Participants(row[0], bool(row[1])) if row else Participants(0, left=False)
