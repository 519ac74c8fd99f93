"""The database in SQLite: its connections, the commit of a batch, and direct access for commands.

A write is acknowledged only after the commit that contains it is on the disk (`synchronous=FULL`). The works of a batch
share one transaction, so they share the cost of one fdatasync.

SQLite 3.7.0 to 3.51.2 can corrupt a WAL file when two connections checkpoint and one of them resets it. So only the
writer checkpoints. Every other connection either opens with `mode=ro`, or belongs to a process that holds the lock of
store/engine/lock.py, which means that no server runs.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import outcome

from mimids.errors import StorageUnavailable
from mimids.store.engine import batch, token_places
from mimids.store.engine.batch import Faults as Faults
from mimids.store.engine.queued_work import QueuedWork
from mimids.store.engine.read_queue import QueuedRead, answer_reads
from mimids.store.engine.store import AnswerBatch, Store, damaged
from mimids.store.engine.transaction import Tx, Work

if TYPE_CHECKING:
    from mimids.store.engine.driver import Thread

T = TypeVar("T")
Synchronous = Literal["FULL", "NORMAL"]

BUSY_TIMEOUT_MILLISECONDS = 5000  # only another process can hold the write lock, and no process should hold it for long
CACHED_STATEMENTS = 512  # more than the statements in store/, so that each statement is parsed only once
WRITER_CACHE_KIBIBYTES = 16 * 1024  # if the file is much larger, this gives a third more commits than 2 MiB
PRIVATE = 0o600  # the mode of the database's files
OPEN_TO_OTHERS = 0o077
PAGE_OCTETS = 8192  # holds seven messages of 1 KiB; with 4096 octets (three messages) a batch costs a fifth more
WAL_SIZE_LIMIT_OCTETS = 64 * 1024 * 1024  # the size that the WAL file is cut back to after a burst

# Primary result codes that say the disk, not the request, is at fault. SQLITE_BUSY: another process writes.
_STORAGE_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN})
# Codes that say that the file is damaged. After one of these, nothing more is written to the file.
_DAMAGE_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# After these codes, a transaction for each work would fail as well, or must not be tried.
_REFUSE_BATCH_CODES = _DAMAGE_CODES | {sqlite3.SQLITE_BUSY}

VERSION = sqlite3.sqlite_version
CHECK_SECONDS = 10.0  # the longest check at the start of a server

# For a parameter of another type than str, int, float and bytearray, sqlite3 looks for an adapter. If there is none, it
# tries to call methods that the type does not have, which takes a tenth of the time of a short statement.
sqlite3.register_adapter(bytes, bytes)
sqlite3.register_adapter(type(None), lambda none: None)


# --- a server's connections -------------------------------------------------------------------------------------


@asynccontextmanager
async def open_store(
    path: Path,
    *,
    readers: int = 2,
    synchronous: Synchronous = "FULL",
    faults: Faults | None = None,
    on_damage: Callable[[str], None] = lambda damage: None,
) -> AsyncIterator[Store]:
    """Open a migrated database; start `Store.run` in a nursery inside the block, and end it before the block ends.

    `faults` is called on the writer's thread with "before_commit" and "after_commit", so that tests can stop or fail
    there. `on_damage` is called once, when a statement finds the database damaged; from then on all writes are refused.
    Besides `readers` readers, one more reader is opened for `Store.read_apart`. Closing takes at most
    driver.CLOSE_SECONDS, cancelled or not; a thread that hangs does not keep the process alive.
    """
    from mimids.store.engine.driver import open_threads

    write = partial(connect, path, synchronous=synchronous)
    read = partial(connect_to_read, path)
    # The threads close in reverse order: the writer closes last, alone, and so removes the WAL file.
    async with open_threads(write, *[read] * (readers + 1), expected=(sqlite3.Error,)) as threads:
        writer = SqliteWriter(threads[0], faults or _no_faults)
        apart, *others = [SqliteReader(thread) for thread in threads[1:]]
        yield Store(writer, others, apart=apart, on_damage=on_damage)


class SqliteWriter:
    """The connection that writes, on its thread."""

    def __init__(self, thread: Thread[sqlite3.Connection], faults: Faults) -> None:
        self.thread = thread
        self.faults = faults

    def commit_soon(self, jobs: Sequence[QueuedWork], answer: AnswerBatch) -> None:
        """Run works in order, as `StoreWriter.commit_soon` says."""
        self.thread.run_soon(partial(_commit, [job.work for job in jobs], self.faults), answer)

    async def truncate_log(self) -> bool:
        """Move the write-ahead log into the database and cut it to nothing; return False if a reader still needs it."""
        return await self.thread.run(truncate_log)

    async def separate_rows(self) -> int:
        """Rewrite the bearer tokens near those that were used lately (`token_places`); return how many blocks."""
        await self.thread.run(partial(_run, token_places.watch))
        after, blocks = -1, 0
        while (
            found := await self.thread.run(partial(_run, partial(token_places.rewrite_block, after=after)))
        ) is not None:
            after, blocks = found, blocks + 1
        return blocks


class SqliteReader:
    """One of the connections that read, on its thread."""

    def __init__(self, thread: Thread[sqlite3.Connection]) -> None:
        self._thread = thread

    def read_soon(self, first: QueuedRead, take_next: Callable[[], QueuedRead | None]) -> None:
        """Answer reads on the thread, as `StoreReader.read_soon` says."""
        self._thread.start_soon(lambda connection: answer_reads(partial(_read_snapshot, connection), first, take_next))


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
    """Run work(tx) in one durable transaction. The caller, a command, holds the lock of `store/engine/lock.py`."""
    connection = connect(path)
    try:
        answer = cast("T", _commit([work], _no_faults, connection)[0].unwrap())
        truncate_log(connection)  # closing removes the log, unless a backup reads from it
        return answer
    finally:
        connection.close()


# --- connections ------------------------------------------------------------------------------------------------


def connect(path: Path, *, synchronous: Synchronous = "FULL", create: bool = False) -> sqlite3.Connection:
    """Open a connection that writes; the caller must be the only writer, by the lock or as the store's writer."""
    _make_private(path, create=create)
    connection = _connect(path, "rwc" if create else "rw")
    try:
        connection.execute(f"PRAGMA page_size={PAGE_OCTETS}")  # of a new file; an old file keeps its page size
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError(f"the file system of {path} allows no write-ahead log: use a local disk")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA cache_size=-{WRITER_CACHE_KIBIBYTES}")
        connection.execute(f"PRAGMA journal_size_limit={WAL_SIZE_LIMIT_OCTETS}")
        connection.execute("PRAGMA secure_delete=ON")  # overwrite deleted octets; some builds have this off
    except BaseException:
        connection.close()
        raise
    return connection


