"""Which partitions each other provider follows, and its position in each.

There is no queue, and sequencing a message writes nothing here. Pending pushes are found by a query: the partitions
that a provider follows and that have messages since its cursor, and those marked dirty (newly followed, or resumed).
"""

from __future__ import annotations

import attrs

from mimids.store.engine.transaction import Tx
from mimids.store.peers import ensure_peer
from mimids.wire.ids import Counter, MaskedPartitionKey


@attrs.frozen
class Due:
    """A followed partition with messages that the follower has not acknowledged."""

    partition: int
    group: int
    masked_key: MaskedPartitionKey
    next_counter: Counter
    needs_opening: bool


def follow(tx: Tx, provider: int, partition: int, *, next_counter: int = 0, needs_opening: bool = False) -> bool:
    """Add a provider as follower of a partition, from `next_counter` on; return False if it follows already."""
    added = tx.execute(
        "INSERT INTO follows (provider, partition, next_counter, needs_opening, dirty)"
        " SELECT ?1, id, ?3, ?4, next_counter > ?3 FROM partitions WHERE id = ?2 ON CONFLICT DO NOTHING",
        (provider, partition, next_counter, needs_opening),
    )
    if added > 0:
        ensure_peer(tx, provider)
    return added > 0


def follow_with_key(tx: Tx, provider: int, partition: int, parent: int | None) -> None:
    """Add a provider that presented a partition's key; it needs an opening unless it follows the parent."""
    knows_parent = parent is not None and follows_partition(tx, provider, parent)
    follow(tx, provider, partition, needs_opening=not knows_parent)


def follows_partition(tx: Tx, provider: int, partition: int) -> bool:
    """Return whether a provider follows a partition now."""
    return reached(tx, provider, partition) is not None


def reached(tx: Tx, provider: int, partition: int) -> Counter | None:
    """Return the next counter to push to a provider, None if it does not follow the partition."""
    found = tx.one("SELECT next_counter FROM follows WHERE provider = ? AND partition = ?", (provider, partition))
    return None if found is None else Counter(found[0])


def follows_group(tx: Tx, provider: int, group: int) -> bool:
    """Return whether a provider follows any partition of a group."""
    query = (
        "SELECT 1 FROM partitions p JOIN follows f ON f.partition = p.id AND f.provider = ?"
        " WHERE p.group_ref = ? LIMIT 1"
    )
    return tx.one(query, (provider, group)) is not None


def due_partitions(tx: Tx, provider: int, cursor_seq: int, *, limit: int) -> list[Due]:
    """Return pending pushes to a provider: dirty partitions first, then those that moved since its cursor."""
    columns = "p.id, p.group_ref, p.masked_key, f.next_counter, f.needs_opening"
    rows = tx.all(
        f"SELECT {columns} FROM follows f JOIN partitions p ON p.id = f.partition"
        " WHERE f.provider = ? AND f.dirty = 1 AND p.detached = 0 AND f.suspended_reason IS NULL"
        " AND f.next_counter < p.next_counter LIMIT ?",
        (provider, limit),
    )
    rows += tx.all(
        f"SELECT {columns} FROM partitions p INDEXED BY partitions_by_last_seq"
        " CROSS JOIN follows f ON f.provider = ? AND f.partition = p.id"
        " WHERE p.last_seq > ? AND p.detached = 0 AND f.dirty = 0 AND f.suspended_reason IS NULL"
        " AND f.next_counter < p.next_counter"
        " ORDER BY p.last_seq LIMIT ?",
        (provider, cursor_seq, limit - len(rows)),
    )
    return [Due(row[0], row[1], row[2], row[3], bool(row[4])) for row in rows]


def settle(tx: Tx, provider: int, partition: int, next_counter: Counter) -> None:
    """Record a follower's answer: the next counter to push; clear `dirty` once nothing is left to push."""
    tx.execute(
        "UPDATE follows SET next_counter = ?1, needs_opening = 0,"
        " dirty = (?1 < (SELECT next_counter FROM partitions WHERE id = ?3)) WHERE provider = ?2 AND partition = ?3",
        (next_counter, provider, partition),
    )


def resume(tx: Tx, provider: int, partition: int, counter: Counter) -> bool:
    """Rewind a follower to `counter`, never forward; return False if it does not follow the partition."""
    changed = tx.execute(
        "UPDATE follows SET next_counter = min(next_counter, ?), dirty = 1, suspended_reason = NULL"
        " WHERE provider = ? AND partition = ?",
        (counter, provider, partition),
    )
    return changed > 0


def suspend(tx: Tx, provider: int, partition: int, why: str) -> None:
    """Stop pushing a partition to a follower, because retrying cannot help; `resume` starts it again."""
    tx.execute(
        "UPDATE follows SET suspended_reason = ? WHERE provider = ? AND partition = ?", (why, provider, partition)
    )


def end(tx: Tx, provider: int, partition: int) -> None:
    """Remove a follower of a partition; it follows again once it presents the key or gets a Welcome."""
    tx.execute("DELETE FROM follows WHERE provider = ? AND partition = ?", (provider, partition))
