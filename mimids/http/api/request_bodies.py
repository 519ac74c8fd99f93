"""Receiving and decoding the body of a request, within its limits of size and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import trio

from mimids.errors import Busy, Malformed, MimiError, TimedOut, TooLarge, UnsupportedMediaType
from mimids.http.api.bodies import Body
from mimids.http.api.routes import Route
from mimids.http.media_types import without_parameters
from mimids.http.server.holding import Holding
from mimids.http.server.messages import HttpRequest
from mimids.wire.codec import WireError

LONG_OCTETS: Final = 16 * 1024  # a longer body is decoded in a worker thread (architecture: tasks)
WORKERS: Final = 2
UNCOUNTED_OCTETS: Final = 16 * 1024  # a smaller body does not count against the budget of buffered octets
STEP_OCTETS: Final = 1024 * 1024  # reserved at a time, for a body without a declared length


class BodyReader:
    """Reads bodies for one listener; each must arrive within `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._workers = trio.CapacityLimiter(WORKERS)

    async def receive(self, route: Route, request: HttpRequest) -> bytes:
        """Receive the body, with a length or chunked; stop as soon as it exceeds its limit.

        A body larger than UNCOUNTED_OCTETS is received when the budget of buffered octets has room for it. Raises
        `TooLarge`, `TimedOut`, and `Busy` if there is no room after a wait.
        """
        declared = request.headers.get("content-length", "")
        length = int(declared[:18]) if declared.isascii() and declared.isdigit() else 0
        if length > route.limit:
            raise TooLarge(route.endpoint.limit, length)
        if length > UNCOUNTED_OCTETS:
            await _reserve(request.holding, length)
        octets, more = await request.receive()
        if more:  # the second piece is usually the last, and empty; the listener bounds the wait for each piece
            piece, more = await request.receive()
            octets += piece
        if more:
            try:
                with trio.fail_after(self._seconds):
                    octets = await _receive_rest(route, request, octets)
            except trio.TooSlowError:
                raise TimedOut from None
        if len(octets) > route.limit:
            raise TooLarge(route.endpoint.limit, len(octets))
        return octets

    async def decode(self, body: Body[Any], octets: bytes) -> object:
        """Return the value of a body; raise `Malformed` with the place of the fault."""
        if len(octets) > LONG_OCTETS:  # a hostile body takes about a second for each MiB
            return await trio.to_thread.run_sync(decode, body, octets, limiter=self._workers)
        return decode(body, octets)


def check_media_type(headers: Mapping[str, str], body: Body[Any]) -> None:
    """Raise `UnsupportedMediaType` unless Content-Type is the media type of `body`."""
    if without_parameters(headers.get("content-type", "")) != body.media_type:
        raise UnsupportedMediaType(f"send Content-Type: {body.media_type}")


def decode(body: Body[Any], octets: bytes) -> object:
    """Return the value of a body; raise `Malformed` if it cannot be decoded."""
    try:
        return body.read(octets)
    except WireError as error:
        raise Malformed(str(error.within(body.schema))) from None
    except MimiError:
        raise
    except (ValueError, RecursionError) as error:  # deeply nested JSON makes the parser recurse
        raise Malformed(f"the body must be {body.schema}") from error


async def _receive_rest(route: Route, request: HttpRequest, first: bytes) -> bytes:
    octets, more = bytearray(first), True
    while more:
        if len(octets) > max(UNCOUNTED_OCTETS, request.holding.octets):
            await _reserve(request.holding, STEP_OCTETS)
        piece, more = await request.receive()
        octets += piece
        if len(octets) > route.limit:
            raise TooLarge(route.endpoint.limit, len(octets))
    return bytes(octets)


async def _reserve(holding: Holding, octets: int) -> None:
    if not await holding.take(octets):
        raise Busy("too many large bodies are being received; send this one again later")
