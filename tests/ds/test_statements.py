"""What a request asks of the database: the same statements however much there is, each by an index."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

from mimids.config import parse
from mimids.ds.backoff import Backoff
from mimids.ds.following.delivery import Delivery, _look
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.judging import MlsJudge
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.states import States
from mimids.ds.limits.rates import ProviderRates
from mimids.ds.notifier import Notifier
from mimids.errors import MimiError
from mimids.store import follows, peers, providers
from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import connect
from mimids.store.engine.transaction import Tx
from mimids.store.moved import Looked
from mimids.store.peers import PeerState
from mimids.values import Device, DeviceRow, Follower, Milliseconds
from mimids.wire.ids import Counter, PartitionKey, ProviderId, local_user_id
from mimids.wire.messages import ReceiveRequest, SendRequest
from tests.support.doubles import FakePeers, stopped_clock
from tests.support.federation import PROPOSAL, Room
from tests.support.one_connection import OneConnection

pytestmark = pytest.mark.sqlite_file("it asks SQLite for its plans")

A, B = ProviderId("a.example"), ProviderId("b.example")
ALICE = Device(A, local_user_id(A, "alice"), DeviceRow(1), "1")
BOB = Follower(B)
MESSAGES_OF_A_PARTITION = 100

# No index could help: a row for each provider that follows anything, all of which are asked for; the one row of a
# statement without a table; what a recursive part of the statement found.
_MAY_BE_SCANNED = {"peers", "CONSTANT", "below", "counted"}  # `counted`: what a subquery found, up to a limit


class TracedConnection:
    """A connection that keeps every statement and its parameters."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.said: list[tuple[str, Any]] = []

    def execute(self, sql: str, params: Any = ()) -> sqlite3.Cursor:
        self.said.append((sql, params))
        return self.connection.execute(sql, params)

    def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:
        rows = list(rows)
        if rows:
            self.said.append((sql, rows[0]))
        return self.connection.executemany(sql, rows)


@attrs.define
class Rig:
    hub: LocalHub
    delivery: Delivery
    recording: TracedConnection
    room: Room
    near_the_end: Counter  # of the partition: an answer takes more statements only for what is in it

    async def statements(self, ask: Callable[[], Awaitable[object]]) -> list[tuple[str, Any]]:
        self.recording.said.clear()
        with suppress(MimiError):
            await ask()
        assert self.recording.said
        return list(self.recording.said)


