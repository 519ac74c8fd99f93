"""Reads that are made ahead for a batch give each work what it would read itself."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from mimids.store.engine import access
from mimids.store.engine.locks import Locks, group_lock
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.wire.ids import GroupId
from tests.support import postgresql

pytestmark = pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing()))

GROUPS = 3
WORKS = 40


def lock(group: int) -> Locks:
    return frozenset((group_lock(GroupId(bytes([group]))),))


@pytest.fixture
def url() -> str:
    made = postgresql.new_database()
    for connection in postgresql.connections(made):
        connection.execute(
            b"CREATE TABLE changes (generation bigint NOT NULL); INSERT INTO changes VALUES (0);"
            b"CREATE TABLE counters (number bigint PRIMARY KEY, value bigint NOT NULL);"
            b"CREATE TABLE names (number bigint PRIMARY KEY, name text NOT NULL);"
            b"INSERT INTO counters SELECT n, 0 FROM generate_series(0, 2) n;"
            b"INSERT INTO names SELECT n, 'group ' || n FROM generate_series(0, 2) n"
        )
    return made


@asynccontextmanager
async def queued(url: str) -> AsyncIterator[tuple[Store, trio.Nursery]]:
    """Give a store whose writer starts at the end of the block, so that all writes are one batch."""
    async with access.open_store(url) as store, trio.open_nursery() as jobs:
        async with trio.open_nursery() as writers:
            yield store, writers
            await trio.testing.wait_all_tasks_blocked()
            jobs.start_soon(store.run)
        jobs.cancel_scope.cancel()


def value(number: int, tx: Tx) -> int:
    found = tx.one("SELECT value FROM counters WHERE number = ?", (number,))
    return -1 if found is None else int(found[0])


def name(number: int, tx: Tx) -> str:
    found = tx.one("SELECT name FROM names WHERE number = ?", (number,))
    return "" if found is None else str(found[0])


def count(number: int, tx: Tx) -> tuple[str, int]:
    """Add 1 to a counter, by a statement that waits for no answer; return its name and its new value."""
    before = value(number, tx)
    tx.executemany("UPDATE counters SET value = ? WHERE number = ?", [(before + 1, number)])
    return name(number, tx), before + 1


def look(number: int, tx: Tx) -> None:
    value(number, tx)
    name(number, tx)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_works_of_one_batch_see_what_the_works_before_them_wrote(seed: int, url: str) -> None:
    chance = random.Random(seed)
    answers: dict[int, list[tuple[str, int]]] = {group: [] for group in range(GROUPS)}

    async def write(store: Store, group: int) -> None:
        answers[group].append(await store.write(partial(count, group), locks=lock(group), ahead=partial(look, group)))

    for _ in range(2):  # a second batch knows to which tables such works write
        async with queued(url) as (store, writers):
            for _ in range(WORKS):
                writers.start_soon(write, store, chance.randrange(GROUPS))
    for group, found in answers.items():
        assert sorted(found) == [(f"group {group}", number) for number in sorted(range(1, len(found) + 1))]
    with access.read_here(url) as tx:
        assert [value(group, tx) for group in range(GROUPS)] == [len(answers[group]) for group in range(GROUPS)]


@pytest.mark.parametrize(
    "change",
    [
        lambda tx: tx.execute("UPDATE counters SET value = 7 WHERE number = 0"),
        lambda tx: tx.executemany("UPDATE counters SET value = ? WHERE number = 0", [(7,)]),
        lambda tx: set_by_savepoint(tx),
    ],
)
async def test_a_work_sees_what_it_wrote_itself(change: Callable[[Tx], Any], url: str) -> None:
    def work(tx: Tx) -> tuple[int, int]:
        before = value(0, tx)
        change(tx)
        return before, value(0, tx)

    async with queued(url) as (store, writers):
        answers: list[tuple[int, int]] = []

        async def write() -> None:
            answers.append(await store.write(work, locks=lock(0), ahead=partial(look, 0)))

        writers.start_soon(write)
    assert answers == [(0, 7)]


def set_by_savepoint(tx: Tx) -> None:
    with tx.savepoint():
        tx.execute("UPDATE counters SET value = 7 WHERE number = 0")


async def test_a_write_that_fails_when_it_is_sent_fails_its_own_work_only(url: str) -> None:
    answers: dict[int, object] = {}

    def twice(tx: Tx) -> None:
        tx.executemany("INSERT INTO names (number, name) VALUES (?, '')", [(0,)])

    async def write(store: Store, index: int, work: Callable[[Tx], object]) -> None:
        try:
            answers[index] = await store.write(work, locks=lock(index), ahead=partial(look, index))
        except Exception as error:
            answers[index] = type(error).__name__

    async with queued(url) as (store, writers):
        works: list[Callable[[Tx], object]] = [partial(count, 0), twice, partial(count, 2)]
        for index, work in enumerate(works):
            writers.start_soon(write, store, index, work)
    assert answers == {0: ("group 0", 1), 1: "UniqueViolation", 2: ("group 2", 1)}


async def test_a_connection_that_is_lost_before_the_commit_costs_no_answer(url: str) -> None:
    async with access.open_store(url) as store, trio.open_nursery() as jobs:
        await jobs.start(store.run)
        assert await store.write(partial(count, 0), locks=lock(0)) == ("group 0", 1)
        for connection in postgresql.connections(url):
            postgresql.end_others(connection)
        assert await store.write(partial(count, 0), locks=lock(0)) == ("group 0", 2)
        jobs.cancel_scope.cancel()
