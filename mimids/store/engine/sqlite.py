"""The database in SQLite: its connections, how a batch is committed on one, and direct access for commands.

A write is acknowledged only after the commit that contains it is on the disk (`synchronous=FULL`). The works of a
batch share one transaction, and so the price of one fdatasync.

SQLite 3.7.0 to 3.51.2 can corrupt a WAL file when two connections checkpoint and one of them resets it. So only the
writer checkpoints: every other connection either opens with `mode=ro` or belongs to a process that holds the lock of
store/engine/lock.py, which a running server holds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import outcome

from mimids.errors import StorageUnavailable
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx, Work

if TYPE_CHECKING:
    from mimids.store.engine.driver import Thread

T = TypeVar("T")
Faults = Callable[[str], None]
Synchronous = Literal["FULL", "NORMAL"]

BUSY_TIMEOUT_MILLISECONDS = 5000  # only another process can hold the write lock, and none should for long
CACHED_STATEMENTS = 512  # more than there are statements in store/, so that none is ever parsed twice
WRITER_CACHE_KIBIBYTES = 16 * 1024  # a third more commits than with 2 MiB where a file is much larger than either
PAGE_OCTETS = 8192  # seven messages of 1 KiB to a page; 4096 octets hold three, and a batch of them costs a fifth more
WAL_SIZE_LIMIT_OCTETS = 64 * 1024 * 1024  # the size that the WAL file is cut back to after a burst

# Primary result codes that say the disk, not the request, is at fault. SQLITE_BUSY: another process writes.
_STORAGE_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN})


# --- a server's connections -------------------------------------------------------------------------------------


@asynccontextmanager
async def open_store(
    path: Path,
    *,
    readers: int = 2,
    synchronous: Synchronous = "FULL",
    faults: Faults | None = None,
) -> AsyncIterator[Store]:
    """Open a migrated database; start `Store.run` in a nursery inside the block, and end it before the block ends.

    `faults` is called on the writer's thread with "before_commit" and "after_commit"; tests stop or fail there.
    Closing takes at most driver.CLOSE_SECONDS, cancelled or not; a thread that hangs does not hold the process.
    """
    from mimids.store.engine.driver import open_threads

    write = partial(connect, path, synchronous=synchronous)
    read = partial(connect_to_read, path)
    # The threads close in reverse order: the writer closes last, alone, and so removes the WAL file.
    async with open_threads(write, *[read] * readers) as threads:
        yield Store(SqliteWriter(threads[0], faults or _no_faults), [SqliteReader(thread) for thread in threads[1:]])


class SqliteWriter:
    """The connection that writes, on its thread."""

    def __init__(self, thread: Thread, faults: Faults) -> None:
        self.thread = thread
        self.faults = faults

    async def commit(self, works: Sequence[Work[Any]]) -> list[outcome.Outcome[Any]]:
        """Run works in order; return what each returned or raised, once everything that succeeded is durable."""
        return await self.thread.run(partial(_commit, works, self.faults))


class SqliteReader:
    """One of the connections that read, on its thread."""

    def __init__(self, thread: Thread) -> None:
        self._thread = thread

    async def read(self, work: Work[T]) -> outcome.Outcome[T]:
        """Run a work on a snapshot and return what it returned or raised."""
        return await self._thread.run(partial(_read_snapshot, work))


# --- commands, without a server's threads -----------------------------------------------------------------------


@contextmanager
def read_here(path: Path) -> Iterator[Tx]:
    """Give a command one snapshot of the database; any number of commands may read beside a running server."""
    connection = connect_to_read(path)
    try:
        connection.execute("BEGIN")
        yield Tx(connection)
    except sqlite3.Error as error:
        refusal = _refusal(error)
        if refusal is error:
            raise
        raise refusal from error
    finally:
        connection.close()


def write_here(path: Path, work: Work[T]) -> T:
    """Run work(tx) in one durable transaction; for a command that holds the lock of `store/engine/lock.py`."""
    connection = connect(path)
    try:
        return cast("T", _commit([work], _no_faults, connection)[0].unwrap())
    finally:
        connection.close()


# --- connections ------------------------------------------------------------------------------------------------


def connect(path: Path, *, synchronous: Synchronous = "FULL", create: bool = False) -> sqlite3.Connection:
    """Open a connection that writes; the caller is the only writer, by the lock or as the store's writer."""
    connection = _connect(path, "rwc" if create else "rw")
    try:
        connection.execute(f"PRAGMA page_size={PAGE_OCTETS}")  # of a new file; an old one keeps its own
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError(f"the file system of {path} does not allow a write-ahead log")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA cache_size=-{WRITER_CACHE_KIBIBYTES}")
        connection.execute(f"PRAGMA journal_size_limit={WAL_SIZE_LIMIT_OCTETS}")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a connection that can neither write nor checkpoint."""
    connection = _connect(path, "ro")
    connection.execute("PRAGMA query_only=ON")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    return connection


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # mmap stays off: 256 MiB of it made no difference beyond noise to appends of 1 KiB, and an I/O error under it is a
    # SIGBUS instead of a result code.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,  # sqlite3 begins no transaction by itself
        cached_statements=CACHED_STATEMENTS,
    )
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MILLISECONDS}")
    connection.execute("PRAGMA temp_store=MEMORY")  # so that queries that sort still work while the disk is full
    return connection


# --- on a connection's thread -----------------------------------------------------------------------------------


def _commit(works: Sequence[Work[Any]], faults: Faults, connection: sqlite3.Connection) -> list[outcome.Outcome[Any]]:
    """Run works in order and return their answers once everything that succeeded is durable.

    Nearly always no work raises, so the first attempt runs all works together, without the price of a savepoint for
    each. If one raised, the second attempt runs each under a savepoint. If the transaction itself failed (no room for
    one of them, a deferred constraint), each work gets a transaction of its own, so that a work that cannot be
    committed does not fail the others.
    """
    answers = _run_batch(works, faults, connection)
    faults("after_commit")
    return answers


def _run_batch(
    works: Sequence[Work[Any]], faults: Faults, connection: sqlite3.Connection
) -> list[outcome.Outcome[Any]]:
    for attempt in (_run, _run_under_savepoint) if len(works) > 1 else ():
        try:
            return _transact(works, attempt, faults, connection)
        except Exception as error:  # the next attempt raises it again, and finds which work it belongs to
            if _code(error) == sqlite3.SQLITE_BUSY:  # a transaction for each would wait just as long, each
                return [outcome.Error(_refusal(error)) for _ in works]
    answers: list[outcome.Outcome[Any]] = []
    for work in works:
        try:
            answers += _transact([work], _run, faults, connection)
        except Exception as error:
            answers.append(outcome.Error(_refusal(error)))
    return answers


def _transact(
    works: Sequence[Work[Any]],
    attempt: Callable[[Work[Any], sqlite3.Connection], outcome.Outcome[Any]],
    faults: Faults,
    connection: sqlite3.Connection,
) -> list[outcome.Outcome[Any]]:
    """Run works in one transaction; if this raises, none of their changes remain."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        answers = [attempt(work, connection) for work in works]
        faults("before_commit")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself rolls back after some disk failures
            connection.execute("ROLLBACK")
        raise
    return answers


