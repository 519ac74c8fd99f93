"""Turns: how many requests, handshakes and other long steps of each peer run in one round of the event loop.

A round runs one step of every task that is ready. Without a limit, a peer with hundreds of connections adds a request
of each of them to one round, and everybody else waits until all of them are done. So a peer may take TURNS_OF_ONE turns
in a round, and all peers together TURNS. Tasks that get no turn wait for a later round, one of each peer in turn.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import trio

from mimids.owners import FairQueue, Owner

TURNS: Final = 12  # in one round; a turn takes one or two milliseconds, and a request takes several rounds
TURNS_OF_ONE: Final = 4


class Turns(trio.abc.Instrument):
    """The turns of one listener. `run` has to run as long as a task may wait."""

    def __init__(self, most: int = TURNS, most_of_one: int = TURNS_OF_ONE) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._round = 0
        self._counted = -1  # the round of `_taken` and `_taken_by`
        self._taken = 0
        self._taken_by: dict[Owner, int] = {}
        self._waiting: FairQueue[trio.lowlevel.Task] = FairQueue()
        self._rest = trio.lowlevel.ParkingLot()
        self.delayed = 0  # turns that came in a later round, since the start

    def after_io_wait(self, timeout: float) -> None:
        """Begin a round; trio calls this."""
        self._round += 1

    async def wait(self, owner: Owner) -> None:
        """Take a turn; wait for a later round if `owner`, or all owners together, have taken enough in this round.

        Without an owner, nothing is counted.
        """
        if owner is None or (not self._waiting.has(owner) and self._take(owner, self._open)):
            return
        self.delayed += 1
        task = trio.lowlevel.current_task()
        self._waiting.add(owner, task)
        self._rest.unpark()

        def leave(_: Any) -> trio.lowlevel.Abort:
            self._waiting.remove(owner, task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)

    async def run(self) -> None:
        """Give turns to the tasks that wait for them, forever."""
        trio.lowlevel.add_instrument(self)
        try:
            while True:
                if not self._waiting:
                    await self._rest.park()
                await trio.lowlevel.checkpoint()
                self._hand_out()
        finally:
            trio.lowlevel.remove_instrument(self)

    @property
    def _open(self) -> int:
        """Turns in a round for owners of which no task waits: half of all turns while tasks of other owners wait."""
        return self._most // 2 if self._waiting else self._most

    def _hand_out(self) -> None:
        """Give the turns of this round to tasks that wait, one to each owner in turn."""
        owners = deque(self._waiting.owners())
        while owners:
            owner = owners.popleft()
            if self._take(owner, self._most):
                trio.lowlevel.reschedule(self._waiting.pop_of(owner))
                owners.extend([owner] if self._waiting.has(owner) else [])

    def _take(self, owner: Owner, most: int) -> bool:
        """Count a turn of `owner` in this round, unless it has had enough, or `most` turns are taken."""
        if self._counted != self._round:
            self._counted, self._taken = self._round, 0
            self._taken_by.clear()
        of_one = self._taken_by.get(owner, 0)
        if self._taken >= most or of_one >= self._most_of_one:
            return False
        self._taken += 1
        self._taken_by[owner] = of_one + 1
        return True
