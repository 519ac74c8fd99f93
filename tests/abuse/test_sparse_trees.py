"""A tree of many blank leaves: its cost is bounded by what is in it, and a far too wide one is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from mimids.errors import GroupInfoMismatch
from mimids.mls.code_points import LeafNodeSource, WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.leaf_node import RATCHET_TREE
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.mls.tree.subtree import Leaf
from mimids.wire.ids import MLS10, PartitionKey
from mimids.wire.messages import CreateGroupRequest
from tests.support.hub import ALICE, running_hub
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


@pytest.mark.parametrize(("leaves", "refused"), [(1 << 10, False), (1 << 16, True)])
async def test_a_group_with_a_far_too_wide_tree_is_not_created(leaves: int, refused: bool, tmp_path: Path) -> None:
    room = Room.create(ONE)
    other = TWO.leaf(LeafNodeSource.KEY_PACKAGE)
    nodes = [room.tree.nodes[0], *[None] * (leaves - 1), other]
    room.tree = NaiveTree(ONE.suite, nodes)
    room.clients[leaves // 2] = TWO
    info = MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info())
    key = PartitionKey(bytes(16))
    request = CreateGroupRequest(room.group_id, MLS10, ONE.suite.code, key, info, None, None)
    async with running_hub(tmp_path) as hub:
        if refused:
            with pytest.raises(GroupInfoMismatch, match="one member in 64 leaves"):
                await hub.create_group(request, ALICE)
        else:
            await hub.create_group(request, ALICE)
