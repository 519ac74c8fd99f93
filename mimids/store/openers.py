"""Who opened a partition, and how many unused partitions a sender has opened."""

from __future__ import annotations

from typing import Final

from mimids.store.engine.transaction import Tx

_IDLE: Final = "next_counter = 0 AND detached = 0 AND expired_at IS NULL AND terminated_by IS NULL"


def opener_of(tx: Tx, partition: int) -> tuple[int | None, int | None]:
    """Return provider and device of the sender whose message or commit opened a partition.

    Both are None if another provider returned the commit after a restore. The provider is 0 once the partition has
    expired.
    """
    found = tx.one("SELECT opener_provider, opener_device FROM partitions WHERE id = ?", (partition,))
    return (None, None) if found is None else (found[0], found[1])


def count_idle_branches(tx: Tx, group: int, provider: int, device: int | None) -> int:
    """Count the idle branches of a group: partitions without messages that a sender's commits opened."""
    found = tx.one(
        "SELECT count(*) FROM partitions"
        f" WHERE opener_provider = ? AND opener_device IS NOT DISTINCT FROM ? AND group_ref = ? AND {_IDLE}",
        (provider, device, group),
    )
    return int(found[0]) if found else 0


def idle_group_infos(tx: Tx, group: int, provider: int, device: int | None) -> list[tuple[int, int, int]]:
    """Return a sender's idle branches with a GroupInfo, newest first: row, the commit's seq, the GroupInfo's octets."""
    rows = tx.all(
        "SELECT id, opened_by, length(group_info) FROM partitions"
        f" WHERE opener_provider = ? AND opener_device IS NOT DISTINCT FROM ? AND group_ref = ? AND {_IDLE}"
        " AND group_info IS NOT NULL AND opened_by IS NOT NULL ORDER BY id DESC",
        (provider, device, group),
    )
    return [(row[0], row[1], row[2]) for row in rows]


def count_detached(tx: Tx, provider: int, device: int | None) -> int:
    """Count the detached partitions that a sender opened, in all groups."""
    found = tx.one(
        "SELECT count(*) FROM partitions"
        " WHERE opener_provider = ? AND opener_device IS NOT DISTINCT FROM ? AND detached = 1 AND expired_at IS NULL",
        (provider, device),
    )
    return int(found[0]) if found else 0
