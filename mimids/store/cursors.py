"""Device cursors: the position of each of our devices in the partitions whose keys it presented.

A device that asks for messages from a counter on has every message below that counter. A device states its position
only by asking.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds, hour_of
from mimids.wire.ids import Counter, MaskedPartitionKey


@attrs.frozen
class Shown:
    """A presented position that is not stored yet; the partition is stored under one of `masks`."""

    device: DeviceRow
    hub: int
    masks: tuple[MaskedPartitionKey, ...]
    counter: Counter
    seen_at: Milliseconds
    only_forward: bool = False  # keep a stored position that is later, or higher in the same hour


@attrs.frozen
class DeviceCursor:
    """A stored position."""

    device: DeviceRow
    partition: int
    next_counter: Counter
    seen_at: Milliseconds  # the hour


def note(tx: Tx, shown: Iterable[Shown]) -> None:
    """Store positions; skip a position whose partition or device does not exist.

    If a group keeps old messages only because somebody waits for them, retention plans the group again. A newer
    position replaces the stored one even if it is lower: a device that lost its messages asks again from the start. If
    several processes serve a device, they may store its positions in the wrong order. So a position that is
    `only_forward` does not replace a stored position of a later hour, nor a higher one of the same hour. A position is
    at most the counter after the last message that was stored when the device named the position: the device cannot
    have later messages.
    """
    for each in shown:
        for mask in each.masks:
            _note_one(tx, each, mask)


def _note_one(tx: Tx, each: Shown, mask: MaskedPartitionKey) -> None:
    tx.execute(
        "INSERT INTO device_cursors (device, partition, next_counter, seen_at)"
        " SELECT d.id, p.id, coalesce((SELECT m.counter + 1 FROM messages m WHERE m.partition = p.id"
        "  AND m.counter < ?4 AND m.counter >= p.kept_from AND m.accepted_at <= ?5"
        "  ORDER BY m.counter DESC LIMIT 1), CASE WHEN p.kept_from < ?4 THEN p.kept_from ELSE ?4 END), ?6"
        " FROM partitions p JOIN devices d ON d.id = ?3 WHERE p.hub = ?1 AND p.masked_key = ?2"
        " ON CONFLICT (device, partition) DO UPDATE SET next_counter = CASE WHEN ?7 = 1"
        "  AND (device_cursors.seen_at > excluded.seen_at OR (device_cursors.seen_at = excluded.seen_at"
        "   AND device_cursors.next_counter > excluded.next_counter))"
        "  THEN device_cursors.next_counter ELSE excluded.next_counter END,"
        "  seen_at = CASE WHEN ?7 = 1 AND device_cursors.seen_at > excluded.seen_at"
        "  THEN device_cursors.seen_at ELSE excluded.seen_at END",
        (
            each.hub,
            mask,
            each.device,
            each.counter,
            each.seen_at,
            hour_of(each.seen_at),
            int(each.only_forward),
        ),
    )
    # A device that reads again after it has left a group is in the group again.
    tx.execute(
        "DELETE FROM participations WHERE device = ?3 AND left_at < ?4 AND group_ref ="
        " (SELECT group_ref FROM partitions WHERE hub = ?1 AND masked_key = ?2)",
        (each.hub, mask, each.device, each.seen_at),
    )
    tx.execute(
        "UPDATE groups SET retention_due_at = 0 WHERE retention_waits = 1"
        " AND id = (SELECT group_ref FROM partitions WHERE hub = ? AND masked_key = ?)",
        (each.hub, mask),
    )


def cursors_of_group(tx: Tx, group: int) -> list[DeviceCursor]:
    """Return the positions in a group's partitions.

    Positions that a device presented before it left the group do not count.
    """
    rows = tx.all(
        "SELECT c.device, c.partition, c.next_counter, c.seen_at FROM partitions p"
        " JOIN device_cursors c ON c.partition = p.id WHERE p.group_ref = ?1 AND NOT EXISTS"
        " (SELECT 1 FROM participations t WHERE t.group_ref = ?1 AND t.device = c.device AND t.left_at IS NOT NULL)",
        (group,),
    )
    return [DeviceCursor(*row) for row in rows]


def forget(tx: Tx, cursors: Iterable[DeviceCursor]) -> None:
    """Delete these positions, unless they were updated since they were read."""
    tx.executemany(
        "DELETE FROM device_cursors WHERE device = ? AND partition = ? AND seen_at = ? AND next_counter = ?",
        [(each.device, each.partition, each.seen_at, each.next_counter) for each in cursors],
    )
