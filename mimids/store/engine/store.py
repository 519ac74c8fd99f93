"""The database: one writer that commits in groups, readers beside it, and what commands use without either.

A message is acknowledged only after the commit that holds it is on the disk (`synchronous=FULL`). What waits for the
writer is committed as one transaction, so the price of one fdatasync is shared by all of it.

Each connection lives on a thread of its own (store/engine/driver.py), to which a whole batch or a whole snapshot is
handed as
one function of the plain `sqlite3` connection.

SQLite 3.7.0 to 3.51.2 can corrupt a WAL file when two connections checkpoint and one of them resets it. So only the
writer checkpoints: all others open with `mode=ro`, or hold the lock of store/engine/lock.py, which a running server
holds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import attrs
import outcome
import trio

from mimids.errors import MimiError, ShuttingDown, StorageUnavailable

if TYPE_CHECKING:
    from mimids.store.engine.driver import Thread

T = TypeVar("T")
Row = tuple[Any, ...]
Faults = Callable[[str], None]
Synchronous = Literal["FULL", "NORMAL"]

WAITING_WRITES = 256  # jobs between `write` and the writer; then `write` waits for room
BATCH_JOBS = 512  # jobs in one transaction: those waiting, and the senders that waited for room
GATHERING_PASSES = 4  # of the event loop, where fewer wait than were committed last: what has arrived comes along
BUSY_TIMEOUT_MILLISECONDS = 5000  # only another process can hold the write lock, and none should for long
CACHED_STATEMENTS = 512  # more than there are statements in store/, so that none is ever parsed twice
WRITER_CACHE_KIBIBYTES = 16 * 1024  # a third more commits than with 2 MiB where a file is much larger than either
PAGE_OCTETS = 8192  # seven messages of 1 KiB to a page; 4096 octets hold three, and a batch of them costs a fifth more
WAL_SIZE_LIMIT_OCTETS = 64 * 1024 * 1024  # what a burst may leave behind of the WAL file

# Primary result codes that say the disk, not the request, is at fault. SQLITE_BUSY: another process writes.
_STORAGE_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN})


class Tx:
    """A transaction, as its work sees it: statements with their parameters, rows as tuples.

    It belongs to one thread and to one call of the work; keeping it longer is an error.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run one statement and return how many rows it changed."""
        return self._connection.execute(sql, cast("Any", params)).rowcount

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what the block wrote if it raises, and raise on."""
        self._connection.execute("SAVEPOINT work")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK TO work")
            self._connection.execute("RELEASE work")
            raise
        self._connection.execute("RELEASE work")

    def insert(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run an INSERT of one row and return its rowid; meaningless where ON CONFLICT made it none."""
        return cast("int", self._connection.execute(sql, cast("Any", params)).lastrowid)

    def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of parameters."""
        self._connection.executemany(sql, cast("Any", rows))

    def one(self, sql: str, params: Sequence[object] = ()) -> Row | None:
        """Return the first row, or None."""
        return cast("Row | None", self._connection.execute(sql, cast("Any", params)).fetchone())

    def all(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        """Return all rows; whoever asks bounds them with LIMIT."""
        return self._connection.execute(sql, cast("Any", params)).fetchall()


@attrs.frozen
class StoreStatistics:
    """What the store has done since it was opened, and what waits for it."""

    waiting_writes: int
    waiting_reads: int
    writes: int  # works committed or refused by themselves
    commits: int  # batches
    reads: int
    storage_failures: int  # writes answered StorageUnavailable
    writable: bool  # the last batch met no failing disk


@attrs.define(eq=False)
class _Job:
    work: Callable[[Tx], Any]
    done: trio.Event = attrs.field(factory=trio.Event)
    answer: outcome.Outcome[Any] | None = None

    def settle(self, answer: outcome.Outcome[Any]) -> None:
        self.answer = answer
        self.done.set()


class Store:
    """The writer's queue and the readers of one database file, made by `open_store`; `run` does the writing."""

    def __init__(self, writer: Thread, readers: Sequence[Thread], faults: Faults) -> None:
        self._writer = writer
        self._faults = faults
        self._arrivals, self._waiting = trio.open_memory_channel[_Job](WAITING_WRITES)
        self._give_back: trio.MemorySendChannel[Thread]
        self._idle: trio.MemoryReceiveChannel[Thread]
        self._give_back, self._idle = trio.open_memory_channel(len(readers))
        for reader in readers:
            self._give_back.send_nowait(reader)
        self._writes = self._commits = self._reads = self._storage_failures = 0
        self._writable = True

    async def write(self, work: Callable[[Tx], T]) -> T:
        """Run work(tx) within the writer's next commit; return what it returns once that is durable.

        Whole or not at all, in order of arrival; what it raises is raised here, and nothing of it remains. It runs on
        the writer's thread and must not wait or call out. It must be a function of tx and of values that do not
        change: after a failure in its batch it is undone and run again, up to twice, and only the last run counts.
        A caller cancelled meanwhile does not recall it, so every write is one that may be asked for twice. Waits
        while WAITING_WRITES others wait. Raises StorageUnavailable when the disk takes nothing (nothing of it
        remains, unless the machine dies while a failing disk holds half of it), and ShuttingDown at the end.
        """
        job = _Job(work)
        try:
            await self._arrivals.send(job)
        except trio.BrokenResourceError:
            raise ShuttingDown from None
        await job.done.wait()
        return cast("T", cast("outcome.Outcome[Any]", job.answer).unwrap())

    async def write_shielded(self, work: Callable[[Tx], T]) -> T:
        """Write as `write` does, and wait for the answer even if the caller is cancelled.

        For writes that must be followed by a notification: a handler is cancelled when its client hangs up.
        """
        with trio.CancelScope(shield=True):
            return await self.write(work)
        raise AssertionError("nobody cancels this scope")

    async def write_or_refuse(self, work: Callable[[Tx], T | MimiError]) -> T:
        """Write as `write_shielded` does, and raise the refusal that `work` returns.

        A work returns its refusal and does not raise it: an exception undoes the whole batch, and every work in it
        runs again under a savepoint of its own. A work that returns a refusal has written nothing, or only what may
        stay. `refusable` turns a work that raises into one that returns.
        """
        answer = await self.write_shielded(work)
        if isinstance(answer, MimiError):
            raise answer
        return answer

    async def read(self, work: Callable[[Tx], T]) -> T:
        """Run work(tx) on a snapshot, beside the writer; return what it returns.

        Everything that `write` has acknowledged is in it. A caller cancelled meanwhile still waits for the work, so
        it reads in pages. Raises StorageUnavailable when the disk cannot be read.
        """
        reader = await self._idle.receive()
        try:
            answer = await reader.run(partial(_snapshot, work))
        finally:
            self._give_back.send_nowait(reader)
        self._reads += 1
        return answer.unwrap()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit what waits, batch after batch, until cancelled.

        A batch that has begun is finished and answered first; what still waits then is refused with ShuttingDown.
        """
        task_status.started()
        batch: list[_Job] = []
        try:
            async for job in self._waiting:
                jobs, batch = len(batch), [job]
                if 1 + self._arrivals.statistics().current_buffer_used < jobs:
                    for _ in range(GATHERING_PASSES):
                        await trio.lowlevel.checkpoint()
                batch += islice(self._waiting_nowait(), BATCH_JOBS - 1)
                answers = await self._writer.run(partial(_commit, [job.work for job in batch], self._faults))
                self._count(answers)
                for job, answer in zip(batch, answers, strict=True):
                    job.settle(answer)
        finally:
            for job in [*batch, *self._waiting_nowait()]:
                if job.answer is None:
                    job.settle(outcome.Error(ShuttingDown()))
            self._waiting.close()

    def statistics(self) -> StoreStatistics:
        """Return the counts so far."""
        arrivals = self._arrivals.statistics()
        return StoreStatistics(
            waiting_writes=arrivals.current_buffer_used + arrivals.tasks_waiting_send,
            waiting_reads=self._idle.statistics().tasks_waiting_receive,
            writes=self._writes,
            commits=self._commits,
            reads=self._reads,
            storage_failures=self._storage_failures,
            writable=self._writable,
        )

    def _waiting_nowait(self) -> Iterator[_Job]:
        with suppress(trio.WouldBlock):
            while True:
                yield self._waiting.receive_nowait()

    def _count(self, answers: Sequence[outcome.Outcome[Any]]) -> None:
        failures = sum(isinstance(a, outcome.Error) and isinstance(a.error, StorageUnavailable) for a in answers)
        self._writes += len(answers)
        self._commits += 1
        self._storage_failures += failures
        self._writable = not failures


def refusable(work: Callable[[Tx], T]) -> Callable[[Tx], T | MimiError]:
    """Return a work that returns the refusal that `work` raises, with nothing of `work` written.

    It takes a savepoint, which costs about as much as one more statement: for writes that are rare, such as commands.
    """

    def run(tx: Tx) -> T | MimiError:
        try:
            with tx.savepoint():
                return work(tx)
        except MimiError as refusal:
            return refusal

    return run


@asynccontextmanager
async def open_store(
    path: Path,
    *,
    readers: int = 2,
    synchronous: Synchronous = "FULL",
    faults: Faults | None = None,
) -> AsyncIterator[Store]:
    """Open a migrated database; `Store.run` is to be started in a nursery inside, and ended before the block is.

    `faults` is called on the writer's thread with "before_commit" and "after_commit"; tests stop or fail there.
    Closing takes at most driver.CLOSE_SECONDS, cancelled or not; a thread that hangs does not hold the process.
    """
    from mimids.store.engine.driver import open_threads

    write = partial(connect, path, synchronous=synchronous)
    read = partial(connect_to_read, path)
    async with open_threads(write, *[read] * readers) as threads:  # closed last, the writer alone takes the WAL down
        yield Store(threads[0], threads[1:], faults or _no_faults)


@contextmanager
def read_here(path: Path) -> Iterator[Tx]:
    """Give one snapshot of the database to a command; any number may read beside a running server."""
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


def write_here(path: Path, work: Callable[[Tx], T]) -> T:
    """Run work(tx) in one durable transaction; for a command that holds the lock of `store/engine/lock.py`."""
    connection = connect(path)
    try:
        return cast("T", _commit([work], _no_faults, connection)[0].unwrap())
    finally:
        connection.close()


def connect(path: Path, *, synchronous: Synchronous = "FULL", create: bool = False) -> sqlite3.Connection:
    """Open the connection that writes; the caller is the only one, by the lock or as the store's writer."""
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
        isolation_level=None,  # the driver begins nothing by itself
        cached_statements=CACHED_STATEMENTS,
    )
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MILLISECONDS}")
    connection.execute("PRAGMA temp_store=MEMORY")  # sorting goes on while the disk is full
    return connection


