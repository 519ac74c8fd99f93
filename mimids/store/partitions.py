"""Partitions: the tree of a group's epochs, stored under masked keys; each commit leads to a child.

A partition is detached while no chain of known commits leads to it from the group's creation (semantics:
partitions-and-forks). A message with an unknown key opened such a partition or one of its ancestors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import attrs

from mimids.store import moved
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import Counter, GroupId, MaskedPartitionKey

LAST_EPOCH: Final = (1 << 63) - 1  # the largest epoch that a row can hold
ALL: Final = (1 << 63) - 1  # a limit that leaves nothing out
PAGE_ROWS: Final = 256


@attrs.frozen
class StoredState:
    """The public group state in one partition; `root_hash` is the root of its tree in `tree_nodes`."""

    derived: bool  # otherwise claimed (semantics: public-group-state)
    root_hash: bytes
    group_context: bytes
    confirmation_tag: bytes
    reinitialized: bool


@attrs.frozen
class Partition:
    """One epoch of one branch."""

    id: int
    group: int
    masked_key: MaskedPartitionKey
    parent: int | None
    opened_by: int | None
    detached: bool
    epoch: int | None
    next_counter: Counter
    last_seq: int
    state: StoredState | None
    terminated: bool
    held_welcomes: int
    opened_at: Milliseconds
    restored_end: Counter | None = None  # its next counter when it was restored (store/restored_positions.py)


_COLUMNS = (
    "id, group_ref, masked_key, parent, opened_by, detached, epoch, next_counter, last_seq, knowledge, root_hash,"
    " group_context, confirmation_tag, reinitialized, terminated_by, held_welcomes, opened_at, restored_end"
)


def _partition(row: tuple[Any, ...]) -> Partition:
    (id_, group, key, parent, opened_by, detached, epoch, counter, last_seq) = row[:9]
    knowledge, root, context, tag, reinitialized, terminated_by, held, opened_at, restored_end = row[9:]
    state = None
    if knowledge != "unknown":
        state = StoredState(knowledge == "derived", root, context, tag, bool(reinitialized))
    ended = terminated_by is not None
    before = id_, group, key, parent, opened_by, bool(detached), epoch, counter, last_seq
    return Partition(*before, state, ended, held, opened_at, restored_end)


def find_partition(tx: Tx, hub: int, masks: Iterable[MaskedPartitionKey]) -> Partition | None:
    """Return a hub's partition that is stored under one of the masks of a raw key, None if there is none."""
    for mask in masks:
        row = tx.one(f"SELECT {_COLUMNS} FROM partitions WHERE hub = ? AND masked_key = ?", (hub, mask))
        if row is not None:
            return _partition(row)
    return None


def has_any_partition(tx: Tx, hub: int, masks: Sequence[MaskedPartitionKey]) -> bool:
    """Tell whether a hub has a partition that is stored under any of these masks."""
    places = ", ".join("?" * len(masks))
    query = f"SELECT 1 FROM partitions WHERE hub = ? AND masked_key IN ({places}) LIMIT 1"
    # For `bytes`, sqlite3 looks for an adapter, which takes a third of the time of this query.
    return tx.one(query, (hub, *map(bytearray, masks))) is not None


def find_row(tx: Tx, row: int) -> Partition | None:
    """Return a partition by its row, None if there is none."""
    found = tx.one(f"SELECT {_COLUMNS} FROM partitions WHERE id = ?", (row,))
    return None if found is None else _partition(found)


def partition_by_row(tx: Tx, row: int) -> Partition:
    """Return the partition of a row that must exist; raise `LookupError` otherwise."""
    found = find_row(tx, row)
    if found is None:
        raise LookupError("no such partition")
    return found


