"""Ratchet trees as content-addressed rows: a subtree is stored once for all epochs and forks that contain it."""

from __future__ import annotations

from collections.abc import Iterable

from mimids.store.engine.transaction import Tx

NodeColumns = tuple[bytes, bytes, bytes, bytes]  # subtree hash, node, hash of its left and of its right subtree


def keep_nodes(tx: Tx, nodes: Iterable[NodeColumns]) -> None:
    """Store the nodes that are not stored yet."""
    tx.executemany(
        "INSERT INTO tree_nodes (hash, node, left_hash, right_hash) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", nodes
    )


def fetch_node(tx: Tx, tree_hash: bytes) -> NodeColumns | None:
    """Return the row of a subtree's root, None if it is not stored."""
    row = tx.one("SELECT hash, node, left_hash, right_hash FROM tree_nodes WHERE hash = ?", (tree_hash,))
    return None if row is None else (row[0], row[1], row[2], row[3])


# --- sweeping: mark the nodes that partitions use, then delete the unmarked ones ----------------------------------
#
# Both phases run in pages. Each page is a transaction of its own, and other writes are committed between pages. A node
# may be deleted only while the root of every partition is marked and no mark is pending. `note_root` marks the roots
# that are stored during a sweep, since their nodes may have been stored before, unused. A page that finds a pending
# mark deletes nothing.


def note_root(tx: Tx, root: bytes) -> None:
    """Mark the root that a partition is about to use, if a sweep is running."""
    tx.execute(
        "INSERT INTO tree_marks (hash, pending) SELECT ?, 1 WHERE EXISTS (SELECT 1 FROM tree_sweep WHERE id = 1)"
        " ON CONFLICT DO NOTHING",
        (root,),
    )


def begin_sweep(tx: Tx) -> None:
    """Start a sweep, unless one is running."""
    tx.execute("INSERT INTO tree_sweep (id) VALUES (1) ON CONFLICT DO NOTHING")


def sweep_page(tx: Tx, *, limit: int) -> bool:
    """Run a page of about `limit` rows of the sweep; return False once it has ended, or if none is running."""
    found = tx.one("SELECT marked_partition, swept_hash FROM tree_sweep")
    if found is None:
        return False
    partition, swept = found
    return _mark_roots(tx, partition, limit) or _follow_marks(tx, limit) or _drop_unmarked(tx, swept, limit)


def _mark_roots(tx: Tx, after: int, limit: int) -> bool:
    rows = tx.all("SELECT id, root_hash FROM partitions WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
    if not rows:
        return False
    tx.executemany(
        "INSERT INTO tree_marks (hash, pending) VALUES (?, 1) ON CONFLICT DO NOTHING",
        [(root,) for _, root in rows if root is not None],
    )
    tx.execute("UPDATE tree_sweep SET marked_partition = ?", (rows[-1][0],))
    return True


def _follow_marks(tx: Tx, limit: int) -> bool:
    rows = tx.all("SELECT hash FROM tree_marks WHERE pending = 1 LIMIT ?", (limit,))
    for (tree_hash,) in rows:
        tx.execute("UPDATE tree_marks SET pending = 0 WHERE hash = ?", (tree_hash,))
        node = fetch_node(tx, tree_hash)
        for child in () if node is None else node[2:]:
            if child:
                tx.execute("INSERT INTO tree_marks (hash, pending) VALUES (?, 1) ON CONFLICT DO NOTHING", (child,))
    return bool(rows)


def _drop_unmarked(tx: Tx, after: bytes, limit: int) -> bool:
    rows = tx.all("SELECT hash FROM tree_nodes WHERE hash > ? ORDER BY hash LIMIT ?", (after, limit))
    if not rows:
        tx.execute("DELETE FROM tree_marks")
        tx.execute("DELETE FROM tree_sweep")
        return False
    tx.executemany(
        "DELETE FROM tree_nodes WHERE hash = ?1 AND NOT EXISTS (SELECT 1 FROM tree_marks WHERE hash = ?1)", rows
    )
    tx.execute("UPDATE tree_sweep SET swept_hash = ?", (rows[-1][0],))
    return True
