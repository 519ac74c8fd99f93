"""The day on which each device was last seen: kept in memory with each request, and stored from time to time.

Only the day (UTC) is kept, so that the database does not say when somebody was awake (docs/privacy.md).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import trio

from mimids.ds.ports import Clock
from mimids.ds.saving import save_regularly
from mimids.errors import MimiError
from mimids.store import accounts
from mimids.store.engine.store import Store
from mimids.values import DAY_MILLISECONDS, DeviceRow, Milliseconds

SAVE_SECONDS: Final = 300.0
LAST_SAVE_SECONDS: Final = 2.0  # the longest wait for the last save, when the server stops


class LastSeen:
    """The days on which devices were seen; `run` is the job that stores them."""

    def __init__(self, store: Store, clock: Clock, connected: Callable[[], Collection[DeviceRow]] = tuple) -> None:
        """Begin; `connected` returns the devices with an open stream or a waiting request."""
        self._store = store
        self._clock = clock
        self._connected = connected
        self._unsaved: set[DeviceRow] = set()  # never more entries than devices
        self._saved: set[DeviceRow] = set()  # devices that are stored as seen today
        self._day = self._today()

    def note(self, device: DeviceRow) -> None:
        """Record in memory that a device was seen today."""
        if device not in self._saved or self._today() != self._day:
            self._unsaved.add(device)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store the days every SAVE_SECONDS, and once more when cancelled."""
        task_status.started()
        await save_regularly(self.save, self._clock, every=SAVE_SECONDS, at_most=LAST_SAVE_SECONDS)

    async def save(self) -> None:
        """Store the days; if the disk takes no writes, keep them for the next call.

        A request shortly before midnight counts for the day of the save, at most SAVE_SECONDS later.
        """
        day = self._today()
        if day != self._day:
            self._saved, self._day = set(), day
        self._unsaved.update(each for each in self._connected() if each not in self._saved)
        found, self._unsaved = self._unsaved, set()
        if not found:
            return
        try:
            await self._store.write(lambda tx: accounts.note_seen(tx, found, day))
            self._saved |= found
        except MimiError:
            self._unsaved |= found

    def _today(self) -> Milliseconds:
        now = self._clock.now()
        return Milliseconds(now - now % DAY_MILLISECONDS)