# --- on the connections' threads --------------------------------------------------------------------------------


def _commit(
    works: Sequence[Callable[[Tx], Any]], faults: Faults, connection: sqlite3.Connection
) -> list[outcome.Outcome[Any]]:
    """Run works in order and return their answers once all that succeeded is durable.

    Nearly always nothing raises: so first all together, without the price of a savepoint each. Then, if one raised,
    each under its savepoint. Then, if the transaction itself failed (no room for one of them, a deferred constraint),
    each in its own, so that one that cannot be kept does not take the others with it.
    """
    answers = _settle(works, faults, connection)
    faults("after_commit")
    return answers


def _settle(
    works: Sequence[Callable[[Tx], Any]], faults: Faults, connection: sqlite3.Connection
) -> list[outcome.Outcome[Any]]:
    for attempt in (_run, _run_under_savepoint) if len(works) > 1 else ():
        try:
            return _transact(works, attempt, faults, connection)
        except Exception as error:  # raised again below, where it is known whose it is
            if _code(error) == sqlite3.SQLITE_BUSY:  # each of them would wait just as long
                return [outcome.Error(_refusal(error)) for _ in works]
    answers: list[outcome.Outcome[Any]] = []
    for work in works:
        try:
            answers += _transact([work], _run, faults, connection)
        except Exception as error:
            answers.append(outcome.Error(_refusal(error)))
    return answers


