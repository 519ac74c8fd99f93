from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimids.mls.code_points import LeafNodeSource
from mimids.mls.leaf_node import HpkePublicKey, LeafNode
from mimids.mls.proposals import Add, Proposal, Remove, Update
from mimids.mls.rules.parameters import parameters_of
from mimids.mls.rules.tree import check_tree
from mimids.mls.rules.verdict import RuleError
from mimids.mls.suites import SUITES, suite_of
from mimids.mls.tree import math
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.mls.tree.rows import NodeRow, all_nodes, changed_nodes, load
from mimids.mls.tree.subtree import Blank, Parent, resolution
from mimids.wire.codec import WireError
from mimids.wire.declare import decode
from tests import vectors
from tests.support.naive_tree import NaiveTree
from tests.support.signing import GROUP, Client, crowd, fresh_key

NO_DEMANDS = parameters_of((), SUITES[1])
CLIENTS = [Client.of(seed) for seed in range(1, 40)]


def test_positions_are_those_of_the_vectors() -> None:
    for vector in vectors.load("mls/tree-math.json"):
        height = math.level(vector["root"])
        assert (1 << height, math.position(height, 0)) == (vector["n_leaves"], vector["root"])
        for node, (left, right) in enumerate(zip(vector["left"], vector["right"], strict=True)):
            height = math.level(node)
            first = (node + 1 - (1 << height)) // 2
            assert math.position(height, first) == node
            if height == 0:
                assert (left, right) == (None, None)
            else:
                second = first + (1 << (height - 1))
                assert (left, right) == (math.position(height - 1, first), math.position(height - 1, second))


def test_trees_of_the_vectors_are_valid_and_have_the_stated_hashes() -> None:
    for vector in vectors.load("mls/tree-validation.json"):
        suite = suite_of(vector["cipher_suite"])
        assert suite is not None
        octets = bytes.fromhex(vector["tree"])
        tree = RatchetTree.decode(suite, octets)
        assert tree.encode() == octets
        check_tree(tree, NO_DEMANDS, bytes.fromhex(vector["group_id"]))
        for node, expected in enumerate(zip(vector["tree_hashes"], vector["resolutions"], strict=True)):
            height = math.level(node)
            first = (node + 1 - (1 << height)) // 2
            subtree = tree.subtree(height, first)
            assert subtree is not None
            assert (subtree.tree_hash(suite).hex(), resolution(subtree, height, first)) == expected
            assert subtree.resolution_size == len(expected[1])


def test_operations_give_the_trees_of_the_vectors() -> None:
    for vector in vectors.load("mls/tree-operations.json"):
        suite = suite_of(vector["cipher_suite"])
        assert suite is not None
        before = RatchetTree.decode(suite, bytes.fromhex(vector["tree_before"]))
        assert before.tree_hash().hex() == vector["tree_hash_before"]
        body = decode(Proposal, bytes.fromhex(vector["proposal"])).body
        if isinstance(body, Add):
            after, _ = before.add(body.key_package.leaf_node)
        elif isinstance(body, Remove):
            after = before.remove(body.removed)
        else:
            assert isinstance(body, Update)
            after = before.update(vector["proposal_sender"], body.leaf_node)
        assert after.encode().hex() == vector["tree_after"]
        assert after.tree_hash().hex() == vector["tree_hash_after"]
        assert before.encode().hex() == vector["tree_before"]


def leaf(client: int) -> LeafNode:
    return CLIENTS[client].leaf(LeafNodeSource.KEY_PACKAGE, encryption_key=fresh_key(SUITES[1]))


Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "update", "remove", "path"]), st.integers(0, 38)), max_size=25
)


def history(steps: list[Step], *, one_index: bool = False) -> list[tuple[RatchetTree, NaiveTree]]:
    """Apply steps to both kinds of tree; a step's number selects the member."""
    suite = SUITES[1]
    first = leaf(0)
    naive = NaiveTree(suite, [first])
    versions = [(RatchetTree.decode(suite, naive.encode()), naive)]
    if one_index:
        versions[0][0].holders_of_key(b"")  # made by the first version, shared by all that follow
    for kind, number in steps:
        tree, naive = versions[-1][0], versions[-1][1].copy()
        members = naive.members()
        index = members[number % len(members)]
        if kind == "add":
            new = leaf(number)
            tree, place = tree.add(new)
            assert place == naive.add(new)
        elif kind == "update":
            new = leaf(number)
            tree = tree.update(index, new)
            naive.update(index, new)
        elif kind == "remove" and len(members) > 1:
            tree = tree.remove(index)
            naive.remove(index)
        elif kind == "path":
            keys = [fresh_key(suite) for _ in naive.filtered_path(index)]
            expected = naive.set_path(index, keys)
            new = CLIENTS[number].leaf(LeafNodeSource.COMMIT, index, origin=expected)
            naive.nodes[2 * index] = new
            tree, parent_hash = tree.merge_path(index, new, tuple(keys))
            assert parent_hash == expected
        versions.append((tree, naive))
    return versions


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_a_random_history_gives_the_tree_built_from_scratch(steps: list[Step]) -> None:
    versions = history(steps)
    for tree, naive in versions:  # after all steps, to notice a step that modified an earlier version
        assert tree.encode() == naive.encode()
        assert tree.tree_hash() == naive.tree_hash() == RatchetTree.decode(SUITES[1], naive.encode()).tree_hash()
        assert [index for index, _ in tree.leaves()] == naive.members()
        assert tree.member_count == len(naive.members())
        for index in naive.members():
            beside = [subtree.resolution_size for subtree in tree.filtered_copath(index)]
            assert beside == [len(naive.resolution(child)) for _, child in naive.filtered_path(index)]


