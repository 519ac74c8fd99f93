"""A clock that a test moves or stops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import trio

from mimids.values import Milliseconds


class MovableClock:
    """`ds.ports.Clock` for tests: the machine's time plus `offset`, or the fixed time `stopped_at` (milliseconds)."""

    def __init__(self, offset: int = 0, stopped_at: int | None = None) -> None:
        self._offset = offset
        self._stopped_at = stopped_at
        self._jumped = 0
        self._waits: dict[trio.CancelScope, int] = {}  # with the time when each ends

    @property
    def sleepers(self) -> int:
        """The number of tasks that sleep or wait by this clock."""
        return len(self._waits)

    def now(self) -> Milliseconds:
        """Return the time in milliseconds since the epoch."""
        if self._stopped_at is not None:
            return Milliseconds(self._stopped_at)
        return Milliseconds(time.time_ns() // 1_000_000 + self._offset)

    def running(self) -> Milliseconds:
        """Return the time that passed, including what `advance` and `set` skipped, without the changes of `jump`."""
        return Milliseconds(self.now() - self._jumped)

    def boot(self) -> str:
        """Return the same name every time, because the machine never restarts in a test."""
        return "test"

    async def sleep(self, seconds: float) -> None:
        """Wait until this clock has advanced by `seconds`, by itself or because it was moved."""
        with self.move_on_after(seconds):
            await trio.sleep_forever()

    @contextmanager
    def move_on_after(self, seconds: float) -> Iterator[trio.CancelScope]:
        """Cancel the block once this clock has advanced by `seconds`, by itself or because it was moved."""
        until = self.now() + (max(1, _milliseconds(seconds)) if seconds > 0 else 0)
        with trio.CancelScope(deadline=self._deadline(until)) as scope:
            self._waits[scope] = until
            try:
                yield scope
            finally:
                del self._waits[scope]

    def advance(self, seconds: float) -> None:
        """Move the clock forward at once, whether it runs or is stopped; wake the tasks whose time has come."""
        if self._stopped_at is None:
            self.set(self._offset + _milliseconds(seconds), None)
        else:
            self.set(self._offset, self._stopped_at + _milliseconds(seconds))

    def jump(self, seconds: float) -> None:
        """Set the clock forward or back, as an operator or a time server would, while no time passes."""
        self._jumped += _milliseconds(seconds)
        self.advance(seconds)

    def set(self, offset: int, stopped_at: int | None) -> None:
        """Replace `offset` and `stopped_at`; wake the tasks whose time has come."""
        self._offset, self._stopped_at = offset, stopped_at
        for scope, until in self._waits.items():
            scope.deadline = self._deadline(until)

    def _deadline(self, until: int) -> float:
        """Return when this clock will show `until` if nobody moves it, by trio's clock."""
        left = until - self.now()
        if left > 0 and self._stopped_at is not None:
            return inf
        return trio.current_time() + left / 1000


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
