"""A tree of many blank leaves: its cost is bounded by what is in it, and a far too wide one is refused."""

from __future__ import annotations

import tracemalloc

import pytest

from mimids.ds.groups.judging import MlsJudge
from mimids.ds.groups.states import States
from mimids.errors import GroupInfoMismatch
from mimids.mls.code_points import LeafNodeSource, WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.knowledge import Claimed
from mimids.mls.leaf_node import RATCHET_TREE
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.mls.tree.subtree import Leaf
from mimids.store.groups import Group
from mimids.values import Milliseconds
from mimids.wire import varint
from mimids.wire.codec import WireError
from mimids.wire.ids import MLS10
from mimids.wire.messages import GroupInfoResponse
from tests.support.naive_tree import NaiveTree
from tests.support.signing import Client, Room

ONE, TWO = (Client.of(seed) for seed in (1, 2))


def two_leaves(height: int) -> RatchetTree:
    """Return a tree with `1 << height` leaves: one at its begin, one in its second half."""
    tree = RatchetTree(ONE.suite, Leaf(0, ONE.leaf(LeafNodeSource.KEY_PACKAGE)), 0)
    other = 1 << (height - 1)
    while tree.leaf_count <= other:
        tree = tree.widened_for(tree.leaf_count)
    return tree.update(other, TWO.leaf(LeafNodeSource.KEY_PACKAGE))


@pytest.mark.parametrize("height", range(1, 8))
def test_a_sparse_tree_is_encoded_as_its_list_of_nodes(height: int) -> None:
    tree = two_leaves(height)
    assert tree.encode() == RATCHET_TREE.encode(tree.nodes())
    assert RatchetTree.decode(ONE.suite, tree.encode()).tree_hash() == tree.tree_hash()


def test_encoding_a_tree_of_four_million_nodes_makes_no_object_for_each() -> None:
    tree = two_leaves(21)
    tracemalloc.start()
    octets = tree.encode()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 1 << 21 < len(octets) < 1 << 22
    assert peak < 6 * len(octets), "a list of its nodes alone has eight octets for each"


def test_a_tree_of_more_nodes_than_any_group_has_is_no_valid_encoding() -> None:
    """A node takes 180 octets once it is decoded, and a blank one eight."""
    nodes = 1 << 20
    assert len(RATCHET_TREE.decode(varint.mls(nodes) + bytes(nodes))) == nodes
    with pytest.raises(WireError, match="more than"):
        RATCHET_TREE.decode(varint.mls(nodes + 1) + bytes(nodes + 1))


@pytest.mark.parametrize(("leaves", "refused"), [(1 << 10, False), (1 << 16, True)])
def test_a_far_too_wide_tree_is_not_believed(leaves: int, refused: bool) -> None:
    room = Room.create(ONE)
    room.tree = NaiveTree(ONE.suite, [room.tree.nodes[0], *[None] * (leaves - 1), TWO.leaf(LeafNodeSource.KEY_PACKAGE)])
    room.clients[leaves // 2] = TWO
    room.epoch, room.confirmed = 1, bytes(32)
    opening = GroupInfoResponse(MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info()), None)
    group = Group(1, 2, room.group_id, MLS10, ONE.suite.code, None, Milliseconds(0), False, False)
    if refused:
        with pytest.raises(GroupInfoMismatch, match="more than 63 of 64 leaves are blank"):
            MlsJudge(States()).claimed(group, 1, opening)
    else:
        assert isinstance(MlsJudge(States()).claimed(group, 1, opening), Claimed)
