"""Processes hear what other processes notify of and change, and one of them has the jobs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import trio

from mimids.errors import StorageUnavailable
from mimids.store.engine import access
from mimids.store.engine.member import Heard
from mimids.store.engine.postgresql import member
from mimids.store.engine.transaction import Tx
from tests.support import postgresql
from tests.support.patience import patience

pytestmark = pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing()))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return postgresql.database_of(tmp_path / "shared")


async def test_a_process_hears_the_others_and_not_itself(url: str) -> None:
    async with member.join(url, "one") as one, member.join(url, "other") as other:
        for each in (one, other):
            assert await each.wait_heard() == Heard(missed=True)
        await one.notify(["from one"])
        await other.notify(["from other", ""])
        with patience():
            assert await other.wait_heard() == Heard(payloads=("from one",))
            assert await one.wait_heard() == Heard(payloads=("from other", ""))


async def test_all_processes_hear_of_changes_of_cached_rows_whoever_makes_them(url: str) -> None:
    async with member.join(url, "one") as one:
        await one.wait_heard()
        for connection in postgresql.connections(url):
            connection.execute("INSERT INTO users (user_id, name_digest, created_at) VALUES ('u', NULL, 1)")
            connection.execute("INSERT INTO bans (user_id, reason, created_at) VALUES ('u', '', 1)")
        with patience():
            assert await one.wait_heard() == Heard(changed=frozenset({"bans"}))
        assert generation(url) == 1


def generation(url: str) -> int:
    with access.read_here(url) as tx:
        return int((tx.one("SELECT generation FROM changes") or (0,))[0])


async def test_the_generation_grows_once_for_each_transaction_that_is_kept(url: str) -> None:
    def ban(tx: Tx, user: bytes) -> None:
        tx.execute("INSERT INTO bans (user_id, reason, created_at) VALUES (?, '', 1)", (user,))

    def work(tx: Tx) -> None:
        for number in range(20):
            with suppress(LookupError), tx.savepoint():
                ban(tx, b"undone %d" % number)
                raise LookupError
        ban(tx, b"one")
        ban(tx, b"another")

    async with access.open_store(url) as store, trio.open_nursery() as jobs:
        jobs.start_soon(store.run)
        for expected in (1, 2):
            await store.write(work if expected == 1 else lambda tx: ban(tx, b"a third"))
            assert generation(url) == expected
        await store.write(lambda tx: None)
        assert generation(url) == 2
        jobs.cancel_scope.cancel()


async def test_a_connection_that_is_lost_is_made_again_and_says_that_something_was_missed(url: str) -> None:
    async with member.join(url, "one") as one:
        await one.wait_heard()
        for connection in postgresql.connections(url):
            postgresql.end_others(connection, "LISTEN%")
        with pytest.raises(StorageUnavailable):
            await one.wait_heard()
        assert await one.wait_heard() == Heard(missed=True)


async def test_one_process_has_the_jobs_until_it_leaves(url: str) -> None:
    async with member.join(url, "other") as other:
        async with member.join(url, "one") as one:
            assert [await one.note_alive(), await other.note_alive(), await one.note_alive()] == [True, False, True]
        assert await other.note_alive()


async def test_a_process_that_is_frozen_loses_the_jobs(url: str) -> None:
    async with member.join(url, "one") as one, member.join(url, "other") as other:
        assert [await one.note_alive(), await other.note_alive()] == [True, False]
        for connection in postgresql.connections(url):
            connection.execute("UPDATE processes SET seen_at = 0 WHERE name = 'one'")
        assert await other.note_alive()
        with pytest.raises(StorageUnavailable):
            await one.note_alive()  # its session was ended
        assert [await one.note_alive(), await other.note_alive()] == [False, True]


async def test_jobs_stop_once_if_a_notification_notices_that_the_session_of_their_lock_was_lost(url: str) -> None:
    async with member.join(url, "one") as one:
        assert await one.note_alive()
        for connection in postgresql.connections(url):
            postgresql.end_others(connection)
        with pytest.raises(StorageUnavailable):
            await one.notify(["[]"])
        assert [await one.note_alive(), await one.note_alive()] == [False, True]


async def test_a_process_measures_how_long_its_own_signs_of_life_take(url: str) -> None:
    async with member.join(url, "one") as one, member.join(url, "other") as other:
        for each in (one, other):
            await each.wait_heard()
        assert one.lag_seconds() == 0
        await one.note_alive()
        await trio.sleep(0.2)
        assert one.lag_seconds() >= 0.2  # it has not listened yet
        await other.note_alive()
        with patience():
            assert await one.wait_heard() == Heard(alive=frozenset({"other"}))
            assert await other.wait_heard() == Heard(alive=frozenset({"one"}))
        assert 0.2 <= one.lag_seconds() < 10
        await one.note_alive()
        with access.read_here(url) as tx:
            lags: dict[str, int] = dict(tx.all("SELECT name, lag_ms FROM processes"))
        assert lags["one"] >= 200
        await other.note_alive()
        with patience():
            await one.wait_heard()
        assert one.lag_seconds() < 0.2