def partitions_of_epoch(tx: Tx, group: int, epoch: int, *, limit: int = 256) -> list[Partition]:
    """Return a group's partitions of `epoch` or of an unknown epoch, newest first, at most `limit`."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM partitions WHERE group_ref = ? AND epoch = ? UNION ALL"
        f" SELECT {_COLUMNS} FROM partitions WHERE group_ref = ? AND epoch IS NULL ORDER BY 1 DESC LIMIT ?",
        (group, min(epoch, LAST_EPOCH), group, limit),
    )
    return [_partition(row) for row in rows]


def attached_of_epoch(tx: Tx, group: int, epoch: int, *, limit: int = 256) -> list[Partition]:
    """Return a group's attached partitions of `epoch` or of an unknown epoch, newest first.

    If there are more than `limit`, open partitions come first, and among these the ones with most messages.
    """
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM partitions WHERE id IN (SELECT id FROM partitions WHERE group_ref = ?1"
        " AND detached = 0 AND (epoch = ?2 OR epoch IS NULL)"
        " ORDER BY terminated_by NULLS FIRST, next_counter DESC, id DESC LIMIT ?3) ORDER BY id DESC",
        (group, min(epoch, LAST_EPOCH), limit),
    )
    return [_partition(row) for row in rows]


def _held(epoch: int | None) -> int | None:
    """Clamp an epoch to the largest storable value: an epoch has 64 bits on the wire, and 63 bits in the database."""
    return None if epoch is None else min(epoch, LAST_EPOCH)


def partitions_of_group(tx: Tx, group: int) -> list[Partition]:
    """Return all partitions of a group, oldest first."""
    rows = tx.all(f"SELECT {_COLUMNS} FROM partitions WHERE group_ref = ? ORDER BY id", (group,))
    return [_partition(row) for row in rows]


def by_epoch(tx: Tx, group: int) -> Iterator[Partition]:
    """Yield the partitions of a group in the order of their epochs; partitions of unknown epochs come last.

    They are read page by page, because the caller may need only the first ones.
    """
    for condition, key in (
        ("(epoch, id) > (?, ?)", lambda each: (each.epoch, each.id)),
        ("epoch IS NULL AND ? < 0 AND id > ?", lambda each: (-1, each.id)),
    ):
        after: tuple[int, int] | None = (-1, 0)
        while after is not None:
            rows = tx.all(
                f"SELECT {_COLUMNS} FROM partitions WHERE group_ref = ? AND {condition}"
                " ORDER BY epoch NULLS FIRST, id LIMIT ?",
                (group, *after, PAGE_ROWS),
            )
            page = [_partition(row) for row in rows]
            yield from page
            after = key(page[-1]) if len(page) == PAGE_ROWS else None


def roots(tx: Tx, group: int) -> list[Partition]:
    """Return a group's partitions without a known parent: one at the hub, perhaps several at a follower."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM partitions WHERE group_ref = ? AND parent IS NULL AND detached = 0 ORDER BY id",
        (group,),
    )
    return [_partition(row) for row in rows]


def newest_of_hub(tx: Tx, hub: int, *, limit: int) -> list[tuple[GroupId, MaskedPartitionKey, Counter]]:
    """Return group, masked key and next counter of a hub's partitions.

    Partitions with the newest messages come first.
    """
    rows = tx.all(
        "SELECT groups.group_id, p.masked_key, p.next_counter FROM groups"
        " JOIN partitions p ON p.group_ref = groups.id WHERE groups.hub = ? AND deleted_at IS NULL"
        " ORDER BY p.last_seq DESC LIMIT ?",
        (hub, limit),
    )
    return [(row[0], row[1], row[2]) for row in rows]


def rows_by_key_prefix(tx: Tx, hub: int, group: int, prefix: bytes, *, limit: int) -> list[tuple[int, bytes]]:
    """Return row and masked key of up to `limit` partitions of a group whose masked key begins with `prefix`."""
    rows = tx.all(
        "SELECT id, masked_key FROM partitions WHERE hub = ? AND masked_key >= ? AND masked_key < ?"
        " AND group_ref = ? ORDER BY masked_key LIMIT ?",
        (hub, prefix, prefix + b"\xff" * 65, group, limit),
    )
    return [(row[0], row[1]) for row in rows]


