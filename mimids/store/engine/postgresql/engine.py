"""The engine for PostgreSQL, which several processes of one provider may use at the same time.

The file is a little long because locks, caches and lost answers all belong to the one session that writes.

Locks
    Each batch of writes takes advisory locks for its transaction. If all its works named what they lock, the batch
    takes these locks, and shares `WRITING_LOCK` with the other batches of this kind. Otherwise the batch takes
    `WRITING_LOCK` exclusively, so that it is the only transaction that writes, as in SQLite. A batch that fails beside
    others, because of a deadlock for example, is run again alone.

Caches
    Once it has its locks, a batch reads the generation of the rows that processes cache (`migrations.CACHED`). If
    another process has changed such rows, this process clears its caches before the batch runs. Such rows are changed
    only by transactions that run alone, so the generation stays the same until the batch is committed.

Lost answers
    If a COMMIT was cut off, it is unknown whether the write was kept. The caller of the write gets `StorageUnavailable`
    and tries again, which is safe because every write may be repeated.
"""

from __future__ import annotations

import json
import select
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

import outcome
import psycopg
import trio
from psycopg.pq import ExecStatus, TransactionStatus

from mimids.errors import StorageUnavailable
from mimids.store.engine import batch
from mimids.store.engine.batch import Faults
from mimids.store.engine.driver import Thread, open_threads
from mimids.store.engine.locks import Locks, numbers_of, united
from mimids.store.engine.postgresql.connection import (
    Statements,
    connect,
    is_conflict,
    is_damage,
    is_storage_failure,
    refusal,
)
from mimids.store.engine.postgresql.member import notify_all
from mimids.store.engine.postgresql.migrations import CACHED, SHARING
from mimids.store.engine.postgresql.read_ahead import ReadAhead
from mimids.store.engine.postgresql.rewriting import TokenRewriting
from mimids.store.engine.postgresql.watch import ServerWatch
from mimids.store.engine.queued_work import QueuedWork
from mimids.store.engine.read_queue import QueuedRead, answer_reads
from mimids.store.engine.store import AnswerBatch, Store
from mimids.store.engine.transaction import Tx, Work

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

T = TypeVar("T")
Answers: TypeAlias = list[outcome.Outcome[Any]]

WRITING_LOCK: Final = 0x6D696D696473  # advisory lock of the transaction that writes: "mimids"
COMMIT_SECONDS: Final = 10.0  # for COMMIT, which may wait for a standby
# One request. Each statement sees the commits before it began, so the generation is read after the locks are taken.
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT {}; SELECT generation FROM changes"
_ALONE: Final = f"pg_advisory_xact_lock({WRITING_LOCK})"
_BESIDE_OTHERS: Final = f"pg_advisory_xact_lock_shared({WRITING_LOCK}), set_config('{SHARING}', '1', true)"


class _CommitUnknown(Exception):
    """A COMMIT was cut off, or a standby did not confirm it, so a failover may undo it."""


# --- a server's connections -------------------------------------------------------------------------------------


@asynccontextmanager
async def open_store(
    url: str,
    *,
    readers: int = 4,
    faults: Faults | None = None,
    on_damage: Callable[[str], None] = lambda damage: None,
) -> AsyncIterator[Store]:
    """Open a migrated database; see `sqlite.open_store` for the parameters.

    Raises `psycopg.Error` if it cannot be reached.
    """
    token = trio.lowlevel.current_trio_token()

    def forget(tables: Collection[str]) -> None:  # on the writer's thread, which holds the lock
        trio.from_thread.run_sync(store.forget, tables, trio_token=token)

    watch = ServerWatch(url)
    write, read = partial(WriterSession, watch.connect, forget), partial(ReaderSession, watch)
    async with open_threads(write, *[read] * (readers + 1), expected=(psycopg.Error,)) as threads:
        apart, *others = [PostgresqlReader(thread) for thread in threads[1:]]
        writer = PostgresqlWriter(threads[0], faults or _no_faults, watch)
        store = Store(writer, others, apart=apart, on_damage=on_damage, reads_ahead=True)
        with watch.running():
            yield store


class PostgresqlWriter:
    """The session that writes, on its thread."""

    def __init__(self, thread: Thread[WriterSession], faults: Faults, watch: ServerWatch) -> None:
        self._thread = thread
        self.faults = faults
        self._watch = watch
        self._rewriting = TokenRewriting()

    def commit_soon(self, jobs: Sequence[QueuedWork], answer: AnswerBatch) -> None:
        """Run works in order, as `StoreWriter.commit_soon` says."""
        self._thread.run_soon(partial(self._commit, jobs), answer)

    def _commit(self, jobs: Sequence[QueuedWork], session: WriterSession) -> Answers:
        with self._watch.busy(lambda: session.connection.connection):
            return _commit(jobs, self.faults, session)

    async def truncate_log(self) -> bool:
        """Do nothing: PostgreSQL's log is kept and deleted by PostgreSQL."""
        return True

    async def separate_rows(self) -> None:
        """Rewrite the bearer tokens near those that were written lately; see `rewriting`."""
        while await self._thread.run(self._rewrite_block):
            pass

    def _rewrite_block(self, session: WriterSession) -> bool:
        with self._watch.busy(lambda: session.connection.connection):
            return cast("bool", batch.commit([self._rewriting.rewrite_block], _no_faults, session)[0].unwrap())


