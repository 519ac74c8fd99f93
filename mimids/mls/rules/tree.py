"""Check a whole ratchet tree, as a joiner must (RFC 9420 section 12.4.3.1), without any secret."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

from mimids.mls.rules.parameters import Parameters, check_members
from mimids.mls.rules.proposal import check_leaf
from mimids.mls.rules.verdict import (
    ENCRYPTION_KEY_UNIQUE,
    PATH_KEY,
    SIGNATURE_KEY_UNIQUE,
    TREE_PARENT_HASH,
    TREE_UNMERGED,
    reject,
)
from mimids.mls.suites import Suite
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.mls.tree.subtree import (
    Blank,
    Leaf,
    Parent,
    Subtree,
    children,
    parent_hash,
    parent_tree_hash,
    without_unmerged,
)


def check_tree(tree: RatchetTree, parameters: Parameters, group_id: bytes) -> None:
    """Check a whole tree, cheap rules first; raise `RuleError`. The caller compares the tree hash."""
    suite = tree.suite
    keys: set[bytes] = set()
    for _, key in tree.encryption_keys():
        if key in keys:
            reject(ENCRYPTION_KEY_UNIQUE)
        keys.add(key)
        if not suite.hpke_key_fits(key):
            reject(PATH_KEY, "a key in the tree does not fit the suite")
    if len({leaf.signature_key for _, leaf in tree.leaves()}) != tree.member_count:
        reject(SIGNATURE_KEY_UNIQUE)
    check_members(parameters, tree.support)
    ParentHashes(suite).check(tree.root, tree.height, 0)
    for index, leaf in tree.leaves():
        check_leaf(leaf, suite, group_id, index)


class ParentHashes:
    """Checks the parent hashes of one tree; caches the original hashes of subtrees that several parents need."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self._original: dict[tuple[int, int, tuple[int, ...]], bytes] = {}

    def check(self, subtree: Subtree, height: int, first: int) -> None:
        """Check unmerged leaves and parent hashes in a subtree (RFC 9420 sections 7.9.2, 12.4.3.1)."""
        if type(subtree) is not Parent:
            return
        below, half = height - 1, first + (1 << (height - 1))
        self.check(subtree.left, below, first)
        self.check(subtree.right, below, half)
        node = subtree.node
        if node is None:
            return
        unmerged = node.unmerged_leaves
        if any(one >= other for one, other in pairwise(unmerged)):
            reject(TREE_UNMERGED)
        for leaf in unmerged:
            if not first <= leaf < first + (1 << height) or not _is_unmerged_below(subtree, height, leaf):
                reject(TREE_UNMERGED)
        cut = bisect_left(unmerged, half)
        left = (subtree.left, below, first, unmerged[:cut])
        right = (subtree.right, below, half, unmerged[cut:])
        # "exactly one descendant ... for which the parent node is parent-hash valid"
        if self._holds(subtree, left, right) + self._holds(subtree, right, left) != 1:
            reject(TREE_PARENT_HASH)

    def _holds(
        self,
        parent: Parent,
        child: tuple[Subtree, int, int, tuple[int, ...]],
        sibling: tuple[Subtree, int, int, tuple[int, ...]],
    ) -> bool:
        """Tell whether a node in the resolution of `child` was made in the UpdatePath that made `parent`."""
        own = _sole_merged(child[0], child[3])
        if own is None or own.node is None or parent.node is None:
            return False
        claimed = own.node.parent_hash
        if claimed is None:  # the node is a leaf that is not from a commit
            return False
        node = parent.node
        return claimed == parent_hash(self._suite, node.encryption_key, node.parent_hash, self._original_hash(*sibling))

    def _original_hash(self, subtree: Subtree, height: int, first: int, unmerged: tuple[int, ...]) -> bytes:
        """Return the tree hash of a subtree as it was before these leaves were added (RFC 9420 section 7.9)."""
        if not unmerged:
            return subtree.tree_hash(self._suite)
        if type(subtree) is not Parent:
            return Blank(0, first).tree_hash(self._suite)
        key = (height, first, unmerged)
        found = self._original.get(key)
        if found is None:
            half = first + (1 << (height - 1))
            cut = bisect_left(unmerged, half)
            left = self._original_hash(subtree.left, height - 1, first, unmerged[:cut])
            right = self._original_hash(subtree.right, height - 1, half, unmerged[cut:])
            node = None if subtree.node is None else without_unmerged(subtree.node, unmerged)
            found = self._original[key] = parent_tree_hash(self._suite, node, left, right)
        return found


def _is_unmerged_below(parent: Parent, height: int, leaf: int) -> bool:
    """Tell whether the next nonblank node on the way down to `leaf` is that leaf, or lists the leaf as unmerged."""
    subtree: Subtree = parent
    for bit in range(height - 1, -1, -1):
        subtree = children(subtree)[leaf >> bit & 1]
        if type(subtree) is Blank:
            return False
        if type(subtree) is Parent and subtree.node is not None:
            listed = subtree.node.unmerged_leaves
            place = bisect_left(listed, leaf)
            return place < len(listed) and listed[place] == leaf
    return True


def _sole_merged(subtree: Subtree, unmerged: tuple[int, ...]) -> Leaf | Parent | None:
    """Return the only node in a subtree's resolution besides the `unmerged` leaves; None if there is no such node."""
    if subtree.resolution_size != len(unmerged) + 1:
        return None
    if type(subtree) is Parent and subtree.node is not None:
        return subtree if subtree.node.unmerged_leaves == unmerged else None
    expected = set(unmerged)
    own: Leaf | Parent | None = None
    stack = [subtree]
    while stack:
        each = stack.pop()
        if type(each) is Leaf:
            if each.index in expected:
                expected.remove(each.index)
            elif own is None:
                own = each
            else:
                return None
        elif type(each) is Parent:
            if each.node is None:
                stack += (each.left, each.right)
                continue
            if own is not None:
                return None
            own = each
            for leaf in each.node.unmerged_leaves:
                if leaf not in expected:
                    return None
                expected.remove(leaf)
    return None if expected else own
