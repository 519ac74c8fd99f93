"""Partitions: the tree of a group's epochs, stored under masked keys; each commit leads to a child.

A partition is detached while no chain of known commits leads to it from the group's creation (semantics:
partitions-and-forks): a message with an unknown key opened it, or one above it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs

from mimids.store import trees
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import Counter, GroupId, MaskedPartitionKey

LAST_EPOCH: Final = (1 << 63) - 1  # the largest epoch that a row can hold


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


_COLUMNS = (
    "id, group_ref, masked_key, parent, opened_by, detached, epoch, next_counter, last_seq, knowledge, root_hash,"
    " group_context, confirmation_tag, reinitialized, terminated_by, held_welcomes, opened_at"
)


def _partition(row: tuple[Any, ...]) -> Partition:
    (id_, group, key, parent, opened_by, detached, epoch, counter, last_seq) = row[:9]
    knowledge, root, context, tag, reinitialized, terminated_by, held, opened_at = row[9:]
    state = None
    if knowledge != "unknown":
        state = StoredState(knowledge == "derived", root, context, tag, bool(reinitialized))
    ended = terminated_by is not None
    return Partition(
        id_, group, key, parent, opened_by, bool(detached), epoch, counter, last_seq, state, ended, held, opened_at
    )


def find_partition(tx: Tx, hub: int, masks: Iterable[MaskedPartitionKey]) -> Partition | None:
    """Return a hub's partition that is stored under one of the masks of a raw key, None if there is none."""
    for mask in masks:
        row = tx.one(f"SELECT {_COLUMNS} FROM partitions WHERE hub = ? AND masked_key = ?", (hub, mask))
        if row is not None:
            return _partition(row)
    return None


def partition_by_row(tx: Tx, row: int) -> Partition:
    """Return the partition of a row that must exist; raise `LookupError` otherwise."""
    found = tx.one(f"SELECT {_COLUMNS} FROM partitions WHERE id = ?", (row,))
    if found is None:
        raise LookupError("no such partition")
    return _partition(found)


def partitions_of_epoch(tx: Tx, group: int, epoch: int) -> list[Partition]:
    """Return a group's partitions of `epoch` and those whose epoch is unknown, newest first, at most 256."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM partitions WHERE group_ref = ? AND epoch = ? UNION ALL"
        f" SELECT {_COLUMNS} FROM partitions WHERE group_ref = ? AND epoch IS NULL ORDER BY 1 DESC LIMIT 256",
        (group, min(epoch, LAST_EPOCH), group),
    )
    return [_partition(row) for row in rows]


def _held(epoch: int | None) -> int | None:
    """Clamp an epoch to the largest storable value: it is a uint64 on the wire, and 63 bits in the database."""
    return None if epoch is None else min(epoch, LAST_EPOCH)


def partitions_of_group(tx: Tx, group: int) -> list[Partition]:
    """Return all partitions of a group, oldest first."""
    rows = tx.all(f"SELECT {_COLUMNS} FROM partitions WHERE group_ref = ? ORDER BY id", (group,))
    return [_partition(row) for row in rows]


def roots(tx: Tx, group: int) -> list[Partition]:
    """Return the partitions where a group begins: at the hub the first, at a follower each without a known parent."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM partitions WHERE group_ref = ? AND parent IS NULL AND detached = 0 ORDER BY id",
        (group,),
    )
    return [_partition(row) for row in rows]


def newest_of_hub(tx: Tx, hub: int, *, limit: int) -> list[tuple[GroupId, MaskedPartitionKey, Counter]]:
    """Return group, masked key and next counter of a hub's partitions, those with the newest messages first."""
    rows = tx.all(
        "SELECT groups.group_id, p.masked_key, p.next_counter FROM groups"
        " JOIN partitions p ON p.group_ref = groups.id WHERE groups.hub = ? ORDER BY p.last_seq DESC LIMIT ?",
        (hub, limit),
    )
    return [(row[0], row[1], row[2]) for row in rows]


def children(tx: Tx, partition: int) -> list[Partition]:
    """Return the partitions to which the commits of this one lead, in the order of the commits."""
    rows = tx.all(f"SELECT {_COLUMNS} FROM partitions WHERE parent = ? ORDER BY opened_by", (partition,))
    return [_partition(row) for row in rows]


def live_forks(group: str) -> str:
    """Return the SQL of the live forks of a group: partitions with at least two open branches that carry messages.

    `group` is the SQL of the group's row. This is the one definition (semantics: partitions-and-forks).
    """
    return (
        f"SELECT parent FROM partitions WHERE group_ref = {group} AND parent IS NOT NULL AND terminated_by IS NULL"
        " AND next_counter > 0 GROUP BY parent HAVING count(*) > 1"
    )


