"""Array positions of a ratchet tree (RFC 9420 appendix C): leaf L stands at 2L, inner nodes between their subtrees.

The trees themselves are linked; positions name nodes towards others: in vectors, in verdicts, in the index of keys.
"""

from __future__ import annotations


def level(node: int) -> int:
    """Return how many levels `node` stands above the leaves: the number of ones at its end."""
    return (node ^ (node + 1)).bit_length() - 1


def position(height: int, first_leaf: int) -> int:
    """Return the position of the subtree root of that height whose leftmost leaf is `first_leaf`."""
    return 2 * first_leaf + (1 << height) - 1


def node_width(leaves: int) -> int:
    """Return how many nodes a tree of that many leaves has."""
    return 2 * leaves - 1 if leaves else 0


def root(leaves: int) -> int:
    """Return the root of a full tree of `leaves`, a power of two."""
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
    """Return the parent in a tree of that many leaves, None for the root."""
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
