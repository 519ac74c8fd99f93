"""Delivery under many writers that commit at the same time, in PostgreSQL: a cursor passes by nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Barrier

import attrs
import pytest

from mimids.store import follows, moved, peers, processes
from mimids.store.engine import translation
from mimids.store.engine.transaction import Tx
from mimids.store.moved import Looked
from mimids.wire.ids import Counter
from tests.support import postgresql

pytestmark = pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing()))

HUB, FOLLOWER = 1, 2
WRITERS = 16
RUNS, ALL_RUNS = 40, 1000  # in `make test`, in `make soak`
MOST_SECONDS = 0.003  # between the statements of a writer


@contextmanager
def transactions(url: str) -> Iterator[Tx]:
    """Yield what runs statements on a connection of its own."""
    from mimids.store.engine.postgresql.connection import Statements, connect

    with closing(connect(url)) as connection:
        yield Tx(Statements(connection))


def fill(tx: Tx) -> None:
    """Make a partition for each writer; a provider follows all of them."""
    tx.execute("INSERT INTO providers (id, domain) VALUES (1, 'a'), (2, 'b')")
    tx.execute(
        "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at) VALUES (1, 1, ?, 1, 1, 0)", (b"g",)
    )
    for row in range(1, WRITERS + 1):
        tx.execute(
            "INSERT INTO partitions (id, group_ref, hub, masked_key, epoch, next_counter, last_seq, opened_at)"
            " VALUES (?, 1, 1, ?, 1, 0, 1, 0)",
            (row, bytes([row]) * 32),
        )
        follows.follow(tx, FOLLOWER, row)


@attrs.define
class Deliverer:
    """Delivers as the job does: looks at the partitions that moved, then at what the follower lacks."""

    tx: Tx
    looked: Looked = attrs.field(factory=lambda: Looked.up_to(0))

    def look(self) -> None:
        tx, due = self.tx, []
        tx.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        page = moved.next_page(tx, self.looked, limit=WRITERS // 2)
        reached = moved.settled(tx)
        if FOLLOWER in follows.followers_behind(tx, page):
            peer = peers.find_peer(tx, FOLLOWER)
            assert peer is not None
            found = follows.due_partitions(tx, FOLLOWER, peer.next_stamp, limit=2 * WRITERS)
            due = [(each.partition, *(tx.one(_END, (each.partition,)) or ())) for each in found]
        tx.execute("COMMIT")
        self.looked = page.looked
        if due:
            tx.execute("BEGIN")
            for partition, end in due:
                follows.settle(tx, FOLLOWER, partition, Counter(end))
            peers.note_success(tx, FOLLOWER, reached)
            tx.execute("COMMIT")
        if not page.whole:
            self.look()

    def undelivered(self) -> int:
        return len(self.tx.all(_BEHIND))


_END = "SELECT next_counter FROM partitions WHERE id = ?"
_BEHIND = "SELECT 1 FROM follows f JOIN partitions p ON p.id = f.partition WHERE f.next_counter < p.next_counter"


def write(url: str, row: int, runs: int, barrier: Barrier) -> None:
    """Append a message in each run; the transactions of the writers begin together, and end in any order."""
    chance = random.Random(row)
    with transactions(url) as tx:
        for _ in range(runs):
            barrier.wait()
            tx.execute("BEGIN")
            tx.execute("UPDATE partitions SET next_counter = next_counter + 1 WHERE id = ?", (row,))
            time.sleep(chance.uniform(0, MOST_SECONDS))
            moved.touch(tx, [row])
            time.sleep(chance.uniform(0, MOST_SECONDS))
            tx.execute("COMMIT")
            barrier.wait()


def lost(url: str, runs: int) -> int:
    """Return how many messages were not delivered in any of the runs, though everything was looked at."""
    barrier, found = Barrier(WRITERS + 1, timeout=60), 0
    with transactions(url) as tx, ThreadPoolExecutor(WRITERS) as writers:
        fill(tx)
        deliverer = Deliverer(tx)
        writing = [writers.submit(write, url, row, runs, barrier) for row in range(1, WRITERS + 1)]
        for _ in range(runs):
            barrier.wait()
            while barrier.n_waiting < WRITERS:
                deliverer.look()
            barrier.wait()
            deliverer.look()
            found += deliverer.undelivered()
        for each in writing:
            each.result()
    return found


@pytest.mark.parametrize("runs", [RUNS, pytest.param(ALL_RUNS, marks=pytest.mark.soak)])
def test_delivery_loses_nothing_of_many_writers(runs: int, tmp_path: Path) -> None:
    assert lost(postgresql.database_of(tmp_path / "shared"), runs) == 0


def test_a_cursor_above_the_highest_stamp_would_lose_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clauses for SQLite, where only one transaction writes at a time."""
    monkeypatch.setattr(translation, "STAMPS", {})
    translation.with_numbered_places.cache_clear()
    try:
        assert lost(postgresql.database_of(tmp_path / "shared"), RUNS) > 0
    finally:
        translation.with_numbered_places.cache_clear()


@pytest.mark.parametrize("later", [1_000_000, -1])
def test_rows_from_another_cluster_are_checked_again(later: int, tmp_path: Path) -> None:
    with transactions(postgresql.database_of(tmp_path / "shared")) as tx:
        fill(tx)
        assert not processes.is_numbered_elsewhere(tx)
        ahead = moved.settled(tx) + 1_000_000
        tx.execute("UPDATE peers SET next_stamp = ?", (moved.settled(tx) + later,))
        tx.execute("UPDATE moved SET stamp = ?", (ahead,))
        assert processes.is_numbered_elsewhere(tx)
        processes.begin_again(tx)
        assert not processes.is_numbered_elsewhere(tx)
        tx.execute("UPDATE partitions SET next_counter = 1")
        deliverer = Deliverer(tx)
        deliverer.look()
        assert deliverer.undelivered() == 0
