"""Writes one request to another provider as HTTP/1.1, and reads its answer with httptools; without I/O.

A provider cannot make us keep more octets than the limits say, whatever it sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import httptools

from mimids.http.peers.answers import HttpAnswer
from mimids.wire.ids import ProviderId

HEAD_OCTETS: Final = 65_536  # of an answer's head, with interim answers before it and trailers after it
PROBLEM_OCTETS: Final = 65_536  # of an answer whose status is not 2xx
USER_AGENT: Final = "mimids"

_TARGET: Final = re.compile(r"/[!-~]*")  # ASCII without spaces


class BrokenConnection(Exception):
    """The other provider closed the connection before the end of its answer, or violated TLS or HTTP."""


class AnswerTooLarge(Exception):
    """The body of an answer is longer than its limit; the head of the answer was read."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(f"status {status}")
        self.status, self.headers = status, headers


@attrs.frozen
class PeerRequest:
    """A request to another provider."""

    provider: ProviderId
    head: bytes  # with the empty line
    body: bytes = attrs.field(repr=False)


def peer_request(
    provider: ProviderId, method: str, path: str, body: bytes, media_type: str, headers: Sequence[tuple[str, str]] = ()
) -> PeerRequest:
    """Return a request with these headers, and with the headers that every request has."""
    if _TARGET.fullmatch(path) is None:
        raise ValueError("a path of printable ASCII is needed")
    lines = [f"{method} {path} HTTP/1.1", f"host: {provider}", f"user-agent: {USER_AGENT}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method in ("POST", "PUT"):
        lines += [f"content-type: {media_type}", f"content-length: {len(body)}"]
    return PeerRequest(provider, "\r\n".join([*lines, "\r\n"]).encode("ascii"), body)


class AnswerReader:
    """Reads one answer. The methods `on_...` are called by httptools."""

    def __init__(self, octets: int) -> None:
        """Allow a body of at most `octets`, and of PROBLEM_OCTETS if the status is not 2xx."""
        self.is_complete = False
        self.keeps_connection = False  # the provider keeps the connection open, and has sent nothing after the answer
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0  # of the answer; 0 before the end of its head
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._most = octets
        self._body_octets = 0
        self._other_octets = 0  # octets of heads, and around chunks

    def feed(self, received: bytes) -> None:
        """Read more octets; raise `BrokenConnection` if they are malformed, or `AnswerTooLarge`."""
        before = self._body_octets
        try:
            self._parser.feed_data(received)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.is_complete:
                raise BrokenConnection("the answer is malformed") from error
            self.keeps_connection = False  # the malformed octets come after the answer
        self._other_octets += len(received) - (self._body_octets - before)
        if self._body_octets > self._most:
            raise AnswerTooLarge(self._status, self._headers)
        if self._other_octets > HEAD_OCTETS + self._body_octets:  # a peer may send each octet as a chunk
            raise BrokenConnection("the head of the answer is too large")

    def end(self) -> None:
        """End the answer when the provider has closed its side; raise `BrokenConnection` if the answer is incomplete.

        An answer without a length ends like this (RFC 9112 section 6.3).
        """
        if not self._status or not self._headers.keys().isdisjoint(("content-length", "transfer-encoding")):
            raise BrokenConnection("the connection was closed before the end of the answer")
        self.is_complete = True

    def answer(self) -> HttpAnswer:
        """Return the complete answer."""
        del self._parser  # which refers to this object: both would live until the next garbage collection
        return HttpAnswer(self._status, self._headers, bytes(self._body))

    def on_message_begin(self) -> None:
        """Refuse a second answer."""
        if self.is_complete:
            raise ValueError("a second answer to one request")

    def on_header(self, name_: bytes, value_: bytes) -> None:
        """Keep a header, and ignore a trailer."""
        name, value = name_.decode("latin-1").lower(), value_.decode("latin-1").strip(" \t")
        if not self._status:
            self._headers[name] = f"{self._headers[name]}, {value}" if name in self._headers else value

    def on_headers_complete(self) -> None:
        """Keep the status, decide whether the connection can be kept, and limit the body of a refusal."""
        self._status = self._parser.get_status_code()
        if self._status < 100 or self._headers.get("transfer-encoding", "chunked").lower() != "chunked":
            raise ValueError("a status or encoding that HTTP/1.1 does not have")
        self.keeps_connection = self._parser.should_keep_alive()
        if not 200 <= self._status < 300:
            self._most = min(self._most, PROBLEM_OCTETS)

    def on_body(self, piece: bytes) -> None:
        """Keep a piece of the body if it is within the limit."""
        self._body_octets += len(piece)
        if self._body_octets <= self._most:
            self._body += piece

    def on_message_complete(self) -> None:
        """Mark the answer as complete; drop an interim answer."""
        if self._status >= 200:
            self.is_complete = True
        else:  # RFC 9110 section 15.2
            self._status = 0
            self._headers.clear()
            self._body.clear()
