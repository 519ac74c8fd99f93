"""The queue of reads: the threads of the readers take from it, one read of each owner in turn.

A thread that has finished a read takes the next one itself. If the event loop gave it the next one, the thread would be
idle until the loop comes round, which takes many times as long as a read when the machine is busy.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import attrs
import outcome
import trio

from mimids.owners import WORKING_FOR, FairQueue, Owner
from mimids.store.engine.transaction import Work

T = TypeVar("T")


@attrs.frozen(eq=False)
class QueuedRead:
    """A read, and the task that waits for its answer."""

    work: Work[Any]
    owner: Owner
    task: trio.lowlevel.Task
    token: trio.lowlevel.TrioToken

    def finish(self, answer: outcome.Outcome[Any]) -> None:
        """Resume the task with what the work returned or raised; any thread may call this."""
        self.token.run_sync_soon(trio.lowlevel.reschedule, self.task, outcome.Value(answer))


class StoreReader(Protocol):
    """A connection that reads, on a thread of its own."""

    def read_soon(self, first: QueuedRead, take_next: Callable[[], QueuedRead | None]) -> None:
        """Answer reads on the thread, without waiting: `first`, and then those that `take_next` returns until None."""


class ReadQueue:
    """The readers of one database, and the reads that wait for them."""

    def __init__(self, readers: Sequence[StoreReader]) -> None:
        self._lock = threading.Lock()
        self._idle = deque(readers)  # these two are used by the event loop and by the threads of the readers
        self._waiting: FairQueue[QueuedRead] = FairQueue()

    @property
    def waiting(self) -> int:
        """Return how many reads wait for a reader."""
        return len(self._waiting)

    async def read(self, work: Work[T]) -> outcome.Outcome[T]:
        """Run a work on a snapshot and return what it returned or raised.

        Owners get readers in turn, so that one owner's many reads do not delay the others'. A caller that is cancelled
        gives up its turn, or waits for the work if it has begun.
        """
        task = trio.lowlevel.current_task()
        job = QueuedRead(work, WORKING_FOR.get(), task, trio.lowlevel.current_trio_token())
        with self._lock:
            reader = self._idle.popleft() if self._idle else None
            if reader is None:
                self._waiting.add(job.owner, job)
        if reader is not None:
            reader.read_soon(job, partial(self._take, reader))
        return cast("outcome.Outcome[T]", await trio.lowlevel.wait_task_rescheduled(partial(self._leave, job)))

    def _take(self, reader: StoreReader) -> QueuedRead | None:
        """Return the next read for a reader; None if none waits, and then the reader is idle."""
        with self._lock:
            if self._waiting:
                return self._waiting.pop()
            self._idle.append(reader)
            return None

    def _leave(self, job: QueuedRead, _: object) -> trio.lowlevel.Abort:
        with self._lock:
            waits = self._waiting.contains(job.owner, job)
            if waits:
                self._waiting.remove(job.owner, job)
        return trio.lowlevel.Abort.SUCCEEDED if waits else trio.lowlevel.Abort.FAILED


def answer_reads(
    read: Callable[[Work[Any]], outcome.Outcome[Any]],
    first: QueuedRead,
    take_next: Callable[[], QueuedRead | None],
) -> None:
    """Answer reads on the thread of a reader, as `StoreReader.read_soon` says; `read` makes one."""
    job: QueuedRead | None = first
    while job is not None:
        job.finish(read(job.work))
        job = take_next()
