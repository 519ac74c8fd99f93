"""Terminated branches: each partition of a terminated branch names the partition whose termination ended it."""

from __future__ import annotations

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds


def terminate(tx: Tx, partition: int, why: str, now: Milliseconds) -> int:
    """Terminate a branch: this partition and all below it that are not terminated yet; return how many."""
    tx.execute(
        "UPDATE partitions SET terminated_at = ?, terminated_reason = ? WHERE id = ? AND terminated_by IS NULL",
        (now, why, partition),
    )
    return _spread_termination(tx, partition, partition)


def undo_termination(tx: Tx, partition: int) -> int:
    """Undo the termination of a branch; return how many partitions the termination had ended.

    If a branch above was terminated too, that termination now ends them.
    """
    found = tx.one(
        "SELECT parent.terminated_by FROM partitions p LEFT JOIN partitions parent ON parent.id = p.parent"
        " WHERE p.id = ? AND p.terminated_by = p.id",
        (partition,),
    )
    if found is None:
        return 0
    changed = tx.execute("UPDATE partitions SET terminated_by = NULL WHERE terminated_by = ?", (partition,))
    tx.execute("UPDATE partitions SET terminated_at = NULL, terminated_reason = NULL WHERE id = ?", (partition,))
    if found[0] is not None:
        _spread_termination(tx, partition, found[0])
    return changed


def _spread_termination(tx: Tx, partition: int, by: int) -> int:
    # The statement begins with UPDATE: sqlite3 counts no rows for a statement that begins with WITH.
    return tx.execute(
        "UPDATE partitions SET terminated_by = ?1 WHERE terminated_by IS NULL AND id IN ("
        "WITH RECURSIVE below(id) AS (SELECT id FROM partitions WHERE id = ?2 UNION ALL"
        " SELECT p.id FROM partitions p JOIN below ON p.parent = below.id) SELECT id FROM below)",
        (by, partition),
    )
