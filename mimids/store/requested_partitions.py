"""Partitions that our devices requested from other hubs. A request is kept while the partition has no row here.

A hub's push of such a partition is accepted, and the device then takes part in the group that the push names. Which of
the three masks the hub uses depends on the group's cipher suite, so all of them are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow
from mimids.wire.ids import MaskedPartitionKey

PARTITIONS_OF_A_DEVICE: Final = 5_000  # of one device, so that a device evicts only its own
_UNDER_A_MASK: Final = "hub = ?1 AND (sha256 = ?2 OR sha384 = ?2 OR sha512 = ?2)"


@attrs.frozen
class Requested:
    """The device that last requested a partition, and whether the hub said that the group is linear."""

    device: DeviceRow
    linear: bool  # the partition is of a linear group (semantics: linear-groups)
    id: int = attrs.field(default=0, eq=False)  # ascending in the order of requests


def add(
    tx: Tx, hub: int, masks: Sequence[MaskedPartitionKey], device: DeviceRow, *, linear: bool, after: int = 0
) -> None:
    """Store that a hub answered a device's request, under an id that is higher than `after` and all stored ids.

    The oldest requests of the device beyond its limit are deleted.
    """
    row = max(newest(tx), after) + 1
    forget(tx, hub, masks)
    tx.execute(
        "INSERT INTO requested_partitions (id, hub, sha256, sha384, sha512, device, linear)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (row, hub, *masks, device, linear),
    )
    tx.execute(
        "DELETE FROM requested_partitions WHERE device = ?1 AND id <="
        " (SELECT id FROM requested_partitions WHERE device = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        (device, PARTITIONS_OF_A_DEVICE),
    )


def find(tx: Tx, hub: int, mask: MaskedPartitionKey) -> Requested | None:
    """Return the device that requested a partition of a hub, None if no device did."""
    found = tx.one(f"SELECT id, device, linear FROM requested_partitions WHERE {_UNDER_A_MASK}", (hub, mask))
    return None if found is None else Requested(DeviceRow(found[1]), bool(found[2]), found[0])


def newest(tx: Tx) -> int:
    """Return the id of the newest stored request, 0 if there is none."""
    found = tx.one("SELECT coalesce(max(id), 0) FROM requested_partitions")
    return int(found[0]) if found else 0


def forget(tx: Tx, hub: int, masks: Sequence[MaskedPartitionKey]) -> None:
    """Delete the request for a partition, because its hub refused it or its row is stored now."""
    tx.execute(f"DELETE FROM requested_partitions WHERE {_UNDER_A_MASK}", (hub, masks[0]))


def forget_device(tx: Tx, device: DeviceRow) -> None:
    """Delete the requests of a device."""
    tx.execute("DELETE FROM requested_partitions WHERE device = ?", (device,))
