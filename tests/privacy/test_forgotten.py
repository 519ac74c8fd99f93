"""What is deleted is gone: from every file, and from every column of every table."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mimids.errors import MimiError
from mimids.store import backup
from mimids.testing.clock import MovableClock
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId, Secret
from mimids.wire.messages import WelcomeInitRequest
from tests.support.curious import found_in, octets_of, tables_of
from tests.support.federation import federated
from tests.support.mls_makers import NOW
from tests.support.stored import count, rows, sweep
from tests.support.traces import operate, person, settle, traces
from tests.support.welcomes import welcome_to

A = ProviderId("a.example")


@pytest.fixture(params=["ON", "OFF"])
def built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """SQLite as it is built with secure_delete, and without."""
    connect = sqlite3.connect

    def connect_to(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.execute(f"PRAGMA secure_delete={request.param}")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_to)
    return str(request.param)


@pytest.mark.sqlite_file("it searches the files of SQLite")
async def test_no_file_has_an_octet_of_a_forgotten_user(built: str, tmp_path: Path) -> None:
    clock = MovableClock(stopped_at=NOW * 1000)
    async with federated(tmp_path, "a.example", "b.example", clock=clock) as (a, b):
        town = await settle(a, b, clock)
        database = b.config.database
        assert found_in(octets_of(database), town.gone.secrets) == {*town.gone.secrets}
        answer = await operate(b, "forget", user=town.gone.name)
        assert answer["hubs"] == ["a.example"]
        await b.services.rates.save()
        backup.copy(database, tmp_path / "backup.sqlite3", Milliseconds(1))
        assert found_in(octets_of(database, tmp_path / "backup.sqlite3"), town.gone.secrets) == set(), built
        assert found_in(octets_of(database), town.staying.secrets) == {*town.staying.secrets}


@pytest.mark.parametrize("command", ["forget", "user/remove", "device/remove"])
async def test_no_column_of_any_table_names_a_removed_device(command: str, tmp_path: Path) -> None:
    clock = MovableClock(stopped_at=NOW * 1000)
    async with federated(tmp_path, "a.example", "b.example", clock=clock) as (a, b):
        town = await settle(a, b, clock)
        gone = town.gone.device
        left_before = traces(b, town.gone, gone.row)
        assert {
            "participations.device",
            "inbox.device",
            "device_cursors.device",
            "expected_welcomes.device",
        } <= left_before
        assert {"groups.creator_device", "partitions.opener_device", "rate_buckets.key"} <= left_before
        arguments = {"user": town.gone.name} | ({"name": gone.name} if command.startswith("device") else {})
        await operate(b, command, **arguments)
        await b.services.rates.save()
        await sweep(b)
        allowed = {"tokens.digest", "tokens.label", "users.user_id"} if command.startswith("device") else set()
        assert traces(b, town.gone, gone.row) - {"rate_buckets.key"} <= allowed
        if not command.startswith("device"):
            assert "rate_buckets.key" not in traces(b, town.gone, gone.row)
        assert traces(b, town.staying, town.staying.device.row) >= {"participations.device", "inbox.device"}


async def test_a_message_has_no_sender(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        columns = tables_of(a.config.database)["messages"].columns
        assert [name for name in columns if "sender" in name or "device" in name] == []


async def test_rates_of_fetches_are_not_stored_however_slowly_they_refill(tmp_path: Path) -> None:
    slow = {"device_fetches_per_minute": 1, "user_fetches_per_minute": 1, "device_joins_per_hour": 1}
    async with federated(tmp_path, "b.example", jobs_of=(), limits=slow) as (b,):
        token = await b.add_device("bob")
        bob = await b.services.devices.authenticate(Secret(token.encode()))
        assert bob is not None
        b.services.gate.count_fetch(bob)
        with suppress(MimiError):
            await b.services.relay.forward(bob.row, A, b"sealed")
        b.services.gate._rates.take_join(bob)
        await b.services.rates.save()
        assert await rows(b, "SELECT rate FROM rate_buckets WHERE rate LIKE '%fetches%'") == []
        assert count(b, "SELECT count(*) FROM rate_buckets WHERE rate LIKE '%joins%'")


async def test_a_welcome_is_deleted_when_the_last_device_has_acknowledged_it(tmp_path: Path) -> None:
    clock = MovableClock(stopped_at=NOW * 1000)
    async with federated(tmp_path, "a.example", "b.example", clock=clock) as (_, b):
        people = [await person(b, name) for name in ("bob", "carol")]
        refs = tuple(each.refs[0] for each in people)
        incoming = b.services.incoming_welcomes

        async def deliver() -> None:
            await incoming.init(A, WelcomeInitRequest(refs))
            await incoming.store(A, welcome_to(*refs))

        await deliver()
        for each, octets_left in zip(people, (True, False), strict=True):
            (welcome,) = await incoming.inbox(each.device.row)
            assert await incoming.acknowledge(each.device.row, welcome.id) == 1
            assert bool(count(b, "SELECT max(length(body)) FROM welcomes")) is octets_left
        await deliver()
        assert await incoming.inbox(people[0].device.row) == []
        assert await rows(b, "SELECT length(body) FROM welcomes") == [(0,)]


async def test_a_group_that_its_last_device_was_removed_from_is_not_pushed_any_more(tmp_path: Path) -> None:
    clock = MovableClock(stopped_at=NOW * 1000)
    async with federated(tmp_path, "a.example", "b.example", clock=clock) as (a, b):
        town = await settle(a, b, clock)
        before = count(b, "SELECT count(*) FROM groups WHERE departed = 1")
        await operate(b, "forget", user=town.gone.name)
        assert count(b, "SELECT count(*) FROM groups WHERE departed = 1") == before + 2


@pytest.mark.sqlite_file("it searches the files of SQLite")
async def test_no_file_has_a_key_of_the_gateway_that_was_retired(built: str, tmp_path: Path) -> None:
    clock = MovableClock(stopped_at=NOW * 1000)
    async with federated(tmp_path, "b.example", clock=clock) as (b,):
        ((key,),) = await rows(b, "SELECT private_key FROM ohttp_keys")
        assert found_in(octets_of(b.config.database), {"key": key[-32:]}) == {"key"}, built
        days = b.config.ohttp.rotate_days + b.config.ohttp.grace_days + 1
        for _ in range(2):
            clock.advance(days * 86_400)
            await b.services.ohttp_keys.refresh()
        backup.copy(b.config.database, tmp_path / "backup.sqlite3", Milliseconds(1))
        assert found_in(octets_of(b.config.database, tmp_path / "backup.sqlite3"), {"key": key[-32:]}) == set()


@pytest.mark.sqlite_file("it searches the files of SQLite")
async def test_a_sweep_cuts_the_write_ahead_log(tmp_path: Path) -> None:
    async with federated(tmp_path, "b.example") as (b,):
        await b.add_device("bob")
        log = b.config.database.with_name(f"{b.config.database.name}-wal")
        assert log.stat().st_size > 0
        await b.services.sweeper.sweep()
        assert log.stat().st_size == 0


@pytest.mark.sqlite_file("it searches the files of SQLite")
async def test_the_log_is_cut_once_a_backup_has_ended(tmp_path: Path) -> None:
    async with federated(tmp_path, "b.example") as (b,):
        await b.add_device("bob")
        reading = sqlite3.connect(f"file:{b.config.database}?mode=ro", uri=True, isolation_level=None)
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM users").fetchone()
        await b.add_device("carol")
        assert not await b.services.store.truncate_log()
        reading.close()
        assert await b.services.store.truncate_log()
