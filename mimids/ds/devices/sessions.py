"""The open streams and waiting requests of devices. The removal of a device ends them at once.

A device is admitted when its request comes. A stream then lives for days and a waiting request for a minute, so both
are entered here. After a commit that changes accounts, `end_removed` ends those of devices that no longer exist.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from mimids.ds.following.requested_keys import RequestedKeys
from mimids.ds.ports import Clock
from mimids.errors import Unauthenticated
from mimids.store import accounts, participations
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Device, DeviceRow

ADMISSION_SECONDS: Final = 120.0  # from the check of a device's token to its entry here, at most


@attrs.frozen
class SessionStatistics:
    """The streams and waiting requests that are open, and those that a removal ended."""

    open: int
    ended: int


class Sessions:
    """The streams and waiting requests of one provider's devices."""

    def __init__(self, store: Store, clock: Clock, requested: RequestedKeys) -> None:
        self._store = store
        self._clock = clock
        self._requested = requested
        self._open: dict[DeviceRow, set[trio.CancelScope]] = {}
        self._changed_at = -ADMISSION_SECONDS  # when accounts were changed last
        self._ended = 0

    def statistics(self) -> SessionStatistics:
        """Return the counts so far."""
        return SessionStatistics(sum(map(len, self._open.values())), self._ended)

    @asynccontextmanager
    async def open(self, device: Device) -> AsyncIterator[None]:
        """Cancel the block once the device is removed, and raise `Unauthenticated` then."""
        scope = trio.CancelScope()
        self._open.setdefault(device.row, set()).add(scope)
        try:
            with scope:
                # The device may have been admitted before accounts were changed.
                if trio.current_time() - self._changed_at < ADMISSION_SECONDS:
                    await self._end_removed([device.row])
                yield
        finally:
            scopes = self._open[device.row]
            scopes.discard(scope)
            if not scopes:
                del self._open[device.row]
        if scope.cancelled_caught:
            raise Unauthenticated

    async def end_removed(self) -> None:
        """End the open streams, requests and participations of removed devices; call it after a removal."""
        self._changed_at = trio.current_time()
        await self._end_removed([*{*self._open, *self._requested.devices()}])
        now = self._clock.now()  # a request in flight may have stored a participation since the removal
        await self._store.write(lambda tx: participations.end_of_removed(tx, now))

    async def _end_removed(self, rows: list[DeviceRow]) -> None:
        def missing(tx: Tx) -> list[DeviceRow]:
            return [row for row in rows if not accounts.device_exists(tx, row)]

        for row in await self._store.read(missing):
            self._requested.forget_device(row)
            for scope in self._open.get(row, ()):
                scope.cancel()
                self._ended += 1
