"""The open streams and waiting requests of devices; the server can end them at once.

A device is authenticated only when its request arrives. A stream then stays open for days and a waiting request for a
minute, so both are registered here. `end` ends all sessions of a device that was removed or suspended or has a new
token. After a commit that changes accounts, `end_refused` ends the sessions of all devices that are refused now.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from mimids.ds.following.pending_requests import PendingRequests
from mimids.ds.ports import Clock
from mimids.errors import Unauthenticated
from mimids.store import accounts, participations, removed, requested_partitions
from mimids.store.accounts import Standing
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Device, DeviceRow

ADMISSION_SECONDS: Final = 120.0  # from the check of a device's token to its entry here, at most


@attrs.frozen
class SessionStatistics:
    """The streams and waiting requests that are open, and those that were ended."""

    open: int
    ended: int


class Sessions:
    """The streams and waiting requests of one provider's devices."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        pending: PendingRequests,
        on_end: Callable[[DeviceRow, float | None], None] = lambda device, heard_at: None,
        on_begin: Callable[[DeviceRow], None] = lambda device: None,
    ) -> None:
        """Begin without sessions.

        When a session begins, `on_begin` is called with its device. When it ends, `on_end` is called with the device
        and the result of the session's `heard_at` (None for a request).
        """
        self._store = store
        self._clock = clock
        self._pending = pending
        self._on_end, self._on_begin = on_end, on_begin
        self._open: dict[DeviceRow, dict[trio.CancelScope, Device]] = {}
        self._changed_at = -ADMISSION_SECONDS  # the time at which accounts were changed last
        self._ended = 0

    def statistics(self) -> SessionStatistics:
        """Return the counts so far."""
        return SessionStatistics(sum(map(len, self._open.values())), self._ended)

    def devices(self) -> list[DeviceRow]:
        """Return the devices that have an open session."""
        return list(self._open)

    def is_open(self, device: DeviceRow) -> bool:
        """Tell whether a device has an open session."""
        return device in self._open

    @asynccontextmanager
    async def open(self, device: Device, *, heard_at: Callable[[], float] | None = None) -> AsyncIterator[None]:
        """Cancel the block and raise `Unauthenticated` when `end` is called for the device.

        `heard_at` is given for a stream: it returns when the device last sent something, in trio's time.
        """
        scope = trio.CancelScope()
        self._open.setdefault(device.row, {})[scope] = device
        self._on_begin(device.row)
        try:
            with scope:
                # The device may have been admitted before accounts were changed.
                if trio.current_time() - self._changed_at < ADMISSION_SECONDS:
                    await self._end_refused([device.row])
                yield
        finally:
            scopes = self._open[device.row]
            del scopes[scope]
            if not scopes:
                del self._open[device.row]
            self._on_end(device.row, None if heard_at is None else heard_at())
        if scope.cancelled_caught:
            self._ended += 1
            raise Unauthenticated

    async def end(self, devices: Sequence[DeviceRow]) -> None:
        """End the streams, waiting requests and participations of devices, so that nothing is pushed for them.

        A device that still exists, for example with a new token, takes part in a group again when it presents a key of
        that group.
        """
        for row in devices:
            self._pending.forget_device(row)
            for scope in self._open.get(row, ()):
                scope.cancel()
        now = self._clock.now()

        def end_participations(tx: Tx) -> None:
            for row in devices:
                requested_partitions.forget_device(tx, row)
                participations.end_of_device(tx, row, now)

        if devices:
            await self._store.write(end_participations)

    async def end_refused(self, devices: Sequence[DeviceRow] | None = None) -> None:
        """Call `end` for devices that are removed or suspended, and end the sessions of replaced tokens.

        Call this after a commit that changed accounts; `devices` are the devices that the commit changed, None: any
        device.
        """
        self._changed_at = trio.current_time()
        if devices is None:
            devices = [*{*self._open, *await self._store.read(participations.of_refused)}]
        await self._end_refused(devices)

    async def _end_refused(self, rows: Sequence[DeviceRow]) -> None:
        def look(tx: Tx) -> dict[DeviceRow, Standing | None]:
            return {row: accounts.standing_of(tx, row) for row in rows}

        standings = await self._store.read(look)
        await self.end([row for row, standing in standings.items() if standing is None or standing.suspended])
        for row, standing in standings.items():
            if standing is not None and not standing.suspended:
                self._end_other_tokens(row, standing)
        gone = [row for row, standing in standings.items() if standing is None]
        if gone:  # a request in flight may have stored something since the removal
            await self._store.write(lambda tx: removed.forget_devices(tx, gone))

    def _end_other_tokens(self, row: DeviceRow, standing: Standing) -> None:
        for scope, device in self._open.get(row, {}).items():
            if not standing.admits(device.token_digest):
                scope.cancel()
