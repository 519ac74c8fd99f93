"""A client of a table's WebSockets, in memory."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from mimids.http.api.asgi import Message
from tests.support.inmemory import Answered, InMemory
from tests.support.table_rig import Rig


class Peer:
    """The client of a WebSocket: sends all of `messages`, and keeps what it receives."""

    def __init__(self, *messages: bytes | str) -> None:
        self._says: list[Message] = [{"type": "websocket.connect"}]
        for message in messages:
            text = message if isinstance(message, str) else None
            octets_ = message if isinstance(message, bytes) else None
            self._says.append({"type": "websocket.receive", "bytes": octets_, "text": text})
        self.heard: list[Message] = []

    async def receive(self) -> Message:
        await trio.lowlevel.checkpoint()
        return self._says.pop(0) if self._says else {"type": "websocket.disconnect", "code": 1000}

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.heard.append(message)

    @property
    def said(self) -> list[bytes]:
        return [message["bytes"] for message in self.heard if message["type"] == "websocket.send"]

    @property
    def refusal(self) -> Answered:
        start, body = self.heard
        assert start["type"] == "websocket.http.response.start"
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return Answered(start["status"], headers, body["body"])


async def chat(
    rig: Rig, target: str, peer: Peer, *, good: bool = True, protocols: Sequence[str] = (), origin: str | None = None
) -> Peer:
    sent = {"authorization": "Bearer good" if good else "Bearer bad"}
    if origin is not None:
        sent["origin"] = origin
    scope = InMemory(rig.app).websocket(target, sent, protocols)
    await rig.app(scope, peer.receive, peer.send)
    return peer
