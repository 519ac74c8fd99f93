"""Partitions that we requested from a hub for our devices: that hub's pushes of them are accepted.

A presented key allows pushes only from the hub that it was presented to, and only once that hub has answered. A push
that arrives before the answer waits for the answer, because a hub may push as soon as it has read the request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import attrs
import trio

from mimids.ds.lru import LeastRecentlyUsed
from mimids.values import DeviceRow
from mimids.wire.ids import MaskedPartitionKey, ProviderId

REQUESTED_KEYS_KEPT: Final = 60_000  # masks; a key has three
KEYS_OF_A_DEVICE: Final = 15_000  # masks, so that one device evicts its own
ANSWER_SECONDS: Final = 2.0  # at most, that a push waits for the answer to a request

_Key = tuple[ProviderId, MaskedPartitionKey]


@attrs.define(eq=False)
class PendingRequest:
    """A request that its hub has not answered yet."""

    device: DeviceRow
    answered: trio.Event = attrs.field(factory=trio.Event)
    forgotten: bool = False  # the device has left since, so the answer allows no pushes


class RequestedKeys:
    """Partitions that were requested, by hub and masked key, each with the device that requested it last.

    The least recently requested ones are evicted: those of the same device first, once it has `of_a_device`.
    """

    def __init__(self, limit: int = REQUESTED_KEYS_KEPT, *, of_a_device: int = KEYS_OF_A_DEVICE) -> None:
        self._limit = limit
        self._of_a_device = of_a_device
        self._devices = LeastRecentlyUsed[_Key, DeviceRow](limit + 1)
        self._keys: dict[DeviceRow, LeastRecentlyUsed[_Key, None]] = {}
        self._waiting: dict[_Key, list[PendingRequest]] = {}

    def add(self, hub: ProviderId, masks: Iterable[MaskedPartitionKey], device: DeviceRow) -> None:
        """Record that a hub answered a device's request for the partition stored under one of these masks."""
        for mask in masks:
            key = (hub, mask)
            self._remove(key)
            self._devices.put(key, device)
            keys = self._keys.setdefault(device, LeastRecentlyUsed(self._limit + 1))
            keys.put(key, None)
            if len(keys) > self._of_a_device:
                self._remove(keys.pop_oldest()[0])
            if len(self._devices) > self._limit:
                self._remove(next(iter(self._devices)))

    def device_of(self, hub: ProviderId, mask: MaskedPartitionKey) -> DeviceRow | None:
        """Return the device that requested a partition of a hub last; the store's writer thread may call this."""
        return self._devices.peek((hub, mask))

    def forget(self, hub: ProviderId, masks: Iterable[MaskedPartitionKey]) -> None:
        """Forget a partition, because its hub refused the request."""
        for mask in masks:
            self._remove((hub, mask))

    def forget_device(self, device: DeviceRow) -> None:
        """Forget what a device requested."""
        for key in list(self._keys.get(device, ())):
            self._remove(key)
        for requests in self._waiting.values():
            for request in requests:
                request.forgotten |= request.device == device

    def devices(self) -> set[DeviceRow]:
        """Return the devices that requested something."""
        return set(self._keys)

    def clear(self) -> None:
        """Forget everything."""
        self._devices.clear()
        self._keys.clear()

    @contextmanager
    def waiting_for(
        self, hub: ProviderId, masks: Iterable[MaskedPartitionKey], device: DeviceRow
    ) -> Iterator[PendingRequest]:
        """Mark a partition as requested from a hub that has not answered yet, for the block."""
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

    async def wait_for_answers(self, hub: ProviderId, masks: Iterable[MaskedPartitionKey]) -> None:
        """Wait until the hub has answered the first requests for these partitions, at most ANSWER_SECONDS."""
        if not self._waiting:
            return
        unknown = [(hub, mask) for mask in masks if (hub, mask) not in self._devices]
        waiting = [request for key in unknown for request in self._waiting.get(key, ())]
        with trio.move_on_after(ANSWER_SECONDS):
            for request in waiting:
                await request.answered.wait()

    def _remove(self, key: _Key) -> None:
        device = self._devices.pop(key)
        keys = None if device is None else self._keys.get(device)
        if device is not None and keys is not None:
            keys.pop(key)
            if not keys:
                del self._keys[device]
