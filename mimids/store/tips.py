"""The tips of a group: the open partitions at the ends of its branches."""

from __future__ import annotations

from typing import Final

from mimids.store.engine.transaction import Row, Tx
from mimids.store.partitions import ALL, LAST_EPOCH, Partition, find_row, partition_by_row
from mimids.wire.ids import MaskedPartitionKey

TIPS_AMONG: Final = 1000  # partitions of a group that are read to find its tips
_SIBLINGS: Final = 64  # partitions of the highest epoch that are read to find a tip


def open_tips(tx: Tx, group: int, *, limit: int) -> list[Partition]:
    """Return the open partitions without an open partition below them; partitions with the newest messages come first.

    Only the TIPS_AMONG open partitions of the highest epochs are read.
    """
    rows = tx.all(
        "SELECT id, last_seq FROM (SELECT id, last_seq FROM partitions WHERE group_ref = ? AND detached = 0"
        " AND terminated_by IS NULL ORDER BY epoch DESC NULLS LAST LIMIT ?) p WHERE NOT EXISTS"
        " (SELECT 1 FROM partitions c WHERE c.parent = p.id AND c.detached = 0 AND c.terminated_by IS NULL)",
        (group, TIPS_AMONG),
    )
    newest = sorted(rows, key=lambda row: -row[1])[:limit]
    return [partition_by_row(tx, row) for row, _ in newest]


def ends(tx: Tx, group: int) -> dict[int, MaskedPartitionKey]:
    """Return row and masked key of the attached partitions without a partition below them, terminated or not."""
    rows = tx.all(
        "SELECT id, masked_key FROM partitions p WHERE group_ref = ? AND detached = 0"
        " AND NOT EXISTS (SELECT 1 FROM partitions c WHERE c.parent = p.id)",
        (group,),
    )
    return {row[0]: row[1] for row in rows}


def live_tip(tx: Tx, group: int, *, below: int | None = None) -> Partition | None:
    """Return the tip of the busiest branch: at each fork, take the open branch with most messages.

    If branches are equal, take the earlier one. With `below`, begin at this partition. If there are more than
    `TIPS_AMONG` open partitions, only the partitions of the highest epochs count.

    Without `below`, three statements run for most groups, and for a group that does not exist. If messages were sent
    on several branches, one statement reads up to `TIPS_AMONG` partitions. Otherwise one statement reads the partitions
    of the highest epoch.
    """
    forked = tx.one("SELECT 1 FROM partitions WHERE group_ref = ? AND forked = 1 LIMIT 1", (group,))
    tip = _newest(tx, group, below) if forked is None else None
    tip = _heaviest(tx, group, below) if tip is None else tip
    return find_row(tx, tip)


def _newest(tx: Tx, group: int, below: int | None) -> int | None:
    """Return the tip of a group in which no fork has messages on several branches; None if the tip is not certain.

    In such a group, the open partitions of the highest epoch lie side by side, below the same commits, and at most one
    of them has messages. Every other open partition is an ancestor of these if it has messages, and is not if it
    has none.
    """
    if below is not None:
        leads_on = (
            "SELECT 1 FROM partitions WHERE id = ? AND next_counter > 0 AND detached = 0 AND terminated_by IS NULL"
        )
        if tx.one(leads_on, (below,)) is None:
            return below
    rows = tx.all(
        "SELECT epoch, next_counter, opened_by, id FROM partitions WHERE group_ref = ? AND detached = 0"
        f" AND terminated_by IS NULL ORDER BY epoch DESC NULLS LAST LIMIT {_SIBLINGS}",
        (group,),
    )
    if not rows:
        return 0
    newest = [row for row in rows if row[0] == rows[0][0]]
    if len(newest) == _SIBLINGS or rows[0][0] is None or rows[0][0] >= LAST_EPOCH:
        return None
    return int(min(newest, key=lambda row: (-row[1], row[2] or 0))[3])


def _heaviest(tx: Tx, group: int, below: int | None) -> int:
    """Return the tip of any group.

    Reads the `TIPS_AMONG` partitions of the highest epochs; if `below` is not among these, reads all partitions.
    """
    rows = _open_partitions(tx, group, limit=TIPS_AMONG)
    if below is not None and len(rows) == TIPS_AMONG and all(row[0] != below for row in rows):
        rows = _open_partitions(tx, group, limit=ALL)
    known = {row[0] for row in rows}
    children_of: dict[int | None, list[int]] = {}
    weight, parents = {}, {}
    for id_, parent, next_counter, _ in sorted(rows, key=lambda row: row[3] or 0):
        children_of.setdefault(parent if parent in known else None, []).append(id_)
        weight[id_], parents[id_] = next_counter, parent
    order = list(children_of.get(None, ())) if below is None else [below]
    roots = len(order)
    for id_ in order:  # grows while it is read: each partition comes after its parent
        order += children_of.get(id_, ())
    for id_ in reversed(order[roots:]):
        parent = parents[id_]
        weight[parent] = weight.get(parent, 0) + weight[id_]
    if not order:
        return 0
    tip = below if below is not None else max(order[:roots], key=weight.__getitem__)
    while branches := children_of.get(tip):
        tip = max(branches, key=weight.__getitem__)  # if branches are equal, the first branch
    return tip


def _open_partitions(tx: Tx, group: int, *, limit: int) -> list[Row]:
    """Return row, parent, next counter and commit of the open partitions of the highest epochs."""
    return tx.all(
        "SELECT id, parent, next_counter, opened_by FROM partitions WHERE group_ref = ? AND detached = 0"
        " AND terminated_by IS NULL ORDER BY epoch DESC NULLS LAST, id DESC LIMIT ?",
        (group, limit),
    )
