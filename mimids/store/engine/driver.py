"""Threads that hold database connections: aiosqlite's threads, which run whole functions for trio tasks.

A call is put directly on the queue of aiosqlite's thread, and its answer directly reschedules the trio task that waits:
one change of thread for each batch or snapshot. The asyncio task and future that aiosqlite would use for each call cost
more CPU than an INSERT (docs/decisions/0003-one-writer.md has the figures). Only two parts of asyncio are still used:
the future with which aiosqlite's thread ends, and the trio-asyncio loop that this future belongs to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, cast

import aiosqlite
import outcome
import trio
import trio_asyncio  # type: ignore[import-untyped]

T = TypeVar("T")


class Closable(Protocol):
    """A connection that can be closed."""

    def close(self) -> None:
        """Close the connection."""


C = TypeVar("C", bound=Closable)

CLOSE_SECONDS = 5  # for closing all connections; then the process ends without waiting longer


class Thread(aiosqlite.Connection, Generic[C]):
    """A connection, and the thread on which it is opened and used."""

    def __init__(self, connect: Callable[[], C]) -> None:
        super().__init__(cast("Any", connect), iter_chunk_size=1)
        # A thread that hangs on its disk, or was not closed, must not keep the process alive.
        self._thread.daemon = True

    async def open(self) -> None:
        """Start the thread and open the connection on it; raise if this fails. Call `stop` later in either case.

        aiosqlite's own `__await__` leaves the thread running when the connection cannot be opened, and the thread then
        calls into a closed loop.
        """
        self._thread.start()
        self._connection = await self._call(self._connector)

    async def run(self, fn: Callable[[C], T]) -> T:
        """Run fn(connection) on the thread, after all earlier calls; a cancelled caller still waits for the result."""
        return await self._call(partial(fn, cast("C", self._conn)))

    def run_soon(self, fn: Callable[[C], T], answer: Callable[[outcome.Outcome[T]], None]) -> None:
        """Run fn(connection) on the thread, after all earlier calls, without waiting.

        Then `answer` is called in the event loop, with what `fn` returned or raised. It must not raise.
        """
        self._put(partial(fn, cast("C", self._conn)), answer)

    def start_soon(self, fn: Callable[[C], None]) -> None:
        """Run fn(connection) on the thread, after all earlier calls, without waiting; it answers by itself.

        `fn` must not raise.
        """
        self._tx.put_nowait((None, partial(fn, cast("C", self._conn))))

    async def _call(self, fn: Callable[[], T]) -> T:
        self._put(fn, partial(trio.lowlevel.reschedule, trio.lowlevel.current_task()))
        return cast("T", await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED))

    def _put(self, fn: Callable[[], T], answer: Callable[[outcome.Outcome[T]], None]) -> None:
        token = trio.lowlevel.current_trio_token()
        self._tx.put_nowait((None, lambda: token.run_sync_soon(answer, outcome.capture(fn))))


@asynccontextmanager
async def open_threads(
    *connects: Callable[[], Closable], expected: tuple[type[Exception], ...]
) -> AsyncIterator[list[Thread[Any]]]:
    """Start a thread for each function and open its connection there; raise an `expected` error if that fails.

    Afterwards, cancelled or not, close the connections in reverse order, within CLOSE_SECONDS.
    """
    threads: list[Thread[Any]] = []
    failure: Exception | None = None
    async with trio_asyncio.open_loop() as loop:
        try:
            try:
                for connect in connects:
                    threads.append(Thread(connect))
                    await threads[-1].open()
            except expected as error:
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
