from __future__ import annotations

import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.errors import StorageUnavailable
from mimids.store.engine.sqlite import connect, open_store, read_here, write_here
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from tests.support.notes import (
    answers_of_one_batch,
    failing,
    note,
    note_and_refuse,
    texts,
    working,
)

# --- the connections --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pragma", "writer", "reader"),
    [
        ("journal_mode", "wal", "wal"),
        ("synchronous", 2, None),
        ("foreign_keys", 1, None),
        ("query_only", 0, 1),
        ("wal_autocheckpoint", 1000, 0),
        ("busy_timeout", 5000, 5000),
        ("mmap_size", 0, 0),
        ("cache_size", -16384, -2000),
    ],
)
async def test_each_connection_has_its_pragmas(store: Store, pragma: str, writer: object, reader: object) -> None:
    def setting(tx: Tx) -> object:
        row = tx.one(f"PRAGMA {pragma}")
        return row and row[0]

    assert await store.write(setting) == writer
    if reader is not None:
        assert await store.read(setting) == reader


async def test_the_wal_file_exists_only_while_the_store_is_open(path: Path) -> None:
    log = path.with_name(path.name + "-wal")
    async with working(path) as store:
        await store.write(note("one"))
        assert log.stat().st_size > 0
    assert not log.exists()


def test_opening_does_not_create_a_missing_database(tmp_path: Path) -> None:
    async def opening() -> None:
        async with open_store(tmp_path / "missing"):
            pass

    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        trio.run(opening)
    assert list(tmp_path.iterdir()) == []


def test_commands_read_and_write_without_an_event_loop(path: Path) -> None:
    assert write_here(path, note("one")) == 1
    with pytest.raises(LookupError):
        write_here(path, note_and_refuse("two"))
    with read_here(path) as tx:
        assert texts(tx) == ["one"]


async def test_a_command_reads_beside_a_running_server(store: Store, path: Path) -> None:
    await store.write(note("one"))
    with read_here(path) as tx:
        await store.write(note("two"))
        assert texts(tx) == ["one", "two"]  # the snapshot begins with the first statement
        await store.write(note("three"))
        assert texts(tx) == ["one", "two"]


# --- a disk that refuses writes ---------------------------------------------------------------------------------


async def test_a_full_disk_refuses_writes_serves_reads_and_recovers(store: Store) -> None:
    await store.write(note("before"))
    (pages,) = await store.write(lambda tx: tx.one("PRAGMA page_count")) or (0,)
    await store.write(lambda tx: tx.one(f"PRAGMA max_page_count = {pages + 2}"))
    with pytest.raises(StorageUnavailable) as refused:
        await store.write(note("x" * 100_000))
    assert refused.value.status == 503
    assert isinstance(refused.value.__cause__, sqlite3.OperationalError)
    assert not store.statistics().writable
    assert await store.read(texts) == ["before"]
    await store.write(lambda tx: tx.one("PRAGMA max_page_count = 1000000"))
    await store.write(note("x" * 100_000))
    assert store.statistics().writable
    assert store.statistics().storage_failures == 1


async def test_on_a_nearly_full_disk_only_writes_that_do_not_fit_are_refused(path: Path) -> None:
    def nearly_full(tx: Tx) -> None:
        (pages,) = tx.one("PRAGMA page_count") or (0,)
        tx.one(f"PRAGMA max_page_count = {pages + 2}")

    answers, _ = await answers_of_one_batch(path, nearly_full, note("a"), note("x" * 100_000), note("b"))
    assert (answers[1], answers[3]) == (1, 2)
    assert isinstance(answers[2], StorageUnavailable)
    with read_here(path) as tx:
        assert texts(tx) == ["a", "b"]


async def test_a_file_that_may_not_grow_refuses_writes_and_recovers(store: Store, path: Path) -> None:
    """Here the kernel refuses a write in the middle of the log, as on a full disk."""
    await store.write(note("before"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    grown = path.with_name(path.name + "-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (grown + 10_000, hard))
    try:
        for _ in range(3):
            with pytest.raises(StorageUnavailable):
                await store.write(note("x" * 100_000))
        assert await store.read(texts) == ["before"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await store.write(note("after"))
    assert await store.read(texts) == ["before", "after"]


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_WRITE])
async def test_a_failed_commit_refuses_its_whole_batch_and_the_next_one_succeeds(path: Path, code: int) -> None:
    broken = True

    def faults(point: str) -> None:
        if broken and point == "before_commit":
            raise failing(code)

    answers, _ = await answers_of_one_batch(path, note("a"), note("b"), faults=faults)
    assert [type(answer) for answer in answers] == [StorageUnavailable] * 2
    broken = False
    answers, _ = await answers_of_one_batch(path, note("a"), note("b"), faults=faults)
    assert answers == [1, 2]


async def test_while_another_process_writes_a_whole_batch_is_refused_at_once(path: Path) -> None:
    with closing(connect(path)) as intruder:
        async with working(path) as store:
            await store.write(lambda tx: tx.one("PRAGMA busy_timeout = 1"))
            intruder.execute("BEGIN IMMEDIATE")
            async with trio.open_nursery() as callers:

                async def ask(number: int) -> None:
                    with pytest.raises(StorageUnavailable):
                        await store.write(note(str(number)))

                for number in range(5):
                    callers.start_soon(ask, number)
            assert await store.read(texts) == []
            intruder.execute("ROLLBACK")
            assert await store.write(note("free again")) == 1
