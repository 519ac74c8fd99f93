"""How far our devices have read: the cursors they present, stored so that retention knows what they still need.

A cursor is kept in memory and stored once a minute, so that reading costs no write. If the process is killed, cursors
of the last minute are lost, and retention keeps more than it needs until the device presents its cursor again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.ports import Clock
from mimids.errors import MimiError
from mimids.store import cursors, providers
from mimids.store.cursors import Shown
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Device, DeviceRow, Milliseconds
from mimids.wire.ids import Counter, MaskedPartitionKey, ProviderId
from mimids.wire.messages import ReceiveRequest

SAVE_SECONDS: Final = 60.0
LAST_SAVE_SECONDS: Final = 5.0
PAGE: Final = 500  # cursors in one transaction
MOST_UNSAVED: Final = 100_000  # beyond that the oldest are dropped

_Key = tuple[DeviceRow, ProviderId, tuple[MaskedPartitionKey, ...]]
_Cursor = tuple[Counter, Milliseconds]  # the counter, and when it was presented


class Cursors:
    """The cursors of all our devices; `run` is the job that stores them."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._unsaved: LeastRecentlyUsed[_Key, _Cursor] = LeastRecentlyUsed(MOST_UNSAVED)

    def note(self, device: Device, hub: ProviderId, request: ReceiveRequest) -> None:
        """Note that a device reads from a counter on: it has the messages before it."""
        self._unsaved.put((device.row, hub, request.partition_key.masks()), (request.counter, self._clock.now()))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store cursors every SAVE_SECONDS, and once more when cancelled."""
        task_status.started()
        try:
            while True:
                await self._clock.sleep(SAVE_SECONDS)
                await self.save()
        finally:
            with trio.move_on_after(LAST_SAVE_SECONDS, shield=True):
                await self.save()

    async def save(self) -> None:
        """Store the cursors that were noted; those that the disk does not accept are dropped."""
        while self._unsaved:
            page = [self._unsaved.pop_oldest() for _ in range(min(PAGE, len(self._unsaved)))]
            with suppress(MimiError):
                await self._store.write(partial(_save, page))


def _save(page: Sequence[tuple[_Key, _Cursor]], tx: Tx) -> None:
    rows = {hub: providers.provider_row(tx, hub) or 0 for (_, hub, _), _ in page}
    cursors.note(tx, [Shown(device, rows[hub], masks, *shown) for (device, hub, masks), shown in page])
