"""Which branches of a group are open. The rules of linear and of replaced groups depend on this."""

from __future__ import annotations

from mimids.store.engine.transaction import Tx
from mimids.store.partitions import Partition
from mimids.wire.ids import MaskedPartitionKey


def open_child(tx: Tx, partition: int) -> MaskedPartitionKey | None:
    """Return the key of the first open partition directly below this one, None if there is none."""
    row = tx.one(
        "SELECT masked_key FROM partitions WHERE parent = ? AND terminated_by IS NULL"
        " ORDER BY opened_by NULLS FIRST LIMIT 1",
        (partition,),
    )
    return None if row is None else row[0]


def has_open_sibling_before(tx: Tx, partition: int) -> bool:
    """Tell whether a commit before a partition's opening commit leads to a branch that is not terminated.

    If so, the later commit's Welcome is held until its branch is used (semantics: welcomes-and-leaving).
    """
    query = (
        "SELECT 1 FROM partitions p JOIN partitions s ON s.parent = p.parent WHERE p.id = ? AND s.terminated_by IS NULL"
        " AND coalesce(s.opened_by, 0) < p.opened_by LIMIT 1"
    )
    return tx.one(query, (partition,)) is not None


def has_open_branch(tx: Tx, group: int) -> bool:
    """Tell whether a group has a partition that is neither terminated nor detached."""
    query = "SELECT 1 FROM partitions WHERE group_ref = ? AND terminated_by IS NULL AND detached = 0 LIMIT 1"
    return tx.one(query, (group,)) is not None


def has_sibling_in_force(tx: Tx, partition: Partition) -> bool:
    """Tell whether another partition below the same parent is open, or would be open if all branches above it were."""
    query = (
        "SELECT 1 FROM partitions WHERE parent = ? AND id <> ? AND (terminated_by IS NULL OR terminated_by <> id)"
        " LIMIT 1"
    )
    return tx.one(query, (partition.parent, partition.id)) is not None
