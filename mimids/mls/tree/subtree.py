"""Immutable subtrees of a ratchet tree, with their hashes and counts (RFC 9420 sections 4.1, 7.8, 7.9).

A subtree is a `Leaf`, a `Parent` or a `Blank`. A `Blank` contains no node at all, so it is one small object at any
height and its resolution is empty. Tree hashes are computed on first use and cached.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

from mimids.mls.leaf_node import LeafNode, ParentNode
from mimids.mls.suites import Suite
from mimids.mls.support import Support, common_support, support_of
from mimids.mls.tree.math import position
from mimids.wire import varint


class Leaf:
    """A member's leaf; `index` is its leaf index."""

    __slots__ = ("_hash", "index", "node", "support")
    members: Final = 1
    resolution_size: Final = 1

    def __init__(self, index: int, node: LeafNode) -> None:
        self.index = index
        self.node = node
        self.support = support_of(node.capabilities, node.credential.credential_type)
        self._hash: bytes | None = None

    def tree_hash(self, suite: Suite) -> bytes:
        """Return Hash(TreeHashInput) (RFC 9420 section 7.8)."""
        if self._hash is None:
            present = b"\x01" + self.index.to_bytes(4, "big") + b"\x01"
            self._hash = suite.hash(present + self.node.encoded)
        return self._hash


class Blank:
    """A subtree without any node, `1 << height` leaves wide, starting at `first_leaf`."""

    __slots__ = ("first_leaf", "height")
    node: Final = None
    members: Final = 0
    resolution_size: Final = 0
    support: Final = None

    def __init__(self, height: int, first_leaf: int) -> None:
        self.height = height
        self.first_leaf = first_leaf

    def halves(self) -> tuple[Blank, Blank]:
        """Return the left and the right child."""
        below = self.height - 1
        return Blank(below, self.first_leaf), Blank(below, self.first_leaf + (1 << below))

    def tree_hash(self, suite: Suite) -> bytes:
        """Return Hash(TreeHashInput) (RFC 9420 section 7.8); computing it visits every leaf, so it is cached."""
        return _blank_hash(suite.hash_name, self.height, self.first_leaf)


class Parent:
    """An inner node, blank if `node` is None. A blank inner node has at least one non-blank node below it."""

    __slots__ = ("_hash", "left", "members", "node", "resolution_size", "right", "support")

    def __init__(self, left: Subtree, right: Subtree, node: ParentNode | None) -> None:
        self.left = left
        self.right = right
        self.node = node
        self.members: int = left.members + right.members
        self.resolution_size: int = (
            left.resolution_size + right.resolution_size if node is None else 1 + len(node.unmerged_leaves)
        )
        self.support: Support | None = common_support(left.support, right.support)
        self._hash: bytes | None = None

    def tree_hash(self, suite: Suite) -> bytes:
        """Return Hash(TreeHashInput) (RFC 9420 section 7.8)."""
        if self._hash is None:
            left, right = self.left.tree_hash(suite), self.right.tree_hash(suite)
            self._hash = parent_tree_hash(suite, self.node, left, right)
        return self._hash


Subtree = Leaf | Parent | Blank
Path = list[tuple[ParentNode | None, Subtree]]  # from the root down: a node, and its child that is not on the path


def join(left: Subtree, right: Subtree, node: ParentNode | None) -> Parent | Blank:
    """Return the subtree with these children; a Blank if it contains no node."""
    if node is None and type(left) is Blank and type(right) is Blank:
        return Blank(left.height + 1, left.first_leaf)
    return Parent(left, right, node)


def children(subtree: Subtree) -> tuple[Subtree, Subtree]:
    """Return both children of an inner node."""
    if type(subtree) is Blank:
        return subtree.halves()
    if type(subtree) is Parent:
        return subtree.left, subtree.right
    raise TypeError("a leaf has no children")


def parent_tree_hash(suite: Suite, node: ParentNode | None, left: bytes, right: bytes) -> bytes:
    """Return the tree hash of an inner node whose children hash to `left` and `right`."""
    size = varint.mls(len(left))
    present = b"\x00" if node is None else b"\x01" + parent_octets(node)
    return suite.hash(b"".join((b"\x02", present, size, left, size, right)))


def parent_octets(node: ParentNode) -> bytes:
    """Return the encoding of a ParentNode without caching it, since each commit creates a path of new nodes."""
    unmerged = b"".join(leaf.to_bytes(4, "big") for leaf in node.unmerged_leaves)
    return b"".join(
        octets
        for field in (node.encryption_key, node.parent_hash, unmerged)
        for octets in (varint.mls(len(field)), field)
    )


def parent_hash(suite: Suite, key: bytes, above: bytes, sibling_hash: bytes) -> bytes:
    """Return Hash(ParentHashInput) (RFC 9420 section 7.9); `above` is the node's own parent_hash."""
    parts = (varint.mls(len(key)), key, varint.mls(len(above)), above, varint.mls(len(sibling_hash)), sibling_hash)
    return suite.hash(b"".join(parts))


@lru_cache(maxsize=4096)
def _blank_hash(hash_name: str, height: int, first_leaf: int) -> bytes:
    size = varint.mls(hashlib.new(hash_name).digest_size)
    row = [
        hashlib.new(hash_name, b"\x01" + leaf.to_bytes(4, "big") + b"\x00").digest()
        for leaf in range(first_leaf, first_leaf + (1 << height))
    ]
    while len(row) > 1:
        pairs = zip(row[::2], row[1::2], strict=True)
        row = [
            hashlib.new(hash_name, b"".join((b"\x02\x00", size, left, size, right))).digest() for left, right in pairs
        ]
    return row[0]


def without_unmerged(node: ParentNode, leaves: tuple[int, ...]) -> ParentNode:
    """Return a node without these unmerged leaves, as it was before they were added (RFC 9420 section 7.9)."""
    kept = tuple(leaf for leaf in node.unmerged_leaves if leaf not in leaves)
    return ParentNode(node.encryption_key, node.parent_hash, kept)


def resolution(subtree: Subtree, height: int, first: int) -> list[int]:
    """Return the positions in the resolution of a subtree (RFC 9420 section 4.1.1)."""
    if type(subtree) is Blank:
        return []
    if subtree.node is not None:
        unmerged = subtree.node.unmerged_leaves if isinstance(subtree.node, ParentNode) else ()
        return [position(height, first), *(2 * leaf for leaf in unmerged)]
    left, right = children(subtree)
    below = height - 1
    return resolution(left, below, first) + resolution(right, below, first + (1 << below))
