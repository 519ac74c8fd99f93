"""The ratchet tree (RFC 9420 section 7): immutable; each version shares unchanged subtrees with the previous version.

An operation copies only the path from the root to the changed leaf. This module does not check whether a tree is
valid; `rules.tree` does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from mimids.mls.code_points import NodeType
from mimids.mls.leaf_node import RATCHET_TREE, HpkePublicKey, LeafNode, Node, ParentNode
from mimids.mls.leaf_node import RatchetTree as NodeList
from mimids.mls.suites import Suite
from mimids.mls.support import Support
from mimids.mls.tree.math import level, position
from mimids.mls.tree.subtree import Blank, Leaf, Parent, Path, Subtree, children, join, parent_hash
from mimids.wire.codec import OPAQUE_V, WireError, optional
from mimids.wire.declare import codec

_NODE = optional(codec(Node))


class _KeyIndex:
    """All places where each key was in any version of one tree. A lookup checks these places in one version.

    Entries are never removed, so a tree starts a new index when its index is far larger than the tree.
    """

    __slots__ = ("_lock", "encryption", "signature")

    def __init__(self) -> None:
        self.encryption: dict[bytes, int | tuple[int, ...]] = {}
        self.signature: dict[bytes, int | tuple[int, ...]] = {}
        self._lock = threading.Lock()  # versions are shared between threads; a lost entry would hide a duplicate key

    def add(self, where: dict[bytes, int | tuple[int, ...]], key: bytes, place: int) -> None:
        with self._lock:
            known = where.get(key)
            if known is None:
                where[key] = place
            elif isinstance(known, tuple):
                if place not in known:
                    where[key] = (*known, place)
            elif known != place:
                where[key] = (known, place)


def _places(known: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return () if known is None else known if isinstance(known, tuple) else (known,)


class RatchetTree:
    """One version of a group's tree, `1 << height` leaves wide. Each operation returns a new version."""

    __slots__ = ("_keys", "height", "root", "suite")

    def __init__(self, suite: Suite, root: Subtree, height: int, keys: _KeyIndex | None = None) -> None:
        self.suite = suite
        self.root = root
        self.height = height
        self._keys = keys

    # Reading

    @classmethod
    def decode(cls, suite: Suite, octets: bytes) -> RatchetTree:
        """Read `optional<Node> ratchet_tree<V>` (RFC 9420 section 12.4.3.3); raise `WireError`."""
        return cls.of_nodes(suite, RATCHET_TREE.decode(octets))

    @classmethod
    def of_nodes(cls, suite: Suite, nodes: NodeList) -> RatchetTree:
        """Build a tree from its nodes in array order; raise `WireError` if they do not form a tree."""
        if not nodes or nodes[-1] is None:
            raise WireError("the last node of a ratchet tree must not be blank")  # RFC 9420 section 12.4.3.3
        if nodes[-1].node_type is not NodeType.LEAF:
            # RFC 9420 section 12.1.3: a tree whose right half has no leaf is truncated, and no parent has a key then.
            raise WireError("the last node of a ratchet tree must be a leaf")
        for place, node in enumerate(nodes):
            if node is not None and (node.node_type is NodeType.LEAF) != (place % 2 == 0):
                raise WireError(f"node {place} has the wrong type")
        height = (len(nodes) // 2).bit_length()
        return cls(suite, _build(nodes, height, 0), height)

    def nodes(self) -> NodeList:
        """Return the nodes in array order, without trailing blank nodes (RFC 9420 section 12.4.3.3)."""
        found: list[Node | None] = []
        _collect(self.root, self.height, found)
        while found and found[-1] is None:
            found.pop()
        return tuple(found)

    def encode(self) -> bytes:
        """Return `optional<Node> ratchet_tree<V>` (RFC 9420 section 12.4.3.3).

        A blank subtree is written in one step, however wide it is.
        """
        octets = bytearray()
        end = _write(self.root, self.height, octets)
        return OPAQUE_V.encode(bytes(memoryview(octets)[:end]))

    def tree_hash(self) -> bytes:
        """Return the tree hash of the root."""
        return self.root.tree_hash(self.suite)

    @property
    def leaf_count(self) -> int:
        """Return the number of leaves, including blank ones."""
        return 1 << self.height

    @property
    def member_count(self) -> int:
        """Return the number of leaves that are not blank."""
        return self.root.members

    @property
    def support(self) -> Support | None:
        """Return what all members support; None without members (while a sole member rejoins by external commit)."""
        return self.root.support

    def leaf(self, index: int) -> LeafNode | None:
        """Return the leaf node at a leaf index, None if it is blank or outside the tree."""
        found = self.subtree(0, index)
        return found.node if type(found) is Leaf else None

    def leaves(self) -> Iterator[tuple[int, LeafNode]]:
        """Yield every member's leaf index and leaf node, in order."""
        stack: list[Subtree] = [self.root]
        while stack:
            subtree = stack.pop()
            if type(subtree) is Leaf:
                yield subtree.index, subtree.node
            elif type(subtree) is Parent:
                stack += (subtree.right, subtree.left)

    def subtree(self, height: int, first_leaf: int) -> Subtree | None:
        """Return the subtree with this height and leftmost leaf, None if it is outside the tree."""
        if not 0 <= first_leaf < self.leaf_count or height > self.height:
            return None
        found = self.root
        for bit in range(self.height - 1, height - 1, -1):
            if type(found) is Blank:
                return Blank(height, first_leaf)
            found = children(found)[first_leaf >> bit & 1]
        return found

    def leftmost_blank(self) -> int:
        """Return the leaf index for the next new member (RFC 9420 section 12.1.1); the tree's width if it is full."""
        if self.member_count == self.leaf_count:
            return self.leaf_count
        subtree, first, height = self.root, 0, self.height
        while height:
            height -= 1
            left, right = children(subtree)
            full = left.members == 1 << height
            subtree, first = (right, first + (1 << height)) if full else (left, first)
        return first

    def path(self, index: int) -> Path:
        """Return (node, copath child) pairs from the root down to the parent of a leaf."""
        found: Path = []
        subtree = self.root
        for bit in range(self.height - 1, -1, -1):
            left, right = children(subtree)
            node = subtree.node if type(subtree) is Parent else None
            if index >> bit & 1:
                found.append((node, left))
                subtree = right
            else:
                found.append((node, right))
                subtree = left
        return found

    def filtered_copath(self, index: int) -> list[Subtree]:
        """Return the copath child of each filtered direct path node, from the leaf up (RFC 9420 section 4.1.2)."""
        return [copath for _, copath in reversed(self.path(index)) if copath.resolution_size]

    def holders_of_key(self, key: bytes) -> tuple[int, ...]:
        """Return the positions of the nodes with this encryption key."""
        known = _places(self._index().encryption.get(key))
        return tuple(place for place in known if self._encryption_key(place) == key)

    def holders_of_signature_key(self, key: bytes) -> tuple[int, ...]:
        """Return the indices of the leaves with this signature key."""
        found = []
        for index in _places(self._index().signature.get(key)):
            leaf = self.leaf(index)
            if leaf is not None and leaf.signature_key == key:
                found.append(index)
        return tuple(found)

    # Changing

    def add(self, leaf: LeafNode) -> tuple[RatchetTree, int]:
        """Add a member at the leftmost blank leaf (RFC 9420 section 12.1.1); return the tree and the leaf index."""
        index = self.leftmost_blank()
        tree = self._widened() if index == self.leaf_count else self
        path = [(None if node is None else _with_unmerged(node, index), copath) for node, copath in tree.path(index)]
        return tree._with_path(path, index, Leaf(index, leaf)), index

    def update(self, index: int, leaf: LeafNode) -> RatchetTree:
        """Replace a leaf and blank its direct path (RFC 9420 section 12.1.2)."""
        return self._with_path(_blanked(self.path(index)), index, Leaf(index, leaf))

    def remove(self, index: int) -> RatchetTree:
        """Blank a leaf and its direct path, and truncate the tree (RFC 9420 section 12.1.3)."""
        tree = self._with_path(_blanked(self.path(index)), index, Blank(0, index))
        root, height = tree.root, tree.height
        while height and type(children(root)[1]) is Blank:
            root, height = children(root)[0], height - 1
        return RatchetTree(self.suite, root, height, tree._keys)

    def merge_path(self, index: int, leaf: LeafNode, keys: tuple[HpkePublicKey, ...]) -> tuple[RatchetTree, bytes]:
        """Merge an UpdatePath (RFC 9420 section 7.5); return the tree and the parent_hash that `leaf` must carry.

        `keys` has one key for each node of the filtered direct path, from the leaf up.
        """
        path: Path = []
        hash_above = b""
        remaining = len(keys)
        for _, copath in self.path(index):
            if not copath.resolution_size:
                path.append((None, copath))
                continue
            remaining -= 1
            node = ParentNode(keys[remaining], hash_above, ())
            hash_above = parent_hash(self.suite, node.encryption_key, hash_above, copath.tree_hash(self.suite))
            path.append((node, copath))
        return self._with_path(path, index, Leaf(index, leaf), new_keys=True), hash_above

    def widened_for(self, index: int) -> RatchetTree:
        """Return this tree if it is wide enough for a leaf index, else a wider tree (RFC 9420 section 7.7)."""
        return self if index < self.leaf_count else self._widened()

    def _widened(self) -> RatchetTree:
        blank = Blank(self.height, self.leaf_count)
        return RatchetTree(self.suite, join(self.root, blank, None), self.height + 1, self._keys)

    def _with_path(
        self,
        path: Path,
        index: int,
        leaf: Leaf | Blank,
        *,
        new_keys: bool = False,
    ) -> RatchetTree:
        keys = self._keys
        if keys is not None and len(keys.encryption) > 4 * self.leaf_count + 256:
            keys = None
        if keys is not None and type(leaf) is Leaf:
            keys.add(keys.encryption, leaf.node.encryption_key, position(0, index))
            keys.add(keys.signature, leaf.node.signature_key, index)
        subtree: Subtree = leaf
        for height, (node, copath) in enumerate(reversed(path), 1):
            if new_keys and keys is not None and node is not None:
                keys.add(keys.encryption, node.encryption_key, position(height, index >> height << height))
            right = index >> (height - 1) & 1
            subtree = join(copath, subtree, node) if right else join(subtree, copath, node)
        return RatchetTree(self.suite, subtree, self.height, keys)

    def _encryption_key(self, place: int) -> bytes | None:
        height = level(place)
        found = self.subtree(height, (place + 1 - (1 << height)) // 2)
        return None if found is None or found.node is None else found.node.encryption_key

    def _index(self) -> _KeyIndex:
        if self._keys is None:
            keys = _KeyIndex()
            for place, key in self.encryption_keys():
                keys.add(keys.encryption, key, place)
            for index, leaf in self.leaves():
                keys.add(keys.signature, leaf.signature_key, index)
            self._keys = keys
        return self._keys

    def encryption_keys(self) -> Iterator[tuple[int, bytes]]:
        """Yield the position and encryption key of each node that is not blank."""
        stack: list[tuple[Subtree, int, int]] = [(self.root, self.height, 0)]
        while stack:
            subtree, height, first = stack.pop()
            if subtree.node is not None:
                yield position(height, first), subtree.node.encryption_key
            if type(subtree) is Parent:
                below = height - 1
                stack.append((subtree.right, below, first + (1 << below)))
                stack.append((subtree.left, below, first))


def _blanked(path: Path) -> Path:
    return [(None, copath) for _, copath in path]


def _with_unmerged(node: ParentNode, index: int) -> ParentNode:
    return ParentNode(node.encryption_key, node.parent_hash, tuple(sorted((*node.unmerged_leaves, index))))


def _build(nodes: NodeList, height: int, first: int) -> Subtree:
    if 2 * first >= len(nodes):
        return Blank(height, first)
    place = position(height, first)
    found = nodes[place] if place < len(nodes) else None
    node = None if found is None else found.node
    if height == 0:
        return Leaf(first, node) if isinstance(node, LeafNode) else Blank(0, first)
    half = 1 << (height - 1)
    left, right = _build(nodes, height - 1, first), _build(nodes, height - 1, first + half)
    return join(left, right, node if isinstance(node, ParentNode) else None)


def _write(subtree: Subtree, height: int, octets: bytearray) -> int:
    """Append the encoded nodes of a subtree; return the position after the last one that is not blank."""
    if type(subtree) is Blank:
        octets += bytes((2 << height) - 1)
        return 0
    if type(subtree) is not Parent:
        _NODE.write(None if subtree.node is None else Node(NodeType.LEAF, subtree.node), octets)
        return len(octets)
    end = _write(subtree.left, height - 1, octets)
    if subtree.node is None:
        octets.append(0)
    else:
        _NODE.write(Node(NodeType.PARENT, subtree.node), octets)
        end = len(octets)
    return max(end, _write(subtree.right, height - 1, octets))


def _collect(subtree: Subtree, height: int, found: list[Node | None]) -> None:
    if type(subtree) is Leaf:
        found.append(Node(NodeType.LEAF, subtree.node))
    elif type(subtree) is Parent:
        _collect(subtree.left, height - 1, found)
        found.append(None if subtree.node is None else Node(NodeType.PARENT, subtree.node))
        _collect(subtree.right, height - 1, found)
    else:
        found += [None] * ((2 << height) - 1)
