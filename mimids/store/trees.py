"""Ratchet trees as content-addressed rows: a subtree is stored once, whatever epochs and forks it is part of."""

from __future__ import annotations

from collections.abc import Iterable

from mimids.store.engine.transaction import Tx

NodeColumns = tuple[bytes, bytes, bytes, bytes]  # subtree hash, node, hash of its left and of its right subtree


def keep_nodes(tx: Tx, nodes: Iterable[NodeColumns]) -> None:
    """Store what is not there yet."""
    tx.executemany(
        "INSERT INTO tree_nodes (hash, node, left_hash, right_hash) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", nodes
    )


def fetch_node(tx: Tx, tree_hash: bytes) -> NodeColumns | None:
    """Return one subtree's row."""
    row = tx.one("SELECT hash, node, left_hash, right_hash FROM tree_nodes WHERE hash = ?", (tree_hash,))
    return None if row is None else (row[0], row[1], row[2], row[3])


# --- sweeping: mark what partitions refer to, then drop what is not marked ----------------------------------------
#
# Both go in pages, each a transaction of its own, with commits between them. A node may be dropped only while every
# root that a partition refers to is marked and no mark is left to follow: `note_root` sees to the first for roots that
# come meanwhile (their nodes may be ones that lay there unused), and a page that finds a mark to follow drops nothing.


def note_root(tx: Tx, root: bytes) -> None:
    """Mark a root that a partition refers to from now on, if a sweep is going on."""
    tx.execute(
        "INSERT INTO tree_marks (hash, todo) SELECT ?, 1 WHERE EXISTS (SELECT 1 FROM tree_sweep WHERE id = 1)"
        " ON CONFLICT DO NOTHING",
        (root,),
    )


def begin_sweep(tx: Tx) -> None:
    """Begin a sweep, unless one goes on."""
    tx.execute("INSERT INTO tree_sweep (id) VALUES (1) ON CONFLICT DO NOTHING")


def sweep_page(tx: Tx, *, limit: int) -> bool:
    """Do a part of the sweep that goes on, about `limit` rows; False once it is over, or if none goes on."""
    found = tx.one("SELECT partition, hash FROM tree_sweep")
    if found is None:
        return False
    partition, swept = found
    return _mark_roots(tx, partition, limit) or _follow_marks(tx, limit) or _drop_unmarked(tx, swept, limit)


def _mark_roots(tx: Tx, after: int, limit: int) -> bool:
    rows = tx.all("SELECT id, root_hash FROM partitions WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
    if not rows:
        return False
    tx.executemany(
        "INSERT INTO tree_marks (hash, todo) VALUES (?, 1) ON CONFLICT DO NOTHING",
        [(root,) for _, root in rows if root is not None],
    )
    tx.execute("UPDATE tree_sweep SET partition = ?", (rows[-1][0],))
    return True


def _follow_marks(tx: Tx, limit: int) -> bool:
    rows = tx.all("SELECT hash FROM tree_marks WHERE todo = 1 LIMIT ?", (limit,))
    for (tree_hash,) in rows:
        tx.execute("UPDATE tree_marks SET todo = 0 WHERE hash = ?", (tree_hash,))
        node = fetch_node(tx, tree_hash)
        for child in () if node is None else node[2:]:
            if child:
                tx.execute("INSERT INTO tree_marks (hash, todo) VALUES (?, 1) ON CONFLICT DO NOTHING", (child,))
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
    tx.execute("UPDATE tree_sweep SET hash = ?", (rows[-1][0],))
    return True
