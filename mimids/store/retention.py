"""Retention: emptying old messages and partitions, and deleting groups that none of our devices joined.

An expired message keeps its row, so that a repeat gets the first answer, until repeats are forgotten too. An expired
partition keeps its key, epoch and place in the tree. The newest row of `messages` always stays, so that no sequence
number is given twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mimids.store import moved
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import Counter


@attrs.frozen
class Kept:
    """The columns of a partition by which retention decides."""

    id: int
    parent: int | None
    detached: bool
    terminated: bool
    next_counter: Counter
    kept_from: Counter
    oldest_at: Milliseconds  # when its oldest kept message was accepted
    active_at: Milliseconds  # when its newest message was accepted or, without messages, when it was opened
    expired: bool


@attrs.frozen
class Follow:
    """A follower's position in a partition, and since when the follower has not answered."""

    provider: int
    partition: int
    next_counter: Counter
    failing_since: Milliseconds | None


@attrs.frozen
class Detached:
    """A detached partition that has been without messages for long."""

    id: int
    opened_at: Milliseconds
    next_counter: Counter
    expired: bool


def due_groups(tx: Tx, *, now: Milliseconds, latest: Milliseconds, limit: int) -> list[tuple[int, int]]:
    """Return row and hub of up to `limit` groups that are due by `now`.

    If no group is due, return groups whose time is after `latest`.
    """
    query = "SELECT id, hub FROM groups WHERE retention_due_at {} ORDER BY retention_due_at LIMIT ?"
    rows = tx.all(query.format("<= ?"), (now, limit)) or tx.all(query.format("> ?"), (latest, limit))
    return [(row[0], row[1]) for row in rows]


def set_due(tx: Tx, due: Sequence[tuple[Milliseconds, bool, int]]) -> None:
    """Set when to plan groups again.

    Each item has the time, a flag, and the group. With the flag, the group is also planned again when one of its
    devices reads on. If a device has read on since the plan was made, the next plan notices this.
    """
    tx.executemany("UPDATE groups SET retention_due_at = ?, retention_waits = ? WHERE id = ?", due)


def kept_of_group(tx: Tx, group: int) -> list[Kept]:
    """Return a group's partitions; the times of an expired partition are 0."""
    rows = tx.all(
        "SELECT id, parent, detached, terminated_by IS NOT NULL, next_counter, kept_from,"
        " CASE WHEN expired_at IS NOT NULL THEN 0 ELSE"
        "  coalesce((SELECT accepted_at FROM messages WHERE partition = p.id AND counter = p.kept_from), 0) END,"
        " CASE WHEN expired_at IS NOT NULL THEN 0 ELSE"
        "  coalesce((SELECT accepted_at FROM messages WHERE seq = p.last_seq AND partition = p.id), opened_at) END,"
        " expired_at IS NOT NULL FROM partitions p WHERE group_ref = ?",
        (group,),
    )
    return [
        Kept(row[0], row[1], bool(row[2]), bool(row[3]), row[4], row[5], row[6], row[7], bool(row[8])) for row in rows
    ]


def follows_behind(tx: Tx, group: int) -> list[Follow]:
    """Return all positions in a group of each follower that lacks messages in any of its partitions.

    Positions whose delivery is suspended are left out.
    """
    behind = tx.all(
        "SELECT DISTINCT f.provider FROM partitions p JOIN follows f ON f.partition = p.id"
        " WHERE p.group_ref = ? AND f.suspended_reason IS NULL AND f.next_counter < p.next_counter",
        (group,),
    )
    found: list[Follow] = []
    for (provider,) in behind:
        rows = tx.all(
            "SELECT f.provider, f.partition, f.next_counter, t.failing_since FROM partitions p CROSS JOIN follows f"
            " LEFT JOIN peers t ON t.provider = f.provider WHERE p.group_ref = ? AND f.provider = ?"
            " AND f.partition = p.id AND f.suspended_reason IS NULL",
            (group, provider),
        )
        found += [Follow(*row) for row in rows]
    return found


def welcomed_partitions(tx: Tx, group: int) -> set[int]:
    """Return the partitions of Welcomes that are not delivered yet, or are unacknowledged in a device's inbox."""
    rows = tx.all(
        "SELECT p.id FROM partitions p JOIN outgoing_welcomes w ON w.partition = p.id WHERE p.group_ref = ?"
        " AND (w.state IN ('held', 'due', 'offered') OR EXISTS"
        "  (SELECT 1 FROM inbox i WHERE i.welcome = w.welcome AND i.acknowledged_at IS NULL))",
        (group,),
    )
    return {row[0] for row in rows}


# --- messages ---------------------------------------------------------------------------------------------------


def empty_page(
    tx: Tx, *, partition: int, start: Counter, end: int, before: Milliseconds, applications_only: bool
) -> tuple[int, Counter | None]:
    """Empty messages from counter `start` to below `end` that were accepted before `before`.

    Returns how many were emptied, and the counter at which to continue. The counter is None once a message is too new,
    because all later messages are too new as well.
    """
    kinds = " AND kind = 1" if applications_only else ""
    emptied = tx.execute(
        "UPDATE messages SET body = NULL, group_info = NULL WHERE partition = ? AND counter >= ? AND counter < ?"
        f" AND accepted_at < ? AND body IS NOT NULL{kinds}",
        (partition, start, end, before),
    )
    tx.execute(
        "UPDATE partitions SET kept_from = coalesce((SELECT counter FROM messages WHERE partition = partitions.id"
        " AND counter >= kept_from AND body IS NOT NULL ORDER BY counter LIMIT 1), next_counter) WHERE id = ?",
        (partition,),
    )
    last = tx.one(
        "SELECT accepted_at FROM messages WHERE partition = ? AND counter >= ? AND counter < ?"
        " ORDER BY counter DESC LIMIT 1",
        (partition, start, end),
    )
    return emptied, Counter(end) if last is None or last[0] < before else None


