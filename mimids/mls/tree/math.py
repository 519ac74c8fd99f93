"""Array positions of ratchet tree nodes (RFC 9420 appendix C): leaf L is at 2L, an inner node between its subtrees.

Trees are stored as linked nodes. Positions identify nodes in test vectors, in verdicts and in the key index.
"""

from __future__ import annotations


def level(node: int) -> int:
    """Return a node's height above the leaves: the number of trailing one bits."""
    return (node ^ (node + 1)).bit_length() - 1


def position(height: int, first_leaf: int) -> int:
    """Return the position of the root of a subtree, given its height and its leftmost leaf."""
    return 2 * first_leaf + (1 << height) - 1


def node_width(leaves: int) -> int:
    """Return the number of nodes in a tree with that many leaves."""
    return 2 * leaves - 1 if leaves else 0


def root(leaves: int) -> int:
    """Return the position of the root of a tree; `leaves` is a power of two."""
    return leaves - 1


def left(node: int) -> int | None:
    """Return the left child, None for a leaf."""
    height = level(node)
    return None if height == 0 else node ^ (1 << (height - 1))


def right(node: int) -> int | None:
    """Return the right child, None for a leaf."""
    height = level(node)
    return None if height == 0 else node ^ (3 << (height - 1))


def parent(node: int, leaves: int) -> int | None:
    """Return the parent in a tree with that many leaves, None for the root."""
    if node == root(leaves):
        return None
    height = level(node)
    return (node | (1 << height)) & ~(2 << height)


def sibling(node: int, leaves: int) -> int | None:
    """Return the other child of the parent, None for the root."""
    above = parent(node, leaves)
    if above is None:
        return None
    return right(above) if node < above else left(above)
