"""Whole trees: honest ones are valid at every step, and each thing that a joiner must notice is noticed."""

from __future__ import annotations

import random

import pytest

from mimids.mls.code_points import LeafNodeSource
from mimids.mls.leaf_node import HpkePublicKey, LeafNode, ParentNode
from mimids.mls.proposals import Add, Remove, Update
from mimids.mls.rules import tree as checks
from mimids.mls.rules.parameters import parameters_of
from mimids.mls.rules.tree import ParentHashes, check_tree
from mimids.mls.rules.verdict import RuleError
from mimids.mls.suites import SUITES
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.mls.tree.subtree import Blank, Leaf, Parent, Subtree, join
from tests.support.mls_makers import replace
from tests.support.naive_tree import NaiveTree
from tests.support.signing import GROUP, Client, by_reference, by_value, crowd, fresh_key, ref_of

SUITE = SUITES[1]
NO_DEMANDS = parameters_of((), SUITE)


def checked(tree: NaiveTree) -> str | None:
    """Return the rule that a whole tree breaks, None if it is valid."""
    try:
        check_tree(RatchetTree.decode(tree.suite, tree.encode()), parameters_of((), tree.suite), GROUP)
    except RuleError as error:
        return error.invalid.rule.name
    return None


# --- honest trees ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_every_tree_of_an_honest_history_is_valid(seed: int) -> None:
    """Adds without a path leave unmerged leaves at every depth, removals and updates leave blank nodes."""
    dice = random.Random(seed)
    room, fresh = crowd(dice.randint(2, 9)), 100
    for _ in range(16):
        members = sorted(room.clients)
        committer = dice.choice(members)
        others = [each for each in members if each != committer]
        choice = dice.random()
        if choice < 0.45 and fresh < 250:
            fresh += 1
            room = room.commit(committer, by_value(Add(Client.of(fresh).key_package())), path=dice.random() < 0.3)[1]
        elif choice < 0.65 and len(others) > 1:
            room = room.commit(committer, by_value(Remove(dice.choice(others))))[1]
        elif choice < 0.8 and others:
            index = dice.choice(others)
            updated = room.propose(index, Update(room.clients[index].leaf(LeafNodeSource.UPDATE, index)))
            room = room.commit(committer, by_reference(ref_of(updated, room.suite)))[1]
        else:
            room = room.commit(committer)[1]
        assert checked(room.tree) is None


@pytest.mark.parametrize("removed", [(5,), (6,), (7,), (5, 6, 7), (4, 5)])
def test_leaves_added_deep_in_the_sibling_of_a_path_leave_the_tree_valid(removed: tuple[int, ...]) -> None:
    """The sibling's hash is then the one before they were added, at each height (RFC 9420 section 7.9)."""
    room = crowd(8)
    _, room = room.commit(4)
    _, room = room.commit(0, *(by_value(Remove(each)) for each in removed))
    for number, _ in enumerate(removed):
        _, room = room.commit(1, by_value(Add(Client.of(120 + number).key_package())), path=False)
    root = room.tree.nodes[room.tree.root]
    assert isinstance(root, ParentNode)
    assert root.unmerged_leaves
    assert checked(room.tree) is None


# --- trees that are wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1, 2, 5])
def test_a_key_that_does_not_fit_the_suite_is_refused_in_leaf_and_parent(code: int) -> None:
    room = crowd(4, suite=code)
    short = HpkePublicKey(fresh_key(room.suite)[:-1])
    no_point = HpkePublicKey(b"\x04" + bytes(room.suite.hpke_key_size - 1))
    for key in (short, *([no_point] if code != 1 else [])):
        tree = room.tree.copy()
        parent = tree.nodes[tree.root]
        assert isinstance(parent, ParentNode)
        tree.nodes[tree.root] = replace(parent, encryption_key=key)
        assert checked(tree) == "path-key"
        tree = room.tree.copy()
        tree.nodes[2] = room.clients[1].leaf(LeafNodeSource.KEY_PACKAGE, encryption_key=key)
        assert checked(tree) == "path-key"
    assert checked(room.tree) is None


def test_two_leaves_with_one_signature_key_are_refused() -> None:
    room = crowd(5, path=False)
    room.tree.nodes[4] = room.clients[1].leaf(LeafNodeSource.KEY_PACKAGE)
    assert checked(room.tree) == "signature-key-unique"


@pytest.mark.parametrize(
    ("unmerged", "rule"),
    [
        ((1,), "tree-unmerged"),  # its sibling's parent does not list it
        ((8,), "tree-unmerged"),  # outside the subtree
        ((4, 5), "tree-unmerged"),  # a node between lists neither
        ((5, 4), "tree-unmerged"),
        ((5, 5), "tree-unmerged"),
    ],
)
def test_unmerged_leaves_must_be_below_and_listed_between(unmerged: tuple[int, ...], rule: str) -> None:
    room = crowd(8)
    _, room = room.commit(1)
    _, room = room.commit(4)
    root = room.tree.nodes[room.tree.root]
    assert isinstance(root, ParentNode)
    room.tree.nodes[room.tree.root] = replace(root, unmerged_leaves=unmerged)
    assert checked(room.tree) == rule


