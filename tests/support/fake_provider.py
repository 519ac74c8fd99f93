"""A fake provider for client streams: real sockets, and frames that the test sends."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
)

from mimids.client import Backoff, Stream
from mimids.client.connection import Address
from mimids.client.device import DeviceToken
from mimids.client.sending import SendLimits
from mimids.client.stream import open_stream
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import Epoch, Frame, FrameBody, FrameType, Messages, PushedEpoch
from tests.support.patience import patience

HUB = ProviderId("a.example")
LIMITS = SendLimits(frame_octets=65_536, batch_messages=10)


class HungUp(Exception):
    """The device has disconnected."""


class Peer:
    """The provider's end of one stream."""

    def __init__(self, stream: trio.SocketStream, request: Request, protocol: WSConnection) -> None:
        self.request = request
        self._stream = stream
        self._protocol = protocol
        self._events: list[Event] = []
        self.pings = 0

    async def accept(self) -> None:
        await self.emit(AcceptConnection())

    async def refuse(self, status: int, problem: bytes) -> None:
        headers = [(b"content-length", b"%d" % len(problem))]
        await self.emit(RejectConnection(status_code=status, headers=headers, has_body=True))
        await self.emit(RejectData(data=problem))

    async def emit(self, event: Event) -> None:
        await self._stream.send_all(self._protocol.send(event))

    async def say(self, kind: FrameType, body: FrameBody, frame: int = 0) -> None:
        await self.emit(BytesMessage(encode(Frame(frame, kind, body))))

    async def push(self, key: PartitionKey, counter: int, messages: Epoch) -> None:
        pushed = PushedEpoch(GroupId(b"group"), key.mask(32), Counter(counter), None, messages)
        await self.say(FrameType.MESSAGES, Messages(HUB, pushed))

    async def hear(self, kind: FrameType) -> Frame:
        """Return the next frame, which must be of this kind."""
        with patience():
            while True:
                while self._events:
                    event = self._events.pop(0)
                    if isinstance(event, BytesMessage):
                        frame = decode(Frame, bytes(event.data))
                        assert frame.type == kind, frame
                        return frame
                    if isinstance(event, Ping):
                        self.pings += 1
                    if isinstance(event, CloseConnection):
                        raise HungUp
                try:
                    data = await self._stream.receive_some()
                except trio.BrokenResourceError:
                    raise HungUp from None
                if not data:
                    raise HungUp
                self._protocol.receive_data(data)
                self._events += self._protocol.events()

    async def hang_up(self) -> None:
        await self._stream.aclose()


@attrs.frozen
class FakeProvider:
    """Accepts streams; `stream` is the device's end."""

    stream: Stream
    _listener: trio.SocketListener
    _accepted: list[trio.SocketStream]

    async def next(self) -> Peer:
        """Wait for the next stream and accept it."""
        peer = await self.next_request()
        await peer.accept()
        return peer

    async def next_request(self) -> Peer:
        """Wait for the next request for a stream."""
        with patience():
            stream = await self._listener.accept()
            self._accepted.append(stream)
            protocol = WSConnection(ConnectionType.SERVER)
            while True:
                protocol.receive_data(await stream.receive_some())
                for event in protocol.events():
                    if isinstance(event, Request):
                        return Peer(stream, event, protocol)


@asynccontextmanager
async def faked(limits: SendLimits = LIMITS) -> AsyncIterator[FakeProvider]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    address = Address(url, DeviceToken(b"token"), ssl.create_default_context(), timeout_seconds=5)

    async def find_limits() -> SendLimits:
        return limits

    accepted: list[trio.SocketStream] = []
    async with listener:
        try:
            async with open_stream(address, find_limits, backoff=Backoff(0.001, 0.01)) as stream:
                yield FakeProvider(stream, listener, accepted)
            await trio.testing.wait_all_tasks_blocked()  # so that listeners see the end
        finally:
            for each in accepted:
                each.socket.close()
