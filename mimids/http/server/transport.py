"""Transports of a connection: a plain socket, and TLS over it.

Each send has a time limit. When a peer does not read, the socket is closed, and all tasks that wait for it get
`PeerGone`, the only exception raised here for what a peer does.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

RECEIVE_BYTES: Final = 491_520  # in one receive, so that a large body takes few turns of the event loop
SLICE_BYTES: Final = 32768  # sent within one time limit
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds


class PeerGone(Exception):
    """The peer disconnected, violated TLS, or did not read in time."""


class PlainTransport:
    """A connected stream socket. The peer may take `send_seconds` for each SLICE_BYTES.

    `aborted` is true once the socket was closed by force.
    """

    def __init__(self, connected: trio.socket.SocketType, *, send_seconds: float) -> None:
        self._socket = connected
        self._send_seconds = send_seconds
        self._sending = trio.Lock()
        self.aborted = False

    async def receive(self) -> bytes:
        """Wait for bytes, at most RECEIVE_BYTES; return none at the end. For one task at a time."""
        try:
            return await self._socket.recv(RECEIVE_BYTES)
        except (OSError, trio.ClosedResourceError) as error:
            raise PeerGone from error

    async def send(self, data: bytes) -> None:
        """Send all of `data`. Several tasks may send; cancellation takes effect after the whole of `data` is sent."""
        sent = 0
        if not self._sending.locked():
            sent = self._write(data)  # nearly always everything: without the scheduler and a deadline
            if sent == len(data) < SLICE_BYTES:
                return  # after a large send other tasks get their turn, below
        with trio.CancelScope(shield=True) as time:
            async with self._sending:
                for start in range(sent, len(data), SLICE_BYTES):
                    time.deadline = trio.current_time() + self._send_seconds
                    await self._write_all(memoryview(data)[start : start + SLICE_BYTES])
        if time.cancelled_caught:
            self.abort()
            raise PeerGone

    def _write(self, data: bytes) -> int:
        if self._socket.fileno() < 0:
            raise PeerGone
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PeerGone from error

    async def _write_all(self, data: memoryview) -> None:
        try:
            while data:
                data = data[await self._socket.send(data) :]
        except (OSError, trio.ClosedResourceError) as error:
            raise PeerGone from error

    async def finish(self) -> None:
        """Close the sending side; the kernel still sends what it has."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except (OSError, trio.ClosedResourceError) as error:
            raise PeerGone from error

    async def discard(self) -> bool:
        """Wait for bytes and drop them; return False at the end."""
        return bool(await self.receive())

    def abort(self) -> None:
        """Close at once by a reset, dropping unsent bytes; waiting tasks get `PeerGone`."""
        if self._socket.fileno() >= 0:
            self.aborted = True
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._socket.close()

    def close(self) -> None:
        """Close; the kernel still sends what it has."""
        self._socket.close()


class TlsTransport:
    """The server's side of TLS over a `PlainTransport`. Call `handshake()` first.

    This is not trio's SSLStream, which hides the peer's certificate chain, breaks when a wait is cancelled, and cannot
    send close_notify and then wait for the peer. `connection` is OpenSSL's object with the peer's certificate.
    """

    def __init__(self, below: PlainTransport, context: ssl.SSLContext) -> None:
        self._below = below
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._sending = trio.Lock()
        self.connection = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def handshake(self) -> None:
        """Do the handshake; raise `PeerGone` if the peer does not speak TLS or its certificate does not verify."""
        try:
            await self._drive(self.connection.do_handshake)
        except ssl.SSLError as error:
            await self._flush()  # the alert
            raise PeerGone from error

    async def receive(self) -> bytes:
        """As `PlainTransport.receive`."""
        try:
            received = [await self._drive(self.connection.read, RECEIVE_BYTES)]
            with suppress(ssl.SSLError):  # the error comes again at the next read; OpenSSL returns one record at a time
                while received[-1] and self._incoming.pending and sum(map(len, received)) < RECEIVE_BYTES:
                    received.append(self.connection.read(RECEIVE_BYTES))
            await self._flush()
            return received[0] if len(received) == 1 else b"".join(received)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""  # HTTP messages have a length, so a missing close_notify cannot truncate one
        except ssl.SSLError as error:
            await self._flush()
            raise PeerGone from error

    async def send(self, data: bytes) -> None:
        """As `PlainTransport.send`."""
        if len(data) <= SLICE_BYTES and not self._sending.locked():
            await self._encrypt(memoryview(data))
            return
        # In slices: OpenSSL's buffer never shrinks while the connection lives.
        with trio.CancelScope(shield=True):
            async with self._sending:
                for start in range(0, len(data), SLICE_BYTES):
                    await self._encrypt(memoryview(data)[start : start + SLICE_BYTES])

    async def _encrypt(self, data: memoryview) -> None:
        try:
            while data:
                data = data[self.connection.write(data) :]
        except ssl.SSLError as error:
            raise PeerGone from error
        await self._flush()

    async def finish(self) -> None:
        """As `PlainTransport.finish`, after the close_notify that RFC 8446 section 6.1 requires."""
        with suppress(ssl.SSLError):  # raised because the peer's close_notify is missing; ours is written
            self.connection.unwrap()
        await self._flush()
        await self._below.finish()

    async def discard(self) -> bool:
        """As `PlainTransport.discard`."""
        return await self._below.discard()

    async def _drive(self, step: Callable[[*Ts], T], *args: *Ts) -> T:
        while True:
            try:
                result = step(*args)
            except ssl.SSLWantReadError:
                await self._flush()
                received = await self._below.receive()
                if received:
                    self._incoming.write(received)
                else:
                    self._incoming.write_eof()
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        # No task may run between reading records and queueing them: the peer expects them in order.
        if self._outgoing.pending:
            await self._below.send(self._outgoing.read())
