"""How many octets a group takes in the database."""

from __future__ import annotations

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import MaskedPartitionKey


@attrs.frozen
class PartitionStorage:
    """Storage of one partition; the times are those of messages that are kept, None if no messages are kept."""

    masked_key: MaskedPartitionKey
    epoch: int | None
    messages: int  # messages that are kept
    message_octets: int
    group_info_octets: int
    oldest_at: Milliseconds | None
    newest_at: Milliseconds | None


@attrs.frozen
class SharedStorage:
    """Storage that several partitions of a group share."""

    tree_octets: int  # of public ratchet trees; other groups of the same members may have subtrees in common
    welcome_octets: int  # of Welcomes that are not delivered


def partitions_of(tx: Tx, group: int) -> list[PartitionStorage]:
    """Return the storage of each partition that has stored octets, the largest first."""
    rows = tx.all(
        "SELECT p.masked_key, p.epoch, count(m.body), coalesce(sum(length(m.body)), 0),"
        " coalesce(sum(length(m.group_info)), 0) + coalesce(length(p.group_info), 0),"
        " min(m.accepted_at) FILTER (WHERE m.body IS NOT NULL), max(m.accepted_at) FILTER (WHERE m.body IS NOT NULL)"
        " FROM partitions p LEFT JOIN messages m ON m.partition = p.id WHERE p.group_ref = ? GROUP BY p.id",
        (group,),
    )
    found = [PartitionStorage(*row) for row in rows]
    return sorted(
        (each for each in found if each.message_octets + each.group_info_octets),
        key=lambda each: -(each.message_octets + each.group_info_octets),
    )


def shared_of(tx: Tx, group: int) -> SharedStorage:
    """Return the octets of the group's ratchet trees, each subtree once, and of its undelivered Welcomes."""
    trees = tx.one(
        "WITH RECURSIVE used(hash) AS (SELECT root_hash FROM partitions WHERE group_ref = ? AND root_hash IS NOT NULL"
        " UNION SELECT CASE side.number WHEN 0 THEN n.left_hash ELSE n.right_hash END FROM used"
        "  JOIN tree_nodes n ON n.hash = used.hash CROSS JOIN (SELECT 0 AS number UNION ALL SELECT 1) side)"
        " SELECT coalesce(sum(length(n.node) + length(n.hash) + length(n.left_hash) + length(n.right_hash)), 0)"
        " FROM used JOIN tree_nodes n ON n.hash = used.hash",
        (group,),
    )
    welcomes = tx.one(
        "SELECT coalesce(sum(length(body)), 0) FROM welcomes WHERE id IN (SELECT o.welcome FROM outgoing_welcomes o"
        " JOIN partitions p ON p.id = o.partition WHERE p.group_ref = ? AND o.state IN ('held', 'due', 'offered'))",
        (group,),
    )
    return SharedStorage(trees[0] if trees else 0, welcomes[0] if welcomes else 0)
