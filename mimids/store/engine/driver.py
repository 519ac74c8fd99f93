"""Threads that hold SQLite connections: aiosqlite's threads, which run whole functions for trio tasks.

A call is put directly on the queue of aiosqlite's thread, and its answer directly reschedules the trio task that waits:
one hop for each batch or snapshot. The asyncio task and future that aiosqlite would use for each call cost more CPU
than an INSERT (docs/decisions/0003-one-writer.md has the figures). Of asyncio, only the future with which aiosqlite's
thread ends remains, and the trio-asyncio loop that it belongs to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar, cast

import aiosqlite
import outcome
import trio
import trio_asyncio  # type: ignore[import-untyped]

T = TypeVar("T")

CLOSE_SECONDS = 5  # for closing all connections; then the process ends without waiting longer


class Thread(aiosqlite.Connection):
    """A connection, and the thread that it is opened and used on."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connect, iter_chunk_size=1)
        self._thread.daemon = True  # a thread that hangs on its disk, or was not closed, must not hold the process

    async def open(self) -> None:
        """Start the thread and open the connection on it; raise what that raises. Call `stop` later in either case.

        aiosqlite's own `__await__` leaves the thread running when the connection cannot be opened, and the thread then
        calls into a closed loop.
        """
        self._thread.start()
        self._connection = await self._call(self._connector)

    async def run(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run fn(connection) on the thread, after all earlier calls; a cancelled caller still waits for the result."""
        return await self._call(partial(fn, self._conn))

    async def _call(self, fn: Callable[[], T]) -> T:
        task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

        def answer() -> None:
            token.run_sync_soon(trio.lowlevel.reschedule, task, outcome.capture(fn))

        self._tx.put_nowait((None, answer))
        return cast("T", await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED))


@asynccontextmanager
async def open_threads(*connects: Callable[[], sqlite3.Connection]) -> AsyncIterator[list[Thread]]:
    """Start a thread for each function and open its connection there; raise `sqlite3.Error` if one cannot be opened.

    Afterwards, cancelled or not, close the connections in reverse order, within CLOSE_SECONDS.
    """
    threads: list[Thread] = []
    failure: Exception | None = None
    async with trio_asyncio.open_loop() as loop:
        try:
            try:
                for connect in connects:
                    threads.append(Thread(connect))
                    await threads[-1].open()
            except sqlite3.Error as error:
                failure = error  # raised below: here it would leave the loop as an ExceptionGroup
            else:
                yield threads
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                for thread in reversed(threads):
                    current = trio_asyncio.current_loop.set(loop)  # `stop` creates its future on the current loop
                    try:
                        stopped = thread.stop()
                    finally:
                        trio_asyncio.current_loop.reset(current)
                    await trio_asyncio.run_aio_future(stopped)
    if failure:
        raise failure
