"""A TLS connection to another provider, for one exchange at a time.

Octets go between the socket and OpenSSL's memory BIOs in the task of the caller, which waits only where the socket
would block (docs/decisions/0016-one-exchange-at-a-time.md).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from typing import Final

import trio

from mimids.http.peers.answers import HttpAnswer
from mimids.http.peers.dialling import CannotConnect, Connects
from mimids.http.peers.exchange import AnswerReader, BrokenConnection, PeerRequest
from mimids.http.server.records import Records
from mimids.http.server.tls import certificates_end
from mimids.wire.ids import ProviderId

RECEIVE_OCTETS: Final = 65_536  # at a time
USUAL_OCTETS: Final = 4096  # allocated for a receive until more has arrived: glibc overwrites all that is allocated
RECORD_OCTETS: Final = 16_384  # the most that OpenSSL returns at a time
SLICE_OCTETS: Final = 32_768  # encrypted at a time; small, because the buffer of a BIO never shrinks


class PeerConnection:
    """A connection to `provider`, made by `connect`.

    If an exchange raised an error, the connection can only be closed.
    """

    def __init__(self, provider: ProviderId, tcp: socket.socket, context: ssl.SSLContext) -> None:
        self.provider = provider
        self.context = context
        self.is_reusable = False  # the last exchange is complete: the next request can be sent
        self.idle_since = 0.0  # by trio's clock; the pool sets it
        self._tcp = tcp
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._records = Records(self._incoming)
        host = provider.partition(":")[0]  # a push service may be named with its port
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._certificates_end = inf

    async def handshake(self) -> None:
        """Do the TLS handshake; raise `CannotConnect` if it fails, such as for a certificate that does not verify."""
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await self._flush()
                    await self._fill()
            await self._flush()
        except (ssl.SSLError, BrokenConnection) as error:
            with suppress(OSError):
                self._tcp.send(self._outgoing.read())  # the alert
            raise CannotConnect(str(error)) from error
        self._certificates_end = certificates_end(self._tls)

    async def exchange(self, request: PeerRequest, octets: int) -> HttpAnswer:
        """Send a request and return its answer, of at most `octets`.

        Raises `BrokenConnection` and `AnswerTooLarge`.
        """
        self.is_reusable = False
        reader = AnswerReader(octets)
        sent = False
        with suppress(BrokenConnection):  # the provider may have answered before it closed the connection
            await self._send(request)
            sent = True
        if not self._incoming.pending:
            await self._fill()
        while not reader.is_complete:
            received = await self._read()
            if received:
                reader.feed(received)
            else:
                reader.end()
        rest = self._incoming.pending + self._tls.pending()
        self.is_reusable = sent and reader.keeps_connection and not rest and not self._records.are_waiting
        return reader.answer()

    def is_usable(self, now_seconds: float) -> bool:
        """Tell whether an idle connection can be used: it is open, and no certificate of the provider has ended."""
        if now_seconds >= self._certificates_end:
            return False
        try:
            self._tcp.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False  # the connection has ended, or octets came that belong to no exchange

    def close(self) -> None:
        """Close at once; if the connection is idle, send a TLS close_notify first (RFC 8446 section 6.1)."""
        if self.is_reusable:
            with suppress(ssl.SSLError):  # raised because the other side has not closed yet
                self._tls.unwrap()
            with suppress(OSError):
                self._tcp.send(self._outgoing.read())
        self._tcp.close()

    async def _send(self, request: PeerRequest) -> None:
        try:
            for piece in _slices(request):
                self._tls.write(piece)
                await self._flush()
        except ssl.SSLError as error:
            raise BrokenConnection(str(error)) from error

    async def _read(self) -> bytes:
        """Wait for decrypted octets; return no octets once the provider has closed its side (RFC 8446 section 6.1)."""
        while True:
            try:
                return self._tls.read(min(RECORD_OCTETS, self._incoming.pending + self._tls.pending() or 1))
            except ssl.SSLWantReadError:
                await self._flush()  # TLS itself may have something to send
                await self._fill()
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                raise BrokenConnection(str(error)) from error

    async def _fill(self) -> None:
        """Give OpenSSL the next records; wait for some if none have arrived."""
        if self._records.are_waiting:
            await trio.lowlevel.checkpoint()
            self._records.pass_on()
            return
        while True:
            await trio.lowlevel.wait_readable(self._tcp)
            try:
                received = self._tcp.recv(USUAL_OCTETS)
                if len(received) == USUAL_OCTETS:
                    with suppress(OSError):  # nearly always raised because nothing more has arrived
                        received += self._tcp.recv(RECEIVE_OCTETS - USUAL_OCTETS)
            except BlockingIOError:
                continue
            except OSError as error:
                raise BrokenConnection(error.strerror) from error
            self._records.add(received)
            return

    async def _flush(self) -> None:
        """Send what OpenSSL has encrypted."""
        rest = memoryview(self._outgoing.read())
        while rest:
            try:
                rest = rest[self._tcp.send(rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._tcp)
            except OSError as error:
                raise BrokenConnection(error.strerror) from error


async def connect(dialler: Connects, provider: ProviderId, context: ssl.SSLContext) -> PeerConnection:
    """Return a new connection; raise `CannotConnect` if that fails. TCP and TLS may take `connect_seconds` each."""
    connection = PeerConnection(provider, await dialler.connect(provider), context)
    try:
        with trio.move_on_after(dialler.seconds) as waiting:
            await connection.handshake()
        if waiting.cancelled_caught:
            raise CannotConnect("the TLS handshake took too long")
    except BaseException:
        connection.close()
        raise
    return connection


def _slices(request: PeerRequest) -> Iterator[bytes | memoryview]:
    yield request.head + request.body[: SLICE_OCTETS - len(request.head)]
    body = memoryview(request.body)
    for start in range(SLICE_OCTETS - len(request.head), len(body), SLICE_OCTETS):
        yield body[start : start + SLICE_OCTETS]
