"""Endpoints as data.

From these records come routing, decoding, authentication, the directory, the reference in the docs and the tests of
bad input. A handler is an async function from a `Call` (the typed request and who asks) to the typed answer.
Nothing here, and nothing below, knows the framework that serves the table.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from http import HTTPStatus
from typing import Any, Generic, Protocol, TypeVar

import attrs

from mimids.errors import MimiError
from mimids.http.media_types import JSON, MIMI_DS
from mimids.values import Caller
from mimids.wire.codec import Codec
from mimids.wire.declare import codec

T = TypeVar("T")


class Listener(Enum):
    """Where an endpoint is reached (http: listeners)."""

    PUBLIC = "public"
    CLIENT = "client"
    OPERATOR = "operator"


class Access(Enum):
    """Who may call it."""

    ANYONE = "anyone"
    PROVIDER = "provider"  # a client certificate that names it (http: between-providers)
    DEVICE = "device"  # Authorization: Bearer DEVICE_TOKEN (http: devices)


@attrs.frozen
class Body(Generic[T]):
    """A body of one media type: `read` makes the value (`ValueError` is 400), `write` its bytes."""

    media_type: str
    read: Callable[[bytes], T]
    write: Callable[[T], bytes]
    schema: str  # the struct's name, or what the JSON object holds
    example: str = ""  # of a JSON body


def mimi_ds(cls: type[T]) -> Body[T]:
    """Return the body of a `@struct` of the wire format."""
    return Body(MIMI_DS, codec(cls).decode, codec(cls).encode, cls.__name__)


def of_codec(codec_: Codec[T], schema: str, media_type: str = MIMI_DS) -> Body[T]:
    """Return the body that is exactly one value of `codec_`."""
    return Body(media_type, codec_.decode, codec_.encode, schema)


def octets(media_type: str) -> Body[bytes]:
    """Return a body that is passed on as it is."""
    return Body(media_type, bytes, bytes, media_type)


def encoded(schema: str, media_type: str = MIMI_DS) -> Body[bytes]:
    """Return the body of an answer that its service gives encoded already."""
    return Body(media_type, bytes, bytes, schema)


def json_object(read: Callable[[dict[str, Any]], T], schema: str, example: str) -> Body[T]:
    """Return a JSON request body, an object; `read` raises `ValueError`, `KeyError` or `TypeError`."""

    def decode(octets: bytes) -> T:
        value = json.loads(octets)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text: no row could hold it
        try:
            return read(value)
        except (KeyError, TypeError, AttributeError) as error:  # all that another type than the wanted one raises
            raise ValueError("a member is missing or of another type") from error

    return Body(JSON, decode, _write_json, schema, example)


def json_answer(schema: str, example: str) -> Body[Any]:
    """Return a JSON answer body, written from plain dicts, lists, strings and numbers."""
    return Body(JSON, json.loads, _write_json, schema, example)


def _write_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@attrs.frozen
class Call(Generic[T]):
    """One request, decoded and authenticated."""

    body: T
    caller: Caller
    path: Mapping[str, str] = attrs.field(factory=dict)  # the parts in braces, percent-decoded
    query: Mapping[str, str] = attrs.field(factory=dict)
    headers: Mapping[str, str] = attrs.field(factory=dict)  # lower-case names


@attrs.frozen
class Answer(Generic[T]):
    """An answer with headers or a status of its own; most handlers return the bare value."""

    body: T
    status: int | None = None  # what another server answered may be in no list
    headers: Mapping[str, str] = attrs.field(factory=dict)


class StreamClosed(Exception):
    """The other side of a request or WebSocket is gone, or said goodbye."""


class WebSocketStream(Protocol):
    """A WebSocket as its handler sees it: binary messages. The handshake is answered by the first of these calls."""

    async def receive(self) -> bytes:
        """Wait for the next message; raise `StreamClosed` when there is none any more."""
        ...

    async def send(self, message: bytes) -> None:
        """Send a message; waits while the peer does not read. Raises `StreamClosed`."""
        ...

    async def close(self, code: int = 1000) -> None:
        """Say goodbye (RFC 6455 section 7.4); returning from the handler does so with 1000."""
        ...


@attrs.frozen
class Endpoint:
    """One row of the table.

    `handler(services, call)` gets the services of its process; `limit` names the `[limits]` key that bounds the
    body (octets); `problems` are those that this endpoint adds to the ones that every endpoint may give. The body of
    a `websocket` row's call is its `WebSocketStream`. Requests of an `unlinkable` row (gateway, relay) are counted,
    not logged.
    """

    name: str
    listener: Listener
    method: str
    path: str
    access: Access
    request: Body[Any] | None
    answer: Body[Any] | None
    handler: Callable[[Any, Call[Any]], Awaitable[Any]]
    summary: str
    limit: str = "max_body_bytes"
    status: HTTPStatus = HTTPStatus.OK
    query: tuple[str, ...] = ()
    problems: tuple[type[MimiError], ...] = ()
    open_without_arrangement: bool = False  # never refused for lack of accepted terms (semantics: terms-and-reports)
    websocket: bool = False
    unlinkable: bool = False