def children(tx: Tx, partition: int, *, limit: int = ALL) -> list[Partition]:
    """Return the partitions to which the first commits of this partition lead, in the order of the commits."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM partitions WHERE parent = ? ORDER BY opened_by NULLS FIRST LIMIT ?",
        (partition, limit),
    )
    return [_partition(row) for row in rows]


def opened_between(tx: Tx, partition: Partition, first: Counter, end: Counter) -> list[Partition]:
    """Return the partitions to which a partition's commits from counter `first` to below `end` lead, in their order."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM partitions WHERE parent = ?1 AND opened_by IN"
        " (SELECT seq FROM messages WHERE partition = ?1 AND kind = 3 AND counter >= ?2 AND counter < ?3)",
        (partition.id, first, end),
    )
    return sorted(map(_partition, rows), key=lambda each: each.opened_by or 0)


def masks_of_children(tx: Tx, partition: int, *, limit: int) -> list[MaskedPartitionKey]:
    """Return the masked keys of the partitions to which this partition's commits lead, in order, at most `limit`."""
    rows = tx.all(
        "SELECT masked_key FROM partitions WHERE parent = ? ORDER BY opened_by NULLS FIRST LIMIT ?", (partition, limit)
    )
    return [MaskedPartitionKey(row[0]) for row in rows]


def live_forks(group: str) -> str:
    """Return the SQL of the live forks of a group: partitions with at least two open branches that carry messages.

    `group` is the SQL of the group's row. Live forks are defined only here (semantics: partitions-and-forks).
    """
    return (
        f"SELECT parent FROM partitions WHERE group_ref = {group} AND parent IS NOT NULL AND terminated_by IS NULL"
        " AND next_counter > 0 GROUP BY parent HAVING count(*) > 1"
    )


