"""The threads that hold the database connections: aiosqlite's, asked for whole functions.

A call goes straight to aiosqlite's thread and its answer straight to the trio task that waits: one hop for a batch or a
snapshot, without a task and a future of asyncio's for each, which cost more CPU than an INSERT
(docs/decisions/0003-one-writer.md has the figures). What is left of asyncio is the future on which aiosqlite's thread
ends, and the trio-asyncio loop that it belongs to. Another driver needs no more than what is here.
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

CLOSE_SECONDS = 5  # to close all connections; then the process ends without


class Thread(aiosqlite.Connection):
    """One connection and the thread it was opened on."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connect, iter_chunk_size=1)
        self._thread.daemon = True  # or else a thread that hangs on its disk, or that nobody closed, holds the process

    async def open(self) -> None:
        """Start the thread and connect there; raise what that raises. `stop` is to follow in either case.

        aiosqlite's own way leaves the thread running into a closed loop where the connection cannot be opened.
        """
        self._thread.start()
        self._connection = await self._call(self._connector)

    async def run(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Return fn(connection), run on the thread after what was asked before; waits for it, cancelled or not."""
        return await self._call(partial(fn, self._conn))

    async def _call(self, fn: Callable[[], T]) -> T:
        task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

        def answer() -> None:
            token.run_sync_soon(trio.lowlevel.reschedule, task, outcome.capture(fn))

        self._tx.put_nowait((None, answer))
        return cast("T", await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED))


@asynccontextmanager
async def open_threads(*connects: Callable[[], sqlite3.Connection]) -> AsyncIterator[list[Thread]]:
    """Start a thread for each of the functions, which open its connection; raise what they raise.

    Connections are closed in the opposite order, cancelled or not, within CLOSE_SECONDS.
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
                failure = error  # raised here, it would leave the loop as a group
            else:
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
    if failure:
        raise failure