def fill(connection: sqlite3.Connection, room: Room, total: int) -> None:
    """Put `total` messages into the database: groups of ten partitions, and one partition with a hundredth of all."""
    connection.execute("INSERT OR IGNORE INTO providers (domain) VALUES ('a.example'), ('b.example')")
    small = total // MESSAGES_OF_A_PARTITION
    connection.executemany(
        "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at) VALUES (?, 1, ?, 1, 1, 0)",
        [(1000 + n, b"group %d" % n) for n in range(small // 10 + 1)],
    )
    connection.executemany(
        "INSERT INTO partitions (id, group_ref, hub, masked_key, epoch, next_counter, last_seq, opened_at,"
        " opener_provider, opener_device) VALUES (?, ?, 1, randomblob(32), ?, ?, ?, 0, 1, 1)",
        [
            (10 + n, 1000 + n // 10, n % 10, MESSAGES_OF_A_PARTITION, (n + 1) * MESSAGES_OF_A_PARTITION)
            for n in range(small)
        ],
    )
    connection.executemany(
        "INSERT INTO messages (seq, partition, counter, accepted_at, kind, digest, digest_key, body)"
        " VALUES (?, ?, ?, 0, 1, zeroblob(32), ?, x'00010002')",
        _messages(small),
    )
    (row,) = connection.execute("SELECT id FROM partitions WHERE masked_key = ?", (room.key.mask(32),)).fetchone()
    connection.execute(
        "UPDATE messages SET partition = ?1, counter = seq - 1 WHERE seq <= ?2", (row, total // MESSAGES_OF_A_PARTITION)
    )
    connection.execute("UPDATE partitions SET next_counter = ?1, last_seq = ?1 WHERE id = ?2", (small, row))


def _messages(partitions: int) -> Iterator[tuple[int, int, int, int]]:
    seq = 0
    for partition in range(partitions):
        for counter in range(MESSAGES_OF_A_PARTITION):
            seq += 1
            yield seq, 10 + partition, counter, seq * 7919


async def rig(directory: Path, total: int) -> Rig:
    database = directory / f"{total}.sqlite3"
    migrate(database)
    connection = connect(database, synchronous="NORMAL")
    connection.execute("PRAGMA synchronous=OFF")
    recording = TracedConnection(connection)
    store: Any = OneConnection(recording)
    config = parse({"provider": A, "data_dir": str(directory)}, directory)
    clock, states, notifier, room, recent = (
        stopped_clock(),
        States(),
        Notifier(),
        Room(),
        Recent(0),
    )  # nothing from memory
    hub = LocalHub(config, store, clock, MlsJudge(states), notifier, recent=recent)
    await hub.create_group(room.creation(), ALICE)
    connection.execute("BEGIN")
    fill(connection, room, total)
    connection.execute("COMMIT")
    await hub.receive(ReceiveRequest(room.key, Counter(0)), BOB)
    backoff = Backoff(1, 1)
    delivery = Delivery(
        store,
        clock,
        FakePeers(),
        states,
        notifier,
        recent,
        ProviderRates(config.limits, clock),
        provider=A,
        backoff=backoff,
        workers=1,
        batch_octets=1 << 20,
    )
    near_the_end = Counter(total // MESSAGES_OF_A_PARTITION - 10)
    connection.execute("UPDATE follows SET next_counter = ?", (near_the_end,))
    return Rig(hub, delivery, recording, room, near_the_end)


async def asked(rig: Rig) -> dict[str, list[tuple[str, Any]]]:
    """Do one of each, and return the statements of each."""
    hub, room = rig.hub, rig.room
    request = ReceiveRequest(room.key, rig.near_the_end)

    def typed(text: str, kind: int) -> SendRequest:
        return SendRequest(room.message(text, kind=kind), room.key, None)

    async def push() -> None:
        tx = Tx(rig.recording)
        number = providers.provider_row(tx, B) or 0
        peer = PeerState(number, B, 0, 0, Milliseconds(0))
        assert _look(Looked.up_to(0), [number], tx).waiting
        made = rig.delivery._pushes.next_push(peer, 1 << 16, tx)
        assert made is not None
        wanted = [Counter(epoch.counter + len(epoch.messages)) for epoch in made.epochs]
        rig.delivery._pushes.settle(peer, made, wanted, tx)
        follows.due_partitions(tx, number, 1, limit=64)
        peers.note_failure(tx, peer, 1, Milliseconds(0), Milliseconds(0))

    doings: dict[str, Callable[[], Awaitable[object]]] = {
        "send": lambda: hub.send(room.send("one"), ALICE),
        "send of a follower": lambda: hub.send(room.send("two"), BOB),
        "send of a batch": lambda: hub.send_batch([room.send(f"of many {n}") for n in range(50)], ALICE),
        "repeat": lambda: hub.send(room.send("one"), ALICE),
        "proposal": lambda: hub.send(typed("proposal", PROPOSAL), ALICE),
        "commit": lambda: hub.send(room.commit("commit", PartitionKey(b"n" * 16)), ALICE),
        "commit of a follower": lambda: hub.send(room.commit("another", PartitionKey(b"m" * 16)), BOB),
        "send to nowhere": lambda: hub.send(room.send("nowhere", PartitionKey(b"d" * 16)), ALICE),
        "commit that attaches": lambda: hub.send(room.commit("there", PartitionKey(b"d" * 16)), ALICE),
        "refused": lambda: hub.send(room.send("other", epoch=7), ALICE),
        "unknown group": lambda: hub.send(Room("nobody's").send("one"), ALICE),
        "receive": lambda: hub.receive(request, ALICE),
        "receive of a follower": lambda: hub.receive(request, BOB),
        "group-info": lambda: hub.group_info(room.group_id, ALICE),
        "create": lambda: hub.create_group(Room("new").creation(), ALICE),
        "push": push,
    }
    return {name: await rig.statements(doing) for name, doing in doings.items()}


def scans(connection: sqlite3.Connection, sql: str, params: Any) -> list[str]:
    plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", params).fetchall()
    found = [match[1] for *_, detail in plan if (match := re.match(r"SCAN (\w+)", detail))]
    return [name for name in found if name not in _MAY_BE_SCANNED]


@pytest.mark.slow
async def test_a_million_messages_take_the_same_statements_as_ten_thousand_and_none_scans(tmp_path: Path) -> None:
    few, many = await rig(tmp_path, 10_000), await rig(tmp_path, 1_000_000)
    with_few, with_many = await asked(few), await asked(many)
    for name, statements in with_many.items():
        assert [sql for sql, _ in statements] == [sql for sql, _ in with_few[name]], name
        for sql, params in statements:
            assert scans(many.recording.connection, sql, params) == [], (name, sql)
    for each in (few, many):
        each.recording.connection.close()


async def test_a_statement_without_an_index_is_seen(tmp_path: Path) -> None:
    each = await rig(tmp_path, 1000)
    assert scans(each.recording.connection, "SELECT 1 FROM messages WHERE accepted_at = ?", (1,)) == ["messages"]
    each.recording.connection.close()
