"""Which of our devices are in which group of another hub, as far as their requests have shown."""

from __future__ import annotations

import attrs

from mimids.store import groups
from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds


@attrs.frozen
class Participants:
    """How many of our devices are in a group and how many have left it."""

    present: int
    left: int


def take_part(tx: Tx, group: int, device: DeviceRow, now: Milliseconds) -> None:
    """Record that a device presented a key of this group: it is in the group, again if it had left."""
    tx.execute(
        "INSERT INTO participations (group_ref, device, joined_at) VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET left_at = NULL WHERE left_at IS NOT NULL",
        (group, device, now),
    )
    groups.note_matched(tx, group)


def takes_part(tx: Tx, group: int, device: DeviceRow) -> bool:
    """Return whether a device is in a group."""
    query = "SELECT 1 FROM participations WHERE group_ref = ? AND device = ? AND left_at IS NULL"
    return tx.one(query, (group, device)) is not None


def leave(tx: Tx, group: int, device: DeviceRow, now: Milliseconds) -> None:
    """Record that a device left a group."""
    tx.execute(
        "INSERT INTO participations (group_ref, device, joined_at, left_at) VALUES (?1, ?2, ?3, ?3)"
        " ON CONFLICT DO UPDATE SET left_at = excluded.left_at",
        (group, device, now),
    )


def participants(tx: Tx, group: int) -> Participants:
    """Count our devices in a group."""
    row = tx.one(
        "SELECT count(*) FILTER (WHERE left_at IS NULL), count(*) FILTER (WHERE left_at IS NOT NULL)"
        " FROM participations WHERE group_ref = ?",
        (group,),
    )
    return Participants(row[0], row[1]) if row else Participants(0, 0)
