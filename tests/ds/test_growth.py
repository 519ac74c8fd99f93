"""No request and no job costs more in a larger database: statements and the rows that they read are counted."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import attrs
import pytest

from mimids.cli.check.here import _integrity
from mimids.http.api import kept_page
from mimids.store import welcomes
from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import connect
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from tests.support.big_hub import counted, prepare
from tests.support.counting import CountingConnection

pytestmark = pytest.mark.sqlite_file("it counts the steps of SQLite's statements")

FEW, MANY, SMALL = 10_000, 100_000, 4_000
TIMES = 5
OF_ONE_HUB, PAGE = 5_000, 50
MOST_RATIO = 1.5  # groups are larger in the larger database, too


@attrs.frozen
class Cost:
    statements: float
    steps: float

    def exceeds(self, other: Cost) -> bool:
        assert other.steps
        return self.statements > MOST_RATIO * other.statements or self.steps > MOST_RATIO * other.steps


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def costs(directory: Path, messages: int, patch: pytest.MonkeyPatch) -> dict[str, Cost]:
    async with counted(directory, messages) as (hub, connection):
        patch.setattr(kept_page, "thread_time", lambda: connection.seconds)
        works = hub.beside() | hub.requests()
        return {name: await cost(connection, work) for name, work in works.items()}


async def cost(connection: CountingConnection, work: Callable[[], Awaitable[object]]) -> Cost:
    await work()  # what is kept for a while is made
    connection.take()
    for _ in range(TIMES):
        await work()
    found = connection.take()
    return Cost(len(found.steps) / TIMES, found.total / TIMES)


@pytest.mark.slow
async def test_ten_times_as_many_messages_cost_no_more_statements_and_rows(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = await costs(made(tmp_path / "few"), FEW, monkeypatch)
    many = await costs(made(tmp_path / "many"), MANY, monkeypatch)
    assert {name: (few[name], many[name]) for name in few if many[name].exceeds(few[name])} == {}


def test_a_page_of_old_welcomes_reads_only_what_it_deletes(tmp_path: Path) -> None:
    migrate(tmp_path / "db")
    with closing(connect(tmp_path / "db", synchronous="NORMAL")) as connection:
        connection.execute("INSERT INTO providers (id, domain) VALUES (1, 'b.example')")
        connection.executemany(
            "INSERT INTO expected_welcomes (hub, ref, device, accepted_at) VALUES (1, ?, 1, ?)",
            [(b"%032d" % n, n) for n in range(OF_ONE_HUB)],
        )
        counting = CountingConnection(connection)
        assert welcomes.sweep_page(Tx(counting), Milliseconds(OF_ONE_HUB), limit=PAGE)
        assert counting.take().total < 100 * PAGE
        assert connection.execute("SELECT count(*) FROM expected_welcomes").fetchone() == (OF_ONE_HUB - PAGE,)


async def test_a_statement_that_reads_more_rows_takes_more_steps() -> None:
    connection = CountingConnection(sqlite3.connect(":memory:"))
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
    for rows in (100, 1000):
        connection.executemany("INSERT OR REPLACE INTO t VALUES (?, 1)", [(n,) for n in range(rows)])
        connection.take()
        connection.execute("SELECT sum(b) FROM t WHERE b = 1")
        assert rows < connection.take().total < 10 * rows


async def test_a_database_that_was_filled_in_bulk_passes_the_check(tmp_path: Path) -> None:
    config = prepare(tmp_path, SMALL)
    assert _integrity(config).fix is None
    with closing(sqlite3.connect(config.database)) as connection:
        assert connection.execute("SELECT count(*) FROM messages").fetchone() == (SMALL,)
        for wrong in (
            "next_counter <> (SELECT count(*) FROM messages WHERE partition = p.id)",
            "last_seq <> (SELECT max(seq) FROM messages WHERE partition = p.id)",
            "parent IS NOT NULL AND masked_key <> (SELECT next_masked_key FROM messages WHERE seq = opened_by)",
            "parent IS NOT NULL AND opened_by IS NULL",
            "root_hash NOT IN (SELECT hash FROM tree_nodes)",
        ):
            assert connection.execute(f"SELECT count(*) FROM partitions p WHERE {wrong}").fetchone() == (0,), wrong  # noqa: S608