def forks_of_hub(tx: Tx, hub: int, before: Milliseconds, *, after: int, limit: int) -> list[Partition]:
    """Return a page of the partitions of a hub with two or more open branches, one of them older than `before`."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM partitions WHERE id IN (SELECT parent FROM partitions WHERE parent > ?"
        " AND hub = ? AND terminated_by IS NULL AND detached = 0"
        " GROUP BY parent HAVING count(*) > 1 AND min(opened_at) < ? ORDER BY parent LIMIT ?) ORDER BY id",
        (after, hub, before, limit),
    )
    return [_partition(row) for row in rows]


def way_up(tx: Tx, partition: int, *, levels: int) -> list[int]:
    """Return the rows of the partition, its parent, and so on, up to the given number of levels above the partition."""
    rows = tx.all(
        "WITH RECURSIVE above(id, parent, level) AS (SELECT id, parent, 0 FROM partitions WHERE id = ?1 UNION ALL"
        " SELECT p.id, p.parent, above.level + 1 FROM partitions p JOIN above ON p.id = above.parent"
        "  WHERE above.level < ?2) SELECT level, id FROM above",
        (partition, levels),
    )
    return [row[1] for row in sorted(rows)]


def has_child(tx: Tx, partition: int) -> bool:
    """Tell whether a commit of this partition leads to another partition."""
    return tx.one("SELECT 1 FROM partitions WHERE parent = ? LIMIT 1", (partition,)) is not None


def add_partition(
    tx: Tx,
    *,
    group: int,
    hub: int,
    masked_key: MaskedPartitionKey,
    epoch: int | None,
    now: Milliseconds,
    parent: int | None = None,
    opened_by: int | None = None,
    detached: bool = False,
    opener_provider: int | None = None,
    opener_device: int | None = None,
) -> int:
    """Add a partition whose state is unknown; return its row."""
    return tx.insert(
        "INSERT INTO partitions (group_ref, hub, masked_key, parent, opened_by, detached, epoch, opener_provider,"
        " opener_device, opened_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (group, hub, masked_key, parent, opened_by, detached, _held(epoch), opener_provider, opener_device, now),
    )


def count_empty(tx: Tx, group: int, *, at_most: int) -> int:
    """Count the partitions of a group that never had a message here, up to `at_most`."""
    found = tx.one(
        "SELECT count(*) FROM (SELECT 1 FROM partitions WHERE last_seq = 0 AND group_ref = ? LIMIT ?) counted",
        (group, at_most),
    )
    return int(found[0]) if found else 0


def remove_empty(tx: Tx, partition: int) -> None:
    """Delete a detached partition that was opened for a message, after the message was refused."""
    tx.execute("DELETE FROM partitions WHERE id = ? AND detached = 1 AND next_counter = 0", (partition,))


def attach(
    tx: Tx,
    partition: int,
    *,
    parent: int,
    opened_by: int,
    epoch: int | None,
    detached: bool,
    opener_provider: int | None = None,
    opener_device: int | None = None,
) -> None:
    """Put a detached partition below its commit; set `epoch` and `detached` of the partition and its descendants.

    From now on the opener is the sender of the commit. If `detached` is false, the messages that are already in these
    partitions will be pushed.
    """
    tx.execute(
        "UPDATE partitions SET parent = ?, opened_by = ?, epoch = ?, opener_provider = ?, opener_device = ?"
        " WHERE id = ?",
        (parent, opened_by, _held(epoch), opener_provider, opener_device, partition),
    )
    tx.execute(
        "WITH RECURSIVE below(id, epoch) AS (SELECT id, epoch FROM partitions WHERE id = ?1"
        " UNION ALL SELECT p.id, CASE WHEN below.epoch < ?2 THEN below.epoch + 1 ELSE below.epoch END"
        "  FROM partitions p JOIN below ON p.parent = below.id)"
        " UPDATE partitions SET detached = ?3, epoch = below.epoch FROM below WHERE partitions.id = below.id",
        (partition, LAST_EPOCH, detached),
    )
    if not detached:
        rows = tx.all(
            "WITH RECURSIVE below(id) AS (SELECT id FROM partitions WHERE id = ? UNION ALL"
            " SELECT p.id FROM partitions p JOIN below ON p.parent = below.id) SELECT id FROM below",
            (partition,),
        )
        moved.touch(tx, [row for (row,) in rows])
    _note_fork(tx, partition)


def set_state(tx: Tx, partition: int, state: StoredState | None) -> None:
    """Store the public group state of a partition; None stands for an unknown state."""
    known: tuple[object, ...] = ("unknown", None, None, None, False)
    if state is not None:
        derived = "derived" if state.derived else "claimed"
        known = (derived, state.root_hash, state.group_context, state.confirmation_tag, state.reinitialized)
    tx.execute(
        "UPDATE partitions SET knowledge = ?, root_hash = ?, group_context = ?, confirmation_tag = ?,"
        " reinitialized = ? WHERE id = ?",
        (*known, partition),
    )


def learn_epoch(tx: Tx, partition: int, epoch: int) -> None:
    """Store the epoch of a partition, if it was unknown."""
    tx.execute("UPDATE partitions SET epoch = ? WHERE id = ? AND epoch IS NULL", (_held(epoch), partition))


def set_group_info(tx: Tx, partition: int, group_info: bytes | None) -> None:
    """Store the GroupInfo of this partition's epoch, byte for byte."""
    tx.execute("UPDATE partitions SET group_info = ? WHERE id = ?", (group_info, partition))


def group_info_of(tx: Tx, partition: int) -> bytes | None:
    """Return the GroupInfo of this partition's epoch, None if there is none."""
    found = tx.one("SELECT group_info FROM partitions WHERE id = ?", (partition,))
    return None if found is None else found[0]


def advance(tx: Tx, partition: int, *, next_counter: Counter, last_seq: int, was_empty: bool = True) -> None:
    """Update next counter and last sequence number of a partition after messages were appended.

    Its first message may make its parent a fork with messages on several branches.
    """
    # With `executemany`, PostgreSQL sends the statement together with others.
    tx.executemany(
        "UPDATE partitions SET next_counter = ?, last_seq = ? WHERE id = ?", [(next_counter, last_seq, partition)]
    )
    if was_empty:
        _note_fork(tx, partition)


def _note_fork(tx: Tx, partition: int) -> None:
    tx.execute(
        "UPDATE partitions SET forked = 1 WHERE id = (SELECT parent FROM partitions WHERE id = ?1) AND forked = 0"
        " AND EXISTS (SELECT 1 FROM partitions p WHERE p.id = ?1 AND p.next_counter > 0)"
        " AND EXISTS (SELECT 1 FROM partitions p WHERE p.parent = partitions.id AND p.id <> ?1 AND p.next_counter > 0)",
        (partition,),
    )
