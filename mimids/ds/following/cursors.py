"""What our devices have come for: the positions they present, kept so that retention knows what is waited for.

A position is held in memory and stored now and then, so that reading costs no write. What a killed process forgets
makes retention keep more for a while, never less: a device that comes back presents its positions again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import trio

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
PAGE: Final = 500  # in one transaction
HELD_AT_MOST: Final = 100_000  # beyond that the oldest are forgotten

_Place = tuple[DeviceRow, ProviderId, tuple[MaskedPartitionKey, ...]]


class Cursors:
    """The positions of all our devices; `run` is the job that stores them."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._shown: dict[_Place, tuple[Counter, Milliseconds]] = {}

    def note(self, device: Device, hub: ProviderId, request: ReceiveRequest) -> None:
        """Take note that a device asks from a counter on: it has what is earlier."""
        self._shown[device.row, hub, request.partition_key.masks()] = request.counter, self._clock.now()
        if len(self._shown) > HELD_AT_MOST:
            del self._shown[next(iter(self._shown))]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store positions every SAVE_SECONDS and at the end."""
        task_status.started()
        try:
            while True:
                await self._clock.sleep(SAVE_SECONDS)
                await self.save()
        finally:
            with trio.move_on_after(LAST_SAVE_SECONDS, shield=True):
                await self.save()

    async def save(self) -> None:
        """Store what was noted; a disk that takes nothing costs no more than the memory of it."""
        while self._shown:
            page = [self._shown.popitem() for _ in range(min(PAGE, len(self._shown)))]

            with suppress(MimiError):
                await self._store.write(partial(_save, page))


def _save(page: Sequence[tuple[_Place, tuple[Counter, Milliseconds]]], tx: Tx) -> None:
    rows = {hub: providers.provider_row(tx, hub) or 0 for (_, hub, _), _ in page}
    cursors.note(tx, [Shown(device, rows[hub], masks, *shown) for (device, hub, masks), shown in page])
