"""Requests to hubs that are not answered yet. A hub may push as soon as it has read a request.

While a device requests a partition, a push of the partition waits until the hub has answered the request. After the
answer, the request is a row (`store.requested_partitions`), or the device takes part in the partition's group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import attrs
import trio

from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.ports import Clock
from mimids.store import groups, participations, partitions, providers, requested_partitions
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.requested_partitions import Requested
from mimids.values import DeviceRow
from mimids.wire.ids import GroupId, MaskedPartitionKey, ProviderId

ANSWER_SECONDS: Final = 2.0  # the longest time that a push waits for the answer to a request
LEFT_REMEMBERED: Final = 10_000  # groups that devices left

_Key = tuple[ProviderId, MaskedPartitionKey]


@attrs.define(eq=False)
class PendingRequest:
    """A request that its hub has not answered yet."""

    device: DeviceRow
    answered: trio.Event = attrs.field(factory=trio.Event)
    forgotten: bool = False  # the device has left since, so the answer allows no pushes


class LeftGroups:
    """Which groups devices have left since they made a request; for write transactions.

    The group of a stored request is not known before its partition is pushed. If the device left that group after the
    request, the push does not make the device take part again. After a restart the server no longer knows which groups
    were left.
    """

    def __init__(self) -> None:
        # By device, hub's row and group: the newest stored request of all devices when the device left the group.
        self._newest: LeastRecentlyUsed[tuple[DeviceRow, int, GroupId], int] = LeastRecentlyUsed(LEFT_REMEMBERED)
        self._last: LeastRecentlyUsed[DeviceRow, int] = LeastRecentlyUsed(LEFT_REMEMBERED)  # the same, by device
        self.highest = 0  # the highest of these requests' ids

    def note(self, device: DeviceRow, hub: int, group_id: GroupId, newest: int) -> None:
        """Remember that a device leaves a group; `newest` is the newest stored request of all devices."""
        self._newest.put((device, hub, group_id), newest)
        self._last.put(device, newest)
        self.highest = max(self.highest, newest)

    def has_left_any(self, requested: Requested) -> bool:
        """Tell whether a device has left any group since it made a request."""
        newest = self._last.peek(requested.device)
        return newest is not None and requested.id <= newest

    def has_left(self, requested: Requested, hub: int, group_id: GroupId) -> bool:
        """Tell whether a device has left a group since it made a request."""
        newest = self._newest.peek((requested.device, hub, group_id))
        return newest is not None and requested.id <= newest


class PendingRequests:
    """The requests of this process that wait for the answer of a hub, by hub and masked key."""

    def __init__(self) -> None:
        self._waiting: dict[_Key, list[PendingRequest]] = {}
        self.left = LeftGroups()

    def forget_device(self, device: DeviceRow, *, hub: ProviderId | None = None) -> None:
        """From now on, the answers to a device's pending requests (by default, to all hubs) allow no pushes."""
        for (at, _), requests in self._waiting.items():
            for request in requests if hub in (None, at) else ():
                request.forgotten |= request.device == device

    @contextmanager
    def waiting_for(
        self, hub: ProviderId, masks: Iterable[MaskedPartitionKey], device: DeviceRow
    ) -> Iterator[PendingRequest]:
        """Mark a partition as requested from a hub while the block runs; the block also stores the answer."""
        request, keys = PendingRequest(device), [(hub, mask) for mask in masks]
        for key in keys:
            self._waiting.setdefault(key, []).append(request)
        try:
            yield request
        finally:
            request.answered.set()
            for key in keys:
                waiting = self._waiting[key]
                waiting.remove(request)
                if not waiting:
                    del self._waiting[key]

    def among(self, hub: ProviderId, masks: Iterable[MaskedPartitionKey]) -> set[MaskedPartitionKey]:
        """Return the partitions among these that are being requested from a hub."""
        return {mask for mask in masks if (hub, mask) in self._waiting}

    async def wait_for_answers(self, hub: ProviderId, masks: Iterable[MaskedPartitionKey]) -> None:
        """Wait until the hub has answered the requests for these partitions, at most ANSWER_SECONDS."""
        waiting = [request for mask in masks for request in self._waiting.get((hub, mask), ())]
        with trio.move_on_after(ANSWER_SECONDS):
            for request in waiting:
                await request.answered.wait()


async def record_answer(
    store: Store,
    clock: Clock,
    left: LeftGroups,
    hub: ProviderId,
    masks: Sequence[MaskedPartitionKey],
    request: PendingRequest,
    *,
    linear: bool,
) -> None:
    """Record that a hub answered a request for a partition, unless this is recorded already or the device has left.

    `linear` tells whether the hub said that the group is linear.
    """

    def is_recorded(tx: Tx) -> bool:
        number = providers.provider_row(tx, hub) or 0
        known = partitions.find_partition(tx, number, masks)
        if known is None:
            requested = requested_partitions.find(tx, number, masks[0])
            return requested == Requested(request.device, linear) and not left.has_left_any(requested)
        is_linear = not linear or groups.group_by_row(tx, known.group).linear
        return is_linear and participations.takes_part(tx, known.group, request.device)

    def record(tx: Tx) -> None:
        if request.forgotten:  # read here, because the rows of a device that leaves are written after this flag is set
            return
        number = providers.ensure_provider(tx, hub)
        known = partitions.find_partition(tx, number, masks)
        if known is None:
            requested_partitions.add(tx, number, masks, request.device, linear=linear, after=left.highest)
            return
        participations.take_part(tx, known.group, request.device, clock.now())
        if linear:
            groups.learn_linear(tx, known.group)

    if not await store.read(is_recorded):
        await store.write(record)


async def forget_request(store: Store, hub: ProviderId, masks: Sequence[MaskedPartitionKey]) -> None:
    """Forget that a partition was requested, because its hub refused it."""

    def find(tx: Tx) -> int | None:
        number = providers.provider_row(tx, hub) or 0
        return number if requested_partitions.find(tx, number, masks[0]) else None

    number = await store.read(find)
    if number is not None:
        await store.write(lambda tx: requested_partitions.forget(tx, number, masks))
