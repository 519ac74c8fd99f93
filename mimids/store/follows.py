"""Which partitions each other provider follows, and its position in each.

There is no queue, and sequencing a message writes nothing here. Pending pushes are found by a query: the partitions
with a stamp from the follower's cursor on (`store.moved`) in which the follower lacks messages. A change here that
makes a push due (a new follow, a position moved back) gives the partition a new stamp.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mimids.store import moved
from mimids.store.engine.transaction import Tx
from mimids.store.moved import StampPage
from mimids.store.partitions import Partition
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
    stamp: int  # nothing with a lower stamp is due


# The joins are in the order in which they have to run: first the partitions that moved, then their followers.
FOLLOWS_BEHIND = (
    " FROM moved m CROSS JOIN follows f CROSS JOIN partitions p WHERE m.stamp >= ? AND f.partition = m.partition"
    " AND p.id = m.partition AND p.detached = 0 AND f.suspended_reason IS NULL AND f.next_counter < p.next_counter"
)


def follow(tx: Tx, provider: int, partition: int, *, next_counter: int = 0, needs_opening: bool = False) -> bool:
    """Add a provider as follower of a partition, from `next_counter` on; return False if it follows already."""
    added = tx.execute(
        "INSERT INTO follows (provider, partition, next_counter, needs_opening) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        (provider, partition, next_counter, needs_opening),
    )
    if added > 0:
        ensure_peer(tx, provider, next_stamp=moved.settled(tx))
        moved.touch(tx, [partition])
    return added > 0


def follow_with_key(tx: Tx, provider: int, partition: int, parent: int | None) -> None:
    """Add a provider that presented a partition's key; the provider needs an opening unless it follows the parent.

    If the provider follows already and lacks messages, the key is recorded as presented: an answer that the provider
    sent earlier then does not end the following (`end_unless_presented`).
    """
    found = tx.one(
        "SELECT f.presented = 0 AND f.next_counter < p.next_counter FROM follows f JOIN partitions p"
        " ON p.id = f.partition WHERE f.provider = ? AND f.partition = ?",
        (provider, partition),
    )
    if found is None:
        knows_parent = parent is not None and follows_partition(tx, provider, parent)
        follow(tx, provider, partition, needs_opening=not knows_parent)
    elif found[0]:
        note_presented(tx, provider, partition)


def note_presented(tx: Tx, provider: int, partition: int) -> None:
    """Record that a follower presented the key.

    An answer that arrives later may have been sent before the key was presented, so it does not end the following.
    """
    tx.execute("UPDATE follows SET presented = 1 WHERE provider = ? AND partition = ?", (provider, partition))


def is_served(tx: Tx, provider: int, partition: Partition, counter: Counter) -> bool:
    """Tell whether a provider already follows from `counter` or a lower one, so that its key need not be recorded."""
    found = tx.one(
        "SELECT next_counter, presented FROM follows WHERE provider = ? AND partition = ?", (provider, partition.id)
    )
    return found is not None and found[0] <= counter and (found[1] == 1 or found[0] >= partition.next_counter)


def follows_partition(tx: Tx, provider: int, partition: int) -> bool:
    """Return whether a provider follows a partition now."""
    return reached(tx, provider, partition) is not None


def have_followers(tx: Tx, partitions: Iterable[int]) -> bool:
    """Return whether any provider follows any of these partitions."""
    return any(tx.one("SELECT 1 FROM follows WHERE partition = ? LIMIT 1", (each,)) for each in partitions)


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


def is_welcomed(tx: Tx, provider: int, group: int) -> bool:
    """Return whether a Welcome to a group is on its way to a provider; once it is delivered, the provider follows."""
    query = (  # `|| ''` keeps the planners from reading all Welcomes that are on their way to the provider
        "SELECT 1 FROM partitions p JOIN outgoing_welcomes w ON w.partition = p.id AND w.provider = ?"
        " WHERE p.group_ref = ? AND w.state || '' IN ('due', 'offered') LIMIT 1"
    )
    return tx.one(query, (provider, group)) is not None


def due_partitions(tx: Tx, provider: int, next_stamp: int, *, limit: int) -> list[Due]:
    """Return pending pushes to a provider from its cursor on, in the order of their stamps."""
    rows = tx.all(
        f"SELECT p.id, p.group_ref, p.masked_key, f.next_counter, f.needs_opening, m.stamp{FOLLOWS_BEHIND}"
        " AND f.provider = ? ORDER BY m.stamp LIMIT ?",
        (next_stamp, provider, limit),
    )
    return [Due(row[0], row[1], row[2], row[3], bool(row[4]), row[5]) for row in rows]


def followers_behind(tx: Tx, page: StampPage) -> set[int]:
    """Return the followers that lack messages of the partitions whose stamps are on a page."""
    rows = tx.all(f"SELECT f.provider{FOLLOWS_BEHIND} AND m.stamp < ? ORDER BY m.stamp", (page.start, page.end))
    return {row[0] for row in rows}


def settle(tx: Tx, provider: int, partition: int, next_counter: Counter) -> None:
    """Record a follower's answer to a push: the next counter to push."""
    tx.executemany(
        "UPDATE follows SET next_counter = ?, needs_opening = 0, presented = 0 WHERE provider = ? AND partition = ?",
        [(next_counter, provider, partition)],
    )


def set_position(tx: Tx, provider: int, partition: int, next_counter: Counter) -> None:
    """Record the next counter to push, when it was learned in another way than from an answer to a push."""
    settle(tx, provider, partition, next_counter)
    moved.touch(tx, [partition])


def resume(tx: Tx, provider: int, partition: int, counter: Counter) -> bool:
    """Move a follower back to `counter`, never forward; return False if it does not follow the partition."""
    changed = tx.execute(
        "UPDATE follows SET next_counter = CASE WHEN next_counter < ?1 THEN next_counter ELSE ?1 END,"
        " suspended_reason = NULL WHERE provider = ?2 AND partition = ?3",
        (counter, provider, partition),
    )
    if changed > 0:
        moved.touch(tx, [partition])
    return changed > 0


def suspend(tx: Tx, provider: int, partition: int, why: str) -> None:
    """Stop pushing a partition to a follower, because retrying cannot help; `resume` starts it again."""
    tx.execute(
        "UPDATE follows SET suspended_reason = ? WHERE provider = ? AND partition = ?", (why, provider, partition)
    )


def end(tx: Tx, provider: int, partition: int) -> None:
    """Remove a follower of a partition; it follows again once it presents the key or gets a Welcome."""
    tx.execute("DELETE FROM follows WHERE provider = ? AND partition = ?", (provider, partition))


def end_unless_presented(tx: Tx, provider: int, partition: int, counter: Counter) -> None:
    """Remove a follower that answered a push with `NO_LONGER_FOLLOWED`.

    If the follower has presented the key since its last answer, it stays, and the partition is pushed again from
    `counter` on.
    """
    again = tx.execute(
        "UPDATE follows SET presented = 0, needs_opening = 1,"
        " next_counter = CASE WHEN next_counter < ?1 THEN next_counter ELSE ?1 END"
        " WHERE provider = ?2 AND partition = ?3 AND presented = 1",
        (counter, provider, partition),
    )
    if again > 0:
        moved.touch(tx, [partition])
    else:
        end(tx, provider, partition)
