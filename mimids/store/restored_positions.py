"""Counters that a restored hub gives out again, and the readers that have to be told (semantics: restore).

The messages that a hub sequenced after the backup and that no other provider had are lost, and their counters are given
out again. A device that had read these messages is at a counter that now stands for another message. So each
partition's end at the restore is recorded. The devices that have since read the partition from this end or from an
earlier counter are recorded too. Any other device that asks from a counter beyond the recorded end is told to start
again there.
"""

from __future__ import annotations

from mimids.store import moved, providers
from mimids.store.engine.transaction import Tx
from mimids.store.partitions import Partition
from mimids.values import DeviceRow
from mimids.wire.ids import ProviderId

SKIPPED_COUNTERS = 1 << 17  # more messages than an epoch has between a backup and its restore


def mark_free_groups(tx: Tx, ours: ProviderId) -> None:
    """Record the current ends of the partitions of all hosted groups that are not held."""
    tx.execute("DELETE FROM restored_readers")
    tx.execute(
        "UPDATE partitions SET restored_end = next_counter WHERE hub = ?"
        " AND group_ref NOT IN (SELECT group_ref FROM recoveries WHERE answered = 0)",
        (providers.ensure_provider(tx, ours),),
    )


def mark_group(tx: Tx, group: int) -> None:
    """Record the current ends of the partitions of a group that is no longer held."""
    tx.execute(
        "DELETE FROM restored_readers WHERE partition IN (SELECT id FROM partitions WHERE group_ref = ?)", (group,)
    )
    tx.execute("UPDATE partitions SET restored_end = next_counter WHERE group_ref = ?", (group,))


def skip_counters_of(tx: Tx, group: int, provider: int) -> None:
    """Skip counters in those partitions of a group that a provider follows, when its answer is not awaited any more.

    The provider may have later messages. Without the gap, their counters would be given to other messages.
    """
    skipped = tx.all(
        "UPDATE partitions SET next_counter = CASE WHEN next_counter + ?1 < 2147483646 THEN next_counter + ?1"
        " ELSE 2147483646 END WHERE group_ref = ?2"
        " AND EXISTS (SELECT 1 FROM follows WHERE provider = ?3 AND partition = partitions.id) RETURNING id",
        (SKIPPED_COUNTERS, group, provider),
    )
    moved.touch(tx, [row[0] for row in skipped])  # followers are told where the partition continues


def has_read(tx: Tx, partition: Partition, device: DeviceRow) -> bool:
    """Tell whether a device has read a partition since the restore, from its end at the restore or earlier."""
    sql = "SELECT 1 FROM restored_readers WHERE partition = ? AND device = ?"
    return tx.one(sql, (partition.id, device)) is not None


def note_reader(tx: Tx, partition: int, device: DeviceRow) -> None:
    """Record that a device reads a partition from its end at the restore, or from an earlier counter."""
    tx.execute(
        "INSERT INTO restored_readers (partition, device) VALUES (?, ?) ON CONFLICT DO NOTHING", (partition, device)
    )
