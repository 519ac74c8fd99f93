"""Plain requests: the requests that a connection answers without Hypercorn and ASGI, parsed by httptools.

Nearly all requests are plain. Nothing is refused here: a request that may not be plain goes to Hypercorn's protocol,
which reads it from its first octet. So only h11 judges malformed requests. Tests check that h11 would read each plain
request in the same way.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final, Protocol

import attrs
import httptools
import trio

from mimids.http.server.listener_state import ConnectionLimits
from mimids.http.server.messages import HttpReply, join_headers
from mimids.http.server.phases import body_seconds_allowed
from mimids.http.server.protocols import HEADER_LINES
from mimids.http.server.transport import PeerGone

PLAIN_METHODS: Final = frozenset({b"GET", b"POST", b"PUT", b"DELETE"})
# A head with one of these headers is not plain: it has a chunked body, an upgrade or 100-continue. A head whose
# Connection is not keep-alive is not plain either.
NOT_PLAIN: Final = frozenset({b"transfer-encoding", b"upgrade", b"expect"})
LENGTH_DIGITS: Final = 18  # digits of a Content-Length, at most
_END: Final = b"\r\n\r\n"


@attrs.frozen
class PlainHead:
    """The head of a plain request."""

    octets: int  # of the head, with the empty line
    method: str
    target: bytes
    headers: dict[str, str]
    length: int  # of the body


class _Fields:
    """What httptools finds in a head."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))  # httptools keeps white space after a value


def parse_head(received: bytes, head_bytes: int) -> PlainHead | None:
    """Return the head of the plain request at the beginning of `received`; None if there is no complete head.

    A head longer than `head_bytes`, or of more than HEADER_LINES, is not plain: Hypercorn's protocol refuses it.
    """
    end = received.find(_END, 0, head_bytes)
    if end < 0:
        return None
    octets, fields = end + len(_END), _Fields()
    parser = httptools.HttpRequestParser(fields)
    try:
        parser.feed_data(received[:octets])
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    method, lines = parser.get_method(), received.count(b"\n", 0, end)
    # httptools also accepts several spaces between method and target, and empty lines before the method.
    if method not in PLAIN_METHODS or not received.startswith(b"%b %b HTTP/1.1\r\n" % (method, fields.target)):
        return None
    if not fields.target.startswith(b"/") or lines > HEADER_LINES or lines != len(fields.headers):
        return None
    length = _length_of(fields.headers)
    if length is None:
        return None
    return PlainHead(octets, method.decode(), fields.target, join_headers(fields.headers), length)


def _length_of(fields: list[tuple[bytes, bytes]]) -> int | None:
    """Return the length of the body, None if a plain request cannot have these headers."""
    hosts = length = 0
    for name, value in fields:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":  # httptools refuses a second one
            if not value.isdigit() or len(value) > LENGTH_DIGITS:
                return None
            length = int(value)
        elif name in NOT_PLAIN or (name == b"connection" and value.lower() != b"keep-alive"):
            return None
    return length if hosts == 1 else None  # RFC 9112 section 3.2: a request MUST have one Host


class Receiver(Protocol):
    """Receives from the peer of a connection."""

    async def receive(self, most: int) -> bytes:
        """Wait for about `most` octets; return no octets at the end of the stream.

        Raise `PeerGone` if the peer is gone.
        """

    def watch_peer(self) -> None:
        """Receive in another task until the next `receive`."""


class PlainBody:
    """The body of a plain request: the octets that came with its head, then those that `receive` waits for."""

    def __init__(self, received: bytes, length: int, peer: Receiver, limits: ConnectionLimits) -> None:
        self.handler: trio.CancelScope | None = None  # cancelled if the body does not arrive
        self.timed_out = False
        self._received = received  # received but not passed on: octets of the body, then of the next request
        self._left = length  # octets of the body that are not passed on yet
        self._peer = peer
        self._limits = limits
        self._seconds = limits.body_seconds  # the time for which the peer may be silent

    @property
    def is_complete(self) -> bool:
        """Whether the whole body has arrived."""
        return len(self._received) >= self._left

    @property
    def may_watch(self) -> bool:
        """Whether the whole body has arrived, and nothing after it."""
        return len(self._received) == self._left

    def watch(self) -> None:
        """Watch the peer."""
        self._peer.watch_peer()

    def rest(self) -> bytes:
        """Return what was received after a complete body."""
        return self._received[self._left :]

    async def receive(self) -> tuple[bytes, bool]:
        """Return the next piece, and whether there are more; cancel the handler if it does not arrive in time."""
        if self._left and not self._received:
            self._received = await self._receive_more()
        piece, self._received = self._received[: self._left], self._received[self._left :]
        self._left -= len(piece)
        return piece, self._left > 0

    async def _receive_more(self) -> bytes:
        began, data = trio.current_time(), b""
        with trio.CancelScope(deadline=began + self._seconds) as waiting, suppress(PeerGone):
            data = await self._peer.receive(self._left)
        if not data:
            self.timed_out = waiting.cancelled_caught
            if self.handler is not None:
                self.handler.cancel()
            await trio.sleep_forever()
        left = self._seconds - (trio.current_time() - began)
        self._seconds = body_seconds_allowed(left, len(data), self._limits)
        return data


def encode_reply(reply: HttpReply, more: list[tuple[bytes, bytes]]) -> bytes:
    """Return the octets of an answer with `more` headers, as h11 would write them.

    Raises `ValueError` for a header that is not valid.
    """
    lines = [b"HTTP/1.1 %d " % reply.status]
    lines += [b"%b: %b" % field for field in reply.headers]
    lines += [b"%b: %b" % field for field in more]
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1:
        raise ValueError("a header of the answer has a line break")
    return b"%b\r\n\r\n%b" % (head, reply.body)
