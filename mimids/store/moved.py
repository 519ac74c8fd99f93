"""Partitions that may have messages for their followers: each partition that ever had messages has a row with a stamp.

A partition gets a new stamp in each transaction after which it may have to be pushed: messages were appended, a
provider follows it or resumes, or a commit attached it. A follower's cursor is the first stamp that has yet to be
checked for this follower: the follower needs nothing from partitions with a stamp below the cursor. This stays true,
because every new stamp is at or above the cursor.

In SQLite, stamps come from one sequence, and no stamp is given twice: before a row is deleted, the row of partition 0
gets a new stamp. In PostgreSQL, where several transactions may write at a time, the stamp is the id of the transaction.
Transactions do not end in the order of their ids. So a reader counts the stamps below `settled` as checked, and no
others: `settled` is the lowest id of a transaction that had not ended in the reader's snapshot. A reader may find the
same partition again, and never misses one. `engine/translation.py` has the two clauses that differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from mimids.store.engine.transaction import Tx
from mimids.wire.ids import MaskedPartitionKey

_NO_PARTITION: Final = 0
_AFTER_ALL: Final = 1 << 62


@attrs.frozen
class Looked:
    """How far the stamps were checked: all those below `settled`; `start` is where the next page begins."""

    settled: int
    start: int

    @classmethod
    def up_to(cls, settled: int) -> Looked:
        """Return the position of a reader that has checked all stamps below `settled`."""
        return cls(settled, settled)


@attrs.frozen
class StampPage:
    """A page of stamps, from `start` on and below `end`."""

    start: int
    end: int
    whole: bool  # there are no partitions with later stamps in this snapshot
    looked: Looked  # once the page was read


def touch(tx: Tx, partitions: Iterable[int]) -> None:
    """Give partitions a new stamp, because they may have to be pushed to a follower."""
    tx.executemany(
        "INSERT INTO moved (partition, stamp) SELECT ?, coalesce(max(stamp), 0) + 1 FROM moved WHERE true"
        " ON CONFLICT (partition) DO UPDATE SET stamp = excluded.stamp",
        [(partition,) for partition in partitions],
    )


def settled(tx: Tx) -> int:
    """Return the cursor of a reader that has checked everything in this snapshot. No later stamp will be below it."""
    found = tx.one("SELECT coalesce(max(stamp), 0) + 1 FROM moved")
    return int(found[0]) if found else 1


def next_page(tx: Tx, looked: Looked, *, limit: int) -> StampPage:
    """Return the next page of stamps, with about `limit` partitions at most.

    Pages go on up to the last stamp of the snapshot. Then they begin again at the first stamp that is not settled.
    """
    found = tx.one("SELECT stamp FROM moved WHERE stamp >= ? ORDER BY stamp LIMIT 1 OFFSET ?", (looked.start, limit))
    end = _AFTER_ALL if found is None else max(int(found[0]), looked.start + 1)
    is_settled = looked.settled == looked.start  # all stamps before this page are
    now_settled = min(end, max(looked.start, settled(tx))) if is_settled else looked.settled
    following = Looked.up_to(now_settled) if found is None else Looked(now_settled, end)
    return StampPage(looked.start, end, found is None, following)


def keys_on(tx: Tx, page: StampPage) -> list[MaskedPartitionKey]:
    """Return the masked keys of the partitions with a stamp on a page."""
    rows = tx.all(
        "SELECT p.masked_key FROM moved m CROSS JOIN partitions p"
        " WHERE m.stamp >= ? AND m.stamp < ? AND p.id = m.partition ORDER BY m.stamp",
        (page.start, page.end),
    )
    return [row[0] for row in rows]


def forget_partition(tx: Tx, partition: int) -> None:
    """Delete the row of a partition that is deleted."""
    touch(tx, [_NO_PARTITION])
    tx.execute("DELETE FROM moved WHERE partition = ?", (partition,))


def forget_group(tx: Tx, group: int) -> None:
    """Delete the rows of the partitions of a group that is deleted; call it before the partitions are deleted."""
    touch(tx, [_NO_PARTITION])
    tx.execute("DELETE FROM moved WHERE partition IN (SELECT id FROM partitions WHERE group_ref = ?)", (group,))
