"""Store how far our devices have read, so that retention knows which messages they still need.

A cursor is kept in memory and stored once a minute, so that reading costs no write. If the process is killed, cursors
of the last minute are lost, and retention keeps more than it needs until the device presents its cursor again.

A cursor says that the device has every message before the cursor. A cursor beyond the end of the partition does not
say this: the device counted wrongly, or the partition was restored. So a cursor is kept only after the device was
served from this cursor.

If several processes serve a provider, a device may read at one process and then at another. The first process may then
store its cursor later than the second process, although the first cursor is older. So a process stores its cursor only
if the stored cursor is of an earlier hour, or of the same hour and not higher. If the process knows that the device
went back, it always stores its cursor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

import trio

from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.ports import Clock
from mimids.ds.saving import save_regularly
from mimids.errors import CounterAhead, MimiError
from mimids.store import cursors, providers, push_subscriptions
from mimids.store.cursors import Shown
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Device, DeviceRow, Milliseconds
from mimids.wire.ids import Counter, MaskedPartitionKey, ProviderId
from mimids.wire.messages import ReceiveRequest

SAVE_SECONDS: Final = 60.0
LAST_SAVE_SECONDS: Final = 5.0
PAGE: Final = 500  # cursors in one transaction
MOST_UNSAVED: Final = 100_000  # beyond this number, the oldest cursors are dropped

_Key = tuple[DeviceRow, ProviderId, tuple[MaskedPartitionKey, ...]]
_Cursor = tuple[Counter, Milliseconds, bool]  # the counter, when it was presented, and whether the device went back


class Cursors:
    """The cursors of all our devices; `run` is the job that stores them."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        is_watched: Callable[[DeviceRow], bool] = lambda device: False,
        on_watched: Callable[[], None] = lambda: None,
        *,
        shared: bool = False,
    ) -> None:
        """`is_watched` tells whether a device may be woken; `on_watched` is called when such a device reads.

        `save_of` stores the cursors of such a device, without waiting for `run`. With `shared`, other processes store
        cursors of the same devices.
        """
        self._shared = shared
        self._store = store
        self._clock = clock
        self._is_watched = is_watched
        self._on_watched = on_watched
        self._of_watched: dict[DeviceRow, set[_Key]] = {}  # keys of the unsaved cursors of devices that may be woken
        self._unsaved: LeastRecentlyUsed[_Key, _Cursor] = LeastRecentlyUsed(MOST_UNSAVED)

    @contextmanager
    def reading(self, device: Device, hub: ProviderId, request: ReceiveRequest) -> Iterator[None]:
        """Keep the position that a request names, unless the block that serves the request raises a `MimiError`.

        If the block raises `CounterAhead`, keep the counter at which the device starts again (`note_refusal`).
        """
        asked_at, refused = self._clock.now(), False
        try:
            yield
        except MimiError as error:
            refused = True
            self.note_refusal(device, hub, request, error, asked_at=asked_at)
            raise
        finally:
            if not refused:
                self.note(device, hub, request, asked_at=asked_at)

    def note(
        self,
        device: Device,
        hub: ProviderId,
        request: ReceiveRequest,
        *,
        asked_at: Milliseconds | None = None,
        went_back: bool = False,
    ) -> None:
        """Keep the counter from which a device reads: the device has all messages before that counter.

        If a request of the device that came after `asked_at` has named another position, that position is kept.
        `went_back` says that the device lost later messages.
        """
        key = (device.row, hub, request.partition_key.masks())
        at = self._clock.now() if asked_at is None else asked_at
        known = self._unsaved.peek(key)
        if known is None or known[1] <= at:
            is_lower = known is not None and (known[2] or request.counter < known[0])
            self._unsaved.put(key, (request.counter, at, went_back or is_lower))
            if self._is_watched(device.row):
                self._of_watched.setdefault(device.row, set()).add(key)
                self._on_watched()

    def note_refusal(
        self,
        device: Device,
        hub: ProviderId,
        request: ReceiveRequest,
        error: MimiError,
        *,
        asked_at: Milliseconds | None = None,
    ) -> None:
        """If a hub answers that a device is ahead of a partition, keep the counter at which the device starts again."""
        again = error.members.get("next_counter")
        if isinstance(error, CounterAhead) and isinstance(again, int) and 0 <= again < request.counter:
            restart = ReceiveRequest(request.partition_key, Counter(again))
            self.note(device, hub, restart, asked_at=asked_at, went_back=True)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store cursors every SAVE_SECONDS, and once more when cancelled."""
        task_status.started()
        await save_regularly(self.save, self._clock, every=SAVE_SECONDS, at_most=LAST_SAVE_SECONDS)

    async def save(self) -> None:
        """Store the cursors that are in memory, first the cursors of the `watched` devices.

        If the cursors of watched devices cannot be written, all cursors are kept for the next time. Other cursors that
        cannot be written are dropped.
        """
        try:
            await self.save_of(self.watched())
        except MimiError:
            return
        while self._unsaved:
            page = [self._unsaved.pop_oldest() for _ in range(min(PAGE, len(self._unsaved)))]
            with suppress(MimiError):
                await self._store.write(partial(_save, page, shared=self._shared))

    def watched(self) -> list[DeviceRow]:
        """Return the devices that may be woken and have cursors that are not stored."""
        return list(self._of_watched)

    async def save_of(self, devices: Iterable[DeviceRow]) -> None:
        """Store the cursors of these devices; raise `StorageUnavailable`, and keep the cursors that were not stored."""
        keys = [key for device in devices for key in self._of_watched.pop(device, ())]
        for start in range(0, len(keys), PAGE):
            found = [(key, cursor) for key in keys[start : start + PAGE] if (cursor := self._unsaved.pop(key))]
            try:
                await self._store.write(partial(_save_of_watched, found, shared=self._shared))
            except MimiError:
                for key, cursor in found:
                    if self._unsaved.peek(key) is None:  # a newer cursor means that the device has read on
                        self._unsaved.put(key, cursor)
                for key in keys[start:]:
                    self._of_watched.setdefault(key[0], set()).add(key)
                raise


def _save(page: Sequence[tuple[_Key, _Cursor]], tx: Tx, *, shared: bool) -> None:
    rows = {hub: providers.provider_row(tx, hub) or 0 for (_, hub, _), _ in page}
    shown = [
        Shown(device, rows[hub], masks, counter, at, only_forward=shared and not went_back)
        for (device, hub, masks), (counter, at, went_back) in page
    ]
    cursors.note(tx, shown)


def _save_of_watched(page: Sequence[tuple[_Key, _Cursor]], tx: Tx, *, shared: bool) -> None:
    """Store cursors, even of partitions that do not exist yet, so that their first message wakes the device."""
    _save(page, tx, shared=shared)
    for (device, hub, masks), _ in page:
        push_subscriptions.note_early(tx, device, providers.ensure_provider(tx, hub), masks)
