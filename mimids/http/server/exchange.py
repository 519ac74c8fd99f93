"""The messages of one request or WebSocket between its connection and the ASGI application."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, cast

import trio

if TYPE_CHECKING:
    from mimids.http.server.connection import Message

INBOX_MESSAGES: Final = 2  # queued for the app: a body and its end; a WebSocket's peer is held back by TCP


class Exchange:
    """One request or WebSocket between a connection and the app: ASGI messages in both directions until either ends."""

    def __init__(self, forward: Callable[[Message | None], Awaitable[None]]) -> None:
        self.forward = forward
        self.scope = trio.CancelScope()
        self._inbox: deque[Message] = deque()  # at most INBOX_MESSAGES
        self._arrivals = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._disconnect: Message | None = None

    async def put(self, message: Message) -> None:
        """Queue a message for the app; wait while INBOX_MESSAGES are queued, unless it is a disconnect."""
        if message["type"] in ("http.disconnect", "websocket.disconnect"):
            self._disconnect = self._disconnect or message
        else:
            while len(self._inbox) >= INBOX_MESSAGES:
                await self._room.park()
            self._inbox.append(message)
        self._arrivals.unpark()

    async def receive(self) -> Message:
        """ASGI's receive. After the end, each call returns the disconnect again."""
        while not self._inbox and self._disconnect is None:
            await self._arrivals.park()
        if self._inbox:
            self._room.unpark()
            return self._inbox.popleft()
        return cast("Message", self._disconnect)

    async def send(self, message: Message) -> None:
        """ASGI's send. After the end, messages are dropped."""
        if self._disconnect is None:
            await self.forward(message)
