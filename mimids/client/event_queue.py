"""The events of a stream that the device has not looked at yet, with their size in octets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import anyio

from mimids.client.connection import Problem
from mimids.client.events import Event

WAITING_OCTETS: Final = 4 * 1024 * 1024  # from this size on, reading stops, unless a task waits for an answer
FULL_OCTETS: Final = 16 * 1024 * 1024  # from this size on, the connection is closed


class EventQueue:
    """A queue of events, written by the stream's tasks and read by the device."""

    def __init__(self) -> None:
        self._events: deque[tuple[Event, int]] = deque()
        self._octets = 0
        self._closed = False
        self._failure: Problem | None = None
        self._arrived = anyio.Event()
        self._room = anyio.Event()

    @property
    def octets(self) -> int:
        """Return the size of the frames whose events are in the queue."""
        return self._octets

    @property
    def has_room(self) -> bool:
        """Tell whether more may be read from the connection."""
        return self._octets < WAITING_OCTETS

    @property
    def is_full(self) -> bool:
        """Tell whether the connection has to be closed."""
        return self._octets >= FULL_OCTETS

    def put(self, event: Event, octets: int) -> None:
        """Add an event that came in a frame of this size."""
        self._events.append((event, octets))
        self._octets += octets
        self._wake_device()

    async def get(self) -> Event:
        """Wait for the next event; after the last event, raise the error given to `close`, or `StopAsyncIteration`."""
        while not self._events:
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise StopAsyncIteration
            await self._arrived.wait()
        event, octets = self._events.popleft()
        self._octets -= octets
        if self.has_room:
            self._room.set()
        return event

    async def wait_for_room(self, *, unless: Callable[[], object]) -> None:
        """Wait until there is room, or `unless` is true; whoever makes `unless` true must call `look_again`."""
        while not self.has_room and not unless():
            self._room = anyio.Event()
            await self._room.wait()

    def look_again(self) -> None:
        """Make `wait_for_room` look at its condition again."""
        self._room.set()

    def close(self, failure: Problem | None) -> None:
        """Add no more events: `get` raises after the last one."""
        self._closed = True
        self._failure = failure
        self._wake_device()

    def _wake_device(self) -> None:
        self._arrived.set()
        self._arrived = anyio.Event()
