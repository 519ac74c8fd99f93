"""A reference implementation of ratchet trees, as RFC 9420 appendix C describes them: one array, without caches.

It is slow, and written from the RFC alone, so that tests can compare `mimids.mls.tree.ratchet_tree` with it.
"""

from __future__ import annotations

import hashlib

from mimids.mls.code_points import NodeType
from mimids.mls.leaf_node import RATCHET_TREE, HpkePublicKey, LeafNode, Node, ParentNode
from mimids.mls.suites import Suite
from mimids.wire import varint


def opaque(octets: bytes) -> bytes:
    return varint.mls(len(octets)) + octets


def level(x: int) -> int:
    k = 0
    while (x >> k) & 1:
        k += 1
    return k


class NaiveTree:
    def __init__(self, suite: Suite, nodes: list[LeafNode | ParentNode | None]) -> None:
        self.suite = suite
        self.nodes = nodes
        width = 1
        while width < len(nodes):
            width = 2 * width + 1
        self.nodes = nodes + [None] * (width - len(nodes))

    def copy(self) -> NaiveTree:
        return NaiveTree(self.suite, list(self.nodes))

    @property
    def leaf_count(self) -> int:
        return (len(self.nodes) + 1) // 2

    @property
    def root(self) -> int:
        return len(self.nodes) // 2

    def leaf(self, index: int) -> LeafNode:
        leaf = self.nodes[2 * index]
        assert isinstance(leaf, LeafNode)
        return leaf

    def members(self) -> list[int]:
        return [index for index in range(self.leaf_count) if self.nodes[2 * index] is not None]

    def left(self, x: int) -> int:
        return x ^ (1 << (level(x) - 1))

    def right(self, x: int) -> int:
        return x ^ (3 << (level(x) - 1))

    def parent(self, x: int) -> int:
        k = level(x)
        return (x | (1 << k)) ^ (((x >> (k + 1)) & 1) << (k + 1))

    def direct_path(self, x: int) -> list[int]:
        found = []
        while x != self.root:
            x = self.parent(x)
            found.append(x)
        return found

    def below(self, x: int) -> range:
        """The leaf indices under a node."""
        k = level(x)
        return range((x - (1 << k) + 1) // 2, (x + (1 << k) - 1) // 2 + 1)

    def resolution(self, x: int) -> list[int]:
        node = self.nodes[x]
        if isinstance(node, ParentNode):
            return [x, *(2 * leaf for leaf in node.unmerged_leaves)]
        if node is not None:
            return [x]
        return [] if level(x) == 0 else self.resolution(self.left(x)) + self.resolution(self.right(x))

    def tree_hash(self, x: int | None = None) -> bytes:
        x = self.root if x is None else x
        node = self.nodes[x]
        content = b"\x00" if node is None else b"\x01" + node.encoded
        if level(x) == 0:
            return self._hash(b"\x01" + (x // 2).to_bytes(4, "big") + content)
        left, right = self.tree_hash(self.left(x)), self.tree_hash(self.right(x))
        return self._hash(b"\x02" + content + opaque(left) + opaque(right))

    def encode(self) -> bytes:
        listed = list(self.nodes)
        while listed and listed[-1] is None:
            listed.pop()
        return RATCHET_TREE.encode(
            tuple(
                None if node is None else Node(NodeType.LEAF if isinstance(node, LeafNode) else NodeType.PARENT, node)
                for node in listed
            )
        )

    def leftmost_blank(self) -> int:
        blank = [index for index in range(self.leaf_count) if self.nodes[2 * index] is None]
        if not blank:
            self.nodes += [None] * (len(self.nodes) + 1)
            return len(self.nodes) // 4 + 1
        return blank[0]

    def add(self, leaf: LeafNode) -> int:
        index = self.leftmost_blank()
        self.nodes[2 * index] = leaf
        for x in self.direct_path(2 * index):
            node = self.nodes[x]
            if isinstance(node, ParentNode):
                unmerged = tuple(sorted((*node.unmerged_leaves, index)))
                self.nodes[x] = ParentNode(node.encryption_key, node.parent_hash, unmerged)
        return index

    def update(self, index: int, leaf: LeafNode) -> None:
        self.nodes[2 * index] = leaf
        for x in self.direct_path(2 * index):
            self.nodes[x] = None

    def remove(self, index: int) -> None:
        self.nodes[2 * index] = None
        for x in self.direct_path(2 * index):
            self.nodes[x] = None
        self.truncate()

    def truncate(self) -> None:
        while len(self.nodes) > 1 and all(node is None for node in self.nodes[self.root + 1 :]):
            del self.nodes[self.root :]

    def filtered_path(self, index: int) -> list[tuple[int, int]]:
        """(node, its child beside the path), leaf upwards."""
        found, below = [], 2 * index
        for x in self.direct_path(2 * index):
            beside = self.right(x) if self.left(x) == below else self.left(x)
            if self.resolution(beside):
                found.append((x, beside))
            below = x
        return found

    def set_path(self, index: int, keys: list[HpkePublicKey]) -> bytes:
        """Put these keys on the filtered direct path; return the parent hash for the leaf."""
        path = self.filtered_path(index)
        for x in self.direct_path(2 * index):
            self.nodes[x] = None
        above = b""
        for (x, beside), key in reversed(list(zip(path, keys, strict=True))):
            self.nodes[x] = ParentNode(key, above, ())
            above = self._hash(opaque(key) + opaque(above) + opaque(self.tree_hash(beside)))
        return above

    def _hash(self, octets: bytes) -> bytes:
        return hashlib.new(self.suite.hash_name, octets).digest()
