"""The two ends of a connection's bytes: a socket, and TLS over it.

No send outlasts its time: a peer that does not read is given up, by closing the socket under whoever is waiting.
`PeerGone` is all that these raise for a peer's doing.
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

RECEIVE_BYTES: Final = 491_520  # about, in one piece, so that a large body takes few turns of the loop
SLICE_BYTES: Final = 32768  # what has to leave within the time for one send
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds


class PeerGone(Exception):
    """The peer went away, broke the protocol below HTTP, or was given up."""


class Plain:
    """A connected stream socket. `send_seconds` is the time that each `SLICE_BYTES` may take to leave.

    `aborted` tells whether it was closed by force.
    """

    def __init__(self, connected: trio.socket.SocketType, *, send_seconds: float) -> None:
        self._socket = connected
        self._send_seconds = send_seconds
        self._sending = trio.Lock()
        self.aborted = False

    async def receive(self) -> bytes:
        """Wait for bytes: at most `RECEIVE_BYTES`, none at the end. One task at a time."""
        try:
            return await self._socket.recv(RECEIVE_BYTES)
        except (OSError, trio.ClosedResourceError) as error:
            raise PeerGone from error

    async def send(self, data: bytes) -> None:
        """Send all of `data`; tasks may overlap. Cancellation waits, or half a message would spoil what follows."""
        sent = 0
        if not self._sending.locked():
            sent = self._write(data)  # nearly always all of it: no scheduler, no deadline
            if sent == len(data) < SLICE_BYTES:
                return  # after a large one others get their turn, below
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
        """Say that nothing more will come, and send on what was sent before."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except (OSError, trio.ClosedResourceError) as error:
            raise PeerGone from error

    async def discard(self) -> bool:
        """Wait for bytes and drop them; False at the end."""
        return bool(await self.receive())

    def abort(self) -> None:
        """Close at once, drop what was not sent, and wake whoever waits with `PeerGone`."""
        if self._socket.fileno() >= 0:
            self.aborted = True
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._socket.close()

    def close(self) -> None:
        """Close; the kernel sends on what it has."""
        self._socket.close()


class Tls:
    """TLS, server side, over a `Plain`; `handshake()` comes first.

    Not trio's SSLStream: that keeps the peer's chain to itself, breaks when a wait is cancelled, and cannot end with
    close_notify and then wait for the peer. `connection` is OpenSSL's object, which knows the peer's certificate.
    """

    def __init__(self, below: Plain, context: ssl.SSLContext) -> None:
        self._below = below
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._sending = trio.Lock()
        self.connection = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def handshake(self) -> None:
        """Agree on keys; raise `PeerGone` if what comes is not TLS, or a certificate does not verify."""
        try:
            await self._drive(self.connection.do_handshake)
        except ssl.SSLError as error:
            await self._flush()  # the alert
            raise PeerGone from error

    async def receive(self) -> bytes:
        """As `Plain.receive`."""
        try:
            received = [await self._drive(self.connection.read, RECEIVE_BYTES)]
            with suppress(ssl.SSLError):  # said again at the next read; OpenSSL gives one record at a time
                while received[-1] and self._incoming.pending and sum(map(len, received)) < RECEIVE_BYTES:
                    received.append(self.connection.read(RECEIVE_BYTES))
            await self._flush()
            return received[0] if len(received) == 1 else b"".join(received)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""  # HTTP frames its messages, so a missing close_notify cuts none short
        except ssl.SSLError as error:
            await self._flush()
            raise PeerGone from error

    async def send(self, data: bytes) -> None:
        """As `Plain.send`."""
        if len(data) <= SLICE_BYTES and not self._sending.locked():
            await self._encrypt(memoryview(data))
            return
        # In slices, because OpenSSL's buffer keeps the size it once had for as long as the connection lives.
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
        """As `Plain.finish`, with the close_notify that RFC 8446 section 6.1 wants."""
        with suppress(ssl.SSLError):  # it asks for the peer's close_notify; ours is written
            self.connection.unwrap()
        await self._flush()
        await self._below.finish()

    async def discard(self) -> bool:
        """As `Plain.discard`."""
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
        # Nothing waits between taking records out and queueing them: the peer counts them.
        if self._outgoing.pending:
            await self._below.send(self._outgoing.read())
