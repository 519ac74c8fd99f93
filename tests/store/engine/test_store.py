from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mimids.errors import ShuttingDown, StorageUnavailable
from mimids.store.engine.store import WAITING_WRITES, Faults, Store, Tx, connect, open_store, read_here, write_here
from tests.support import store_child

PATIENCE_SECONDS = 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a database?.sqlite"  # what a URI would take for something else
    with closing(connect(path, create=True)) as connection:
        connection.executescript(
            "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;"
            "CREATE TABLE replies (note INTEGER REFERENCES notes (id) DEFERRABLE INITIALLY DEFERRED) STRICT;"
        )
    return path


@asynccontextmanager
async def working(path: Path, faults: Faults | None = None) -> AsyncIterator[Store]:
    async with open_store(path, faults=faults) as store, trio.open_nursery() as jobs:
        await jobs.start(store.run)
        yield store
        jobs.cancel_scope.cancel()


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    async with working(path) as store:
        yield store


def note(text: str) -> Callable[[Tx], int]:
    return partial(_note, text)


def _note(text: str, tx: Tx) -> int:
    return tx.insert("INSERT INTO notes (text) VALUES (?)", (text,))


def note_and_refuse(text: str) -> Callable[[Tx], int]:
    def work(tx: Tx) -> int:
        _note(text, tx)
        raise LookupError(text)

    return work


def texts(tx: Tx) -> list[str]:
    return [text for (text,) in tx.all("SELECT text FROM notes ORDER BY id")]


