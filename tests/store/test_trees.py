"""Sweeping tree nodes: nodes that a partition uses are never deleted, and in the end only those are left."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mimids.store import partitions, trees
from mimids.store.engine.migrate import shipped
from mimids.store.engine.transaction import Tx
from mimids.store.partitions import StoredState
from mimids.store.trees import NodeColumns

WIDTH = 4
Tree = tuple[int, ...]  # the content of each leaf


def nodes(tree: Tree) -> list[NodeColumns]:
    """Return the rows of a tree, its root first."""
    if len(tree) == 1:
        leaf = b"%d" % tree[0]
        return [(hashlib.sha256(leaf).digest(), leaf, b"", b"")]
    left, right = nodes(tree[: len(tree) // 2]), nodes(tree[len(tree) // 2 :])
    root = hashlib.sha256(left[0][0] + right[0][0]).digest()
    return [(root, b"", left[0][0], right[0][0]), *left, *right]


class Sweeping(RuleBasedStateMachine):
    """Commits and expiries between the pages of sweeps. A commit stores only the nodes that differ from the parent."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for migration in shipped():
            self.connection.executescript(migration.sql)
        self.connection.execute("PRAGMA foreign_keys=OFF")
        self.tx = Tx(self.connection)
        self.trees: dict[int, Tree] = {}

    def teardown(self) -> None:
        while trees.sweep_page(self.tx, limit=3):
            self.whole()
        trees.begin_sweep(self.tx)
        while trees.sweep_page(self.tx, limit=3):
            self.whole()
        assert self.stored() == {row[0] for tree in self.trees.values() for row in nodes(tree)}
        self.connection.close()

    def stored(self) -> set[bytes]:
        return {row[0] for row in self.tx.all("SELECT hash FROM tree_nodes")}

    def add(self, tree: Tree, changed: Iterator[NodeColumns], number: int | None = None) -> None:
        trees.keep_nodes(self.tx, changed)
        if number is None:
            number = self.tx.insert(
                "INSERT INTO partitions (group_ref, hub, masked_key, opened_at) VALUES (1, 1, randomblob(32), 0)"
            )
        partitions.set_state(self.tx, number, StoredState(True, nodes(tree)[0][0], b"", b"", False))
        self.trees[number] = tree

    @initialize()
    def create(self) -> None:
        tree = (0,) * WIDTH
        self.unknown: list[int] = []
        self.add(tree, iter(nodes(tree)))

    @precondition(lambda self: self.trees)
    @rule(data=st.data(), leaf=st.integers(0, WIDTH - 1), content=st.integers(0, 1))
    def commit(self, data: st.DataObject, leaf: int, content: int) -> None:
        parent = self.trees[data.draw(st.sampled_from(sorted(self.trees)))]
        tree = (*parent[:leaf], content, *parent[leaf + 1 :])
        old = {row[0] for row in nodes(parent)}
        self.add(tree, (row for row in nodes(tree) if row[0] not in old))

    @precondition(lambda self: len(self.trees) > 1)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.trees)))
        partitions.set_state(self.tx, number, None)
        del self.trees[number]
        self.unknown.append(number)

    @precondition(lambda self: self.unknown)
    @rule(tree=st.tuples(*[st.integers(0, 1)] * WIDTH))
    def learn(self, tree: Tree) -> None:
        """Learn the state of an existing partition: all its nodes are stored again, of which some are there, unused."""
        self.add(tree, iter(nodes(tree)), self.unknown.pop())

    @rule()
    def begin(self) -> None:
        trees.begin_sweep(self.tx)

    @rule(limit=st.sampled_from([1, 5, 50]))
    def page(self, limit: int) -> None:
        trees.sweep_page(self.tx, limit=limit)

    @invariant()
    def whole(self) -> None:
        assert {row[0] for tree in self.trees.values() for row in nodes(tree)} <= self.stored()


Sweeping.TestCase.settings = settings(stateful_step_count=40, max_examples=200, deadline=None)
TestSweeping = Sweeping.TestCase
