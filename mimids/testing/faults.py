"""Faults that a test puts into a provider's process: how it answers other providers, and where it dies.

Answers are changed in front of the public listener's application, where TLS hides nothing: the caller is known by
its certificate, so a fault can be one of the way between two providers. A process dies by SIGKILL, as in earnest.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, NoReturn, cast

import attrs

from mimids.config import Config
from mimids.ds.ports import Clock, PeerAnswer
from mimids.http.peers.calls import HttpPeers, open_peers
from mimids.http.server.connection import ASGIApp, Message, Receive, Scope, Send
from mimids.http.server.listener import connection_info
from mimids.wire.ids import ProviderId

GARBAGE_OCTETS: Final = 300
NO_LENGTH: Final = b"\xff"  # no vector begins with it (RFC 9420 section 2.1.2): no garbage is an answer by chance

Deed = Literal["answer", "garbage", "duplicate", "die"]
Point = Literal["handling", "answering", "calling", "answered"]


@attrs.define
class Fault:
    """What befalls requests between providers.

    `caller` is the provider that calls (None: anybody, also who shows no certificate), `path` what is called (ending
    with a slash: all below it). `skip` requests pass first. To `die`, `point` says where: as callee before `handling`
    or before `answering`, as caller before `calling` or once `answered`.
    """

    do: Deed
    caller: str | None = None
    path: str = "/"
    status: int = 503
    retry_after: int | None = None
    point: Point = "handling"
    skip: int = 0

    def meets(self, path: str) -> bool:
        """Tell whether it is about this path, and this request's turn."""
        if path != self.path and not (self.path.endswith("/") and path.startswith(self.path)):
            return False
        self.skip -= 1
        return self.skip < 0


class Faults:
    """The faults of one process at this moment."""

    def __init__(self, faults: Iterable[Mapping[str, Any]] = ()) -> None:
        self._faults: list[Fault] = []
        self.set(faults)

    def set(self, faults: Iterable[Mapping[str, Any]]) -> None:
        """Replace all."""
        self._faults = [Fault(**fault) for fault in faults]

    def of_request(self, callers: frozenset[ProviderId] | None, path: str) -> Fault | None:
        """Return what befalls a request that comes in."""
        for fault in self._faults:
            comes_in = fault.point in ("handling", "answering")
            if comes_in and (fault.caller is None or fault.caller in (callers or ())) and fault.meets(path):
                return fault
        return None

    def die_if(self, point: Point, path: str) -> None:
        """End the process if it is to die at this point of a call."""
        for fault in self._faults:
            if fault.do == "die" and fault.point == point and fault.meets(path.partition("?")[0]):
                die()


def die() -> NoReturn:
    """End this process as kill -9 does: nothing is closed, nothing flushed."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def faulty(app: ASGIApp, faults: Faults) -> ASGIApp:
    """Return the application of a listener with faults in front of it."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        fault = None
        if scope["type"] == "http":
            fault = faults.of_request(connection_info(scope).names, scope["path"])
        if fault is None:
            await app(scope, receive, send)
            return
        if fault.do == "die" and fault.point == "handling":
            die()
        elif fault.do == "die":
            await app(scope, receive, _die_sending)
        elif fault.do == "duplicate":
            body = await _body(receive)
            if body is not None:
                await app(scope, _again(body, receive), _drop)
                await app(scope, _again(body, receive), send)
        else:
            await _body(receive)
            await _answer(fault, send)

    return serve


async def _answer(fault: Fault, send: Send) -> None:
    body = b""
    headers = [(b"content-type", b"text/plain")]
    if fault.do == "garbage":
        headers = [(b"content-type", b"application/mimi-ds")]
        body = NO_LENGTH + random.randbytes(random.randrange(GARBAGE_OCTETS))  # noqa: S311  # anything will do
    elif fault.retry_after is not None:
        headers.append((b"retry-after", b"%d" % fault.retry_after))
    status = 200 if fault.do == "garbage" else fault.status
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _body(receive: Receive) -> bytes | None:
    """Return the whole body, None if its sender is gone."""
    pieces, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was received already, then what comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


async def _drop(message: Message) -> None:
    """Send it to nobody."""


async def _die_sending(message: Message) -> None:
    die()


# --- the caller's side --------------------------------------------------------------------------------------------


class _FaultyPeers:
    """`HttpPeers`, with the points of a call at which the process may die."""

    def __init__(self, peers: HttpPeers, faults: Faults) -> None:
        self._peers = peers
        self._faults = faults

    async def call(self, provider: ProviderId, method: str, path: str, body: bytes = b"", **more: Any) -> PeerAnswer:
        self._faults.die_if("calling", path)
        answer = await self._peers.call(provider, method, path, body, **more)
        self._faults.die_if("answered", path)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peers, name)


@asynccontextmanager
async def open_faulty_peers(faults: Faults, config: Config, clock: Clock) -> AsyncIterator[HttpPeers]:
    """Give the way to other providers, as `http.peers.calls.open_peers` does."""
    async with open_peers(config, clock) as peers:
        yield cast("HttpPeers", _FaultyPeers(peers, faults))