def failing(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("injected")
    error.sqlite_errorcode = code
    return error


async def answers_of_one_batch(
    path: Path, *works: Callable[[Tx], Any], faults: Faults | None = None
) -> tuple[list[object], int]:
    """Let all wait before the writer starts; return what each returned or raised, and how many batches it took."""
    answers: list[object] = [None] * len(works)
    async with open_store(path, faults=faults) as store, trio.open_nursery() as jobs:

        async def ask(index: int) -> None:
            try:
                answers[index] = await store.write(works[index])
            except Exception as error:
                answers[index] = error

        async with trio.open_nursery() as asking:
            for index in range(len(works)):
                asking.start_soon(ask, index)
                await trio.testing.wait_all_tasks_blocked()  # so that they arrive in order
            jobs.start_soon(store.run)
        jobs.cancel_scope.cancel()
        return answers, store.statistics().commits


# --- writing ----------------------------------------------------------------------------------------------------


async def test_a_write_returns_what_its_work_returns_and_readers_see_it(store: Store) -> None:
    assert await store.write(note("one")) == 1
    assert await store.read(texts) == ["one"]
    assert await store.read(lambda tx: tx.one("SELECT text FROM notes WHERE id = ?", (2,))) is None
    assert await store.write(lambda tx: tx.execute("UPDATE notes SET text = 'two'")) == 1
    await store.write(lambda tx: tx.executemany("INSERT INTO notes (text) VALUES (?)", [("three",), ("four",)]))
    assert await store.read(texts) == ["two", "three", "four"]


async def test_what_waits_is_one_commit_in_the_order_of_arrival(path: Path) -> None:
    points: list[str] = []
    answers, batches = await answers_of_one_batch(path, *(note(str(n)) for n in range(9)), faults=points.append)
    assert answers == list(range(1, 10))
    assert batches == 1
    assert points == ["before_commit", "after_commit"]
    with read_here(path) as tx:
        assert texts(tx) == [str(n) for n in range(9)]


async def test_a_work_that_raises_leaves_nothing_and_takes_nobody_with_it(path: Path) -> None:
    points: list[str] = []
    answers, batches = await answers_of_one_batch(
        path, note("a"), note_and_refuse("b"), note("c"), note("a"), note("d"), faults=points.append
    )
    assert (answers[0], answers[2], answers[4]) == (1, 2, 3)
    assert isinstance(answers[1], LookupError)
    assert isinstance(answers[3], sqlite3.IntegrityError)
    assert batches == 1
    assert points == ["before_commit", "after_commit"]  # nobody else had to pay for a commit of their own
    with read_here(path) as tx:
        assert texts(tx) == ["a", "c", "d"]


async def test_a_commit_that_one_of_them_makes_impossible_goes_on_without_it(path: Path) -> None:
    def dangling(tx: Tx) -> int:
        return tx.insert("INSERT INTO replies (note) VALUES (77)")  # noticed at COMMIT only

    answers, _ = await answers_of_one_batch(path, note("a"), dangling, note("b"))
    assert (answers[0], answers[2]) == (1, 2)
    assert isinstance(answers[1], sqlite3.IntegrityError)
    with read_here(path) as tx:
        assert texts(tx) == ["a", "b"]
        assert tx.all("SELECT note FROM replies") == []


async def test_a_transaction_that_ends_under_its_works_is_begun_again(path: Path) -> None:
    """As SQLite does by itself for some failures, here hidden by the work it happens to."""
    ended: list[bool] = []

    def losing(tx: Tx) -> int:
        if len(ended) < 2:
            ended.append(True)
            tx.execute("ROLLBACK")
            return 0
        return _note("b", tx)

    answers, _ = await answers_of_one_batch(path, note("a"), losing, note("c"))
    assert answers == [1, 2, 3]
    with read_here(path) as tx:
        assert texts(tx) == ["a", "b", "c"]


async def test_writes_wait_for_room(path: Path) -> None:
    async with open_store(path) as store, trio.open_nursery() as writes:
        impatient = trio.CancelScope()

        async def write_impatiently() -> None:
            with impatient:
                await store.write(note("gone before there was room"))

        for number in range(WAITING_WRITES):
            writes.start_soon(store.write, note(str(number)))
        await trio.testing.wait_all_tasks_blocked()
        writes.start_soon(write_impatiently)
        writes.start_soon(store.write, note("last"))
        await trio.testing.wait_all_tasks_blocked()
        assert store.statistics().waiting_writes == WAITING_WRITES + 2
        impatient.cancel()
        writes.start_soon(store.run)
        assert await store.write(note("after")) == WAITING_WRITES + 2
        writes.cancel_scope.cancel()
    with read_here(path) as tx:
        assert len(texts(tx)) == WAITING_WRITES + 2
        assert "gone before there was room" not in texts(tx)


# --- cancelled, crashed, ended ----------------------------------------------------------------------------------


@types.coroutine
def cancelled_at(step: int, scope: trio.CancelScope, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, bool]:
    """Run a coroutine, cancelling `scope` where it waits for the step-th time; tell whether it came that far.

    0 is before it begins.
    """
    steps, resumed = 0, None
    if step == 0:
        scope.cancel()
    while True:
        try:
            waits_for = coroutine.send(resumed)
        except StopIteration:
            return steps >= step
        steps += 1
        if steps == step:
            scope.cancel()
        try:
            resumed = yield waits_for
        except BaseException as error:
            coroutine.throw(error)
            raise AssertionError("a write went on after it was cancelled") from error


async def test_a_write_cancelled_at_any_checkpoint_is_there_whole_or_not_at_all(store: Store) -> None:
    def both(step: int, tx: Tx) -> None:
        tx.execute("INSERT INTO replies (note) VALUES (?)", (_note(str(step), tx),))

    def pairs(text: str, tx: Tx) -> list[tuple[int | None, ...]]:
        return tx.all("SELECT id, note FROM notes FULL JOIN replies ON id = note WHERE text = ? OR id IS NULL", (text,))

    there: list[bool] = []
    reached = True
    while reached:
        step = len(there)
        with trio.CancelScope() as scope:
            reached = await cancelled_at(step, scope, store.write(partial(both, step)))
        await store.write(note(f"after {step}"))  # whatever was under way is settled
        found = await store.read(partial(pairs, str(step)))
        assert all(row == reply for row, reply in found)
        there.append(bool(found))
    # Before anything; as it has been handed over; waiting for the commit; not at all.
    assert there == [False, True, True, True]


async def test_a_caller_cancelled_during_the_commit_does_not_recall_it(path: Path) -> None:
    reached, release = threading.Event(), threading.Event()

    def hold(point: str) -> None:
        if point == "before_commit" and not reached.is_set():
            reached.set()
            release.wait(PATIENCE_SECONDS)

    async with working(path, hold) as store:
        async with trio.open_nursery() as caller:
            caller.start_soon(store.write, note("kept"))
            await trio.to_thread.run_sync(reached.wait, PATIENCE_SECONDS)
            caller.cancel_scope.cancel()
        assert await store.read(texts) == []
        release.set()
        await store.write(note("next"))
        assert await store.read(texts) == ["kept", "next"]


async def test_at_the_end_the_batch_begun_is_answered_and_the_rest_refused(path: Path) -> None:
    reached, release = threading.Event(), threading.Event()
    answers: dict[str, object] = {}

    def hold(point: str) -> None:
        if point == "before_commit":
            reached.set()
            release.wait(PATIENCE_SECONDS)

    async def ask(store: Store, text: str) -> None:
        try:
            answers[text] = await store.write(note(text))
        except ShuttingDown as error:
            answers[text] = type(error)

    async with open_store(path, faults=hold) as store, trio.open_nursery() as callers:
        async with trio.open_nursery() as jobs:
            await jobs.start(store.run)
            callers.start_soon(ask, store, "begun")
            await trio.to_thread.run_sync(reached.wait, PATIENCE_SECONDS)
            for number in range(3 * WAITING_WRITES + 1):
                callers.start_soon(ask, store, str(number))
            await trio.testing.wait_all_tasks_blocked()
            jobs.cancel_scope.cancel()
            release.set()
        with pytest.raises(ShuttingDown):
            await store.write(note("too late"))
    assert answers.pop("begun") == 1
    assert len(answers) == 3 * WAITING_WRITES + 1
    assert set(answers.values()) == {ShuttingDown}
    with read_here(path) as tx:
        assert texts(tx) == ["begun"]


async def test_a_fault_of_the_writer_itself_ends_it_loudly(path: Path) -> None:
    def bug(point: str) -> None:
        if point == "after_commit":
            raise ZeroDivisionError

    async with open_store(path, faults=bug) as store, trio.open_nursery() as callers:

        async def ask() -> None:
            with pytest.raises(ShuttingDown):
                await store.write(note("unknown to its caller"))

        callers.start_soon(ask)
        with pytest.raises(ZeroDivisionError):
            await store.run()


def test_a_connection_that_hangs_does_not_hold_the_process(path: Path) -> None:
    program = """if True:
        import pathlib, sys, threading, trio
        from mimids.store.engine import driver
        from mimids.store.engine import store as engine
        driver.CLOSE_SECONDS = 0.1
        async def main():
            async with engine.open_store(pathlib.Path(sys.argv[1])) as store:
                store._writer._tx.put_nowait((None, threading.Event().wait))
                sys.exit(3)
        try:
            trio.run(main)
        except* SystemExit as group:
            sys.exit(3)
    """
    ran = subprocess.run([sys.executable, "-c", program, path], timeout=PATIENCE_SECONDS, check=False)
    assert ran.returncode == 3


async def test_two_stores_in_one_process_know_nothing_of_each_other(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    store_child.create(other)
    async with working(path) as store, working(other) as second:

        async def read_both() -> None:
            assert await store.read(texts) == ["here"]
            assert await second.read(lambda tx: tx.all("SELECT body FROM sent")) == []

        await store.write(note("here"))
        await read_both()
        trio.lowlevel.spawn_system_task(read_both)  # a task that knows neither loop
        await trio.testing.wait_all_tasks_blocked()
        while store.statistics().reads + second.statistics().reads < 4:
            await trio.lowlevel.checkpoint()


# --- reading ----------------------------------------------------------------------------------------------------


async def test_a_read_is_one_snapshot(store: Store) -> None:
    reached, written = threading.Event(), threading.Event()

    def look_twice(tx: Tx) -> tuple[list[str], list[str]]:
        before = texts(tx)
        reached.set()
        assert written.wait(PATIENCE_SECONDS)
        return before, texts(tx)

    async def write_between() -> None:
        await trio.to_thread.run_sync(reached.wait, PATIENCE_SECONDS)
        await store.write(note("between"))
        written.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_between)
        assert await store.read(look_twice) == ([], [])
    assert await store.read(texts) == ["between"]


async def test_reads_go_on_while_a_commit_hangs(path: Path) -> None:
    reached, release = threading.Event(), threading.Event()

    def hold(point: str) -> None:
        if point == "before_commit":
            reached.set()
            release.wait(PATIENCE_SECONDS)

    async with working(path, hold) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.write, note("slow"))
        await trio.to_thread.run_sync(reached.wait, PATIENCE_SECONDS)
        assert await store.read(texts) == []
        release.set()


