"""A small database of notes, and stores opened on it, for tests of the engine."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import trio
import trio.testing

from mimids.store.engine.sqlite import Faults, connect, open_store
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx


def create(path: Path) -> None:
    with closing(connect(path, create=True)) as connection:
        connection.executescript(
            "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;"
            "CREATE TABLE replies (note INTEGER REFERENCES notes (id) DEFERRABLE INITIALLY DEFERRED) STRICT;"
        )


@asynccontextmanager
async def working(path: Path, faults: Faults | None = None) -> AsyncIterator[Store]:
    async with open_store(path, faults=faults) as store, trio.open_nursery() as jobs:
        await jobs.start(store.run)
        yield store
        jobs.cancel_scope.cancel()


def note(text: str) -> Callable[[Tx], int]:
    return partial(insert_note, text)


def insert_note(text: str, tx: Tx) -> int:
    return tx.insert("INSERT INTO notes (text) VALUES (?) RETURNING id", (text,))


def note_and_refuse(text: str) -> Callable[[Tx], int]:
    def work(tx: Tx) -> int:
        insert_note(text, tx)
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
    """Queue all works before the writer starts; return what each returned or raised, and the number of batches."""
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
