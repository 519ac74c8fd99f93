"""The store: a queue of writes that one writer commits in batches, and readers beside it.

The file is a little long because writes and batches share the queue and its counts.

A *work* is a function that runs in one transaction: it gets the transaction and returns a value. The store does not
depend on SQLite. Its writer and its readers are connections that `sqlite.open_store` makes. Each connection runs on a
thread of its own. One call to the thread runs a whole batch, or a whole work on a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol, TypeVar, cast

import attrs
import outcome
import trio

from mimids.errors import MimiError, ShuttingDown, StorageUnavailable
from mimids.store.engine.locks import Locks
from mimids.store.engine.queued_work import QueuedWork
from mimids.store.engine.read_queue import ReadQueue, StoreReader
from mimids.store.engine.transaction import Ahead, Work

T = TypeVar("T")

WAITING_WRITES = 256  # jobs in the queue between `write` and the writer; when it is full, `write` waits for room
BATCH_JOBS = 512  # jobs in one transaction: those in the queue, and the senders that waited for room
TRUNCATION_PAUSES_SECONDS = (0.01, 0.05, 0.2)  # after each attempt to cut the log
BATCHES_ALONE = 8  # in a row: then there is probably a single caller
GATHERING_SECONDS = 0.005  # the longest wait for jobs that are expected in the next batch

AnswerBatch = Callable[[outcome.Outcome[list[outcome.Outcome[Any]]]], None]


class StoreWriter(Protocol):
    """The one connection that writes."""

    def commit_soon(self, jobs: Sequence[QueuedWork], answer: AnswerBatch) -> None:
        """Run works in order, without waiting.

        Once everything that succeeded is durable, `answer` is called in the event loop. It gets what each work returned
        or raised, or the error of the writer itself.
        """

    async def truncate_log(self) -> bool:
        """Cut the log of writes, which has deleted octets, to nothing; return False if a reader still needs it."""

    async def separate_rows(self) -> object:
        """Hide with which other rows bearer tokens were written."""


@attrs.frozen
class StoreStatistics:
    """Counts since the store was opened, and how many works wait for the store."""

    waiting_writes: int
    waiting_reads: int
    writes: int  # works that were committed, or that raised
    commits: int  # batches
    reads: int
    storage_failures: int  # writes answered StorageUnavailable
    writable: bool  # the last batch found no failing disk, and the database is not damaged
    damage: str  # what is wrong with the database, "" if nothing is known


class Store:
    """The writer's queue and the readers of one database, made by `open_store`; `run` commits the queue."""

    reads_ahead = False

    def __init__(
        self,
        writer: StoreWriter,
        readers: Sequence[StoreReader],
        *,
        apart: StoreReader | None = None,
        on_damage: Callable[[str], None] = lambda damage: None,
        reads_ahead: bool = False,
    ) -> None:
        """`apart` is the reader of `read_apart`; without it, `read_apart` uses the other readers.

        `reads_ahead` tells whether the writer uses `ahead`.
        """
        self.reads_ahead = reads_ahead
        self._writer = writer
        self._on_damage = on_damage
        self._damage = ""
        self._arrivals, self._waiting = trio.open_memory_channel[QueuedWork](WAITING_WRITES)
        self._readers = ReadQueue(readers)
        self._apart = self._readers if apart is None else ReadQueue([apart])
        self._queued = 0  # jobs that the writer has not taken, including those that wait for room in the queue
        self._batch: list[QueuedWork] = []  # the jobs that the writer commits now
        self._expected = 0  # jobs in the next batch, as far as is known
        self._alone = 0  # the last batches that had one job, and no other job waited
        self._began = self._commit_seconds = 0.0  # of the last batch
        self._enough: trio.Event | None = None  # set once the queue has the expected jobs, while `run` waits for them
        self._runs = False
        self._attention = trio.lowlevel.ParkingLot()  # where `run` waits while it has nothing to do
        self._failure: Exception | None = None  # of the writer itself
        self._writes = self._commits = self._reads = self._storage_failures = 0
        self._writable = True
        self._watching = trio.lowlevel.ParkingLot()  # tasks that wait for a commit
        self._forgets: list[tuple[Callable[[], None], frozenset[str]]] = []  # and the tables whose rows are cached

    def when_changed(self, forget: Callable[[], None], *tables: str) -> None:
        """Call `forget` when another process may have changed rows of these tables, by default of any table.

        It must not wait or raise.

        Each cache of stored rows calls this. A database in SQLite has one process, which clears its caches itself after
        each write that concerns them.
        """
        self._forgets.append((forget, frozenset(tables)))

    def forget(self, tables: Collection[str]) -> None:
        """Clear the caches of rows of these tables."""
        for forget, cached in self._forgets:
            if not cached or not cached.isdisjoint(tables):
                forget()

    def forget_all(self) -> None:
        """Clear all caches of stored rows."""
        for forget, _ in self._forgets:
            forget()

    async def write(self, work: Work[T], *, locks: Locks | None = None, ahead: Ahead | None = None) -> T:
        """Run work(tx) within the writer's next commit; return its result once the commit is durable.

        A work is committed whole or not at all, in order of arrival. If it raises, its changes are undone and the
        error is raised here. A refusal is returned, never raised: an exception undoes the whole batch, and then every
        work of the batch runs again under a savepoint of its own. So use `write_or_refuse` for a work that may refuse.

        `locks` is what the work locks in PostgreSQL (`store.engine.locks`). Without it, the work is committed alone.
        `ahead` makes reads of the work, which PostgreSQL then makes for a whole batch in one request.

        The work runs on the writer's thread, up to four times if its batch fails, and only its last run counts. So it
        must not wait, call out or change anything but the database, and must depend only on `tx` and on values that do
        not change. Cancelling the caller does not cancel the write, so every write must be safe to repeat.

        Waits while WAITING_WRITES other writes wait. Raises ShuttingDown once the writer has stopped, and
        StorageUnavailable when the disk refuses the write. Nothing of a refused write remains, unless the machine
        crashes while a failing disk holds half of the batch. After the database was found damaged, every write is
        refused with StorageUnavailable.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        job = QueuedWork(work, locks, ahead)
        await self._put(job)
        self._note_arrival()
        return cast("T", (await job.wait()).unwrap())

    async def write_shielded(self, work: Work[T], *, locks: Locks | None = None, ahead: Ahead | None = None) -> T:
        """Write as `write` does, and wait for the answer even if the caller is cancelled.

        Use this for writes that a notification must follow: a handler is cancelled when its client disconnects.
        """
        job = QueuedWork(work, locks, ahead)
        await self._put(job, shielded=True)
        self._note_arrival()
        return cast("T", (await job.wait(shielded=True)).unwrap())

    async def write_each(self, jobs: Sequence[QueuedWork]) -> None:
        """Write works as `write` does, together if there are not too many; return once each job has its answer."""
        for job in jobs:
            try:
                await self._put(job)
            except ShuttingDown as refusal:
                job.finish(outcome.Error(refusal))
        self._note_arrival()
        for job in jobs:
            await job.wait()

    async def write_or_refuse(
        self, work: Work[T | MimiError], *, locks: Locks | None = None, ahead: Ahead | None = None
    ) -> T:
        """Write as `write_shielded` does, and raise the `MimiError` that `work` returns.

        Everything that a work wrote before it returned a refusal is committed. So a work that refuses must have written
        nothing, or only rows that may stay. `refusable` turns a work that raises its refusal into a work that returns
        it.
        """
        answer = await self.write_shielded(work, locks=locks, ahead=ahead)
        if isinstance(answer, MimiError):
            raise answer
        return answer

    async def read(self, work: Work[T]) -> T:
        """Run work(tx) on a snapshot, beside the writer; return its result.

        The snapshot contains every acknowledged write. A cancelled caller still waits for the work, so a long read is
        split into pages. Raises StorageUnavailable when the disk cannot be read.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._read(await self._readers.read(work))

    async def read_apart(self, work: Work[T]) -> T:
        """Read as `read` does, on a reader that requests do not wait for: for the operator's pages and lists."""
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._read(await self._apart.read(work))

    def _read(self, answer: outcome.Outcome[T]) -> T:
        self._reads += 1
        if isinstance(answer, outcome.Error):
            self._note_damage(answer.error)
        return answer.unwrap()

    async def truncate_log(self) -> bool:
        """Cut the write-ahead log to nothing, so that no file has the octets that earlier writes deleted.

        Call it after a deletion of personal data. Returns False if the log could not be cut, because a backup is
        reading or the disk fails; call it again later.
        """
        for pause in TRUNCATION_PAUSES_SECONDS:
            if not self._damage and await self._writer.truncate_log():
                return True
            await trio.sleep(pause)  # until the readers' snapshots end: they are short
        return False

    async def separate_rows(self) -> None:
        """Hide with which KeyPackages and Welcomes bearer tokens were written (docs/privacy.md).

        Raises StorageUnavailable. Call it now and then.
        """
        await self._writer.separate_rows()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit the queue, batch after batch, until cancelled.

        This task begins a batch after it has gathered the jobs that are expected. After BATCHES_ALONE batches of one
        job, `write` begins the batch itself, because waking this task would cost a single caller a tenth of its write.

        When cancelled, it finishes and answers the batch that has begun, and refuses the rest with ShuttingDown.
        """
        self._runs = True
        task_status.started()
        try:
            while self._failure is None:
                if self._batch or not self._queued:
                    await self._attention.park()
                    continue
                await self._gather()
                self._begin_batch()
                if not self._batch:  # the database is damaged, or the caller was cancelled while it waited for room
                    await trio.lowlevel.checkpoint()
        finally:
            self._runs = False
            with trio.CancelScope(shield=True):
                while self._batch and self._failure is None:
                    await self._attention.park()
            for job in [*self._batch, *self._waiting_nowait()]:
                job.finish(outcome.Error(ShuttingDown()))
            self._waiting.close()
            if self._failure is not None:
                raise self._failure

    async def _gather(self) -> None:
        """Wait until the queue has as many jobs as are expected, no longer than the last commit took.

        Callers that write one row after the other write again soon after a commit. Without this wait, the callers form
        two groups: the callers of the last batch, and the callers that arrived meanwhile. Each group then waits for the
        other's commit.
        """
        if self._queued >= self._expected:
            return
        self._enough = trio.Event()
        with trio.move_on_after(min(self._commit_seconds, GATHERING_SECONDS)):
            await self._enough.wait()
        self._enough = None

    def _begin_batch(self) -> None:
        self._batch = list(islice(self._waiting_nowait(), BATCH_JOBS))
        self._began = trio.current_time()
        if self._damage:
            self._end_batch(outcome.Value([outcome.Error(damaged(self._damage)) for _ in self._batch]))
        elif self._batch:
            self._writer.commit_soon(self._batch, self._end_batch)

    def _end_batch(self, ended: outcome.Outcome[list[outcome.Outcome[Any]]]) -> None:
        """Answer the jobs of the batch; after an error of the writer itself, let `run` raise it."""
        try:
            answers = ended.unwrap()
            self._count(answers)
        except Exception as error:
            self._failure = error
        else:
            for job, answer in zip(self._batch, answers, strict=True):
                job.finish(answer)
            self._expected = min(len(self._batch) + self._queued, WAITING_WRITES)
            self._alone = self._alone + 1 if self._expected == 1 else 0
            self._commit_seconds = trio.current_time() - self._began
            self._batch = []
        if self._queued or self._failure is not None or not self._runs:
            self._attention.unpark()

    async def wait_for_commit(self, commits: int) -> int:
        """Wait until the number of commits differs from `commits`; return the new number."""
        while self._commits == commits:
            await self._watching.park()
        return self._commits

    def statistics(self) -> StoreStatistics:
        """Return the counts so far."""
        arrivals = self._arrivals.statistics()
        return StoreStatistics(
            waiting_writes=arrivals.current_buffer_used + arrivals.tasks_waiting_send,
            waiting_reads=self._readers.waiting,
            writes=self._writes,
            commits=self._commits,
            reads=self._reads,
            storage_failures=self._storage_failures,
            writable=self._writable and not self._damage,
            damage=self._damage,
        )

    async def _put(self, job: QueuedWork, *, shielded: bool = False) -> None:
        """Queue a job, without a checkpoint if there is room; if not, wait, `shielded` from cancellation."""
        self._queued += 1
        try:
            try:
                self._arrivals.send_nowait(job)
            except trio.WouldBlock:
                self._note_arrival()
                with trio.CancelScope(shield=shielded):
                    await self._arrivals.send(job)
        except BaseException as error:
            self._queued -= 1
            if isinstance(error, trio.BrokenResourceError):
                raise ShuttingDown from None
            raise

    def _note_arrival(self) -> None:
        """Begin a batch, or let `run` begin it, unless the writer is busy."""
        if self._enough is not None:
            if self._queued >= self._expected:
                self._enough.set()
        elif self._queued and self._runs and not self._batch:
            if self._alone >= BATCHES_ALONE and not self._damage:
                self._begin_batch()
            else:
                self._attention.unpark()

    def _waiting_nowait(self) -> Iterator[QueuedWork]:
        with suppress(trio.WouldBlock):
            while True:
                job = self._waiting.receive_nowait()
                self._queued -= 1
                yield job

    def _count(self, answers: Sequence[outcome.Outcome[Any]]) -> None:
        failures = sum(isinstance(a, outcome.Error) and isinstance(a.error, StorageUnavailable) for a in answers)
        self._writes += len(answers)
        self._commits += 1
        if self._watching:
            self._watching.unpark_all()
        self._storage_failures += failures
        self._writable = not failures
        for answer in answers if failures else ():
            self._note_damage(answer.error if isinstance(answer, outcome.Error) else None)

    def _note_damage(self, error: BaseException | None) -> None:
        """Stop writing if an error shows that the database is damaged: more writes could make it worse."""
        if isinstance(error, StorageUnavailable) and error.damage and not self._damage:
            self._damage = error.damage
            self._on_damage(error.damage)


def damaged(damage: str) -> StorageUnavailable:
    """Return the refusal of a damaged database; `damage` is for the operator, and callers do not see it."""
    refusal = StorageUnavailable("the database is damaged, and its operator has to restore it")
    refusal.damage = damage
    return refusal
