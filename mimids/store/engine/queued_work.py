"""A work in the queue of the store's writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import attrs
import trio

from mimids.store.engine.locks import Locks
from mimids.store.engine.transaction import Ahead, Work

if TYPE_CHECKING:
    import outcome


@attrs.define(eq=False)
class QueuedWork:
    """A work in the queue, and the task that waits for its answer."""

    work: Work[Any]
    locks: Locks | None = None  # None: it is committed alone
    ahead: Ahead | None = None
    answer: outcome.Outcome[Any] | None = None
    _caller: trio.lowlevel.Task | None = None  # the task that waits for the answer
    _shielded: bool = False

    def finish(self, answer: outcome.Outcome[Any]) -> None:
        """Set the answer; resume the task that waits for it."""
        self.answer = answer
        if self._caller is not None:
            trio.lowlevel.reschedule(self._caller)
            self._caller = None

    async def wait(self, *, shielded: bool = False) -> outcome.Outcome[Any]:
        """Wait for the answer (with `shielded`, even if the caller is cancelled) and return it."""
        if self.answer is None:
            self._shielded = shielded
            self._caller = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._leave)
        return cast("outcome.Outcome[Any]", self.answer)

    def _leave(self, _: object) -> trio.lowlevel.Abort:
        if self._shielded:
            return trio.lowlevel.Abort.FAILED
        self._caller = None
        return trio.lowlevel.Abort.SUCCEEDED
