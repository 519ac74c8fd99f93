"""Bodies of requests and answers as data: the media type, how to read and write it, and how documents describe it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

import attrs

from mimids.http.media_types import JSON, MIMI_DS
from mimids.wire.codec import Codec
from mimids.wire.declare import codec

T = TypeVar("T")


@attrs.frozen
class Body(Generic[T]):
    """A body of one media type.

    `read` makes the value of a request (`ValueError` is answered with 400), `write` the octets of an answer.
    """

    media_type: str
    read: Callable[[bytes], T]
    write: Callable[[T], bytes]
    schema: str  # the name of its structure, or the members of its JSON object
    example: str = ""  # of a JSON body
    members: type | None = None  # a TypedDict of the members of the JSON object, for docs/openapi-client.json


class WebSocketStream(Protocol):
    """A WebSocket of binary messages. The first call of any of these methods accepts the handshake."""

    @property
    def heard_at(self) -> float:
        """The time, by trio's clock, when anything was last received; an answer to a ping counts, too."""
        ...

    async def receive(self) -> bytes:
        """Wait for the next message; raise `StreamClosed` when there are no more."""
        ...

    async def send(self, message: bytes) -> None:
        """Send a message; wait while the peer does not read. Raise `StreamClosed` if the WebSocket is closed."""
        ...

    async def close(self, code: int = 1000) -> None:
        """Close the WebSocket (RFC 6455 section 7.4). It is closed with 1000 when the handler returns."""
        ...


@attrs.frozen
class NoBody(Generic[T]):
    """Stands for the body of a request or answer that has none; the handler gets or returns a T instead."""


NO_BODY: Final[NoBody[None]] = NoBody()
WEBSOCKET: Final[NoBody[WebSocketStream]] = NoBody()  # an endpoint with this as its request is a WebSocket


def mimi_ds(cls: type[T]) -> Body[T]:
    """Return the body of a `@struct` of the wire format."""
    return Body(MIMI_DS, codec(cls).decode, codec(cls).encode, cls.__name__)


def of_codec(codec_: Codec[T], schema: str, media_type: str = MIMI_DS) -> Body[T]:
    """Return the body that is one value of `codec_` and nothing else."""
    return Body(media_type, codec_.decode, codec_.encode, schema)


def octets(media_type: str) -> Body[bytes]:
    """Return a body that is neither decoded nor encoded."""
    return Body(media_type, bytes, bytes, media_type)


def encoded(schema: str, media_type: str = MIMI_DS) -> Body[bytes]:
    """Return the body of an answer that the service has already encoded."""
    return Body(media_type, bytes, bytes, schema)


def json_object(read: Callable[[dict[str, Any]], T], schema: str, example: str, members: type | None = None) -> Body[T]:
    """Return the body of a request that is a JSON object; `read` raises `ValueError`, `KeyError` or `TypeError`.

    `members` is a TypedDict that describes what `read` takes.
    """

    def decode(octets: bytes) -> T:
        value = json.loads(octets)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        json.dumps(value, ensure_ascii=False).encode()  # refuses unpaired surrogates, which the database cannot store
        try:
            return read(value)
        except (KeyError, TypeError, AttributeError) as error:  # a member of an unexpected type raises any of these
            raise ValueError("a member is missing or has the wrong type") from error

    return Body(JSON, decode, _write_json, schema, example, members)


def json_answer(kind: type[T], schema: str, example: str) -> Body[T]:
    """Return the body of an answer that is JSON; `kind` is a TypedDict or another type that `json` can write."""
    return Body(JSON, _not_read, _write_json, schema, example, kind)


def json_answer_of(to_json: Callable[[T], object], schema: str, example: str) -> Body[T]:
    """Return the body of an answer that `to_json` turns into plain dicts, lists, strings and numbers."""
    return Body(JSON, _not_read, lambda value: _write_json(to_json(value)), schema, example)


def _write_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _not_read(octets: bytes) -> Any:
    raise NotImplementedError("a JSON answer is only written")
