"""Transports of a connection: a plain socket, and TLS over it.

Each send has a time limit. When a peer does not read, the socket is closed, and all tasks that wait for it get
`PeerGone`. No other exception is raised here because of a peer.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar, TypeVarTuple

import trio

from mimids.http.server.records import Records

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

RECEIVE_BYTES: Final = 491_520  # in one receive, so that a large body takes few turns of the event loop
FIRST_BYTES: Final = 32_768  # in one receive, as long as the request has no octets from the budget of buffered octets
USUAL_BYTES: Final = 4096  # allocated for a receive until more has arrived: glibc overwrites all that is allocated
SLICE_BYTES: Final = 32768  # sent within one time limit
RECORD_BYTES: Final = 16_384  # of data in a TLS record (RFC 8446 section 5.1): OpenSSL returns no more at a time
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: process, user, group


def user_of_peer(connected: trio.socket.SocketType) -> int | None:
    """Return the user that the process at the other end of a Unix socket runs as; None for TCP, or if it is unknown."""
    if connected.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return None
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


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

    async def receive(self, most: int = RECEIVE_BYTES) -> bytes:
        """Wait for at most `most` octets; return no octets at the end of the stream. For one task at a time."""
        try:
            while True:  # usually nothing has arrived yet, so an attempt before waiting would fail
                descriptor = self._socket.fileno()
                if descriptor < 0:
                    raise PeerGone
                await trio.lowlevel.wait_readable(descriptor)
                try:
                    return self._read(most)
                except BlockingIOError:
                    continue
        except (OSError, trio.ClosedResourceError) as error:
            raise PeerGone from error

    def _read(self, most: int) -> bytes:
        """Read what has arrived; raise `BlockingIOError` if nothing has arrived."""
        descriptor = self._socket.fileno()
        received = os.read(descriptor, min(most, USUAL_BYTES))
        if len(received) == USUAL_BYTES < most:
            with suppress(BlockingIOError):
                received += os.read(descriptor, most - USUAL_BYTES)
        return received

    async def send(self, data: bytes) -> None:
        """Send all of `data`. Several tasks may send; cancellation takes effect after the whole of `data` is sent."""
        sent = 0
        if not self._sending.locked():
            sent = self._write(data)  # this usually sends everything, without the scheduler and a deadline
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
        descriptor = self._socket.fileno()
        if descriptor < 0:
            raise PeerGone
        try:
            return os.write(descriptor, data)
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

    def __init__(
        self,
        below: PlainTransport,
        context: ssl.SSLContext,
        wait_for_turn: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        """`wait_for_turn` is awaited before each step that takes long, although the peer sent few octets for it."""
        self._below = below
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._records = Records(self._incoming)
        self._wait_for_turn = wait_for_turn
        self._sending = trio.Lock()
        self._most = SLICE_BYTES  # octets that one receive from `below` may return
        self.connection = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def handshake(self) -> None:
        """Do the handshake; raise `PeerGone` if the peer does not speak TLS or its certificate does not verify."""
        try:
            while not await self._handshake_step():
                pass
        except ssl.SSLError as error:
            raise PeerGone from error

    async def _handshake_step(self) -> bool:
        """Receive, and go on with the handshake; return True once it is done."""
        await self._fill()
        if self._records.are_complete:  # else OpenSSL only stores what has arrived
            await self._wait_for_turn()
        try:
            self.connection.do_handshake()
        except ssl.SSLWantReadError:
            return False
        else:
            return True
        finally:
            await self._flush()

    async def receive(self, most: int = RECEIVE_BYTES) -> bytes:
        """Receive as `PlainTransport.receive` does."""
        self._most = most
        try:
            if not self._arrived():
                await self._fill()  # else the first read would fail
            received = await self._drive(self._decrypt, most)
            if received and self._arrived():
                received = self._decrypt_rest(received, most)
                await self._flush()
            return received
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""  # HTTP messages have a length, so a missing close_notify cannot truncate one
        except ssl.SSLError as error:
            await self._flush()
            raise PeerGone from error

    def _decrypt(self, most: int) -> bytes:
        """Return at most `most` octets of the next record that has arrived; see USUAL_BYTES."""
        return self.connection.read(min(most, self._arrived() or 1, RECORD_BYTES))

    def _decrypt_rest(self, first: bytes, most: int) -> bytes:
        """Return `first` and what has arrived after it, without waiting; OpenSSL returns one record at a time."""
        received, left = [first], most - len(first)
        with suppress(ssl.SSLError):  # the error comes again at the next read
            while received[-1] and self._arrived() and left:
                received.append(self._decrypt(left))
                left -= len(received[-1])
        return b"".join(received)

    def _arrived(self) -> int:
        """Return how many octets have arrived and were not returned, most of them encrypted."""
        return self._incoming.pending + self.connection.pending()

    async def send(self, data: bytes) -> None:
        """Send as `PlainTransport.send` does."""
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
        """Send the close_notify that RFC 8446 section 6.1 requires; then finish as `PlainTransport.finish` does."""
        # raised because the peer has sent no close_notify yet; ours is still written
        with suppress(ssl.SSLError):
            self.connection.unwrap()
        await self._flush()
        await self._below.finish()

    async def discard(self) -> bool:
        """Discard as `PlainTransport.discard` does."""
        return await self._below.discard()

    async def _drive(self, step: Callable[[*Ts], T], *args: *Ts) -> T:
        while True:
            try:
                result = step(*args)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            else:
                await self._flush()
                return result

    async def _fill(self) -> None:
        """Give OpenSSL the next records; wait for some if none have arrived."""
        if self._records.are_waiting:
            await trio.lowlevel.checkpoint()
            await self._wait_for_turn()
            self._records.pass_on()
        else:
            self._records.add(await self._below.receive(self._most))
            if self._records.are_small:
                await self._wait_for_turn()

    async def _flush(self) -> None:
        # No task may run between reading records and queueing them: the peer expects them in order.
        if self._outgoing.pending:
            await self._below.send(self._outgoing.read())
