from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import types
from collections.abc import Coroutine, Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mimids.errors import ShuttingDown
from mimids.store.engine.sqlite import open_store, read_here
from mimids.store.engine.store import WAITING_WRITES, Store
from mimids.store.engine.transaction import Tx
from tests.support import store_child
from tests.support.notes import (
    answers_of_one_batch,
    insert_note,
    note,
    note_and_refuse,
    texts,
    working,
)
from tests.support.patience import PATIENCE_SECONDS

# --- writing ----------------------------------------------------------------------------------------------------


async def test_a_write_returns_what_its_work_returns_and_readers_see_it(store: Store) -> None:
    assert await store.write(note("one")) == 1
    assert await store.read(texts) == ["one"]
    assert await store.read(lambda tx: tx.one("SELECT text FROM notes WHERE id = ?", (2,))) is None
    assert await store.write(lambda tx: tx.execute("UPDATE notes SET text = 'two'")) == 1
    await store.write(lambda tx: tx.executemany("INSERT INTO notes (text) VALUES (?)", [("three",), ("four",)]))
    assert await store.read(texts) == ["two", "three", "four"]


async def test_waiting_writes_are_committed_together_in_order_of_arrival(path: Path) -> None:
    points: list[str] = []
    answers, batches = await answers_of_one_batch(path, *(note(str(n)) for n in range(9)), faults=points.append)
    assert answers == list(range(1, 10))
    assert batches == 1
    assert points == ["before_commit", "after_commit"]
    with read_here(path) as tx:
        assert texts(tx) == [str(n) for n in range(9)]


async def test_a_task_can_wait_for_the_next_commit(store: Store, nursery: trio.Nursery) -> None:
    before = store.statistics().commits
    found: list[int] = []

    async def wait() -> None:
        found.append(await store.wait_for_commit(before))

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert found == []
    await store.write(note("one"))
    await trio.testing.wait_all_tasks_blocked()
    assert found == [before + 1]
    assert await store.wait_for_commit(before) == before + 1


async def test_a_work_that_raises_is_undone_and_the_others_are_committed(path: Path) -> None:
    points: list[str] = []
    answers, batches = await answers_of_one_batch(
        path, note("a"), note_and_refuse("b"), note("c"), note("a"), note("d"), faults=points.append
    )
    assert (answers[0], answers[2], answers[4]) == (1, 2, 3)
    assert isinstance(answers[1], LookupError)
    assert isinstance(answers[3], sqlite3.IntegrityError)
    assert batches == 1
    assert points == ["before_commit", "after_commit"]  # the others shared one commit
    with read_here(path) as tx:
        assert texts(tx) == ["a", "c", "d"]


async def test_a_work_that_makes_the_commit_fail_is_undone_and_the_others_are_committed(path: Path) -> None:
    def dangling(tx: Tx) -> int:
        return tx.insert("INSERT INTO replies (note) VALUES (77) RETURNING note")  # noticed at COMMIT only

    answers, _ = await answers_of_one_batch(path, note("a"), dangling, note("b"))
    assert (answers[0], answers[2]) == (1, 2)
    assert isinstance(answers[1], sqlite3.IntegrityError)
    with read_here(path) as tx:
        assert texts(tx) == ["a", "b"]
        assert tx.all("SELECT note FROM replies") == []


async def test_a_transaction_that_ends_early_is_started_again(path: Path) -> None:
    """SQLite itself rolls back after some failures; here the work hides that it did."""
    ended: list[bool] = []

    def losing(tx: Tx) -> int:
        if len(ended) < 2:
            ended.append(True)
            tx.execute("ROLLBACK")
            return 0
        return insert_note("b", tx)

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
    """Run a coroutine and cancel `scope` where it waits for the step-th time; return whether it got that far.

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


async def test_a_write_cancelled_at_any_checkpoint_is_committed_whole_or_not_at_all(store: Store) -> None:
    def both(step: int, tx: Tx) -> None:
        tx.execute("INSERT INTO replies (note) VALUES (?)", (insert_note(str(step), tx),))

    def pairs(text: str, tx: Tx) -> list[tuple[int | None, ...]]:
        return tx.all("SELECT id, note FROM notes FULL JOIN replies ON id = note WHERE text = ? OR id IS NULL", (text,))

    there: list[bool] = []
    reached = True
    while reached:
        step = len(there)
        with trio.CancelScope() as scope:
            reached = await cancelled_at(step, scope, store.write(partial(both, step)))
        await store.write(note(f"after {step}"))  # so that the cancelled write has ended
        found = await store.read(partial(pairs, str(step)))
        assert all(row == reply for row, reply in found)
        there.append(bool(found))
    # Cancelled: before it began; once it was in the queue; while waiting for the commit; not at all.
    assert there == [False, True, True]


async def test_cancelling_a_caller_during_the_commit_does_not_undo_its_write(path: Path) -> None:
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


async def test_shutdown_finishes_the_batch_that_has_begun_and_refuses_the_rest(path: Path) -> None:
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


async def test_an_error_in_the_writer_itself_is_raised_by_run(path: Path) -> None:
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


def test_a_connection_that_hangs_does_not_keep_the_process_alive(path: Path) -> None:
    program = """if True:
        import pathlib, sys, threading, trio
        from mimids.store.engine import driver, sqlite
        driver.CLOSE_SECONDS = 0.1
        async def main():
            async with sqlite.open_store(pathlib.Path(sys.argv[1])) as store:
                store._writer.thread._tx.put_nowait((None, threading.Event().wait))
                sys.exit(3)
        try:
            trio.run(main)
        except* SystemExit as group:
            sys.exit(3)
    """
    ran = subprocess.run([sys.executable, "-c", program, path], timeout=PATIENCE_SECONDS, check=False)
    assert ran.returncode == 3


async def test_two_stores_in_one_process_are_independent(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    store_child.create(other)
    async with working(path) as store, working(other) as second:

        async def read_both() -> None:
            assert await store.read(texts) == ["here"]
            assert await second.read(lambda tx: tx.all("SELECT body FROM sent")) == []

        await store.write(note("here"))
        await read_both()
        trio.lowlevel.spawn_system_task(read_both)  # a task outside both asyncio loops
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


async def test_a_reader_that_tries_to_write_is_refused_and_still_reads(store: Store) -> None:
    for _ in range(3):
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await store.read(note("no"))
    assert await store.read(texts) == []


async def test_an_error_in_a_read_is_raised_at_its_caller(store: Store) -> None:
    def stop(_tx: Tx) -> None:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):  # Python converts a StopIteration that leaves a coroutine
        await store.read(stop)
    assert await store.read(texts) == []


async def test_waiting_reads_share_the_readers(path: Path) -> None:
    release = threading.Event()
    async with working(path) as store, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(store.read, lambda _tx: release.wait(PATIENCE_SECONDS))
        await trio.testing.wait_all_tasks_blocked()
        assert store.statistics().waiting_reads == 3
        release.set()
        assert await store.read(texts) == []
    assert store.statistics().reads == 6


def test_a_reader_that_closes_last_does_not_checkpoint(path: Path) -> None:
    """Before SQLite 3.51.3 only one connection may ever checkpoint."""
    leave = """if True:
        import os, pathlib, sys
        from mimids.store.engine.sqlite import connect
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