class PostgresqlReader:
    """One of the sessions that read, on its thread."""

    def __init__(self, thread: Thread[ReaderSession]) -> None:
        self._thread = thread

    def read_soon(self, first: QueuedRead, take_next: Callable[[], QueuedRead | None]) -> None:
        """Answer reads on the thread, as `StoreReader.read_soon` says."""
        self._thread.start_soon(lambda session: answer_reads(session.read, first, take_next))


# --- sessions ---------------------------------------------------------------------------------------------------


class WriterSession:
    """A connection that writes and runs transactions (`batch`); if it is lost, a new one is opened."""

    def __init__(self, connect: Callable[[], psycopg.Connection], forget: Callable[[Collection[str]], None]) -> None:
        """If caches may be out of date, `forget` is called in a transaction before its first work.

        The argument of `forget` is the tables whose rows have changed.
        """
        self._connect = connect
        self._forget = forget
        self._warning = ""
        self._generation = -1  # of the cached rows
        self._commit_sent = False  # since when it is unknown whether the transaction is kept
        self._commit_waits = False  # a COMMIT has no answer yet
        self._locks: Locks | None = None  # of the next transaction; None: it runs alone
        self._jobs: Sequence[QueuedWork] = ()  # the jobs whose works are committed beside others
        self._ahead: ReadAhead | None = None  # what these works read
        self._usual: set[str] = set()  # the tables to which such works write
        self._open()

    def _open(self) -> None:
        connection = self._connect()
        self._commit_waits = False
        connection.add_notice_handler(self._note_warning)
        self.connection = Statements(connection)

    def _note_warning(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warning = notice.message_primary or "a warning"

    @property
    def _session(self) -> psycopg.Connection:
        return self.connection.connection

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def commit_beside_others(self, jobs: Sequence[QueuedWork], locks: Locks, faults: Faults) -> Answers | None:
        """Commit works while other processes may commit works with other locks; None if they have to be run alone."""
        self._locks, self._jobs = locks, jobs
        try:
            works = [partial(self._run_ahead, index, job) for index, job in enumerate(jobs)]
            return batch.commit_beside_others(works, faults, self)
        except Exception as error:
            was_lost = self._session.closed and not self._commit_sent
            if self.refuses_batch(error) and not was_lost and not is_conflict(error):
                return [outcome.Error(self.refusal(error)) for _ in jobs]
            return None
        finally:
            self._locks, self._jobs = None, ()

    def _run_ahead(self, index: int, job: QueuedWork, tx: Tx) -> Any:
        if not index or self._ahead is None:
            self._ahead = ReadAhead(self.connection, self._jobs, self._usual)
        return self._ahead.run(index, job, tx)

    def begin(self) -> None:
        """Begin a transaction, alone or with its locks, on a new connection if the last one was lost."""
        if self._commit_waits and not self._session.closed:
            self._wait_for_last_commit()
        if self._session.closed:
            self._open()
        self._commit_sent = False
        self.connection.begin(is_shared=self._locks is not None)
        try:
            generation = _begin(self._session, self._locks)
            if generation != self._generation:
                self._forget(_changed_since(self._generation, self.connection))
                self._generation = generation
        except BaseException:
            self.undo()
            raise

    def commit(self) -> None:
        """End the transaction; raise if it is not certain that it is durable."""
        self.connection.send_all()
        self._warning = ""
        self._commit_sent = self._commit_waits = True
        self._session.pgconn.send_query(b"COMMIT")
        self._take_answer()
        if self._warning:  # a wait for a standby was cancelled: the rows are here, and a failover may lose them
            raise _CommitUnknown(self._warning)

    def _wait_for_last_commit(self) -> None:
        """Wait for the answer to the last COMMIT, which took too long; raise `_CommitUnknown` if none comes.

        Until a standby has confirmed it, PostgreSQL shows the transaction to nobody, and keeps its locks. So it must
        not be cancelled: others would read what a failover may lose. A second session would only wait for the locks.
        """
        try:
            self._take_answer()
        except psycopg.Error:
            self._session.close()  # the connection is lost, or the transaction has failed

    def _take_answer(self) -> None:
        """Take the answer to COMMIT; raise `_CommitUnknown` if none comes, and `psycopg.Error` if it has failed.

        `statement_timeout` does not end a COMMIT that waits for a standby.
        """
        if not _answered_within(self._session.pgconn, COMMIT_SECONDS):
            raise _CommitUnknown(f"COMMIT takes longer than {COMMIT_SECONDS:.0f} s")
        self._commit_waits = False
        _check_committed(self._session)

    def undo(self) -> None:
        """Roll back the transaction, or give up the connection if that fails."""
        with suppress(psycopg.Error):
            if not self._session.closed and self.is_open():
                self._session.execute("ROLLBACK")
            return
        self._session.close()

    def is_open(self) -> bool:
        """Tell whether a transaction is open; one that has failed is open until it is rolled back."""
        return self._session.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    def refusal(self, error: Exception) -> Exception:
        """Return the error that the caller is to see."""
        if isinstance(error, _CommitUnknown):
            refused = StorageUnavailable()
            refused.__cause__ = error
            return refused
        return refusal(error)

    def refuses_batch(self, error: Exception) -> bool:
        """Tell whether the whole batch must be refused, because the storage is unavailable."""
        return isinstance(error, _CommitUnknown) or is_storage_failure(error) or is_damage(error)

    def ends_writing(self, error: Exception) -> bool:
        """Tell whether nothing more must be written after this error."""
        return is_damage(error)


class ReaderSession:
    """A connection that reads; if it is lost, a new one is opened."""

    def __init__(self, watch: ServerWatch) -> None:
        self._watch = watch
        self._statements = Statements(watch.connect())

    def close(self) -> None:
        """Close the connection."""
        self._statements.connection.close()

    def read(self, work: Work[T]) -> outcome.Outcome[T]:
        """Run a work on a snapshot and return what it returned or raised."""
        try:
            if self._statements.connection.closed:
                self._statements = Statements(self._watch.connect())
            with self._watch.busy(lambda: self._statements.connection), _snapshot(self._statements) as tx:
                return outcome.Value(work(tx))
        except Exception as error:  # raised again at the caller of Store.read
            return outcome.Error(refusal(error))


# --- commands, without a server's threads -----------------------------------------------------------------------


@contextmanager
def read_here(url: str) -> Iterator[Tx]:
    """Give a command one snapshot of the database; raise `StorageUnavailable` if it cannot be reached."""
    try:
        with connect(url) as connection, _snapshot(Statements(connection)) as tx:
            yield tx
    except psycopg.Error as error:
        raise refusal(error) from error


def write_here(url: str, work: Work[T]) -> T:
    """Run work(tx) in one durable transaction, beside the servers that run on the database."""
    session = WriterSession(partial(connect, url), _no_caches)
    try:
        answer = cast("T", batch.commit([work], _no_faults, session)[0].unwrap())
        with suppress(psycopg.Error):  # the write is committed, and the processes read again once a minute
            notify_all(session.connection)
        return answer
    finally:
        session.close()


# --- on a connection's thread -----------------------------------------------------------------------------------


def _commit(jobs: Sequence[QueuedWork], faults: Faults, session: WriterSession) -> Answers:
    locks = united([job.locks for job in jobs])
    answers = None if locks is None else session.commit_beside_others(jobs, locks, faults)
    return batch.commit([job.work for job in jobs], faults, session) if answers is None else answers


def _begin(connection: psycopg.Connection, locks: Locks | None) -> int:
    """Begin a transaction once it has its locks (None: alone); return the generation of the cached rows."""
    taken = _ALONE
    if locks is not None:
        taken = ", ".join([_BESIDE_OTHERS, *(f"pg_advisory_xact_lock({number})" for number in numbers_of(locks))])
    result = connection.pgconn.exec_(_BEGIN.format(taken).encode())
    if connection.closed:
        raise psycopg.OperationalError("the connection is lost")
    if result.status != ExecStatus.TUPLES_OK:
        raise psycopg.errors.error_from_result(result)
    return int(result.get_value(0, 0) or 0)


def _changed_since(generation: int, statements: Statements) -> set[str]:
    """Return the tables whose rows changed after a generation; all that are cached if that is not recorded."""
    row = statements.execute("SELECT CAST(to_json(changes) AS text) FROM changes").fetchone()
    recorded = "{}" if row is None else json.loads(row[0]).get("by_table", "{}")  # no row: a move goes on
    by_table = json.loads(recorded) or dict.fromkeys(CACHED, generation + 1)
    return {table for table, changed_in in by_table.items() if changed_in > generation}


@contextmanager
def _snapshot(statements: Statements) -> Iterator[Tx]:
    connection = statements.connection
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        yield Tx(statements)
    finally:
        if not connection.closed:
            connection.execute("ROLLBACK")


def _check_committed(connection: psycopg.Connection) -> None:
    """Read the answer to COMMIT; raise a `psycopg.Error` if the transaction had failed."""
    pgconn = connection.pgconn
    result = pgconn.get_result()
    while pgconn.get_result() is not None:
        pass
    if result is None:
        connection.close()
        raise _CommitUnknown("COMMIT has no answer")
    if result.status != ExecStatus.COMMAND_OK:
        raise psycopg.errors.error_from_result(result)
    if result.command_status != b"COMMIT":
        raise psycopg.errors.InFailedSqlTransaction("a statement of the transaction had failed")


def _answered_within(pgconn: PGconn, seconds: float) -> bool:
    give_up_at = time.monotonic() + seconds
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    while True:
        unsent = pgconn.flush()
        poll.poll(1 if unsent else max(0.0, give_up_at - time.monotonic()) * 1000)
        pgconn.consume_input()
        if not pgconn.is_busy():
            return True
        if time.monotonic() >= give_up_at:
            return False


def _no_faults(_point: str) -> None:
    pass


def _no_caches(_tables: Collection[str]) -> None:
    pass