def _transact(
    works: Sequence[Callable[[Tx], Any]],
    attempt: Callable[[Callable[[Tx], Any], sqlite3.Connection], outcome.Outcome[Any]],
    faults: Faults,
    connection: sqlite3.Connection,
) -> list[outcome.Outcome[Any]]:
    """Run works in one transaction; when this raises, nothing of it remains."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        answers = [attempt(work, connection) for work in works]
        faults("before_commit")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite undoes it by itself for some failures of the disk
            connection.execute("ROLLBACK")
        raise
    return answers


def _run(work: Callable[[Tx], Any], connection: sqlite3.Connection) -> outcome.Outcome[Any]:
    answer = outcome.Value(work(Tx(connection)))
    _check_open(connection)
    return answer


def _run_under_savepoint(work: Callable[[Tx], Any], connection: sqlite3.Connection) -> outcome.Outcome[Any]:
    connection.execute("SAVEPOINT work")
    try:
        answer: outcome.Outcome[Any] = outcome.Value(work(Tx(connection)))
    except Exception as error:  # it is the caller's
        _check_open(connection)
        connection.execute("ROLLBACK TO work")
        answer = outcome.Error(_refusal(error))
    _check_open(connection)
    connection.execute("RELEASE work")
    return answer


def _check_open(connection: sqlite3.Connection) -> None:
    """Stop where the transaction has ended under us: what follows would be committed statement by statement."""
    if not connection.in_transaction:
        raise sqlite3.OperationalError("the transaction ended before its commit")


def _snapshot(work: Callable[[Tx], T], connection: sqlite3.Connection) -> outcome.Outcome[T]:
    try:
        connection.execute("BEGIN")
        try:
            return outcome.Value(work(Tx(connection)))
        finally:
            connection.execute("ROLLBACK")
    except Exception as error:  # it is the caller's
        return outcome.Error(_refusal(error))


def _code(error: BaseException) -> int:
    """Return the primary result code of SQLite, 0 for what is not SQLite's."""
    return cast("int", getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _refusal(error: Exception) -> Exception:
    """Return what the caller is to see of it: a failing disk becomes StorageUnavailable, all else stays."""
    if _code(error) not in _STORAGE_CODES:
        return error
    refusal = StorageUnavailable()
    refusal.__cause__ = error
    return refusal


def _no_faults(_point: str) -> None:
    pass
