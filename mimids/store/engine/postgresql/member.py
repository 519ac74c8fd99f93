"""Notifications between a provider's processes through PostgreSQL, and the choice of the process that runs the jobs.

Each process has two connections for this. One sends notifications and holds the lock of the jobs if no other process
does; the other listens. Notifications are sent in separate statements after the commit, because a NOTIFY within a
transaction makes its commit wait for all other commits with a NOTIFY.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Final, TypeVar

import psycopg
import trio

from mimids.errors import StorageUnavailable
from mimids.store.engine.member import FROZEN_SECONDS, Heard
from mimids.store.engine.postgresql.connection import Statements, connect, refusal
from mimids.store.engine.postgresql.migrations import CHANGED
from mimids.store.engine.postgresql.watch import ServerWatch, shut_down

T = TypeVar("T")

JOBS_LOCK: Final = 0x6D696D69646A  # advisory lock of the session of the process that runs the jobs
NOTIFIED: Final = "mimids_notified"  # the channel for topics
ALIVE: Final = "mimids_alive"  # the channel for signs of life: the name of a process and the number of the sign
LEAVE_SECONDS: Final = 2.0
_MOST_UNHEARD: Final = 100  # signs of life whose times are remembered
_END_MILLISECONDS: Final = 1000  # the longest wait for the end of a session
_FROZEN_MILLISECONDS: Final = int(FROZEN_SECONDS * 1000)
_NOW: Final = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
_IS_FROZEN: Final = f"seen_at < {_NOW} - ?"
_IS_JOBS_LOCK: Final = (
    "locktype = 'advisory' AND granted AND (classid::bigint << 32) + objid::bigint = ?"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


class PostgresqlMember:
    """One of the processes that serve the provider."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._watch = ServerWatch(url)
        self._name = name
        self._speaking: Statements | None = None
        self._session = 0  # the number of the session of `_speaking`
        self._jobs_session: Statements | None = None  # the session that has the lock of the jobs, as far as is known
        self._turn = trio.Lock()  # one call uses `_speaking` at a time
        self._listening: psycopg.Connection | None = None
        self._signs = 0  # how many signs of life this process has sent
        self._unheard: dict[int, float] = {}  # when each sign that has not come back yet was sent
        self._last_lag = 0.0

    def lag_seconds(self) -> float:
        """Return how long the last sign of life took to come back to this process, or how long it has been on its way.

        Other notifications take as long to reach this process.
        """
        oldest = next(iter(self._unheard.values()), None)
        return self._last_lag if oldest is None else max(self._last_lag, time.monotonic() - oldest)

    async def note_alive(self) -> bool:
        """Record that this process is alive; return whether it must run the jobs. Raises `StorageUnavailable`."""
        lag = int(self.lag_seconds() * 1000)
        self._signs += 1
        if len(self._unheard) < _MOST_UNHEARD:
            self._unheard[self._signs] = time.monotonic()
        before, self._jobs_session = self._jobs_session, None
        runs_jobs = await self._speak(partial(_note_alive, self._name, lag, self._signs))
        self._jobs_session = self._speaking if runs_jobs else None
        # If the session with the lock was lost since the last call, another process may have run the jobs meanwhile. So
        # return False in this call: the jobs of this process stop, and start again after the next call.
        return runs_jobs and (before is None or before is self._speaking)

    def _hear_sign(self, sign: str) -> str:
        """Take in a sign of life; return the name of the process that sent it."""
        name, _, number = sign.rpartition(" ")
        if name == self._name and (sent_at := self._unheard.get(int(number))) is not None:
            self._last_lag = time.monotonic() - sent_at
            self._unheard = {each: at for each, at in self._unheard.items() if each > int(number)}
        return name

    async def notify(self, payloads: Sequence[str]) -> None:
        """Send notifications to the other processes; raise `StorageUnavailable`."""
        await self._speak(partial(_notify, payloads))

    async def leave(self) -> None:
        """Record that this process has stopped serving, so that another one can run the jobs."""
        with suppress(psycopg.Error), trio.move_on_after(LEAVE_SECONDS, shield=True):
            await trio.to_thread.run_sync(self._run, partial(_leave, self._name), abandon_on_cancel=True)

    async def wait_heard(self) -> Heard:
        """Wait for notifications of other processes; raise `StorageUnavailable`.

        If the connection is new, the call returns at once and says that notifications may have been missed.
        """
        if self._listening is None or self._listening.closed:
            self._listening = await _in_thread(partial(_listen, self._url))
            return Heard(missed=True)
        pgconn = self._listening.pgconn
        changed: set[str] = set()
        alive: set[str] = set()
        payloads: list[str] = []
        while not changed and not payloads and not alive - {self._name}:
            await trio.lowlevel.wait_readable(pgconn.socket)
            try:
                pgconn.consume_input()
            except psycopg.Error as error:
                self._listening.close()
                raise StorageUnavailable from error
            while (heard := pgconn.notifies()) is not None:
                if heard.relname == CHANGED.encode():
                    changed.add(heard.extra.decode())
                elif heard.relname == ALIVE.encode():
                    alive.add(self._hear_sign(heard.extra.decode()))
                elif heard.be_pid != self._session:
                    payloads.append(heard.extra.decode())
        return Heard(frozenset(changed), tuple(payloads), alive=frozenset(alive - {self._name}))

    def watched(self) -> AbstractContextManager[None]:
        """Within the block, end waits for a server that does not answer."""
        return self._watch.running()

    def close(self) -> None:
        """Close the connections."""
        if self._listening is not None:
            self._listening.close()
        if self._speaking is not None:
            self._speaking.connection.close()

    async def _speak(self, work: Callable[[Statements], T]) -> T:
        async with self._turn:
            return await _in_thread(partial(self._run, work))

    def _run(self, work: Callable[[Statements], T]) -> T:
        try:
            if self._speaking is None or self._speaking.connection.closed:
                self._speaking = speaking = Statements(connect(self._url))
                speaking.execute("SET synchronous_commit = 'local'")  # no standby needs the signs of life
                self._session = speaking.connection.info.backend_pid
            speaking = self._speaking
            with self._watch.busy(lambda: speaking.connection):
                return work(speaking)
        except psycopg.Error:
            if self._speaking is not None:
                self._speaking.connection.close()  # this also releases the lock of the jobs
            if self._listening is not None:
                shut_down(self._listening)  # this connection may be cut off too, without noticing
            raise


