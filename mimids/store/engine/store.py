"""The store: a queue of writes that one writer commits in batches, and readers beside it.

The store does not depend on SQLite. Its writer and its readers are connections that `sqlite.open_store` makes; each
runs on a thread of its own, and is handed a whole batch or a whole snapshot at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol, TypeVar, cast

import attrs
import outcome
import trio

from mimids.errors import MimiError, ShuttingDown, StorageUnavailable
from mimids.store.engine.transaction import Work

T = TypeVar("T")

WAITING_WRITES = 256  # jobs in the queue between `write` and the writer; when it is full, `write` waits for room
BATCH_JOBS = 512  # jobs in one transaction: those in the queue, and the senders that waited for room
GATHERING_PASSES = 4  # of the event loop, before a batch smaller than the last one: to include what arrives meanwhile


class StoreWriter(Protocol):
    """The one connection that writes."""

    async def commit(self, works: Sequence[Work[Any]]) -> list[outcome.Outcome[Any]]:
        """Run works in order; return what each returned or raised, once everything that succeeded is durable."""


class StoreReader(Protocol):
    """A connection that reads."""

    async def read(self, work: Work[T]) -> outcome.Outcome[T]:
        """Run a work on a snapshot and return what it returned or raised."""


@attrs.frozen
class StoreStatistics:
    """What the store has done since it was opened, and how much waits for it."""

    waiting_writes: int
    waiting_reads: int
    writes: int  # works that were committed, or that raised
    commits: int  # batches
    reads: int
    storage_failures: int  # writes answered StorageUnavailable
    writable: bool  # whether the last batch met no failing disk


@attrs.define(eq=False)
class _Job:
    work: Work[Any]
    done: trio.Event = attrs.field(factory=trio.Event)
    answer: outcome.Outcome[Any] | None = None

    def finish(self, answer: outcome.Outcome[Any]) -> None:
        self.answer = answer
        self.done.set()


class Store:
    """The writer's queue and the readers of one database, made by `open_store`; `run` commits the queue."""

    def __init__(self, writer: StoreWriter, readers: Sequence[StoreReader]) -> None:
        self._writer = writer
        self._arrivals, self._waiting = trio.open_memory_channel[_Job](WAITING_WRITES)
        self._give_back: trio.MemorySendChannel[StoreReader]
        self._idle: trio.MemoryReceiveChannel[StoreReader]
        self._give_back, self._idle = trio.open_memory_channel(len(readers))
        for reader in readers:
            self._give_back.send_nowait(reader)
        self._writes = self._commits = self._reads = self._storage_failures = 0
        self._writable = True

    async def write(self, work: Work[T]) -> T:
        """Run work(tx) within the writer's next commit; return what it returns once that is durable.

        A work is committed whole or not at all, in order of arrival. If it raises, its changes are undone and the
        error is raised here. A refusal is returned, never raised: an exception undoes the whole batch, and then every
        work of the batch runs again under a savepoint of its own. So use `write_or_refuse` for a work that may refuse.

        The work runs on the writer's thread, up to three times if its batch fails, and only its last run counts. So it
        must not wait, call out or change anything but the database, and must depend only on `tx` and on values that do
        not change. Cancelling the caller does not cancel the write, so every write must be safe to repeat.

        Waits while WAITING_WRITES others wait. Raises ShuttingDown once the writer has stopped, and StorageUnavailable
        when the disk refuses the write: then nothing of it remains, unless the machine crashes while a failing disk
        holds half of the batch.
        """
        job = _Job(work)
        try:
            await self._arrivals.send(job)
        except trio.BrokenResourceError:
            raise ShuttingDown from None
        await job.done.wait()
        return cast("T", cast("outcome.Outcome[Any]", job.answer).unwrap())

    async def write_shielded(self, work: Work[T]) -> T:
        """Write as `write` does, and wait for the answer even if the caller is cancelled.

        For writes that must be followed by a notification: a handler is cancelled when its client hangs up.
        """
        with trio.CancelScope(shield=True):
            return await self.write(work)
        raise AssertionError("nobody cancels this scope")

    async def write_or_refuse(self, work: Work[T | MimiError]) -> T:
        """Write as `write_shielded` does, and raise the `MimiError` that `work` returns.

        What a work wrote before it returned a refusal is committed: it must have written nothing by then, or only
        what may stay. `refusable` turns a work that raises its refusal into one that returns it.
        """
        answer = await self.write_shielded(work)
        if isinstance(answer, MimiError):
            raise answer
        return answer

    async def read(self, work: Work[T]) -> T:
        """Run work(tx) on a snapshot, beside the writer; return what it returns.

        The snapshot contains every acknowledged write. A cancelled caller still waits for the work, so a long read is
        split into pages. Raises StorageUnavailable when the disk cannot be read.
        """
        reader = await self._idle.receive()
        try:
            answer = await reader.read(work)
        finally:
            self._give_back.send_nowait(reader)
        self._reads += 1
        return answer.unwrap()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit the queue, batch after batch, until cancelled.

        When cancelled, it finishes and answers the batch that has begun, and refuses the rest with ShuttingDown.
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
                answers = await self._writer.commit([job.work for job in batch])
                self._count(answers)
                for job, answer in zip(batch, answers, strict=True):
                    job.finish(answer)
        finally:
            for job in [*batch, *self._waiting_nowait()]:
                if job.answer is None:
                    job.finish(outcome.Error(ShuttingDown()))
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