async def test_a_reader_cannot_write_and_is_none_the_worse_for_trying(store: Store) -> None:
    for _ in range(3):
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await store.read(note("no"))
    assert await store.read(texts) == []


async def test_what_a_read_raises_is_raised_at_its_caller(store: Store) -> None:
    def stop(_tx: Tx) -> None:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):  # as Python has it for what leaves a coroutine
        await store.read(stop)
    assert await store.read(texts) == []


async def test_readers_are_shared_by_those_who_wait(path: Path) -> None:
    release = threading.Event()
    async with working(path) as store, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(store.read, lambda _tx: release.wait(PATIENCE_SECONDS))
        await trio.testing.wait_all_tasks_blocked()
        assert store.statistics().waiting_reads == 3
        release.set()
        assert await store.read(texts) == []
    assert store.statistics().reads == 6


def test_a_reader_that_closes_last_leaves_the_wal_alone(path: Path) -> None:
    """Before SQLite 3.51.3 only one connection may ever checkpoint."""
    leave = """if True:
        import os, pathlib, sys
        from mimids.store.engine.store import connect
        connection = connect(pathlib.Path(sys.argv[1]))
        connection.execute("INSERT INTO notes (text) VALUES ('only in the log')")
        os._exit(0)
    """
    subprocess.run([sys.executable, "-c", leave, path], check=True)
    log = path.with_name(path.name + "-wal")
    before, database = log.read_bytes(), path.read_bytes()
    assert before
    with read_here(path) as tx:
        assert texts(tx) == ["only in the log"]
    assert (log.read_bytes(), path.read_bytes()) == (before, database)


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
async def test_each_connection_is_set_up(store: Store, pragma: str, writer: object, reader: object) -> None:
    def setting(tx: Tx) -> object:
        row = tx.one(f"PRAGMA {pragma}")
        return row and row[0]

    assert await store.write(setting) == writer
    if reader is not None:
        assert await store.read(setting) == reader


