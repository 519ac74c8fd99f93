"""The threads that hold the database connections: aiosqlite's, asked for whole functions.

aiosqlite opens and closes its connections on futures of asyncio, so they live inside a trio-asyncio loop. Between
those two, a call goes straight to aiosqlite's thread and its answer straight to the trio task that waits: one hop for
a batch or a snapshot, without a task and a future of asyncio's for each, which cost more CPU than an INSERT
(docs/decisions/0003-one-writer.md has the figures). Another driver needs no more than what is here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar, cast

import aiosqlite
import outcome
import trio
import trio_asyncio  # type: ignore[import-untyped]

T = TypeVar("T")

CLOSE_SECONDS = 5  # to close all connections; then the process ends without


class Thread(aiosqlite.Connection):
    """One connection and the thread it was opened on."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connect, iter_chunk_size=1)
        self._thread.daemon = True  # or else a thread that hangs on its disk, or that nobody closed, holds the process

    async def run(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Return fn(connection), run on the thread after what was asked before; waits for it, cancelled or not."""
        task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

        def answer() -> None:
            token.run_sync_soon(trio.lowlevel.reschedule, task, outcome.capture(fn, self._conn))

        self._tx.put_nowait((None, answer))
        return cast("T", await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED))


@asynccontextmanager
async def open_threads(*connects: Callable[[], sqlite3.Connection]) -> AsyncIterator[list[Thread]]:
    """Start a thread for each of the functions, which open its connection; raise what they raise.

    Connections are closed in the opposite order, cancelled or not, within CLOSE_SECONDS.
    """
    threads: list[Thread] = []
    async with trio_asyncio.open_loop() as loop:
        try:
            for connect in connects:
                thread = Thread(connect)
                await loop.run_aio_coroutine(_opened(thread))
                threads.append(thread)
            yield threads
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                for thread in reversed(threads):
                    current = trio_asyncio.current_loop.set(loop)  # `stop` makes its future on the current loop
                    try:
                        stopped = thread.stop()
                    finally:
                        trio_asyncio.current_loop.reset(current)
                    await trio_asyncio.run_aio_future(stopped)


async def _opened(thread: Thread) -> None:
    await thread
