"""A clock that a test moves or stops."""

from __future__ import annotations

import time
from math import inf

import trio

from mimids.values import Milliseconds


class MovableClock:
    """`ds.ports.Clock` for tests: the machine's time plus `offset`, or the fixed time `stopped_at` (milliseconds).

    `sleepers` is the number of tasks that sleep by it.
    """

    def __init__(self, offset: int = 0, stopped_at: int | None = None) -> None:
        self.sleepers = 0
        self._offset = offset
        self._stopped_at = stopped_at
        self._moved = trio.Event()

    def now(self) -> Milliseconds:
        """Return the time in milliseconds since the epoch."""
        if self._stopped_at is not None:
            return Milliseconds(self._stopped_at)
        return Milliseconds(time.time_ns() // 1_000_000 + self._offset)

    async def sleep(self, seconds: float) -> None:
        """Wait until this clock has advanced by `seconds`, by itself or because it was moved; to the millisecond."""
        until = self.now() + (max(1, _milliseconds(seconds)) if seconds > 0 else 0)
        await trio.lowlevel.checkpoint()
        self.sleepers += 1
        try:
            while (left := until - self.now()) > 0:
                with trio.move_on_after(left / 1000 if self._stopped_at is None else inf):
                    await self._moved.wait()
        finally:
            self.sleepers -= 1

    def advance(self, seconds: float) -> None:
        """Move the clock forward at once, whether it runs or is stopped; wake the tasks whose time has come."""
        if self._stopped_at is None:
            self.set(self._offset + _milliseconds(seconds), None)
        else:
            self.set(self._offset, self._stopped_at + _milliseconds(seconds))

    def set(self, offset: int, stopped_at: int | None) -> None:
        """Replace `offset` and `stopped_at`; wake the tasks whose time has come."""
        self._offset, self._stopped_at = offset, stopped_at
        moved, self._moved = self._moved, trio.Event()
        moved.set()


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
