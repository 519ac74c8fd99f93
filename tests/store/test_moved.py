"""The pushes that a follower needs are found by the partitions that moved, at a cost that depends on these."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import attrs
import pytest

from mimids.store import follows, moved, participations, partitions, peers, retention
from mimids.store.engine.migrate import migrate, shipped
from mimids.store.engine.sqlite import connect
from mimids.store.engine.transaction import Tx
from mimids.store.moved import Looked, StampPage
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.ids import Counter

HUB, FOLLOWER, OTHER = 1, 2, 3
PAGE = StampPage(start=5, end=10, whole=False, looked=Looked.up_to(10))
_MAY_BE_SCANNED = (
    "CONSTANT",
    "(subquery",
    "counted",
    "peers",
)  # few rows: there is one for each provider that follows


def fill(connection: sqlite3.Connection, count: int) -> None:
    connection.execute("INSERT INTO providers (id, domain) VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    connection.execute(
        "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at) VALUES (1,1,x'',1,1,0)"
    )
    connection.executemany(
        "INSERT INTO partitions (id, group_ref, hub, masked_key, parent, epoch, next_counter, last_seq, opened_at)"
        " VALUES (?1, 1, 1, randomblob(32), nullif(?1 - 1, 0), ?1, 1, ?1, 0)",
        [(row,) for row in range(1, count + 1)],
    )


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    migrate(tmp_path / "db")
    with closing(connect(tmp_path / "db", synchronous="NORMAL")) as made:
        fill(made, 100)
        yield made


@pytest.fixture
def tx(connection: sqlite3.Connection) -> Tx:
    return Tx(connection)


def due(tx: Tx, provider: int = FOLLOWER, start: int = 0) -> list[int]:
    return [each.partition for each in follows.due_partitions(tx, provider, start, limit=100)]


def test_a_follow_a_rewind_and_an_append_make_a_push_due_to_a_cursor_that_has_seen_everything(tx: Tx) -> None:
    follows.follow(tx, FOLLOWER, 7)
    assert due(tx) == [7]
    follows.settle(tx, FOLLOWER, 7, Counter(1))
    cursor = moved.settled(tx)
    assert due(tx) == []
    assert follows.resume(tx, FOLLOWER, 7, Counter(0))
    assert due(tx, start=cursor) == [7]
    assert follows.followers_behind(tx, moved.next_page(tx, Looked.up_to(cursor), limit=9)) == {FOLLOWER}
    follows.set_position(tx, FOLLOWER, 7, Counter(1))
    cursor = moved.settled(tx)
    partitions.advance(tx, 7, next_counter=Counter(2), last_seq=101)
    moved.touch(tx, [7])
    assert due(tx, start=cursor) == [7]


def test_a_failure_moves_the_cursor_forward_and_never_back(tx: Tx) -> None:
    follows.follow(tx, FOLLOWER, 7)
    peer = peers.find_peer(tx, FOLLOWER)
    assert peer is not None
    for ahead in (5, 0):
        failed = attrs.evolve(peer, next_stamp=peer.next_stamp + ahead)
        peers.note_failure(tx, failed, 1, Milliseconds(0), Milliseconds(0))
        found = peers.find_peer(tx, FOLLOWER)
        assert found is not None
        assert found.next_stamp == peer.next_stamp + 5


def test_what_a_commit_attaches_is_due_with_all_below_it(tx: Tx) -> None:
    tx.execute("UPDATE partitions SET detached = 1 WHERE id BETWEEN 4 AND 6")
    tx.execute("UPDATE partitions SET parent = NULL WHERE id = 4")
    tx.execute("UPDATE partitions SET parent = NULL WHERE id = 7")
    for row in (4, 5, 6, 7):
        follows.follow(tx, FOLLOWER, row, next_counter=int(row == 7))
    cursor = moved.settled(tx)
    partitions.attach(tx, 4, parent=3, opened_by=50, epoch=4, detached=True)
    assert due(tx) == []
    partitions.attach(tx, 4, parent=3, opened_by=50, epoch=4, detached=False)
    assert sorted(due(tx, start=cursor)) == [4, 5, 6]


def test_no_stamp_is_given_twice_though_the_newest_row_is_deleted(tx: Tx) -> None:
    tx.execute(
        "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at, unmatched_bytes)"
        " VALUES (2, 3, x'01', 1, 1, 0, 1)"
    )
    for row in (201, 202):
        key = bytes([row]) * 32
        tx.execute(
            "INSERT INTO partitions (id, group_ref, hub, masked_key, detached, expired_at, opened_at)"
            " VALUES (?, 2, 3, ?, 1, 1, 0)",
            (row, key),
        )
        moved.touch(tx, [row])
    cursor = moved.settled(tx)
    assert retention.remove_detached(tx, partition=202)
    moved.touch(tx, [1])
    assert tx.all("SELECT stamp FROM moved WHERE partition = 1") >= [(cursor,)]
    moved.touch(tx, [201])
    cursor = moved.settled(tx)
    assert not retention.drop_group_page(tx, group=2, limit=100)
    moved.touch(tx, [1])
    assert tx.all("SELECT stamp FROM moved WHERE partition = 1") >= [(cursor,)]
    assert tx.all("SELECT partition FROM moved WHERE partition > 100") == []


def test_a_page_of_stamps_ends_and_goes_on_though_partitions_share_a_stamp(tx: Tx) -> None:
    tx.execute("INSERT INTO moved SELECT id, 1 + id / 50 FROM partitions")
    pages = [moved.next_page(tx, Looked.up_to(1), limit=10)]
    while not pages[-1].whole:
        pages.append(moved.next_page(tx, pages[-1].looked, limit=10))
    assert [page.start for page in pages] == [1, 2, 3]
    assert pages[-1].looked == Looked.up_to(moved.settled(tx))


def test_a_new_follower_begins_at_what_moves_from_now_on(tx: Tx) -> None:
    moved.touch(tx, range(1, 101))
    follows.follow(tx, FOLLOWER, 7)
    (peer,) = peers.every_peer(tx)
    assert due(tx, start=peer.next_stamp) == [7]
    assert peer.next_stamp == 101


def test_cursors_move_up_only_and_not_those_of_followers_with_something_due(tx: Tx) -> None:
    for provider in (FOLLOWER, OTHER):
        peers.ensure_peer(tx, provider, next_stamp=5)
    peers.move_cursors(tx, 9, but=[OTHER])
    peers.move_cursors(tx, 7, but=[])
    assert [peer.next_stamp for peer in peers.every_peer(tx)] == [9, 7]


@pytest.mark.parametrize("analyzed", ["never", "while empty", "with rows"])
def test_every_statement_of_delivery_is_a_search_in_its_index(tmp_path: Path, analyzed: str) -> None:
    migrate(tmp_path / "db")
    with closing(connect(tmp_path / "db", synchronous="NORMAL")) as connection:
        if analyzed == "while empty":
            connection.execute("ANALYZE")
        fill(connection, 1000)
        tx = Tx(connection)
        moved.touch(tx, range(1, 1001))
        for row in range(1, 1000, 3):
            follows.follow(tx, FOLLOWER, row)
        if analyzed == "with rows":
            connection.execute("ANALYZE")
        plans = Plans(connection)
        tx = Tx(plans)
        follows.due_partitions(tx, FOLLOWER, 5, limit=3)
        follows.followers_behind(tx, PAGE)
        follows.follow(tx, OTHER, 4)
        follows.resume(tx, OTHER, 4, Counter(0))
        follows.settle(tx, OTHER, 4, Counter(1))
        follows.suspend(tx, OTHER, 4, "why")
        moved.next_page(tx, Looked.up_to(5), limit=10)
        moved.keys_on(tx, PAGE)
        moved.forget_group(tx, 1)
        peers.find_peer(tx, OTHER)
        peers.note_success(tx, OTHER, 7)
        partitions.count_empty(tx, 1, at_most=3)
        partitions.forks_of_hub(tx, HUB, Milliseconds(1), after=0, limit=3)
        participations.end_of_device(tx, DeviceRow(1), Milliseconds(1))
        tx.one("SELECT count(*) FROM follows f WHERE f.provider = ? AND f.suspended_reason IS NOT NULL", (1,))
    assert plans.bad == []
    assert {"moved_by_stamp", "open_branches", "empty_partitions", "participations_of_device"} <= plans.indexes
    assert "follows_suspended" in plans.indexes


class Plans:
    """A connection that asks for the plan of each statement first."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.bad: list[str] = []
        self.indexes: set[str] = set()

    def execute(self, sql: str, params: object = ()) -> sqlite3.Cursor:
        for *_, detail in self.connection.execute(f"EXPLAIN QUERY PLAN {sql}", params).fetchall():  # type: ignore[arg-type]
            words = detail.split()
            self.indexes |= {after for word, after in pairwise(words) if word == "INDEX"}
            if "TEMP B-TREE" in detail or (words[0] == "SCAN" and not words[1].startswith(_MAY_BE_SCANNED)):
                self.bad.append(f"{sql}: {detail}")
        return self.connection.execute(sql, params)  # type: ignore[arg-type]

    def executemany(self, sql: str, rows: list[tuple[object, ...]]) -> sqlite3.Cursor:
        return [self.execute(sql, row) for row in rows][-1]


