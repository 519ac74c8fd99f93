"""A counter that another provider names ends no job, answers no 500, and stays below its bound."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import attrs
import pytest
import trio

from mimids.http.api.providers import PROVIDERS
from mimids.store.engine.migrate import migrate, shipped
from mimids.wire import messages
from mimids.wire.codec import Uint, WireError
from mimids.wire.declare import codec, decode, encode
from mimids.wire.ids import LAST_COUNTER, NO_LONGER_FOLLOWED
from mimids.wire.messages import Ack, PushRequest, PushResponse, ReceiveRequest, SendResponse
from tests.support.federation import Room, in_memory_peer
from tests.support.followers import HUB, epoch, follower
from tests.support.inmemory import InMemory
from tests.support.provider import Assembled
from tests.support.stored import rows, until


@pytest.mark.parametrize("counter", [LAST_COUNTER + 1, 0xFFFF_FFFE, 0xFFFF_FFFF])
async def test_a_push_with_a_counter_above_the_bound_is_refused_before_anything_is_stored(
    counter: int, tmp_path: Path
) -> None:
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (running, _):
        hub = InMemory(running.app(PROVIDERS), [HUB])
        octets = encode(PushRequest((epoch(room, room.key, []),)))
        body = octets.replace(room.key.mask(32) + bytes(4), room.key.mask(32) + counter.to_bytes(4, "big"))
        headers = {"content-type": "application/mimi-ds", "from": f"mimi@{HUB}"}
        assert (await hub.ask("POST", "/ds/v1/push", body, headers)).status == 400
        assert await rows(running, "SELECT 1 FROM partitions") == []


async def test_the_largest_counter_ends_its_partition_and_no_job(tmp_path: Path) -> None:
    room, other = Room(hub=HUB), Room.new_key()
    async with follower(tmp_path, room.group_id) as (running, receiver):
        end = epoch(room, room.key, [], LAST_COUNTER)
        assert (await receiver.receive_push(HUB, PushRequest((end,)))).next_counters == (LAST_COUNTER,)
        beyond = PushRequest((epoch(room, room.key, ["0", "1", "2"], LAST_COUNTER), epoch(room, other, ["0"])))
        answer = await receiver.receive_push(HUB, beyond)
        assert answer.next_counters == (NO_LONGER_FOLLOWED, 1), "the other partition goes on"
        assert decode(PushResponse, encode(answer)) == answer

        running.peers.add(HUB, in_memory_peer(running, HUB))
        async with trio.open_nursery() as jobs:
            await jobs.start(running.services.sync.run)
            await until(lambda: _was_asked(running))
            jobs.cancel_scope.cancel()


async def _was_asked(running: Assembled) -> bool:
    return bool(running.peers.calls)


async def test_the_store_refuses_a_counter_above_the_bound(tmp_path: Path) -> None:
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        await receiver.receive_push(HUB, PushRequest((epoch(room, room.key, ["0"]),)))
        with closing(sqlite3.connect(running.config.database)) as connection, pytest.raises(sqlite3.IntegrityError):
            connection.execute("UPDATE partitions SET next_counter = 4294967297")


def test_a_database_with_a_counter_above_the_bound_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "db"
    before = shipped()[:5]
    migrate(path, before)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO providers (id, domain) VALUES (1, 'b.example')")
        connection.execute(
            "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at) VALUES (1, 1, x'01', 1, 1, 0)"
        )
        connection.executemany(
            "INSERT INTO partitions (id, group_ref, hub, masked_key, next_counter, opened_at)"
            " VALUES (?, 1, 1, ?, ?, 0)",
            [(1, bytes(32), 4294967297), (2, bytes([1] * 32), 7)],
        )
        connection.executemany(
            "INSERT INTO messages (seq, partition, counter, accepted_at, kind, digest, digest_key)"
            " VALUES (?, 1, ?, 0, 1, zeroblob(32), 0)",
            [(1, 0), (2, 1), (3, 4294967295)],
        )
    migrate(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT id, next_counter FROM partitions").fetchall() == [(1, 2), (2, 7)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_every_integer_of_a_message_has_a_bound() -> None:
    """Those without one are neither stored nor added to."""
    unbounded = set()
    for name, struct in vars(messages).items():
        if attrs.has(struct) and struct.__module__ == messages.__name__:
            for field, by in codec(struct).fields:  # type: ignore[attr-defined]
                if isinstance(by, Uint) and by.size > 2 and not by.bounded:
                    unbounded.add(f"{name}.{field}")
    assert unbounded == {"Frame.id", "Stock.left"}, "a device's own number for a frame, and a count that we tell it"


@pytest.mark.parametrize(
    ("kind", "octets"),
    [
        (ReceiveRequest, bytes(16) + bytes.fromhex("80000000")),
        (PushResponse, bytes.fromhex("04 fffffffe")),
        (Ack, bytes.fromhex("08 8000000000000000")),
        (SendResponse, bytes(4) + bytes.fromhex("8000000000000000")),
    ],
)
def test_an_integer_that_no_row_can_hold_is_no_valid_encoding(kind: type, octets: bytes) -> None:
    with pytest.raises(WireError):
        codec(kind).decode(octets)
