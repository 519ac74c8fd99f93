"""The tip of a group, found by few statements, against a model that reads the whole tree."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from mimids.store import partitions, terminations, tips
from mimids.store.engine.migrate import shipped
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import Counter, MaskedPartitionKey

GROUP, NOW = 1, Milliseconds(1)
NO_GROUP = 2


@cache
def empty() -> bytes:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for migration in shipped():
        connection.executescript(migration.sql)
    return connection.serialize()


@contextmanager
def opened() -> Iterator[Tx]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.deserialize(empty())
    connection.execute("PRAGMA foreign_keys=OFF")
    yield Tx(connection)
    connection.close()


def add(tx: Tx, parent: int | None, seq: int, epoch: int) -> int:
    key = MaskedPartitionKey(seq.to_bytes(32, "big"))
    return partitions.add_partition(
        tx, group=GROUP, hub=1, masked_key=key, epoch=epoch, now=NOW, parent=parent, opened_by=seq if parent else None
    )


def model(tx: Tx, start: int) -> int:
    """Walk down from a partition: at each fork take the open branch with most messages, or else the earlier one."""

    def messages(partition: partitions.Partition) -> int:
        return partition.next_counter + sum(
            messages(each) for each in partitions.children(tx, partition.id) if open_(each)
        )

    def open_(partition: partitions.Partition) -> bool:
        return not partition.terminated and not partition.detached

    while branches := [each for each in partitions.children(tx, start) if open_(each)]:
        start = max(branches, key=messages).id
    return start


# Each step names a partition: a commit there, a message there, a termination.
STEPS = st.lists(st.tuples(st.sampled_from(["commit", "commit", "send", "end"]), st.integers(0, 9)), max_size=14)


@settings(max_examples=400, deadline=None)
@given(steps=STEPS)
def test_the_tip_is_that_of_the_branch_with_most_messages(steps: list[tuple[str, int]]) -> None:
    with opened() as tx:
        epochs = {add(tx, None, 1, 0): 0}
        counters = dict.fromkeys(epochs, 0)
        for seq, (step, number) in enumerate(steps, start=2):
            row = list(epochs)[-1 - number % len(epochs)]
            if step == "end":
                terminations.terminate(tx, row, "", NOW)
            elif not partitions.partition_by_row(tx, row).terminated:
                counters[row] += 1
                partitions.advance(tx, row, next_counter=Counter(counters[row]), last_seq=seq)
                if step == "commit":
                    child = add(tx, row, seq, epochs[row] + 1)
                    epochs[child], counters[child] = epochs[row] + 1, 0
        root = partitions.partition_by_row(tx, 1)
        tip = tips.live_tip(tx, GROUP)
        assert (tip.id if tip else None) == (None if root.terminated else model(tx, 1))
        for row in epochs:
            below = tips.live_tip(tx, GROUP, below=row)
            assert below is not None
            assert below.id == model(tx, row)


def test_a_termination_keeps_its_time_and_reason_until_it_is_undone() -> None:
    def terminations_of(tx: Tx) -> list[tuple[object, ...]]:
        return tx.all("SELECT terminated_by, terminated_at, terminated_reason FROM partitions ORDER BY id")

    with opened() as tx:
        root = add(tx, None, 1, 0)
        branch = add(tx, root, 2, 1)
        tip = add(tx, branch, 3, 2)
        assert terminations.terminate(tx, branch, "stale", Milliseconds(5)) == 2
        assert terminations_of(tx) == [(None, None, None), (branch, 5, "stale"), (branch, None, None)]
        assert terminations.terminate(tx, branch, "again", Milliseconds(6)) == 0
        assert terminations.terminate(tx, tip, "again", Milliseconds(6)) == 0
        assert terminations_of(tx)[1:] == [(branch, 5, "stale"), (branch, None, None)], "the first one counts"
        assert terminations.undo_termination(tx, tip) == 0
        assert terminations.undo_termination(tx, branch) == 2
        assert terminations_of(tx) == [(None, None, None)] * 3
        assert terminations.terminate(tx, branch, "stale", Milliseconds(7)) == 2
        assert terminations.terminate(tx, root, "all of it", Milliseconds(8)) == 1
        assert terminations.undo_termination(tx, branch) == 2
        ended = [(root, 8, "all of it"), (root, None, None), (root, None, None)]
        assert terminations_of(tx) == ended, "from now on they are ended by the termination above"


def test_the_tip_of_a_long_group_reads_only_the_last_epochs() -> None:
    with opened() as tx:
        row = add(tx, None, 1, 0)
        for epoch in range(1, 300):
            partitions.advance(tx, row, next_counter=Counter(1), last_seq=epoch)
            add(tx, row, 1000 + epoch, epoch)  # a commit that lost a race
            row = add(tx, row, 2000 + epoch, epoch)
        partitions.advance(tx, row, next_counter=Counter(1), last_seq=3000)
        assert tx.all("SELECT 1 FROM partitions WHERE forked = 1") == []
        tip = tips.live_tip(tx, GROUP)
        assert tip is not None
        assert tip.id == row
        assert tips.live_tip(tx, NO_GROUP) is None
