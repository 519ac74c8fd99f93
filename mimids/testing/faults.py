"""Faults that a test injects into a provider's process: wrong answers to other providers, and sudden death.

Answers are replaced in front of the public listener's application. The caller is known there by its certificate, so a
fault may concern the requests of one provider only. A process dies by SIGKILL.
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
NO_LENGTH: Final = b"\xff"  # no vector can begin with it (RFC 9420 section 2.1.2), so garbage never parses by chance

Action = Literal["answer", "garbage", "duplicate", "die"]
Point = Literal["handling", "answering", "calling", "answered"]


@attrs.define
class InjectedFault:
    """A fault of requests between providers.

    `caller` is the calling provider (None: any caller, with a certificate or without); `path` is the path called; a
    final slash means all paths below it. `skip` requests pass unharmed first. With `die`, `point` says where: as the
    callee before `handling` or before `answering`, as the caller before `calling` or after it was `answered`.
    """

    do: Action
    caller: str | None = None
    path: str = "/"
    status: int = 503
    retry_after: int | None = None
    point: Point = "handling"
    skip: int = 0

    def applies(self, path: str) -> bool:
        """Tell whether it applies to a request for this path now; counts `skip` down."""
        if path != self.path and not (self.path.endswith("/") and path.startswith(self.path)):
            return False
        self.skip -= 1
        return self.skip < 0


class InjectedFaults:
    """The present faults of one process."""

    def __init__(self, faults: Iterable[Mapping[str, Any]] = ()) -> None:
        self._faults: list[InjectedFault] = []
        self.set(faults)

    def set(self, faults: Iterable[Mapping[str, Any]]) -> None:
        """Replace all faults."""
        self._faults = [InjectedFault(**fault) for fault in faults]

    def of_request(self, callers: frozenset[ProviderId] | None, path: str) -> InjectedFault | None:
        """Return the fault of an incoming request, if there is one."""
        for fault in self._faults:
            incoming = fault.point in ("handling", "answering")
            if incoming and (fault.caller is None or fault.caller in (callers or ())) and fault.applies(path):
                return fault
        return None

    def die_if(self, point: Point, path: str) -> None:
        """End the process if a fault says so for this point of an outgoing call."""
        for fault in self._faults:
            if fault.do == "die" and fault.point == point and fault.applies(path.partition("?")[0]):
                die()


def die() -> NoReturn:
    """End this process by SIGKILL: nothing is closed or flushed."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def faulty(app: ASGIApp, faults: InjectedFaults) -> ASGIApp:
    """Return an ASGI application that injects faults in front of `app`."""

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


async def _answer(fault: InjectedFault, send: Send) -> None:
    body = b""
    headers = [(b"content-type", b"text/plain")]
    if fault.do == "garbage":
        headers = [(b"content-type", b"application/mimi-ds")]
        body = NO_LENGTH + random.randbytes(random.randrange(GARBAGE_OCTETS))  # noqa: S311  # no secret
    elif fault.retry_after is not None:
        headers.append((b"retry-after", b"%d" % fault.retry_after))
    status = 200 if fault.do == "garbage" else fault.status
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _body(receive: Receive) -> bytes | None:
    """Return the whole body, None if the client disconnects."""
    pieces, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that returns an already received body, then further messages."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


async def _drop(message: Message) -> None:
    """Drop a message instead of sending it."""


async def _die_sending(message: Message) -> None:
    die()


# --- outgoing calls -----------------------------------------------------------------------------------------------


class _FaultyPeers:
    """`HttpPeers` with the points of a call at which the process may die."""

    def __init__(self, peers: HttpPeers, faults: InjectedFaults) -> None:
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
async def open_faulty_peers(faults: InjectedFaults, config: Config, clock: Clock) -> AsyncIterator[HttpPeers]:
    """Open the connections to other providers, like `http.peers.calls.open_peers`, with faults."""
    async with open_peers(config, clock) as peers:
        yield cast("HttpPeers", _FaultyPeers(peers, faults))
