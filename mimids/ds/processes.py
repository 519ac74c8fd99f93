"""The processes of one provider on PostgreSQL: the notifications between them, and which process runs the jobs.

Caches
    The database tells all processes when a row of a cached table changes. Each process clears its caches of that table,
    and reads the rows again that it must always have in memory. A process that may have missed a notification does this
    for all tables.

Notifications
    A notification in this process is also sent to the other processes (`SharedNotifier`), so that their streams and
    waiting requests get the new rows.

Limits
    Each process tells the others how many streams devices have open here, and which tokens they have taken
    (`ds/devices/streams_elsewhere.py`, `ds/limits/shared_rates.py`).

Jobs
    One process runs the jobs that must run once, such as delivery. When this process ends or is cut off, another one
    takes over within seconds. For a moment both may run a job. Each job allows this, because its actions are
    idempotent.

A provider in SQLite has one process, which runs all jobs and notifies no other process.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Final, Protocol

import attrs
import trio

from mimids.ds.notifier import EVERYTHING, TELL_OPEN, Notifier, SharedNotifier
from mimids.errors import StorageUnavailable
from mimids.store.engine.member import FROZEN_SECONDS, Heard, Member
from mimids.store.engine.store import Store
from mimids.wire.ids import MaskedPartitionKey

ALIVE_SECONDS: Final = 2.0  # between two signs of life; after a process ends, its jobs may stop for this long
RETRY_SECONDS: Final = 0.5  # after the database could not be reached
READ_SECONDS: Final = 0.25  # between two times that changed tables are read: a device can change them often
PAYLOAD_OCTETS: Final = 7900  # of a notification; PostgreSQL limits it to 8,000
SHARE_SECONDS: Final = 1.0  # between two times that other processes are told what was taken from shared rates

MOST_ROWS: Final = 1000  # rows of a table, at most, that are read again one by one

Hear = Callable[..., None]
ReadAgain = Callable[[frozenset[int] | None], Awaitable[None]]
Join = Callable[[str], AbstractAsyncContextManager[Member]]


def new_name() -> str:
    """Return a name for this process, by which an operator finds the process."""
    return f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(2)}"


@attrs.frozen
class ProcessStatistics:
    """Whether this process runs the jobs that run in one process, and what it knows of the other processes."""

    runs_jobs: int
    lag_milliseconds: int  # how far this process is behind in hearing the others
    alive: int  # processes, with this one


class Processes:
    """This process among those of its provider; `run` is the job."""

    def __init__(self, store: Store, notifier: Notifier, join: Join | None) -> None:
        """`join` makes this process a member, given its name; it is None if the provider has one process."""
        self.name = new_name()
        self._store = store
        self._notifier = notifier
        self._shared = notifier if isinstance(notifier, SharedNotifier) else None
        self._join = join
        self._hear: Mapping[str, Hear] = {}
        self._due: Callable[[], Iterable[Hashable]] = tuple
        self._ended: Callable[[Collection[str]], None] = lambda alive: None
        self._member: Member | None = None
        self._alive: dict[str, float] = {}  # the other processes, and when each gave its last sign of life
        self._read_again: Mapping[str, ReadAgain] = {}
        self._unread: dict[str, frozenset[int] | None] = {}  # tables, and which rows
        self._has_unread = trio.Event()
        self._has_jobs = trio.Event()
        self._running: set[trio.CancelScope] = set()  # jobs that end when another process runs them
        if join is None:
            self._has_jobs.set()

    def watch(
        self,
        read_again: Mapping[str, ReadAgain],
        hear: Mapping[str, Hear],
        due: Callable[[], Iterable[Hashable]],
        ended: Callable[[Collection[str]], None],
    ) -> None:
        """Call `read_again[table]` after rows of a table changed: with these rows, or None if any may have changed.

        Call `hear[kind]` with the rest of each topic of this kind that another process has sent. Send the topics that
        `due` returns, each second. Call `ended` with the names of the other processes after some of them ended.
        """
        self._read_again, self._hear, self._due, self._ended = read_again, hear, due, ended

    def runs_jobs(self) -> bool:
        """Tell whether this process runs the jobs that run in one process."""
        return self._has_jobs.is_set()

    def statistics(self) -> ProcessStatistics:
        """Return the present state."""
        lag = 0.0 if self._member is None else self._member.lag_seconds()
        return ProcessStatistics(int(self.runs_jobs()), int(lag * 1000), 1 + len(self._alive))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be one of the processes until cancelled; report ready once it is known which process runs the jobs."""
        if self._join is None or self._shared is None:
            task_status.started()
            await trio.sleep_forever()
            return
        async with self._join(self.name) as self._member:
            member = self._member
            await self._note_alive(member)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell, member, self._shared)
                nursery.start_soon(self._read)
                nursery.start_soon(self._share, self._shared)
                await nursery.start(self._listen, member)
                task_status.started()
                while True:
                    await trio.sleep(ALIVE_SECONDS)
                    await self._note_alive(member)
                    self._forget_ended()
                    self._shared.tell_calls()

    async def run_in_one_process(
        self, job: _LongRunning, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run a job while this process runs the jobs; report ready once the job runs here or another process has it."""
        once = StartedOnce(task_status)
        if not self.runs_jobs():
            once.started()
        while True:
            await self._has_jobs.wait()
            with trio.CancelScope() as scope, self._until_lost(scope):
                await job(task_status=once)
            if not scope.cancelled_caught:
                return
            once.started()

    @contextmanager
    def _until_lost(self, scope: trio.CancelScope) -> Iterator[None]:
        self._running.add(scope)
        try:
            yield
        finally:
            self._running.discard(scope)

    # --- which process runs the jobs ----------------------------------------------------------------------------

    async def _note_alive(self, member: Member) -> None:
        try:
            has_jobs = await member.note_alive()
        except StorageUnavailable:
            has_jobs = False  # this closes the connection and so releases the lock
        if has_jobs and not self.runs_jobs():
            self._has_jobs.set()
            self._notifier.notify_all_here()
        elif not has_jobs and self.runs_jobs():
            self._has_jobs = trio.Event()
            for scope in self._running:
                scope.cancel(reason="another process runs the jobs")

    # --- what processes tell each other -------------------------------------------------------------------------

    async def _tell(self, member: Member, notifier: SharedNotifier) -> None:
        """Repeatedly notify the other processes of all topics collected so far, in one step."""
        while True:
            topics = await notifier.wait_for_others()
            if self.runs_jobs() and EVERYTHING not in topics and all(isinstance(topic, str) for topic in topics):
                continue  # these topics wake jobs, which run in this process only
            try:
                await member.notify(list(payloads_of(topics)))
            except StorageUnavailable:
                await trio.sleep(RETRY_SECONDS)
                notifier.for_others(EVERYTHING)

    async def _share(self, notifier: SharedNotifier) -> None:
        """Each second, tell the other processes what was taken from shared rates."""
        while True:
            await trio.sleep(SHARE_SECONDS)
            notifier.for_others(*self._due())

    def _forget_ended(self) -> None:
        """Forget the processes that gave no sign of life for long."""
        now = trio.current_time()
        alive = {name: at for name, at in self._alive.items() if now - at < FROZEN_SECONDS}
        if len(alive) < len(self._alive):
            self._alive = alive
            self._ended(alive)

    async def _listen(self, member: Member, *, task_status: trio.TaskStatus[None]) -> None:
        once = StartedOnce(task_status)
        while True:
            try:
                heard = await member.wait_heard()
            except StorageUnavailable:
                self._store.forget_all()  # this process is not told of changes now, so it must ask the database
                await trio.sleep(RETRY_SECONDS)
                continue
            self._take_in(heard)
            once.started()

    async def _read(self) -> None:
        """Read the changed tables again; streams are notified even while the database takes no writes."""
        while True:
            await self._has_unread.wait()
            self._has_unread = trio.Event()
            unread, self._unread = self._unread, {}
            for table, rows in unread.items():
                try:
                    await self._read_again[table](rows)
                except StorageUnavailable:
                    self._add_unread(table, rows)
                    await trio.sleep(RETRY_SECONDS)
            await trio.sleep(READ_SECONDS)

    def _take_in(self, heard: Heard) -> None:
        """Clear the caches, notify, and remember which rows must be read again."""
        changes = [change.partition(" ") for change in heard.changed]
        self._alive |= dict.fromkeys(heard.alive, trio.current_time())
        if heard.missed:
            self._store.forget_all()
        elif changes:
            self._store.forget({table for table, _, _ in changes})
        for payload in heard.payloads:
            for topic in topics_in(payload):
                self._notify_here(topic)
        if heard.missed:
            self._notifier.notify_all_here()
            self._ended(())  # what the others have told before may be out of date
            if self._shared is not None:
                self._shared.for_others((TELL_OPEN,))
            changes = [(table, "", "") for table in self._read_again]
        for table, _, row in changes:
            if table in self._read_again:
                self._add_unread(table, frozenset([int(row)]) if row else None)

    def _add_unread(self, table: str, rows: frozenset[int] | None) -> None:
        others = self._unread.get(table, frozenset())
        every = None if rows is None or others is None else rows | others
        self._unread[table] = None if every is None or len(every) > MOST_ROWS else every
        self._has_unread.set()

    def _notify_here(self, topic: Hashable) -> None:
        match topic:
            case (str() as kind, *values) if kind in self._hear:
                self._hear[kind](*values)
            case "everything":
                self._notifier.notify_all_here()
            case _:
                self._notifier.notify_here(topic)


class _LongRunning(Protocol):
    def __call__(self, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]: ...


class StartedOnce:
    """A task status whose `started` may be called more than once."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self._status = status
        self.is_started = False

    def started(self, value: None = None) -> None:
        """Report that the task has started, unless this was reported before."""
        if not self.is_started:
            self.is_started = True
            self._status.started(value)


def payloads_of(topics: Iterable[Hashable]) -> Iterator[str]:
    """Yield notifications that name these topics."""
    found = sorted(topics, key=repr)
    if EVERYTHING in found:
        yield ""
        return
    payload, octets = list[str](), 0
    for each in (json.dumps(_as_json(topic)) for topic in found):
        octets += len(each) + 1
        if octets >= PAYLOAD_OCTETS:
            yield f"[{','.join(payload)}]"
            payload, octets = [], len(each) + 1
        payload.append(each)
    if payload:
        yield f"[{','.join(payload)}]"


def _as_json(topic: Hashable) -> object:
    match topic:
        case ("partition", bytes() as key):
            return ["partition", key.hex()]
        case _:
            return topic


def topics_in(payload: str) -> list[Hashable]:
    """Return the topics that a notification names."""
    if not payload:
        return [EVERYTHING]
    found: list[Hashable] = []
    for each in json.loads(payload):
        match each:
            case ["partition", str() as key]:
                found.append(("partition", MaskedPartitionKey(bytes.fromhex(key))))
            case [str() as kind, *values]:
                found.append((kind, *values))
            case _:
                found.append(each)
    return found
