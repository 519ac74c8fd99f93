"""A WebSocket that applies its caller's rates: a received message counts as a request, sent octets count as answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from mimids.http.api.bodies import WebSocketStream


@attrs.frozen
class PacedStream:
    """A `WebSocketStream` that calls `pace` for each message received, and `owe` for each message sent.

    While `pace` waits, TCP holds the sender back. `owe` gets the number of octets of the message.
    """

    stream: WebSocketStream
    pace: Callable[[], Awaitable[None]]
    owe: Callable[[int], None]

    @property
    def heard_at(self) -> float:
        """The time, by trio's clock, when anything was last received; an answer to a ping counts, too."""
        return self.stream.heard_at

    async def receive(self) -> bytes:
        """Wait for the next message, then until the caller's rate allows it."""
        message = await self.stream.receive()
        await self.pace()
        return message

    async def send(self, message: bytes) -> None:
        """Send a message."""
        self.owe(len(message))
        await self.stream.send(message)

    async def close(self, code: int = 1000) -> None:
        """Close the WebSocket."""
        await self.stream.close(code)
