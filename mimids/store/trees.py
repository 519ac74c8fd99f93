"""Ratchet trees as content-addressed rows: a subtree is stored once, whatever epochs and forks it is part of."""

from __future__ import annotations

from collections.abc import Iterable

from mimids.store.db import Tx

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
