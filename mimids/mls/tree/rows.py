"""A tree as rows for storage, one per subtree, keyed by tree hash, so that epochs and forks share equal rows.

A tree hash covers the leaf indices, so rows with equal hashes are equal subtrees at the same place. A blank subtree has
no row, because its hash follows from its place. The row of its parent has an empty hash instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import attrs

from mimids.mls.leaf_node import LeafNode, ParentNode
from mimids.mls.suites import Suite
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.mls.tree.subtree import Blank, Leaf, Parent, Subtree, join, parent_octets
from mimids.wire.declare import decode

_MAX_HEIGHT: Final = 32  # leaf indices are uint32


@attrs.frozen
class NodeRow:
    """One subtree: the encoded LeafNode or ParentNode, empty if blank, and the hashes of its children, if any."""

    tree_hash: bytes
    node: bytes
    left: bytes
    right: bytes


def all_nodes(tree: RatchetTree) -> Iterator[NodeRow]:
    """Yield a row for each subtree that is not blank."""
    return _rows(tree.suite, tree.root, None)


def changed_nodes(old: RatchetTree | None, new: RatchetTree) -> Iterator[NodeRow]:
    """Yield the rows of `new` that `old` lacks at the same place; the cost is proportional to the change."""
    if old is None:
        return all_nodes(new)
    # Both trees begin at leaf 0: they share the leftmost subtree that has the height of the smaller tree.
    narrow: Subtree | None = old.subtree(min(old.height, new.height), 0)
    return _rows_of_wider(new, new.root, new.height, narrow, old.height)


def _rows_of_wider(
    tree: RatchetTree, subtree: Subtree, height: int, old: Subtree | None, old_height: int
) -> Iterator[NodeRow]:
    if height <= old_height or type(subtree) is not Parent:
        yield from _rows(tree.suite, subtree, old)
        return
    yield _row(tree.suite, subtree)
    yield from _rows_of_wider(tree, subtree.left, height - 1, old, old_height)
    yield from _rows(tree.suite, subtree.right, None)


def _rows(suite: Suite, subtree: Subtree, old: Subtree | None) -> Iterator[NodeRow]:
    if type(subtree) is Blank or subtree is old:
        return
    if old is not None and subtree.tree_hash(suite) == old.tree_hash(suite):
        return
    yield _row(suite, subtree)
    if type(subtree) is Parent:
        left, right = (old.left, old.right) if type(old) is Parent else (None, None)
        yield from _rows(suite, subtree.left, left)
        yield from _rows(suite, subtree.right, right)


def _row(suite: Suite, subtree: Subtree) -> NodeRow:
    if type(subtree) is not Parent:
        return NodeRow(subtree.tree_hash(suite), b"" if subtree.node is None else subtree.node.encoded, b"", b"")
    node = b"" if subtree.node is None else parent_octets(subtree.node)
    left, right = (b"" if type(child) is Blank else child.tree_hash(suite) for child in (subtree.left, subtree.right))
    return NodeRow(subtree.tree_hash(suite), node, left, right)


def load(suite: Suite, tree_hash: bytes, fetch: Callable[[bytes], NodeRow | None]) -> RatchetTree:
    """Rebuild the tree with this hash from its rows; `fetch` returns the row with a hash.

    Raises `LookupError` if a row is missing, and `ValueError` if a row does not match its hash.
    """
    height = 0
    row = _fetched(fetch, tree_hash)
    while row.left or row.right:
        row = _fetched(fetch, row.left or row.right)
        height += 1
        if height > _MAX_HEIGHT:
            raise ValueError("the rows of a tree form a circle")
    tree = RatchetTree(suite, _load(fetch, tree_hash, height, 0), height)
    if tree.tree_hash() != tree_hash:  # computed over all rows, so each one is checked
        raise ValueError("the rows of a tree do not have the hash they are stored under")
    return tree


def _load(fetch: Callable[[bytes], NodeRow | None], tree_hash: bytes, height: int, first: int) -> Subtree:
    if not tree_hash:
        return Blank(height, first)
    row = _fetched(fetch, tree_hash)
    if height == 0:
        return Leaf(first, decode(LeafNode, row.node))
    half = 1 << (height - 1)
    left = _load(fetch, row.left, height - 1, first)
    right = _load(fetch, row.right, height - 1, first + half)
    return join(left, right, decode(ParentNode, row.node) if row.node else None)


def _fetched(fetch: Callable[[bytes], NodeRow | None], tree_hash: bytes) -> NodeRow:
    row = fetch(tree_hash)
    if row is None:
        raise LookupError("a node of the tree is missing")
    return row
