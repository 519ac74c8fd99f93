"""Binary HTTP (RFC 9292): requests and responses as values, of known and of indeterminate length.

Every message object is valid, because its values are checked whenever the decoder or other code makes one. Decoding is
total, and bounded by `MessageLimits`. Names and values of fields are kept as received; only `field()` ignores case.

The decoder is written by hand, not with `wire.declare`: lengths are QUIC integers in any form, a message may omit empty
parts at its end (section 3.8), and the first octet decides whether a section has a length or a terminator.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeVar

import attrs

from mimids.ohttp.request_heads import RequestHeads
from mimids.wire import varint
from mimids.wire.codec import Reader, WireError

T = TypeVar("T")
Field = tuple[bytes, bytes]
Fields = tuple[Field, ...]

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_METHOD: Final = re.compile(_TOKEN.decode())
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+\-.]*")
_VISIBLE: Final = re.compile(r"[!-~]*")
_NAME: Final = re.compile(b":?" + _TOKEN)  # with a colon: a pseudo-header field of an extension
_VALUE: Final = re.compile(rb"([^\0\r\n\t ]([^\0\r\n]*[^\0\r\n\t ])?)?")
_CONTROL_FIELDS: Final = frozenset({b":method", b":scheme", b":authority", b":path", b":status"})


@attrs.frozen
class MessageLimits:
    """Limits of what a decoder accepts; sizes in octets."""

    control: int = 4096  # for each of method, scheme, authority and path
    section: int = 16384  # all names and values of one section
    fields: int = 64  # lines in one section
    content: int = 1 << 20
    chunks: int = 1024
    interim: int = 8


DEFAULT_LIMITS: Final = MessageLimits()


# --- messages ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)  # requests repeat the same few field lines
def _check_fields(fields: Fields, *, trailers: bool = False) -> None:
    """Raise `ValueError` unless section 3.6 allows these lines in this order."""
    ordinary = trailers
    for name, value in fields:
        if not _NAME.fullmatch(name):
            raise ValueError("field name not allowed")
        if not _VALUE.fullmatch(value):  # MUST: RFC 9113 section 8.2.1, by RFC 9292 section 3.6
            raise ValueError("field value not allowed")
        if name[0] != 0x3A:
            ordinary = True
        elif name in _CONTROL_FIELDS:
            raise ValueError("control data among the fields")
        elif ordinary:  # MUST precede the other fields, and not occur in trailers
            raise ValueError("pseudo-field out of place")


def _check_header(_message: object, _attribute: object, fields: Fields) -> None:
    _check_fields(fields)


def _check_trailers(_message: object, _attribute: object, fields: Fields) -> None:
    _check_fields(fields, trailers=True)


def field_of(fields: Fields, name: bytes) -> bytes | None:
    """Return the combined value of the field lines with this name (given in lower case), or None if there are none."""
    values = [value for found, value in fields if found.lower() == name]
    return (b"; " if name == b"cookie" else b", ").join(values) if values else None


@attrs.frozen
class Request:
    """An HTTP request; `authority` may be empty."""

    method: str
    scheme: str
    authority: str
    path: str
    fields: Fields = attrs.field(default=(), validator=_check_header)
    content: bytes = b""
    trailers: Fields = attrs.field(default=(), validator=_check_trailers)

    def __attrs_post_init__(self) -> None:
        """Check the control data (section 3.4, by RFC 9113 section 8.3.1)."""
        if not _METHOD.fullmatch(self.method):
            raise ValueError("method not allowed")
        if not _VISIBLE.fullmatch(self.authority + self.path):
            raise ValueError("control data not allowed")
        if self.method == "CONNECT" and not self.scheme and not self.path:
            return
        if not _SCHEME.fullmatch(self.scheme):
            raise ValueError("scheme not allowed")
        if self.scheme.lower() in ("http", "https"):
            if "@" in self.authority:
                raise ValueError("authority not allowed")
            if not self.path.startswith("/") and (self.method, self.path) != ("OPTIONS", "*"):
                raise ValueError("path not allowed")

    def field(self, name: bytes) -> bytes | None:
        """Return the combined value of header field `name` (given in lower case), or None if it is absent."""
        return field_of(self.fields, name)

    def with_content(self, content: bytes) -> Request:
        """Return the same request with this content and no trailers; all other parts are checked already."""
        made, put = object.__new__(Request), object.__setattr__
        put(made, "method", self.method)
        put(made, "scheme", self.scheme)
        put(made, "authority", self.authority)
        put(made, "path", self.path)
        put(made, "fields", self.fields)
        put(made, "content", content)
        put(made, "trailers", ())
        return made


@attrs.frozen
class Interim:
    """An informational response."""

    status: int
    fields: Fields = attrs.field(default=(), validator=_check_header)

    def __attrs_post_init__(self) -> None:
        """Check the status (section 3.5.1)."""
        if not 100 <= self.status <= 199:
            raise ValueError("status not allowed")


@attrs.frozen
class Response:
    """An HTTP response, with the informational responses before it."""

    status: int
    fields: Fields = attrs.field(default=(), validator=_check_header)
    content: bytes = b""
    trailers: Fields = attrs.field(default=(), validator=_check_trailers)
    interim: tuple[Interim, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Check the status (section 3.5)."""
        if not 200 <= self.status <= 599:
            raise ValueError("status not allowed")

    def field(self, name: bytes) -> bytes | None:
        """Return the combined value of header field `name` (given in lower case), or None if it is absent."""
        return field_of(self.fields, name)


