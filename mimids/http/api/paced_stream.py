"""A WebSocket whose messages are received no faster than its caller may send requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from mimids.http.api.bodies import WebSocketStream


@attrs.frozen
class PacedStream:
    """A `WebSocketStream` that calls `pace` for each message; while `pace` waits, TCP holds the sender back."""

    stream: WebSocketStream
    pace: Callable[[], Awaitable[None]]

    async def receive(self) -> bytes:
        """Wait for the next message, and for the time when the caller may send it."""
        message = await self.stream.receive()
        await self.pace()
        return message

    async def send(self, message: bytes) -> None:
        """Send a message."""
        await self.stream.send(message)

    async def close(self, code: int = 1000) -> None:
        """Close the WebSocket."""
        await self.stream.close(code)