async def test_there_is_a_write_ahead_log_while_open_and_none_after(path: Path) -> None:
    log = path.with_name(path.name + "-wal")
    async with working(path) as store:
        await store.write(note("one"))
        assert log.stat().st_size > 0
    assert not log.exists()


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    async def opening() -> None:
        async with open_store(tmp_path / "missing"):
            pass

    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        trio.run(opening)
    assert list(tmp_path.iterdir()) == []


def test_commands_read_and_write_without_a_loop(path: Path) -> None:
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


# --- a disk that takes nothing ----------------------------------------------------------------------------------


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


async def test_on_a_nearly_full_disk_only_what_does_not_fit_is_refused(path: Path) -> None:
    def nearly_full(tx: Tx) -> None:
        (pages,) = tx.one("PRAGMA page_count") or (0,)
        tx.one(f"PRAGMA max_page_count = {pages + 2}")

    answers, _ = await answers_of_one_batch(path, nearly_full, note("a"), note("x" * 100_000), note("b"))
    assert (answers[1], answers[3]) == (1, 2)
    assert isinstance(answers[2], StorageUnavailable)
    with read_here(path) as tx:
        assert texts(tx) == ["a", "b"]


async def test_a_file_that_may_not_grow_refuses_writes_and_recovers(store: Store, path: Path) -> None:
    """The kernel refuses here, in the middle of the log, as a full disk does."""
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
async def test_a_commit_that_fails_is_nobodys_and_the_next_one_goes_well(path: Path, code: int) -> None:
    broken = True

    def faults(point: str) -> None:
        if broken and point == "before_commit":
            raise failing(code)

    answers, _ = await answers_of_one_batch(path, note("a"), note("b"), faults=faults)
    assert [type(answer) for answer in answers] == [StorageUnavailable] * 2
    broken = False
    answers, _ = await answers_of_one_batch(path, note("a"), note("b"), faults=faults)
    assert answers == [1, 2]


async def test_another_writer_of_the_file_refuses_a_whole_batch_at_once(path: Path) -> None:
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
