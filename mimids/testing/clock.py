"""The clock of a provider in a test: the machine's own, which the test moves on or stops."""

from __future__ import annotations

import time

import trio

from mimids.values import Milliseconds


class MovableClock:
    """`ds.ports.Clock`. By itself it is the machine's; `offset` (ms) is added, and at `stopped_at` (ms) it stands."""

    def __init__(self, offset: int = 0, stopped_at: int | None = None) -> None:
        self._offset = offset
        self._stopped_at = stopped_at
        self._moved = trio.Event()

    def now(self) -> Milliseconds:
        """Return the time in milliseconds since the epoch."""
        if self._stopped_at is not None:
            return Milliseconds(self._stopped_at)
        return Milliseconds(time.time_ns() // 1_000_000 + self._offset)

    async def sleep(self, seconds: float) -> None:
        """Wait until this clock has moved on by `seconds`, by itself or by `move`."""
        await trio.lowlevel.checkpoint()
        until = self.now() + seconds * 1000
        while (left := until - self.now()) > 0:
            with trio.move_on_after(left / 1000 if self._stopped_at is None else float("inf")):
                await self._moved.wait()

    def move(self, offset: int, stopped_at: int | None) -> None:
        """Show another time; whoever slept until then or less wakes."""
        self._offset, self._stopped_at = offset, stopped_at
        moved, self._moved = self._moved, trio.Event()
        moved.set()
