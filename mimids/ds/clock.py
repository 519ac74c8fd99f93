"""The clock of a running server."""

from __future__ import annotations

import time

import trio

from mimids.values import Milliseconds


class SystemClock:
    """`ports.Clock` that shows the machine's time."""

    def now(self) -> Milliseconds:
        """Return the time in milliseconds since the epoch."""
        return Milliseconds(time.time_ns() // 1_000_000)

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        await trio.sleep(seconds)