def _run(work: Work[Any], connection: sqlite3.Connection) -> outcome.Outcome[Any]:
    answer = outcome.Value(work(Tx(connection)))
    _check_open(connection)
    return answer


def _run_under_savepoint(work: Work[Any], connection: sqlite3.Connection) -> outcome.Outcome[Any]:
    connection.execute("SAVEPOINT work")
    try:
        answer: outcome.Outcome[Any] = outcome.Value(work(Tx(connection)))
    except Exception as error:  # raised again at the caller of Store.write
        _check_open(connection)
        connection.execute("ROLLBACK TO work")
        answer = outcome.Error(_refusal(error))
    _check_open(connection)
    connection.execute("RELEASE work")
    return answer


def _check_open(connection: sqlite3.Connection) -> None:
    """Raise if the transaction has already ended: every later statement would be committed by itself."""
    if not connection.in_transaction:
        raise sqlite3.OperationalError("the transaction ended before its commit")


def _read_snapshot(work: Work[T], connection: sqlite3.Connection) -> outcome.Outcome[T]:
    try:
        connection.execute("BEGIN")
        try:
            return outcome.Value(work(Tx(connection)))
        finally:
            connection.execute("ROLLBACK")
    except Exception as error:  # raised again at the caller of Store.read
        return outcome.Error(_refusal(error))


def _code(error: BaseException) -> int:
    """Return SQLite's primary result code, 0 if the error is not SQLite's."""
    return cast("int", getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _refusal(error: Exception) -> Exception:
    """Return the error that the caller is to see: StorageUnavailable for a failing disk, otherwise `error`."""
    if _code(error) not in _STORAGE_CODES:
        return error
    refusal = StorageUnavailable()
    refusal.__cause__ = error
    return refusal


def _no_faults(_point: str) -> None:
    pass