def old_messages(tx: Tx, *, before: Milliseconds, after: int, limit: int) -> list[tuple[int, bool]]:
    """Return the next up to `limit` messages after seq `after` that were accepted before `before`.

    Each one has its seq, and whether it is empty.
    """
    rows = tx.all(
        "SELECT seq, body IS NULL, accepted_at FROM messages WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
    )
    return [(row[0], bool(row[1])) for row in rows if row[2] < before]


def forget_repeats(tx: Tx, emptied: Sequence[int]) -> None:
    """Delete emptied messages, given by their seq, except the newest message."""
    tx.executemany(
        "DELETE FROM messages WHERE seq = ? AND seq < (SELECT max(seq) FROM messages)", [(seq,) for seq in emptied]
    )


# --- partitions and groups --------------------------------------------------------------------------------------


def expire_partition(tx: Tx, *, partition: int, now: Milliseconds) -> int:
    """Empty a partition except for its key, epoch, parent and digests; return 0 if it still has messages."""
    expired = tx.execute(
        "UPDATE partitions SET knowledge = 'unknown', root_hash = NULL, group_context = NULL, confirmation_tag = NULL,"
        " group_info = NULL, opener_provider = CASE WHEN opener_provider IS NULL THEN NULL ELSE 0 END,"
        " opener_device = NULL, expired_at = ?"
        " WHERE id = ? AND kept_from >= next_counter",
        (now, partition),
    )
    if not expired:
        return 0
    tx.execute("DELETE FROM proposals WHERE partition = ?", (partition,))
    tx.execute(
        "DELETE FROM follows WHERE partition = ?1 AND EXISTS (SELECT 1 FROM partitions WHERE id = ?1 AND detached = 1)",
        (partition,),
    )
    return 1


def old_detached(tx: Tx, *, before: Milliseconds, after: tuple[Milliseconds, int], limit: int) -> list[Detached]:
    """Return detached partitions without a message since `before`, ordered by `opened_at` and row, above `after`."""
    rows = tx.all(
        "SELECT id, opened_at, next_counter, expired_at IS NOT NULL FROM partitions p"
        " WHERE detached = 1 AND opened_at < ?1 AND (opened_at, id) > (?2, ?3) AND NOT EXISTS"
        " (SELECT 1 FROM messages WHERE seq = p.last_seq AND partition = p.id AND accepted_at >= ?1)"
        " ORDER BY opened_at, id LIMIT ?4",
        (before, *after, limit),
    )
    return [Detached(row[0], row[1], row[2], bool(row[3])) for row in rows]


def remove_detached(tx: Tx, *, partition: int) -> bool:
    """Delete an expired detached partition; return False if any row, such as a message's, still refers to it."""
    removed = tx.execute(
        "DELETE FROM partitions WHERE id = ?1 AND detached = 1 AND expired_at IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM messages WHERE partition = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM partitions WHERE parent = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM follows WHERE partition = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM outgoing_welcomes WHERE partition = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM unsendable_welcomes WHERE partition = ?1)",
        (partition,),
    )
    if removed > 0:
        moved.forget_partition(tx, partition)
    return removed > 0


def unmatched_groups(tx: Tx, *, before: Milliseconds) -> list[int]:
    """Return the groups that were first pushed before `before` and that none of our devices joined.

    A group is kept while a removed device has to leave it.
    """
    rows = tx.all(
        "SELECT id FROM groups WHERE unmatched_bytes > 0 AND created_at < ?"
        " AND NOT EXISTS (SELECT 1 FROM participations t WHERE t.group_ref = groups.id)"
        " AND NOT EXISTS (SELECT 1 FROM departures d WHERE d.group_ref = groups.id AND d.state <> 'impossible')",
        (before,),
    )
    return [row[0] for row in rows]


def drop_group_page(tx: Tx, *, group: int, limit: int) -> bool:
    """Delete up to `limit` messages of a group that was only pushed here or is deleted, then the group itself.

    Returns whether there is more to delete now. The newest message in the database is not deleted yet,
    and neither is its group. A group that a device of ours joined meanwhile is kept.
    """
    droppable = "SELECT 1 FROM groups WHERE id = ? AND (unmatched_bytes > 0 OR deleted_at IS NOT NULL)"
    if tx.one(droppable, (group,)) is None:
        return False
    dropped = tx.execute(
        "DELETE FROM messages WHERE seq IN (SELECT m.seq FROM partitions p JOIN messages m ON m.partition = p.id"
        " WHERE p.group_ref = ? AND m.seq < (SELECT max(seq) FROM messages) LIMIT ?)",
        (group, limit),
    )
    if dropped == limit:
        return True
    left = tx.one(
        "SELECT 1 FROM partitions p JOIN messages m ON m.partition = p.id WHERE p.group_ref = ? LIMIT 1", (group,)
    )
    if left is not None:
        return False
    of_group = "IN (SELECT id FROM partitions WHERE group_ref = ?)"
    for table in ("proposals", "follows", "device_cursors"):
        tx.execute(f"DELETE FROM {table} WHERE partition {of_group}", (group,))
    moved.forget_group(tx, group)
    tx.execute("DELETE FROM partitions WHERE group_ref = ?", (group,))
    tx.execute("DELETE FROM expected_welcomes WHERE matched_group = ?", (group,))
    tx.execute("DELETE FROM groups WHERE id = ?", (group,))
    return False
