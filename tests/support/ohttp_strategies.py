"""Hypothesis strategies for Binary HTTP messages, in every framing that RFC 9292 allows."""

from __future__ import annotations

import random

import attrs
from hypothesis import strategies as st

from mimids.ohttp.bhttp import Field, Fields, Interim, Request, Response

NAME_OCTETS = b"!#$%&'*+-.^_`|~0123456789ABCXYZabcxyz"
VALUE = st.binary(max_size=30).map(lambda value: value.translate(None, b"\0\r\n").strip(b" \t"))
NAME = st.lists(st.sampled_from(NAME_OCTETS), min_size=1, max_size=12).map(bytes)
LINE: st.SearchStrategy[Field] = st.tuples(NAME, VALUE)
PSEUDO: st.SearchStrategy[Field] = st.tuples(NAME.map(lambda name: b":x-" + name), VALUE)
TRAILERS: st.SearchStrategy[Fields] = st.lists(LINE, max_size=4).map(tuple)
FIELDS: st.SearchStrategy[Fields] = st.tuples(st.lists(PSEUDO, max_size=2), st.lists(LINE, max_size=4)).map(
    lambda parts: (*parts[0], *parts[1])
)
CONTENT = st.one_of(st.just(b""), st.binary(max_size=40), st.binary(min_size=60, max_size=70), st.just(bytes(17_000)))
VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30)

REQUESTS = st.builds(
    Request,
    method=st.sampled_from(["GET", "POST", "QUERY", "x-y"]),
    scheme=st.sampled_from(["https", "http", "HTTPS", "coap+tcp"]),
    authority=VISIBLE.map(lambda text: text.replace("@", "")),
    path=VISIBLE.map(lambda text: "/" + text),
    fields=FIELDS,
    content=CONTENT,
    trailers=TRAILERS,
)
INTERIM = st.builds(Interim, status=st.integers(100, 199), fields=FIELDS)
RESPONSES = st.builds(
    Response,
    status=st.integers(200, 599),
    fields=FIELDS,
    content=CONTENT,
    trailers=TRAILERS,
    interim=st.lists(INTERIM, max_size=3).map(tuple),
)


@attrs.frozen
class Framed:
    """An encoded message, and the offsets at which its fields, content and trailers start."""

    octets: bytes
    fields: int
    content: int
    trailers: int

    def cut(self, message: Request | Response, size: int) -> Request | Response | None:
        """Return the message that the first `size` octets encode; None if they encode none (RFC 9292 section 3.8).

        A message truncated before a section is the same as one that ends there.
        """
        if size == len(self.octets):
            return message
        if size == self.trailers:
            return attrs.evolve(message, trailers=())
        if size == self.content:
            return attrs.evolve(message, trailers=(), content=b"")
        if size == self.fields:
            return attrs.evolve(message, trailers=(), content=b"", fields=())
        return None


class Framer:
    """Encodes messages with random choices: integers of any width, content in any chunks.

    It shares no code with mimids, so that it can be the other side of a round trip.
    """

    def __init__(self, *, indeterminate: bool, seed: int | None = None) -> None:
        self._indeterminate = indeterminate
        self._random = None if seed is None else random.Random(seed)

    def frame(self, message: Request | Response) -> Framed:
        request = isinstance(message, Request)
        out = bytearray(self._integer((0 if request else 1) + (2 if self._indeterminate else 0)))
        if isinstance(message, Request):
            for text in (message.method, message.scheme, message.authority, message.path):
                out += self._opaque(text.encode())
        else:
            for interim in message.interim:
                out += self._integer(interim.status) + self._fields(interim.fields)
            out += self._integer(message.status)
        parts = [self._fields(message.fields), self._content(message.content), self._fields(message.trailers)]
        starts = [len(out), len(out) + len(parts[0]), len(out) + len(parts[0]) + len(parts[1])]
        return Framed(bytes(out) + b"".join(parts), *starts)

    def _integer(self, value: int) -> bytes:
        fitting = [power for power in range(4) if value < 1 << (8 * (1 << power) - 2)]
        power = fitting[0] if self._random is None else self._random.choice(fitting)
        size = 1 << power
        return (power << (8 * size - 2) | value).to_bytes(size, "big")

    def _opaque(self, octets: bytes) -> bytes:
        return self._integer(len(octets)) + octets

    def _fields(self, fields: Fields) -> bytes:
        lines = b"".join(self._opaque(name) + self._opaque(value) for name, value in fields)
        return lines + self._integer(0) if self._indeterminate else self._opaque(lines)

    def _content(self, content: bytes) -> bytes:
        if not self._indeterminate:
            return self._opaque(content)
        out = b""
        while content:
            size = len(content) if self._random is None else self._random.randint(1, len(content))
            out += self._opaque(content[:size])
            content = content[size:]
        return out + self._integer(0)
