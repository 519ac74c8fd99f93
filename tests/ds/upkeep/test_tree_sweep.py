"""The sweep of tree nodes: nodes that a partition uses are never deleted, and in the end only those are left."""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar
from unittest import mock

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mimids.ds.upkeep import tree_sweep
from mimids.store import partitions, trees
from mimids.store.engine.migrate import shipped
from mimids.store.engine.transaction import Tx
from mimids.store.partitions import StoredState
from mimids.store.trees import NodeColumns
from mimids.values import Milliseconds

pytestmark = pytest.mark.sqlite_file("it fills a SQLite database in memory")


WIDTH = 4
T = TypeVar("T")
Tree = tuple[int, ...]  # the content of each leaf


def nodes(tree: Tree) -> list[NodeColumns]:
    """Return the rows of a tree, its root first."""
    if len(tree) == 1:
        leaf = b"%d" % tree[0]
        return [(hashlib.sha256(leaf).digest(), leaf, b"", b"")]
    left, right = nodes(tree[: len(tree) // 2]), nodes(tree[len(tree) // 2 :])
    root = hashlib.sha256(left[0][0] + right[0][0]).digest()
    return [(root, b"", left[0][0], right[0][0]), *left, *right]


@types.coroutine
def stop_here() -> Generator[None]:
    """Give control back to whoever sends to the coroutine."""
    yield


class SteppedStore:
    """Runs each work directly, after a step; so other writes come between any two works."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    async def read(self, work: Callable[[Tx], T]) -> T:
        await stop_here()
        return work(self._tx)

    write = read


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

        self.sweep: Coroutine[Any, Any, None] | None = None
        pages = mock.patch.object(tree_sweep, "PAGE_NODES", 3)
        pages.start()
        self.undo = pages.stop

    def teardown(self) -> None:
        for _ in range(2):  # the one that runs may have begun before the last expiry
            self.begin()
            while self.sweep is not None:
                self.page(1)
                self.whole()
        assert self.stored() == {row[0] for tree in self.trees.values() for row in nodes(tree)}
        self.undo()
        self.connection.close()

    def stored(self) -> set[bytes]:
        return {row[0] for row in self.tx.all("SELECT hash FROM tree_nodes")}

    def add(self, tree: Tree, changed: list[NodeColumns], number: int | None = None) -> None:
        trees.keep_nodes(self.tx, changed)
        trees.note_in_use(self.tx, nodes(tree)[0][0], changed)
        if number is None:
            number = self.tx.insert(
                "INSERT INTO partitions (group_ref, hub, masked_key, opened_at) VALUES (1, 1, randomblob(32), 0)"
                " RETURNING id"
            )
        partitions.set_state(self.tx, number, StoredState(True, nodes(tree)[0][0], b"", b"", False))
        self.trees[number] = tree

    @initialize()
    def create(self) -> None:
        tree = (0,) * WIDTH
        self.unknown: list[int] = []
        self.add(tree, nodes(tree))

    @precondition(lambda self: self.trees)
    @rule(data=st.data(), leaf=st.integers(0, WIDTH - 1), content=st.integers(0, 1))
    def commit(self, data: st.DataObject, leaf: int, content: int) -> None:
        parent = self.trees[data.draw(st.sampled_from(sorted(self.trees)))]
        tree = (*parent[:leaf], content, *parent[leaf + 1 :])
        old = {row[0] for row in nodes(parent)}
        self.add(tree, [row for row in nodes(tree) if row[0] not in old])

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
        self.add(tree, nodes(tree), self.unknown.pop())

    @rule()
    def begin(self) -> None:
        """Begin a sweep; one that is running continues."""
        if self.sweep is None:
            store: Any = SteppedStore(self.tx)
            self.sweep = tree_sweep.sweep_trees(store, Milliseconds(0), stop_here)

    @rule()
    def interrupt(self) -> None:
        if self.sweep is not None:
            self.sweep.close()
            self.sweep = None

    @rule(steps=st.sampled_from([1, 5, 50]))
    def page(self, steps: int) -> None:
        try:
            for _ in range(steps):
                if self.sweep is not None:
                    self.sweep.send(None)
        except StopIteration:
            self.sweep = None

    @invariant()
    def whole(self) -> None:
        assert {row[0] for tree in self.trees.values() for row in nodes(tree)} <= self.stored()


async def test_a_sweep_deletes_nothing_once_another_process_has_begun_one() -> None:
    """The other sweep has taken the notes, which say that the nodes are used again."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for migration in shipped():
        connection.executescript(migration.sql)
    tx, again = Tx(connection), nodes((0, 1))
    trees.keep_nodes(tx, again)

    class OtherSweepBeforeTheFirstDeletion:
        async def read(self, work: Callable[[Tx], T]) -> T:
            return work(tx)

        async def write(self, work: Callable[[Tx], T]) -> T:
            if getattr(work, "func", None) is trees.drop_unused:
                trees.note_in_use(tx, again[0][0], again)
                trees.begin_sweep(tx, Milliseconds(1))
            return work(tx)

    store: Any = OtherSweepBeforeTheFirstDeletion()
    await tree_sweep.sweep_trees(store, Milliseconds(0), trio.lowlevel.checkpoint)
    assert {row[0] for row in tx.all("SELECT hash FROM tree_nodes")} == {row[0] for row in again}
    assert tx.all("SELECT began_at, running FROM tree_sweep") == [(1, 1)]
    connection.close()


async def test_notes_that_take_several_pages_to_read_protect_their_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is stored again after its unused nodes were found, and has more nodes than a page."""
    monkeypatch.setattr(tree_sweep, "PAGE_NODES", 2)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for migration in shipped():
        connection.executescript(migration.sql)
    tx, again = Tx(connection), nodes((0, 1, 2, 3))
    trees.keep_nodes(tx, again)

    class StoredAgainBeforeTheFirstDeletion:
        stored = False

        async def read(self, work: Callable[[Tx], T]) -> T:
            return work(tx)

        async def write(self, work: Callable[[Tx], T]) -> T:
            if getattr(work, "func", None) is trees.drop_unused and not self.stored:
                self.stored = True
                trees.note_in_use(tx, again[0][0], again)
            return work(tx)

    store: Any = StoredAgainBeforeTheFirstDeletion()
    await tree_sweep.sweep_trees(store, Milliseconds(0), trio.lowlevel.checkpoint)
    assert {row[0] for row in tx.all("SELECT hash FROM tree_nodes")} == {row[0] for row in again}
    connection.close()


async def test_a_sweep_pauses_after_each_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_sweep, "PAGE_NODES", 2)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for migration in shipped():
        connection.executescript(migration.sql)
    tx, works = Tx(connection), list[str]()
    trees.keep_nodes(tx, nodes((0, 1, 2, 3)))

    class Noted:
        async def read(self, work: Callable[[Tx], T]) -> T:
            works.append("page")
            return work(tx)

        async def write(self, work: Callable[[Tx], T]) -> T:
            works.append("page" if getattr(work, "func", None) is trees.drop_unused else "write")
            return work(tx)

    async def pause() -> None:
        works.append("pause")

    store: Any = Noted()
    await tree_sweep.sweep_trees(store, Milliseconds(0), pause)
    assert tx.all("SELECT count(*) FROM tree_nodes") == [(0,)]
    connection.close()
    assert (works.pop(0), works.pop()) == ("write", "write")
    assert works.count("pause") == works.count("page") - 1  # the page after the last hash is empty
    assert not any(each == after == "pause" for each, after in itertools.pairwise(works))


Sweeping.TestCase.settings = settings(stateful_step_count=40, max_examples=200, deadline=None)
TestSweeping = Sweeping.TestCase