@asynccontextmanager
async def join(url: str, name: str) -> AsyncIterator[PostgresqlMember]:
    """Make this process a member for the block, under a name that no other process has."""
    member = PostgresqlMember(url, name)
    with member.watched():
        try:
            yield member
        finally:
            await member.leave()
            member.close()


def notify_all(statements: Statements) -> None:
    """Make all processes read all their caches again, after a command that ran outside of them."""
    _notify([""], statements)


async def _in_thread(work: Callable[[], T]) -> T:
    try:
        return await trio.to_thread.run_sync(work)
    except psycopg.Error as error:
        raise StorageUnavailable from refusal(error)


def _listen(url: str) -> psycopg.Connection:
    connection = connect(url)
    for channel in (CHANGED, ALIVE, NOTIFIED):
        connection.execute(f"LISTEN {channel}".encode())
    return connection


def _note_alive(name: str, lag_ms: int, sign: int, statements: Statements) -> bool:
    runs_jobs = _has_lock(statements) or _take_lock(statements) or (_end_frozen(statements) and _take_lock(statements))
    if runs_jobs:  # another process that had the jobs has ended, or was cut off
        statements.execute("DELETE FROM processes WHERE runs_jobs = 1 AND name <> ?", (name,))
    # A process that froze, or was cut off, writes its row again when it comes back.
    statements.execute(
        f"INSERT INTO processes (name, since, seen_at, runs_jobs, lag_ms) VALUES (?, {_NOW}, {_NOW}, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at, runs_jobs = excluded.runs_jobs,"
        " lag_ms = excluded.lag_ms",
        (name, runs_jobs, lag_ms),
    )
    statements.execute(f"DELETE FROM processes WHERE {_IS_FROZEN}", (_FROZEN_MILLISECONDS,))
    statements.execute("SELECT pg_notify(?, ?)", (ALIVE, f"{name} {sign}"))
    return runs_jobs


def _has_lock(statements: Statements) -> bool:
    query = f"SELECT 1 FROM pg_locks WHERE {_IS_JOBS_LOCK} AND pid = pg_backend_pid()"
    return statements.execute(query, (JOBS_LOCK,)).fetchone() is not None


def _take_lock(statements: Statements) -> bool:
    """Take the lock of the jobs for the session if no session has it; return whether this session has it now."""
    return bool(statements.execute("SELECT pg_try_advisory_lock(?)", (JOBS_LOCK,)).fetchone()[0])


def _end_frozen(statements: Statements) -> bool:
    """If the process that runs the jobs is frozen, end its session; return whether it was frozen."""
    query = f"SELECT 1 FROM processes WHERE runs_jobs = 1 AND {_IS_FROZEN}"
    if statements.execute(query, (_FROZEN_MILLISECONDS,)).fetchone() is None:
        return False
    end = f"SELECT pg_terminate_backend(pid, {_END_MILLISECONDS}) FROM pg_locks WHERE {_IS_JOBS_LOCK}"
    statements.execute(end, (JOBS_LOCK,)).fetchall()
    return True


def _notify(payloads: Sequence[str], statements: Statements) -> None:
    statements.execute("SELECT pg_notify(?, payload) FROM unnest(CAST(? AS text[])) payload", (NOTIFIED, [*payloads]))


def _leave(name: str, statements: Statements) -> None:
    statements.execute("DELETE FROM processes WHERE name = ?", (name,))
    notify_all(statements)  # the last notifications
    statements.execute("SELECT pg_advisory_unlock_all()")
