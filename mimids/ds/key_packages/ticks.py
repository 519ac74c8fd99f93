"""A clock whose ticks wake many tasks at once, for waits that may end a little late.

The gateway's requests wait for ticks. So requests that arrived at about the same time are committed together, and a
busy gateway sets one timer for each tick instead of two for each request.
"""

from __future__ import annotations

from math import ceil

import trio


class Ticks:
    """Ticks at all multiples of `seconds`, by trio's clock."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: dict[int, trio.lowlevel.ParkingLot] = {}  # the tasks that wait for a tick, besides the first one

    async def wait_until(self, moment: float) -> None:
        """Wait for the first tick at or after `moment`.

        The first task that waits for a tick sleeps, and then wakes the other tasks. If the first task is cancelled,
        another one sleeps in its place.
        """
        tick = ceil(moment / self._seconds)
        while trio.current_time() < tick * self._seconds:
            others = self._waiting.get(tick)
            if others is not None:
                await others.park()
                continue
            others = self._waiting[tick] = trio.lowlevel.ParkingLot()
            try:
                await trio.sleep_until(tick * self._seconds)
            finally:
                del self._waiting[tick]
                others.unpark_all()
