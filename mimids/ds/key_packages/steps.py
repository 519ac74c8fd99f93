"""Steps of time: the works that arrive in a step are committed together, and their answers leave at the same moment.

So neither the time of an answer nor the number of commits shows what a work did. Steps also cost a busy gateway less:
two timers and one call of the store for all requests of a step.

Steps begin at all multiples of their length, by trio's clock. The works are committed after a fifth of a step, because
a relay's next requests come soon after its last answers. The answers leave at the end of the step, or of a later step
if the commit takes so long.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Final, TypeVar, cast

import attrs
import trio

from mimids.store.engine.locks import Locks
from mimids.store.engine.queued_work import QueuedWork
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Ahead, Work

T = TypeVar("T")

COMMIT_AFTER: Final = 0.2  # of a step


@attrs.define(eq=False)
class _Waiting:
    """A task that waits for the end of its step, and what is to be committed for it."""

    job: QueuedWork | None  # None: nothing
    task: trio.lowlevel.Task | None  # None once it was cancelled

    def leave(self, _: object) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


class Steps:
    """Steps of `seconds`; `run` commits and answers. With 0 seconds, everything is committed and answered at once."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: list[_Waiting] = []
        self._arrived = trio.lowlevel.ParkingLot()

    async def commit(self, store: Store, work: Work[T], locks: Locks, *, ahead: Ahead | None = None) -> T:
        """Run work(tx) in the next commit; return or raise its answer at the end of a step.

        If the caller is cancelled before the commit, the work does not run.
        """
        if not self._seconds:
            return await store.write(work, locks=locks, ahead=ahead)
        job = QueuedWork(work, locks, ahead)
        await self._wait(job)
        return cast("T", (await job.wait()).unwrap())

    async def wait(self) -> None:
        """Wait as long as `commit` does, without committing anything."""
        if self._seconds:
            await self._wait(None)

    async def _wait(self, job: QueuedWork | None) -> None:
        waiting = _Waiting(job, trio.lowlevel.current_task())
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            self._arrived.unpark()
        await trio.lowlevel.wait_task_rescheduled(waiting.leave)

    async def run(self, store: Store, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit and answer, until cancelled. A step whose commit takes long does not delay the next step."""
        async with trio.open_nursery() as steps:
            task_status.started()
            while True:
                if not self._waiting:
                    await self._arrived.park()
                offset = COMMIT_AFTER * self._seconds
                await trio.sleep_until(self._next_step(trio.current_time() - offset) + offset)
                steps.start_soon(self._serve, store, [each for each in self._waiting if each.task is not None])
                self._waiting = []

    def _next_step(self, now: float) -> float:
        return ceil(now / self._seconds) * self._seconds

    async def _serve(self, store: Store, waiting: Sequence[_Waiting]) -> None:
        await store.write_each([each.job for each in waiting if each.job is not None])
        await trio.sleep_until(self._next_step(trio.current_time()))
        for each in waiting:
            if each.task is not None:
                trio.lowlevel.reschedule(each.task)
                each.task = None
