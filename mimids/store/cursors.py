"""Device cursors: the position of each of our devices in the partitions whose keys it presented.

A device that asks for messages from a counter on has every message below it. It states its position in no other way.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.ids import Counter, MaskedPartitionKey


@attrs.frozen
class Shown:
    """A position that a device presented, not stored yet; the partition is stored under any one of `masks`."""

    device: DeviceRow
    hub: int
    masks: tuple[MaskedPartitionKey, ...]
    counter: Counter
    seen_at: Milliseconds


@attrs.frozen
class DeviceCursor:
    """A stored position."""

    device: DeviceRow
    partition: int
    next_counter: Counter
    seen_at: Milliseconds


def note(tx: Tx, shown: Iterable[Shown]) -> None:
    """Store positions; skip those of a partition or device that does not exist.

    The newest position replaces a higher one: a device that lost its messages asks again from the start.
    """
    for each in shown:
        for mask in each.masks:
            tx.execute(
                "INSERT INTO device_cursors (device, partition, next_counter, seen_at)"
                " SELECT d.id, p.id, min(?4, p.next_counter), ?5 FROM partitions p JOIN devices d ON d.id = ?3"
                " WHERE p.hub = ?1 AND p.masked_key = ?2"
                " ON CONFLICT DO UPDATE SET next_counter = excluded.next_counter, seen_at = excluded.seen_at",
                (each.hub, mask, each.device, each.counter, each.seen_at),
            )


def cursors_of_group(tx: Tx, group: int) -> list[DeviceCursor]:
    """Return the positions in a group's partitions, except those that a device presented before it left the group."""
    rows = tx.all(
        "SELECT c.device, c.partition, c.next_counter, c.seen_at FROM partitions p"
        " JOIN device_cursors c ON c.partition = p.id WHERE p.group_ref = ?1 AND NOT EXISTS"
        " (SELECT 1 FROM participations t WHERE t.group_ref = ?1 AND t.device = c.device AND t.left_at >= c.seen_at)",
        (group,),
    )
    return [DeviceCursor(*row) for row in rows]


def forget(tx: Tx, cursors: Iterable[DeviceCursor]) -> None:
    """Delete these positions, unless they were updated since they were read."""
    tx.executemany(
        "DELETE FROM device_cursors WHERE device = ? AND partition = ? AND seen_at = ?",
        [(each.device, each.partition, each.seen_at) for each in cursors],
    )
