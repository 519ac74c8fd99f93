"""Reads that are made ahead of a send are the reads that the send then makes, so that it waits for no other."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mimids.config import parse
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.judging import MlsJudge
from mimids.ds.groups.sequencing import look_ahead
from mimids.ds.groups.states import States
from mimids.ds.notifier import Notifier
from mimids.store.engine.locks import Locks
from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import connect
from mimids.store.engine.transaction import Ahead, Tx
from mimids.values import Device, DeviceRow, Follower, Sender
from mimids.wire.ids import Counter, PartitionKey, ProviderId, local_user_id
from mimids.wire.messages import ReceiveRequest, SendRequest
from tests.support.doubles import stopped_clock
from tests.support.federation import PROPOSAL, Room
from tests.support.one_connection import OneConnection

A, B = ProviderId("a.example"), ProviderId("b.example")
ALICE = Device(A, local_user_id(A, "alice"), DeviceRow(1), "1")
BOB = Follower(B)
Read = tuple[str, tuple[object, ...]]


class _NoRows:
    """The result of a read that was only noted, as `Store.write` promises it to `ahead`."""

    rowcount = 0

    def fetchone(self) -> None:
        return None

    def fetchall(self) -> list[Any]:
        return []


class _Notes:
    """A connection that notes reads and makes none."""

    def __init__(self) -> None:
        self.reads: list[Read] = []

    def execute(self, sql: str, params: Sequence[object] = ()) -> _NoRows:
        assert sql.startswith("SELECT")
        self.reads.append((sql, tuple(params)))
        return _NoRows()


class _Traced:
    """A connection that keeps the reads that come before the first write of a work."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.begin_work()

    def begin_work(self) -> None:
        self.reads: list[Read] = []
        self._has_written = False

    def execute(self, sql: str, params: Sequence[object] = ()) -> sqlite3.Cursor:
        self._has_written |= not sql.startswith("SELECT")
        if not self._has_written:
            self.reads.append((sql, tuple(params)))
        return self._connection.execute(sql, params)

    def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:
        self._has_written = True
        return self._connection.executemany(sql, rows)


class _AheadStore(OneConnection):
    """A store that has reads made ahead, and keeps both them and the reads of the work itself."""

    reads_ahead = True

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._traced = _Traced(connection)
        super().__init__(self._traced)
        self.ahead: list[Read] = []

    @property
    def reads(self) -> list[Read]:
        return self._traced.reads

    async def write_shielded(
        self, work: Callable[[Tx], Any], *, locks: Locks | None = None, ahead: Ahead | None = None
    ) -> Any:
        notes: Any = _Notes()
        if ahead is not None:
            ahead(Tx(notes))
        self.ahead = notes.reads
        self._traced.begin_work()
        return await self.write(work)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[_AheadStore]:
    migrate(tmp_path / "mimids.sqlite3")
    with closing(connect(tmp_path / "mimids.sqlite3")) as connection:
        yield _AheadStore(connection)


def hub_on(store: _AheadStore, directory: Path) -> LocalHub:
    running: Any = store
    config = parse({"provider": A, "data_dir": str(directory)}, directory)
    return LocalHub(config, running, stopped_clock(), MlsJudge(States()), Notifier())


async def open_room(hub: LocalHub) -> tuple[Room, PartitionKey]:
    """Create a group that both senders write to, with two partitions that have messages; return the second key."""
    room, beside = Room(), Room.new_key()
    await hub.create_group(room.creation(), ALICE)
    await hub.send(room.send("first"), ALICE)
    await hub.send(room.send("first beside", beside), ALICE)
    for key in (room.key, beside):
        await hub.receive(ReceiveRequest(key, Counter(0)), BOB)
    return room, beside


def alone(room: Room, beside: PartitionKey) -> list[SendRequest]:
    return [room.send("alone")]


def a_proposal(room: Room, beside: PartitionKey) -> list[SendRequest]:
    return [SendRequest(room.message("alone", kind=PROPOSAL), room.key, None)]


def a_batch(room: Room, beside: PartitionKey) -> list[SendRequest]:
    return [room.send("one"), room.send("two"), room.send("three", beside), room.send("four", beside)]


@pytest.mark.parametrize("sender", [ALICE, BOB], ids=["device", "follower"])
@pytest.mark.parametrize("requests", [alone, a_proposal, a_batch])
async def test_a_send_to_known_partitions_reads_what_was_read_ahead_and_no_more(
    requests: Callable[[Room, PartitionKey], list[SendRequest]], sender: Sender, store: _AheadStore, tmp_path: Path
) -> None:
    hub = hub_on(store, tmp_path)
    room, beside = await open_room(hub)
    await hub.send_batch(requests(room, beside), sender)
    assert store.reads
    # `reads` ends at the first write; what follows is read after it, or not at all.
    kept = [{each for each in reads if "FROM follows" not in each[0]} for reads in (store.ahead, store.reads)]
    assert sorted(kept[0], key=repr) == sorted(kept[1], key=repr)


async def test_before_any_send_only_the_senders_are_read_ahead(store: _AheadStore, tmp_path: Path) -> None:
    hub, room = hub_on(store, tmp_path), Room()
    await hub.create_group(room.creation(), ALICE)
    await hub.send(room.send("first"), ALICE)
    assert [params for _, params in store.ahead] == [(A,)]


async def test_of_a_partition_that_is_not_remembered_nothing_is_read_ahead(
    store: _AheadStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_ahead, "PARTITIONS_REMEMBERED", 1)
    hub = hub_on(store, tmp_path)
    room, _ = await open_room(hub)
    await hub.send(room.send("to the older one"), ALICE)
    assert not any("masked_key" in sql or "digest_key" in sql for sql, _ in store.ahead)
    await hub.send(room.send("to the newer one"), ALICE)
    assert any("masked_key" in sql for sql, _ in store.ahead)
