"""Ratchet trees as content-addressed rows: a subtree is stored once for all epochs and forks that contain it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds

NodeColumns = tuple[bytes, bytes, bytes, bytes]  # subtree hash, node, hash of its left and of its right subtree


def keep_nodes(tx: Tx, nodes: Sequence[NodeColumns]) -> None:
    """Store the nodes that are not stored yet."""
    tx.executemany(
        "INSERT INTO tree_nodes (hash, node, left_hash, right_hash) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", nodes
    )


def fetch_node(tx: Tx, tree_hash: bytes) -> NodeColumns | None:
    """Return the row of a subtree's root, None if it is not stored."""
    row = tx.one("SELECT hash, node, left_hash, right_hash FROM tree_nodes WHERE hash = ?", (tree_hash,))
    return None if row is None else (row[0], row[1], row[2], row[3])


# --- sweeping: find the nodes that nothing refers to, and delete them (ds.upkeep.tree_sweep) ------------------------
#
# A node is in use if a partition has it as root, or a stored node has it as child. A sweep counts these references in
# memory, on many snapshots. It misses references that are written while it counts. These are recorded in `tree_notes`
# while a sweep runs, and a deletion first reads the notes.


@attrs.frozen
class DroppedPage:
    """A page of deletions: the children of the deleted nodes, and the hashes kept because `tree_notes` has them."""

    children: tuple[bytes, ...]  # a child occurs once for each deleted reference to it
    protected: frozenset[bytes]
    ended: bool  # the whole page was examined; if not, only notes were read, and the page must be tried again
    replaced: bool = False  # another process has begun a sweep, so this sweep must delete nothing more


def note_in_use(tx: Tx, root: bytes, nodes: Sequence[NodeColumns]) -> None:
    """If a sweep is running, record the root that a partition is about to use, and the nodes stored for it."""
    if tx.one("SELECT 1 FROM tree_sweep WHERE running = 1") is not None:
        tx.executemany(
            "INSERT INTO tree_notes (hash) VALUES (?) ON CONFLICT DO NOTHING",
            [(root,), *((node[0],) for node in nodes)],
        )


def last_sweep(tx: Tx) -> Milliseconds | None:
    """Return when the last sweep began; None while a sweep runs, and before the first sweep has ended."""
    found = tx.one("SELECT began_at FROM tree_sweep WHERE running = 0")
    return None if found is None else Milliseconds(found[0])


def begin_sweep(tx: Tx, now: Milliseconds) -> None:
    """Begin a sweep from the start, even if the last sweep did not end."""
    tx.execute("DELETE FROM tree_notes")
    tx.execute(
        "INSERT INTO tree_sweep (id, began_at, running) VALUES (1, ?, 1)"
        " ON CONFLICT (id) DO UPDATE SET began_at = excluded.began_at, running = 1",
        (now,),
    )


def end_sweep(tx: Tx) -> None:
    """End the sweep."""
    tx.execute("DELETE FROM tree_notes")
    tx.execute("UPDATE tree_sweep SET running = 0")


def hashes_page(tx: Tx, after: bytes, *, limit: int) -> list[bytes]:
    """Return the hashes of up to `limit` nodes above `after`, in ascending order."""
    return [
        row[0] for row in tx.all("SELECT hash FROM tree_nodes WHERE hash > ? ORDER BY hash LIMIT ?", (after, limit))
    ]


def children_page(tx: Tx, after: bytes, *, limit: int) -> tuple[list[bytes], bytes | None]:
    """Return the children of up to `limit` nodes above `after`, and the last of these nodes, None at the end."""
    rows = tx.all(
        "SELECT hash, left_hash, right_hash FROM tree_nodes WHERE hash > ? ORDER BY hash LIMIT ?", (after, limit)
    )
    return [each for row in rows for each in row[1:] if each], rows[-1][0] if rows else None


def roots_page(tx: Tx, after: int, *, limit: int) -> tuple[list[bytes], int | None]:
    """Return the roots of up to `limit` partitions above row `after`, and the last of these rows, None at the end."""
    rows = tx.all("SELECT id, root_hash FROM partitions WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
    return [row[1] for row in rows if row[1] is not None], rows[-1][0] if rows else None


def drop_unused(tx: Tx, prefixes: Collection[bytes], *, began_at: Milliseconds, limit: int) -> DroppedPage:
    """Delete the nodes whose hash begins with one of these prefixes, unless a note (`note_in_use`) protects the node.

    All prefixes have the same length. A note protects its node and the children of that node. A call reads up to
    `limit` notes, and deletes nodes only if there are fewer. It deletes nothing unless the sweep that began at
    `began_at` is still running: a newer sweep has deleted the notes of an older sweep.
    """
    if tx.one("SELECT 1 FROM tree_sweep WHERE running = 1 AND began_at = ?", (began_at,)) is None:
        return DroppedPage((), frozenset(), ended=True, replaced=True)
    noted = [row[0] for row in tx.all("SELECT hash FROM tree_notes LIMIT ?", (limit,))]
    tx.executemany("DELETE FROM tree_notes WHERE hash = ?", [(each,) for each in noted])
    stored = (fetch_node(tx, each) for each in noted)
    protected = frozenset(chain(noted, *(node[2:] for node in stored if node is not None))) - {b""}
    if len(noted) == limit:
        return DroppedPage((), protected, ended=False)
    length = len(next(iter(prefixes), b""))
    spared = {each[:length] for each in protected}
    children: list[bytes] = []
    for prefix in prefixes:
        if prefix not in spared:
            rows = tx.all(
                "DELETE FROM tree_nodes WHERE hash >= ? AND hash < ? RETURNING left_hash, right_hash",
                (prefix, _end_of(prefix)),
            )
            children += [each for row in rows for each in row if each]
    return DroppedPage(tuple(children), protected, ended=True)


def _end_of(prefix: bytes) -> bytes:
    """Return the end of the range of all hashes that begin with a prefix; no hash has 65 octets."""
    return prefix + b"\xff" * (65 - len(prefix))