# --- reading ----------------------------------------------------------------------------------------------------


def decode_request(message: bytes, limits: MessageLimits = DEFAULT_LIMITS) -> Request:
    """Return the request in `message`, padded or not; raise `WireError` if it is not valid or exceeds a limit."""

    def read(sections: _Sections) -> Request:
        method, scheme, authority, path = (
            sections.at(name, sections.text) for name in ("method", "scheme", "authority", "path")
        )
        request = Request(method, scheme, authority, path, *sections.rest())
        if limits is DEFAULT_LIMITS and sections.known and sections.head_end < len(message):
            _heads.remember(message[: sections.head_end], request.with_content(b""))
        return request

    request = _read_after_known_head(message) if limits is DEFAULT_LIMITS else None
    return request or _decode("Request", message, limits, (0, 2), read)


_heads: Final = RequestHeads[Request]()


def _read_after_known_head(message: bytes) -> Request | None:
    """Return the request if its head is known, and nothing but zeros follows its content: no trailers, and padding."""
    known = _heads.find(message)
    if known is None:
        return None
    head, request = known
    try:
        length, start = varint.read_quic(message, len(head), len(message))
    except varint.VarintError:
        return None
    end = start + length
    if end > len(message) or length > DEFAULT_LIMITS.content or message[end:].strip(b"\0"):
        return None
    return request.with_content(message[start:end])


def decode_response(message: bytes, limits: MessageLimits = DEFAULT_LIMITS) -> Response:
    """Return the response in `message`, padded or not; raise `WireError` if it is not valid or exceeds a limit."""

    def read(sections: _Sections) -> Response:
        interim: list[Interim] = []
        while 100 <= (status := sections.at("status", sections.integer)) <= 199:
            if len(interim) == limits.interim:
                raise WireError(f"more than {limits.interim}", ("interim",))
            # The message cannot end here (section 3.8): the status that must follow would be missing.
            interim.append(Interim(status, sections.at("interim", sections.fields)))
        return Response(status, *sections.rest(), tuple(interim))

    return _decode("Response", message, limits, (1, 3), read)


def _decode(
    kind: str, message: bytes, limits: MessageLimits, framings: tuple[int, int], read: Callable[[_Sections], T]
) -> T:
    sections = _Sections(message, limits)
    try:
        framing = sections.at("framing", sections.integer)
        if framing not in framings:
            raise WireError(f"not the framing indicator of a {kind.lower()}", ("framing",))
        sections.known = framing == framings[0]
        value = read(sections)
        if message[sections.reader.pos :].strip(b"\0"):
            raise WireError("padding is not zero")
    except WireError as error:
        raise error.within(kind) from None
    except ValueError as error:  # raised when the message object is made
        raise WireError(str(error), (kind,)) from None
    return value