def _number_of(name: str) -> int:
    return next(each.version for each in shipped() if each.name == name)


def test_the_migration_makes_due_what_followers_do_not_have(tmp_path: Path) -> None:
    path = tmp_path / "db"
    migrate(path, [each for each in shipped() if each.version < _number_of("moved")])
    with closing(connect(path)) as connection:
        fill(connection, 5)
        connection.execute(
            "INSERT INTO messages (seq, partition, counter, accepted_at, kind, digest, digest_key)"
            " VALUES (5, 5, 0, 0, 1, zeroblob(32), 0)"
        )
        connection.execute("INSERT INTO peers (provider, cursor_seq) VALUES (2, 5), (3, 2)")
        connection.executemany(
            "INSERT INTO follows (provider, partition, next_counter, dirty) VALUES (?, ?, ?, ?)",
            [(2, 1, 0, 0), (2, 2, 1, 0), (2, 5, 0, 1), (3, 4, 0, 0)],  # 1: it was attached after the cursor moved on
        )
    migrate(path)
    with closing(connect(path)) as connection:
        tx = Tx(connection)
        cursors = {peer.provider: peer.next_stamp for peer in peers.every_peer(tx)}
        assert cursors == {2: 6, 3: 3}
        assert due(tx, 2, cursors[2]) == [1, 5]
        assert due(tx, 3, cursors[3]) == [4]