@given(STEPS, st.booleans())
@settings(max_examples=60, deadline=None)
def test_keys_are_found_exactly_where_they_are(steps: list[Step], one_index: bool) -> None:
    everywhere: set[bytes] = set()
    for tree, naive in history(steps, one_index=one_index):
        held: dict[bytes, list[int]] = {}
        for place, node in enumerate(naive.nodes):
            if node is not None:
                held.setdefault(node.encryption_key, []).append(place)
        everywhere |= set(held)
        for key in everywhere:
            assert sorted(tree.holders_of_key(HpkePublicKey(key))) == held.get(key, [])
        for index in naive.members():
            assert index in tree.holders_of_signature_key(naive.leaf(index).signature_key)


def test_the_key_index_stays_correct_when_it_is_rebuilt() -> None:
    tree = RatchetTree.decode(SUITES[1], NaiveTree(SUITES[1], [leaf(0)]).encode())
    for number in range(400):  # far more keys than the tree has nodes
        assert not tree.holders_of_key(fresh_key(SUITES[1]))
        new = leaf(number % 39)
        tree = tree.update(0, new)
        assert tree.holders_of_key(new.encryption_key) == (0,)


@given(STEPS)
@settings(max_examples=40, deadline=None)
def test_rows_rebuild_every_version_and_contain_only_changes(steps: list[Step]) -> None:
    rows: dict[bytes, NodeRow] = {}
    before: RatchetTree | None = None
    versions = [tree for tree, _ in history(steps)]
    for tree in versions:
        changed = list(changed_nodes(before, tree))
        assert {row.tree_hash for row in changed} >= {row.tree_hash for row in all_nodes(tree)} - set(rows)
        if before is not None:
            assert len(changed) <= 2 * (tree.height + 1) + 2
        rows.update((row.tree_hash, row) for row in changed)
        before = tree
    for tree in versions:
        again = load(tree.suite, tree.tree_hash(), rows.get)
        assert again.encode() == tree.encode()
        assert (again.height, again.member_count) == (tree.height, tree.member_count)


def test_a_row_that_is_missing_or_wrong_is_noticed() -> None:
    tree = RatchetTree.decode(SUITES[1], crowd(5).tree.encode())
    rows = {row.tree_hash: row for row in all_nodes(tree)}
    for row in list(rows.values()):
        with pytest.raises(LookupError):
            load(tree.suite, tree.tree_hash(), {**rows, row.tree_hash: None}.get)
    root = rows[tree.tree_hash()]
    swapped = NodeRow(root.tree_hash, root.node, root.left, root.left)
    with pytest.raises(ValueError, match="hash they are stored under"):
        load(tree.suite, tree.tree_hash(), {**rows, root.tree_hash: swapped}.get)
    circle = NodeRow(root.tree_hash, root.node, root.tree_hash, b"")
    with pytest.raises(ValueError, match="form a circle"):
        load(tree.suite, tree.tree_hash(), {root.tree_hash: circle}.get)


def test_versions_share_unchanged_subtrees() -> None:
    tree = RatchetTree.decode(SUITES[1], crowd(16).tree.encode())
    changed = tree.update(0, leaf(30))
    assert isinstance(tree.root, Parent)
    assert isinstance(changed.root, Parent)
    assert changed.root.right is tree.root.right
    assert changed.subtree(2, 4) is tree.subtree(2, 4)
    assert len(list(changed_nodes(tree, changed))) == tree.height + 1


def test_a_tree_without_its_last_member_is_one_blank_leaf() -> None:
    tree = RatchetTree.decode(SUITES[1], NaiveTree(SUITES[1], [leaf(0)]).encode()).remove(0)
    assert isinstance(tree.root, Blank)
    assert (tree.height, tree.leftmost_blank(), tree.support) == (0, 0, None)


@pytest.mark.parametrize(
    "damage",
    ["no node", "blank at the end", "leaf in an inner place", "parent in a leaf's place", "no leaf in the right half"],
)
def test_nodes_that_form_no_tree_are_refused(damage: str) -> None:
    nodes = list(RatchetTree.decode(SUITES[1], crowd(4, path=True).tree.encode()).nodes())
    broken = {
        "no node": (),
        "blank at the end": (*nodes, None),
        "leaf in an inner place": (nodes[0], nodes[2], nodes[4]),
        "parent in a leaf's place": tuple(reversed([nodes[0], nodes[3]])),
        "no leaf in the right half": tuple(nodes[:2]),
    }[damage]
    with pytest.raises(WireError):
        RatchetTree.of_nodes(SUITES[1], broken)


def test_a_tree_with_planted_parent_nodes_is_refused() -> None:
    """RFC 9420 section 7.9.2: a key that somebody planted in a parent node is detected."""
    for size in (2, 3, 5, 8, 13):
        tree = RatchetTree.decode(SUITES[1], crowd(size).tree.encode())
        check_tree(tree, NO_DEMANDS, GROUP)
        nodes = tree.nodes()
        for place in range(1, len(nodes), 2):
            node = nodes[place]
            if node is None or isinstance(node.node, LeafNode):
                continue
            forged = type(node)(node.node_type, type(node.node)(fresh_key(SUITES[1]), node.node.parent_hash, ()))
            other = RatchetTree.of_nodes(SUITES[1], (*nodes[:place], forged, *nodes[place + 1 :]))
            with pytest.raises(RuleError, match="tree-"):
                check_tree(other, NO_DEMANDS, GROUP)