class _Sections:
    """Reads the parts that requests and responses have in common."""

    def __init__(self, message: bytes, limits: MessageLimits) -> None:
        self.reader = Reader(message)
        self.known = True
        self.head_end = 0  # where the content begins, once `rest` has read it
        self._limits = limits

    def at(self, place: str, read: Callable[[], T]) -> T:
        try:
            return read()
        except WireError as error:
            raise error.within(place) from None

    def integer(self) -> int:
        reader = self.reader
        try:
            value, reader.pos = varint.read_quic(reader.data, reader.pos, reader.end)
        except varint.VarintError as error:
            raise WireError(str(error)) from None
        return value

    def opaque(self, limit: int) -> bytes:
        """Return the octets after a length. The code reads inline for speed, since a request has a dozen lengths."""
        reader = self.reader
        data, pos = reader.data, reader.pos
        if pos < reader.end and data[pos] < 0x40:
            length, pos = data[pos], pos + 1
        else:
            length = self.integer()
            pos = reader.pos
        stop = pos + length
        if stop > reader.end:
            raise WireError("truncated")
        if length > limit:
            raise WireError(f"longer than {limit} octets")
        reader.pos = stop
        return data[pos:stop]

    def text(self) -> str:
        try:
            return self.opaque(self._limits.control).decode("ascii")
        except UnicodeDecodeError:
            raise WireError("not ASCII") from None

    def rest(self) -> tuple[Fields, bytes, Fields]:
        """Read header, content and trailers; parts that are missing at the end of the message are empty."""
        fields = self.at("fields", self.fields) if self._more() else ()
        self.head_end = self.reader.pos
        return fields, *self.content_and_trailers()

    def content_and_trailers(self) -> tuple[bytes, Fields]:
        """Read content and trailers; parts that are missing at the end of the message are empty."""
        return (
            self.at("content", self._content) if self._more() else b"",
            self.at("trailers", self.fields) if self._more() else (),
        )

    def _more(self) -> bool:
        return self.reader.pos < self.reader.end

    def fields(self) -> Fields:
        reader, room = self.reader, self._limits.section
        outer = reader.end
        if self.known:
            length = self.integer()
            if length > reader.end - reader.pos:
                raise WireError("truncated")
            reader.end = reader.pos + length
        lines: list[Field] = []
        while not self.known or reader.pos < reader.end:
            name = self.opaque(room)
            if not name:
                if self.known:
                    raise WireError("field name is empty")
                break  # the terminator
            if len(lines) == self._limits.fields:
                raise WireError(f"more than {self._limits.fields} field lines")
            value = self.opaque(room - len(name))
            lines.append((name, value))
            room -= len(name) + len(value)
        reader.end = outer
        return tuple(lines)

    def _content(self) -> bytes:
        limit = self._limits.content
        if self.known:
            return self.opaque(limit)
        chunks: list[bytes] = []
        total = 0
        while chunk := self.opaque(limit - total):
            if len(chunks) == self._limits.chunks:
                raise WireError(f"more than {self._limits.chunks} chunks")
            chunks.append(chunk)
            total += len(chunk)
        return b"".join(chunks)


# --- writing ----------------------------------------------------------------------------------------------------


def encode_request(request: Request, *, indeterminate: bool = False) -> bytes:
    """Return the encoded message in full: empty sections are written too, and there is no padding."""
    out = bytearray(b"\2" if indeterminate else b"\0")
    for text in (request.method, request.scheme, request.authority, request.path):
        _write_opaque(text.encode("ascii"), out)
    _write_rest(request, indeterminate, out)
    return bytes(out)


def encode_response(response: Response, *, indeterminate: bool = False) -> bytes:
    """Return the encoded message in full: empty sections are written too, and there is no padding."""
    out = bytearray(b"\3" if indeterminate else b"\1")
    for interim in response.interim:
        out += varint.quic(interim.status)
        _write_fields(interim.fields, indeterminate, out)
    out += varint.quic(response.status)
    _write_rest(response, indeterminate, out)
    return bytes(out)


def encode_answer(status: int, fields: Fields, content: bytes) -> bytes:
    """Return what `encode_response` returns for a response with these parts and no others.

    What precedes the content is checked and encoded only once, because the answers of one second have the same few.
    """
    out = bytearray(_answer_head(status, fields))
    _write_opaque(content, out)
    out.append(0)
    return bytes(out)


@lru_cache(maxsize=64)
def _answer_head(status: int, fields: Fields) -> bytes:
    return encode_response(Response(status, fields)).removesuffix(b"\0\0")  # without content and trailers


def _write_opaque(octets: bytes | bytearray, out: bytearray) -> None:
    size = len(octets)
    if size < 0x40:
        out.append(size)
    else:
        out += varint.quic(size)
    out += octets


def _write_fields(fields: Fields, indeterminate: bool, out: bytearray) -> None:
    lines = bytearray()
    for name, value in fields:
        _write_opaque(name, lines)
        _write_opaque(value, lines)
    if indeterminate:
        out += lines
        out.append(0)
    else:
        _write_opaque(lines, out)


def _write_rest(message: Request | Response, indeterminate: bool, out: bytearray) -> None:
    _write_fields(message.fields, indeterminate, out)
    _write_opaque(message.content, out)
    if indeterminate and message.content:
        out.append(0)
    _write_fields(message.trailers, indeterminate, out)