def forks_of_hub(tx: Tx, hub: int, before: Milliseconds, *, after: int, limit: int) -> list[Partition]:
    """Return a page of partitions below which several branches are open, one of them since before `before`."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM partitions WHERE id IN (SELECT parent FROM partitions WHERE parent > ?"
        " AND hub = ? AND terminated_by IS NULL AND detached = 0"
        " GROUP BY parent HAVING count(*) > 1 AND min(opened_at) < ? ORDER BY parent LIMIT ?) ORDER BY id",
        (after, hub, before, limit),
    )
    return [_partition(row) for row in rows]


def ancestors(tx: Tx, partition: Partition) -> Iterator[Partition]:
    """Yield the partition itself, its parent, and so on up to the root."""
    yield partition
    while partition.parent is not None:
        partition = partition_by_row(tx, partition.parent)
        yield partition


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
        " opener_device, opened_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (group, hub, masked_key, parent, opened_by, detached, _held(epoch), opener_provider, opener_device, now),
    )


def remove_empty(tx: Tx, partition: int) -> None:
    """Delete a detached partition that was opened for a message which was then refused."""
    tx.execute("DELETE FROM partitions WHERE id = ? AND detached = 1 AND next_counter = 0", (partition,))


def attach(tx: Tx, partition: int, *, parent: int, opened_by: int, epoch: int | None, detached: bool) -> None:
    """Put a detached partition below its commit; it and all below it get epochs, and are detached as given."""
    tx.execute(
        "UPDATE partitions SET parent = ?, opened_by = ?, epoch = ? WHERE id = ?",
        (parent, opened_by, _held(epoch), partition),
    )
    tx.execute(
        "WITH RECURSIVE below(id, epoch) AS (SELECT id, epoch FROM partitions WHERE id = ?"
        " UNION ALL SELECT p.id, min(below.epoch + 1, ?) FROM partitions p JOIN below ON p.parent = below.id)"
        " UPDATE partitions SET detached = ?, epoch = below.epoch FROM below WHERE partitions.id = below.id",
        (partition, LAST_EPOCH, detached),
    )


def set_state(tx: Tx, partition: int, state: StoredState | None) -> None:
    """Store the public group state of a partition; None: unknown."""
    known: tuple[object, ...] = ("unknown", None, None, None, False)
    if state is not None:
        derived = "derived" if state.derived else "claimed"
        known = (derived, state.root_hash, state.group_context, state.confirmation_tag, state.reinitialized)
        trees.note_root(tx, state.root_hash)
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


def advance(tx: Tx, partition: int, *, next_counter: Counter, last_seq: int) -> None:
    """Update next counter and last sequence number of a partition after messages were appended."""
    tx.execute("UPDATE partitions SET next_counter = ?, last_seq = ? WHERE id = ?", (next_counter, last_seq, partition))


_IDLE = "next_counter = 0 AND detached = 0 AND expired_at IS NULL AND terminated_by IS NULL"


def count_idle_branches(tx: Tx, group: int, provider: int, device: int | None) -> int:
    """Count the idle branches of a group: partitions without messages that a sender's commits opened."""
    found = tx.one(
        "SELECT count(*) FROM partitions INDEXED BY idle_branches"
        f" WHERE opener_provider = ? AND opener_device IS ? AND group_ref = ? AND {_IDLE}",
        (provider, device, group),
    )
    return int(found[0]) if found else 0


def idle_group_infos(tx: Tx, group: int, provider: int, device: int | None) -> list[tuple[int, int, int]]:
    """Return row, commit's seq and GroupInfo's octets of a sender's idle branches with a GroupInfo, newest first."""
    rows = tx.all(
        "SELECT id, opened_by, length(group_info) FROM partitions INDEXED BY idle_branches"
        f" WHERE opener_provider = ? AND opener_device IS ? AND group_ref = ? AND {_IDLE}"
        " AND group_info IS NOT NULL AND opened_by IS NOT NULL ORDER BY id DESC",
        (provider, device, group),
    )
    return [(row[0], row[1], row[2]) for row in rows]


def count_detached(tx: Tx, provider: int, device: int | None) -> int:
    """Count the detached partitions that a sender opened, in all groups."""
    found = tx.one(
        "SELECT count(*) FROM partitions INDEXED BY detached_partitions"
        " WHERE opener_provider = ? AND opener_device IS ? AND detached = 1 AND expired_at IS NULL",
        (provider, device),
    )
    return int(found[0]) if found else 0


def terminate(tx: Tx, partition: int, why: str, now: Milliseconds) -> int:
    """Terminate a branch: this partition and all below it that are not terminated yet; return how many."""
    tx.execute(
        "UPDATE partitions SET terminated_at = ?, terminated_reason = ? WHERE id = ? AND terminated_by IS NULL",
        (now, why, partition),
    )
    return _spread_termination(tx, partition, partition)


def undo_termination(tx: Tx, partition: int) -> int:
    """Undo the termination of a branch; return how many partitions it had ended.

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
        "WITH RECURSIVE below(id) AS (SELECT ?2 UNION ALL"
        " SELECT p.id FROM partitions p JOIN below ON p.parent = below.id) SELECT id FROM below)",
        (by, partition),
    )


def live_tip(tx: Tx, group: int) -> Partition | None:
    """Return the tip: from the root on, follow at each fork the open branch with most messages, or the earlier commit.

    It always runs two statements, one for the whole group and one for the tip, for an unknown group too.
    """
    rows = tx.all(
        "SELECT id, parent, next_counter FROM partitions WHERE group_ref = ? AND detached = 0"
        " AND terminated_by IS NULL ORDER BY opened_by",
        (group,),
    )
    below: dict[int | None, list[int]] = {}
    count = {}
    for id_, parent, next_counter in rows:
        below.setdefault(parent, []).append(id_)
        count[id_] = next_counter
    tip = (below.get(None) or [0])[0]
    while branches := below.get(tip):
        # Branches are in the order of their commits, and max() returns the first of equal branches.
        tip = branches[0] if len(branches) == 1 else max(branches, key=lambda branch: _messages(branch, below, count))
    found = tx.one(f"SELECT {_COLUMNS} FROM partitions WHERE id = ?", (tip,))
    return None if found is None else _partition(found)


def _messages(branch: int, below: dict[int | None, list[int]], count: dict[int, int]) -> int:
    """Count the messages of a branch: those of its first partition and of all open partitions below."""
    total = 0
    waiting = [branch]
    while waiting:
        partition = waiting.pop()
        total += count[partition]
        waiting += below.get(partition, ())
    return total
