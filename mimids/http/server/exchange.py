"""The messages of one request or WebSocket between its connection and the ASGI application."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, cast

import trio

if TYPE_CHECKING:
    from mimids.http.server.connection import Message

INBOX_MESSAGES: Final = 2  # queued for the app: enough for a body and its end; TCP holds back the peer of a WebSocket
INBOX_OCTETS: Final = 65536  # queued for the app, unless one message is larger


class Exchange:
    """One request or WebSocket between a connection and the app: ASGI messages in both directions until either ends."""

    def __init__(self, forward: Callable[[Message | None], Awaitable[None]]) -> None:
        self.forward = forward
        self.scope = trio.CancelScope()
        self._inbox: deque[Message] = deque()  # at most INBOX_MESSAGES
        self._inbox_octets = 0
        self._receiving = False  # the app waits for a message
        self._arrivals = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._readers = trio.lowlevel.ParkingLot()
        self._disconnect: Message | None = None

    async def put(self, message: Message) -> None:
        """Queue a message for the app; wait while the queue is full, unless it is a disconnect."""
        if message["type"] in ("http.disconnect", "websocket.disconnect"):
            self._disconnect = self._disconnect or message
        else:
            octets = _octets_of(message)
            while self._is_full(octets):
                await self._room.park()
            self._inbox_octets += octets
            self._inbox.append(message)
        self._arrivals.unpark()

    async def receive(self) -> Message:
        """ASGI's receive. After the end, each call returns the disconnect again."""
        while not self._inbox and self._disconnect is None:
            self._receiving = True
            self._readers.unpark_all()
            try:
                await self._arrivals.park()
            finally:
                self._receiving = False
        if self._inbox:
            message = self._inbox.popleft()
            self._inbox_octets -= _octets_of(message)
            self._room.unpark()
            return message
        await trio.lowlevel.checkpoint_if_cancelled()  # the app may have been cancelled before it came here
        return cast("Message", self._disconnect)

    async def wait_for_reader(self) -> None:
        """Wait until the app waits for a message, so that no octets are received before the app wants them."""
        while self._inbox or not self._receiving:
            await self._readers.park()

    def release(self) -> None:
        """Drop the queued messages when the app has ended, so that no cycle of references keeps them in memory."""
        self._inbox.clear()
        self._disconnect = self._disconnect or {"type": "http.disconnect"}
        del self.forward

    def _is_full(self, octets: int) -> bool:
        waiting = len(self._inbox)
        return waiting >= INBOX_MESSAGES or (waiting > 0 and self._inbox_octets + octets > INBOX_OCTETS)

    async def send(self, message: Message) -> None:
        """ASGI's send. After the end, messages are dropped."""
        if self._disconnect is None:
            await self.forward(message)
        else:
            await trio.lowlevel.checkpoint()  # an app that only sends must notice that it is cancelled


def _octets_of(message: Message) -> int:
    return len(message.get("body") or message.get("bytes") or message.get("text") or b"")
