"""Retention: emptying old messages and partitions, and deleting groups that none of our devices joined.

An expired message keeps its row, so that a repeat gets the first answer, until repeats are forgotten too. An expired
partition keeps its key, epoch and place in the tree. The newest row of `messages` always stays, so that no sequence
number is given twice.
"""

from __future__ import annotations

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import Counter


@attrs.frozen
class Kept:
    """The columns of a partition that retention decides by."""

    id: int
    parent: int | None
    detached: bool
    terminated: bool
    next_counter: Counter
    kept_from: Counter
    oldest_at: Milliseconds  # when its oldest kept message was accepted
    active_at: Milliseconds  # when its newest message was accepted, or when it was opened
    expired: bool


@attrs.frozen
class Follow:
    """A follower's position in a partition, and since when the follower does not answer."""

    provider: int
    partition: int
    next_counter: Counter
    failing_since: Milliseconds | None


def groups_with_old(tx: Tx, *, before: Milliseconds, after: int, limit: int) -> list[tuple[int, int]]:
    """Return row and hub of groups with an unexpired partition that was opened before `before`."""
    rows = tx.all(
        "SELECT g.id, g.hub FROM groups g WHERE g.id > ? AND EXISTS (SELECT 1 FROM partitions p"
        " WHERE p.group_ref = g.id AND p.expired_at IS NULL AND p.opened_at < ?) ORDER BY g.id LIMIT ?",
        (after, before, limit),
    )
    return [(row[0], row[1]) for row in rows]


def kept_of_group(tx: Tx, group: int) -> list[Kept]:
    """Return a group's partitions, oldest first."""
    rows = tx.all(
        "SELECT id, parent, detached, terminated_by IS NOT NULL, next_counter, kept_from,"
        " coalesce((SELECT accepted_at FROM messages WHERE partition = p.id AND counter = p.kept_from), 0),"
        " coalesce((SELECT accepted_at FROM messages WHERE seq = p.last_seq AND partition = p.id), opened_at),"
        " expired_at IS NOT NULL FROM partitions p WHERE group_ref = ? ORDER BY id",
        (group,),
    )
    return [
        Kept(row[0], row[1], bool(row[2]), bool(row[3]), row[4], row[5], row[6], row[7], bool(row[8])) for row in rows
    ]


def follows_of_group(tx: Tx, group: int) -> list[Follow]:
    """Return the positions of a group's followers, except those whose delivery is suspended."""
    rows = tx.all(
        "SELECT f.provider, f.partition, f.next_counter, t.failing_since FROM partitions p"
        " JOIN follows f ON f.partition = p.id LEFT JOIN peers t ON t.provider = f.provider"
        " WHERE p.group_ref = ? AND f.suspended_reason IS NULL",
        (group,),
    )
    return [Follow(*row) for row in rows]


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

    Returns how many, and the counter to continue at: None once a message is too new, since all later ones are too.
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


def forget_repeats(tx: Tx, *, before: Milliseconds, after: int, limit: int) -> int | None:
    """Delete emptied messages that were accepted before `before`, among the `limit` messages after seq `after`.

    Returns the last seq that it examined, None once no older message is left.
    """
    rows = tx.all(
        "SELECT seq, accepted_at, body IS NULL FROM messages WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
    )
    old = [row for row in rows if row[1] < before]
    tx.executemany(
        "DELETE FROM messages WHERE seq = ? AND seq < (SELECT max(seq) FROM messages)",
        [(seq,) for seq, _, empty in old if empty],
    )
    return int(old[-1][0]) if len(old) == limit else None


# --- partitions and groups --------------------------------------------------------------------------------------


def expire_partition(tx: Tx, *, partition: int, now: Milliseconds) -> int:
    """Empty a partition except for its key, epoch, parent and digests; return 0 if it still has messages."""
    expired = tx.execute(
        "UPDATE partitions SET knowledge = 'unknown', root_hash = NULL, group_context = NULL, confirmation_tag = NULL,"
        " group_info = NULL, expired_at = ? WHERE id = ? AND kept_from >= next_counter",
        (now, partition),
    )
    if not expired:
        return 0
    tx.execute("DELETE FROM proposals WHERE partition = ?", (partition,))
    tx.execute(
        "DELETE FROM follows WHERE partition = ?1 AND (SELECT detached FROM partitions WHERE id = ?1)", (partition,)
    )
    return 1


def old_detached(tx: Tx, *, before: Milliseconds, after: int, limit: int) -> list[tuple[int, Counter, bool]]:
    """Return row, next counter and expiry of detached partitions without a message since `before`."""
    rows = tx.all(
        "SELECT id, next_counter, expired_at IS NOT NULL FROM partitions p INDEXED BY detached_by_age"
        " WHERE detached = 1 AND opened_at < ?1 AND id > ?2 AND NOT EXISTS"
        " (SELECT 1 FROM messages WHERE seq = p.last_seq AND partition = p.id AND accepted_at >= ?1)"
        " ORDER BY id LIMIT ?3",
        (before, after, limit),
    )
    return [(row[0], row[1], bool(row[2])) for row in rows]


def remove_detached(tx: Tx, *, partition: int) -> bool:
    """Delete an expired detached partition; return False if any row, message rows too, still refers to it."""
    removed = tx.execute(
        "DELETE FROM partitions WHERE id = ?1 AND detached = 1 AND expired_at IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM messages WHERE partition = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM partitions WHERE parent = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM follows WHERE partition = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM outgoing_welcomes WHERE partition = ?1)",
        (partition,),
    )
    return removed > 0


def unmatched_group(tx: Tx, *, before: Milliseconds, after: int) -> int | None:
    """Return the next group after `after` that was first pushed before `before` and that none of our devices joined."""
    found = tx.one(
        "SELECT min(id) FROM groups WHERE unmatched_bytes > 0 AND created_at < ? AND id > ?"
        " AND NOT EXISTS (SELECT 1 FROM participations t WHERE t.group_ref = groups.id)",
        (before, after),
    )
    return None if found is None or found[0] is None else int(found[0])


def drop_group_page(tx: Tx, *, group: int, limit: int) -> bool:
    """Delete up to `limit` messages of a group that was only pushed here, and the group once it has none left.

    Returns whether there is more to delete now. The newest message of all, and so its group, cannot be deleted yet.
    """
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
    tx.execute("DELETE FROM partitions WHERE group_ref = ?", (group,))
    tx.execute("DELETE FROM expected_welcomes WHERE matched_group = ?", (group,))
    tx.execute("DELETE FROM groups WHERE id = ?", (group,))
    return False
