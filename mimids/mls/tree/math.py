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
