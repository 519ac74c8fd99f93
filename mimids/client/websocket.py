"""One WebSocket to the device's provider, over anyio and wsproto; no compression, binary messages only."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import anyio
import httpx
from anyio.streams.tls import TLSStream
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
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from mimids.client.connection import Address, Problem, Unreachable

if TYPE_CHECKING:
    from anyio.abc import ByteStream

QUIET_SECONDS: Final = 30.0  # after this time without data, send a ping, and wait for the same time again
CLOSE_SECONDS: Final = 2.0
READ_OCTETS: Final = 65_536
MESSAGE_OCTETS: Final = (
    64 * 1024 * 1024
)  # far above the largest message of a provider; a page has 256 KiB or one message
PROBLEM_OCTETS: Final = 65_536

_BROKEN: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


class WebSocket:
    """An open connection; `open_websocket` makes it. `receive` and `send` raise `Unreachable` once it is lost.

    One task receives, and one sends.
    """

    def __init__(self, stream: ByteStream, protocol: WSConnection) -> None:
        self._stream = stream
        self._protocol = protocol
        self._events: deque[Event] = deque()
        self._writing = anyio.Lock()  # the receiving task writes too: it answers pings

    async def receive(self) -> bytes:
        """Wait for the next message."""
        parts = bytearray()
        while True:
            event = await self._event()
            if isinstance(event, BytesMessage):
                parts += event.data
                if len(parts) > MESSAGE_OCTETS:
                    raise Unreachable(f"the provider sent a message of more than {MESSAGE_OCTETS} octets")
                if event.message_finished:
                    return bytes(parts)
            elif isinstance(event, Ping):
                await self._write([event.response()])
            elif isinstance(event, CloseConnection):
                raise Unreachable(f"the provider closed the stream ({event.code}: {event.reason or 'no reason'})")
            elif isinstance(event, TextMessage):
                raise Unreachable("the provider sent a text message; only binary messages are allowed")

    async def send(self, messages: Iterable[bytes]) -> None:
        """Send messages with one write; wait while the provider does not read."""
        await self._write([BytesMessage(message) for message in messages])

    async def handshake(self, request: Request) -> None:
        """Open the stream; raise `Problem` if the provider refuses."""
        await self._write([request])
        rejected: RejectConnection | None = None
        document = bytearray()
        while True:
            event = await self._event()
            if isinstance(event, AcceptConnection):
                return
            if isinstance(event, RejectConnection):
                rejected = event
            elif isinstance(event, RejectData):
                document += event.data[: PROBLEM_OCTETS - len(document)]
            if rejected is not None and (not rejected.has_body or getattr(event, "body_finished", False)):
                raise Problem.from_json(rejected.status_code, bytes(document))

    async def send_close(self) -> None:
        """Send a close frame, and give up after CLOSE_SECONDS."""
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            with suppress(Unreachable):
                await self._write([CloseConnection(1000)])

    async def _event(self) -> Event:
        while not self._events:
            data = await self._read()
            try:
                self._protocol.receive_data(data or None)
                self._events.extend(self._protocol.events())
            except RemoteProtocolError as error:
                raise Unreachable("the provider sent something that is not a WebSocket frame") from error
            if not data and not self._events:
                raise Unreachable("the provider closed the connection")
        return self._events.popleft()

    async def _read(self) -> bytes:
        """Return received octets, b"" at the end; send one ping after QUIET_SECONDS without data."""
        for pinged in (False, True):
            with anyio.move_on_after(QUIET_SECONDS):
                try:
                    return await self._stream.receive(READ_OCTETS)
                except anyio.EndOfStream:
                    return b""
                except _BROKEN as error:
                    raise Unreachable(str(error) or type(error).__name__) from error
            if not pinged:
                await self._write([Ping()])
        raise Unreachable(f"the provider did not answer a ping for {QUIET_SECONDS:.0f} s")

    async def _write(self, events: Iterable[Event]) -> None:
        try:
            async with self._writing:
                await self._stream.send(b"".join(map(self._protocol.send, events)))
        except (*_BROKEN, LocalProtocolError) as error:
            raise Unreachable(str(error) or type(error).__name__) from error


@asynccontextmanager
async def open_websocket(address: Address, path: str) -> AsyncIterator[WebSocket]:
    """Open a WebSocket; raise `Unreachable`, or `Problem` if the provider refuses."""
    try:
        with anyio.fail_after(address.timeout_seconds):
            stream = await _connect(address)
            socket = WebSocket(stream, WSConnection(ConnectionType.CLIENT))
            try:
                await socket.handshake(_request(address, path))
            except BaseException:
                await anyio.aclose_forcefully(stream)
                raise
    except (*_BROKEN, TimeoutError) as error:
        raise Unreachable(str(error) or type(error).__name__) from error
    lost = False
    try:
        yield socket
    except Unreachable:
        lost = True
        raise
    finally:
        if not lost:
            await socket.send_close()
        await anyio.aclose_forcefully(stream)


async def _connect(address: Address) -> ByteStream:
    url = httpx.URL(address.url)
    port = url.port or {"https": 443, "http": 80}[url.scheme]
    stream: ByteStream = await anyio.connect_tcp(url.host, port)
    if url.scheme != "https":
        return stream
    try:
        return await TLSStream.wrap(stream, hostname=url.host, ssl_context=address.trust, standard_compatible=False)
    except BaseException:  # anyio leaves the socket open when a handshake fails
        await anyio.aclose_forcefully(stream)
        raise


def _request(address: Address, path: str) -> Request:
    bearer = f"Bearer {address.token.reveal().decode()}"
    host = httpx.URL(address.url).netloc.decode()
    return Request(host, path, extra_headers=[(b"authorization", bearer.encode())])
