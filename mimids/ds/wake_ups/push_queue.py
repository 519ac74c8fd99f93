"""The devices to be woken, by push service.

Each service has a queue and workers of its own, so a service that is down or slow delays no other service. While a
service fails, one worker tries one device at a time. If the service fails for two devices in a row, no push is sent to
it for a moment. A device whose own pushes fail delays no other device, because it waits alone (`job`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from mimids.ds.backoff import Backoff
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.ports import Clock
from mimids.values import DeviceRow

CALLS_TO_ONE: Final = 16  # to one push service at a time
SERVICES_REMEMBERED: Final = 10_000  # with their back-off
FIRST_SECONDS: Final = 2.0
CAP_SECONDS: Final = 30.0  # the longest time without a push to a failing service


@attrs.define
class _Service:
    """The devices that wait for a push service, the devices that workers have taken, and the number of workers."""

    waiting: dict[DeviceRow, None] = attrs.field(factory=dict)
    in_hand: set[DeviceRow] = attrs.field(factory=set)
    workers: int = 0


@attrs.frozen
class _Failing:
    """A service whose last push failed: how many devices failed in a row, the last of them, and when to go on."""

    devices: int
    device: DeviceRow
    until: int


class PushQueue:
    """The devices to be woken; each is in one queue only. A service is named by its origin."""

    def __init__(self, clock: Clock, start: Callable[[str], None]) -> None:
        """`start` starts a worker for a service, which calls `wait` and `take` in turn, until `take` returns None."""
        self._clock = clock
        self._start = start
        self._backoff = Backoff(FIRST_SECONDS, CAP_SECONDS)
        self._services: dict[str, _Service] = {}
        self._devices: set[DeviceRow] = set()  # queued, or taken by a worker
        self._failures: LeastRecentlyUsed[str, _Failing] = LeastRecentlyUsed(SERVICES_REMEMBERED)

    def __len__(self) -> int:
        return len(self._devices)

    def __contains__(self, device: object) -> bool:
        return device in self._devices

    @property
    def failing(self) -> int:
        """Return how many of the remembered push services fail at present."""
        return len(self._failures)

    def add(self, device: DeviceRow, origin: str) -> None:
        """Queue a device, unless it is queued or a worker has it."""
        if device not in self._devices:
            self._devices.add(device)
            self._services.setdefault(origin, _Service()).waiting[device] = None
            self._start_workers(origin)

    async def wait(self, origin: str) -> None:
        """Wait until a push service may be called."""
        while (known := self._failures.peek(origin)) is not None and known.until > self._clock.running():
            await self._clock.sleep((known.until - self._clock.running()) / 1000)

    def take(self, origin: str) -> DeviceRow | None:
        """Return the next device for a worker; None if the worker must end."""
        service = self._services[origin]
        if not service.waiting or (origin in self._failures and service.workers > 1):
            service.workers -= 1
            if not service.workers:
                del self._services[origin]
            return None
        device = next(iter(service.waiting))
        del service.waiting[device]
        service.in_hand.add(device)
        return device

    def done(self, device: DeviceRow, origin: str) -> None:
        """Remove a device that a worker has taken: it was woken, has no news any more, or waits alone."""
        self._services[origin].in_hand.discard(device)
        self._devices.discard(device)

    def failed(self, device: DeviceRow, origin: str) -> None:
        """Count a failed push. If the last failed push was to another device, send the service no push for a while."""
        known = self._failures.peek(origin)
        if known is None:
            self._failures.put(origin, _Failing(1, device, 0))
        elif known.device != device:
            seconds = self._backoff.seconds(known.devices)
            self._failures.put(origin, _Failing(known.devices + 1, device, self._clock.running() + int(seconds * 1000)))

    def answered(self, origin: str) -> None:
        """Record that a push service works: forget its failures, and allow it several calls at a time again."""
        self._failures.pop(origin)
        self._start_workers(origin)

    def _start_workers(self, origin: str) -> None:
        service = self._services[origin]
        most = 1 if origin in self._failures else CALLS_TO_ONE
        while service.workers < min(most, len(service.waiting) + len(service.in_hand)):
            service.workers += 1
            self._start(origin)