def test_an_unmerged_leaf_is_within_the_subtree_even_where_no_node_is_between() -> None:
    """Leaf 5 has the same place in the left half as leaf 1, to which nothing but blank nodes lead."""
    left = parent(blank(A, B), blank(C, D), 1)
    assert isinstance(left, Parent)
    assert left.node is not None
    for unmerged, rule in (((1,), "tree-parent-hash"), ((5,), "tree-unmerged"), ((4,), "tree-unmerged")):
        node = replace(left.node, unmerged_leaves=unmerged)
        with pytest.raises(RuleError) as refused:
            ParentHashes(SUITE).check(join(left.left, left.right, node), 2, 0)
        assert refused.value.invalid.rule.name == rule


def test_an_unmerged_leaf_is_listed_once_at_every_height() -> None:
    room = crowd(8)
    _, room = room.commit(0, by_value(Remove(7)))
    _, room = room.commit(1, by_value(Add(Client.of(140).key_package())), path=False)
    root = room.tree.nodes[room.tree.root]
    assert isinstance(root, ParentNode)
    twice = room.tree.copy()
    twice.nodes[twice.root] = replace(root, unmerged_leaves=(7, 7))
    assert checked(twice) == "tree-unmerged"
    places = [place for place, node in enumerate(room.tree.nodes) if getattr(node, "unmerged_leaves", ())]
    assert places
    for place in places:
        tree = room.tree.copy()
        tree.nodes[place] = replace(tree.nodes[place], unmerged_leaves=())
        assert checked(tree) in ("tree-parent-hash", "tree-unmerged"), place


# --- the node that made a parent ------------------------------------------------------------------------------------


def leaf(index: int) -> Leaf:
    return Leaf(index, Client.of(index + 1).leaf(LeafNodeSource.KEY_PACKAGE))


def parent(left: Subtree, right: Subtree, *unmerged: int) -> Subtree:
    return join(left, right, ParentNode(fresh_key(SUITE), b"", unmerged))


def blank(left: Subtree, right: Subtree) -> Subtree:
    return join(left, right, None)


LEAVES = [leaf(index) for index in range(4)]
A, B, C, D = LEAVES
OWN = parent(A, B)
WITH_B = parent(A, B, 1)


@pytest.mark.parametrize(
    ("subtree", "unmerged", "found"),
    [
        (A, (), A),
        (A, (0,), None),  # nothing is left
        (Blank(1, 0), (), None),
        (OWN, (), OWN),
        (WITH_B, (1,), WITH_B),
        (WITH_B, (), None),  # B is in the resolution and not unmerged above
        (parent(A, B, 0), (1,), None),  # as many, but others
        (blank(A, B), (1,), A),
        (blank(A, B), (0,), B),
        (blank(A, B), (), None),  # two nodes
        (blank(A, B), (2,), None),  # as many, but none of them is unmerged
        (blank(A, blank(C, D)), (2, 3), A),
        (blank(A, blank(C, D)), (0, 2), D),
        (blank(OWN, C), (2,), OWN),
        (blank(WITH_B, C), (1, 2), WITH_B),
        (blank(WITH_B, C), (2, 3), None),  # the node's own unmerged leaf is not unmerged above
        (blank(C, OWN), (2,), OWN),
        (blank(OWN, C), (0,), None),  # two nodes besides, one of them a parent
        (blank(OWN, parent(C, D)), (0,), None),  # two parents
        (blank(parent(A, B, 1), C), (1, 3), None),
    ],
)
def test_the_one_node_besides_the_unmerged_leaves(
    subtree: Subtree, unmerged: tuple[int, ...], found: Subtree | None
) -> None:
    assert checks._sole_merged(subtree, unmerged) is found


def test_a_parent_hash_must_be_the_one_of_exactly_one_child() -> None:
    room = crowd(4)
    tree = RatchetTree.decode(SUITE, room.tree.encode())
    ParentHashes(SUITE).check(tree.root, tree.height, 0)
    own = room.tree.nodes[0]
    assert isinstance(own, LeafNode)
    for origin in (b"", bytes(32)):
        changed = room.tree.copy()
        changed.nodes[0] = room.clients[0].leaf(LeafNodeSource.COMMIT, 0, origin=origin)
        assert checked(changed) == "tree-parent-hash"
    without = room.tree.copy()
    without.nodes[0] = room.clients[0].leaf(LeafNodeSource.KEY_PACKAGE)
    assert checked(without) == "tree-parent-hash"