def find_damage(path: Path, seconds: float = CHECK_SECONDS) -> str | None:
    """Check the pages of a database for at most `seconds`; return what is wrong with it, None if nothing was found.

    If the check takes longer, the rest of the database is not checked. The first statement that reads a damaged page
    there reports the damage. The caller holds the lock.
    """
    try:
        with closing(connect_to_read(path)) as connection:
            checked = threading.Event()
            deadline = threading.Thread(target=_interrupt_after, args=(connection, seconds, checked), daemon=True)
            deadline.start()
            try:
                (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            finally:
                checked.set()
                deadline.join()
    except sqlite3.DatabaseError as error:
        if _code(error) == sqlite3.SQLITE_INTERRUPT:
            return None
        if _code(error) in _DAMAGE_CODES:
            return str(error)
        raise
    return None if found == "ok" else str(found)


def _interrupt_after(connection: sqlite3.Connection, seconds: float, checked: threading.Event) -> None:
    """Interrupt the statement of a connection after `seconds`, again and again until it has ended.

    SQLite ignores an interrupt that comes before the statement begins.
    """
    if not checked.wait(seconds):
        connection.interrupt()
        while not checked.wait(0.001):
            connection.interrupt()


def truncate_log(connection: sqlite3.Connection) -> bool:
    """Move the write-ahead log into the database and cut it to nothing; return False if a reader still needs it.

    The log has earlier contents of pages, and so the data that was deleted from them. The call does not wait for
    readers, since a backup may read for long. It also returns False if the disk fails, because the next write reports
    the failure.
    """
    connection.execute("PRAGMA busy_timeout=0")
    try:
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy
    except sqlite3.Error:
        return False
    finally:
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MILLISECONDS}")


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a connection that can neither write nor checkpoint."""
    connection = _connect(path, "ro")
    connection.execute("PRAGMA query_only=ON")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    return connection


def _make_private(path: Path, *, create: bool) -> None:
    """Make the database readable by its owner only; SQLite gives its other files the mode of the database.

    A file of another owner keeps its mode: `mimids check` says so.
    """
    if create:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE))
    for file in files_of(path):
        # By name: closing a descriptor of an open database would drop SQLite's locks on it.
        with suppress(FileNotFoundError, PermissionError):
            if file.stat().st_mode & OPEN_TO_OTHERS:
                file.chmod(PRIVATE)


def files_of(path: Path) -> list[Path]:
    """Return the files that make up a database: the file itself, its write-ahead log, and the log's index."""
    return [path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")]


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # mmap stays off: 256 MiB of it made no difference beyond noise to appends of 1 KiB, and with mmap an I/O error
    # raises SIGBUS instead of returning a result code.
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


class _Transactions:
    """Transactions on a connection that writes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def begin(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self.connection.execute("COMMIT")

    def undo(self) -> None:
        if self.connection.in_transaction:  # SQLite itself rolls back after some disk failures
            self.connection.execute("ROLLBACK")

    def is_open(self) -> bool:
        return self.connection.in_transaction

    def refusal(self, error: Exception) -> Exception:
        return _refusal(error)

    def refuses_batch(self, error: Exception) -> bool:
        return _code(error) in _REFUSE_BATCH_CODES

    def ends_writing(self, error: Exception) -> bool:
        return _code(error) in _DAMAGE_CODES


def _commit(works: Sequence[Work[Any]], faults: Faults, connection: sqlite3.Connection) -> list[outcome.Outcome[Any]]:
    return batch.commit(works, faults, _Transactions(connection))


def _run(work: Work[T], connection: sqlite3.Connection) -> T:
    return cast("T", batch.commit([work], _no_faults, _Transactions(connection))[0].unwrap())


def _read_snapshot(connection: sqlite3.Connection, work: Work[T]) -> outcome.Outcome[T]:
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
    """Return the error that the caller is to see: StorageUnavailable for a failing disk or a damaged database."""
    if _code(error) not in _STORAGE_CODES | _DAMAGE_CODES:
        return error
    refusal = damaged(str(error)) if _code(error) in _DAMAGE_CODES else StorageUnavailable()
    refusal.__cause__ = error
    return refusal


def _no_faults(_point: str) -> None:
    pass
