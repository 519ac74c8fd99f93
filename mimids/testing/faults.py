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
from urllib.parse import unquote

import attrs

from mimids.config import Config
from mimids.ds.ports import Clock, PeerAnswer
from mimids.http.api.asgi import Receive, Scope, Send, respond
from mimids.http.peers.calls import HttpPeers, open_peers
from mimids.http.server.messages import DirectApp, HttpReply, HttpRequest
from mimids.wire.ids import ProviderId

GARBAGE_OCTETS: Final = 300
NO_LENGTH: Final = b"\xff"  # no vector can begin with it (RFC 9420 section 2.1.2), so garbage never parses by chance

Action = Literal["answer", "garbage", "duplicate", "die"]
Point = Literal["handling", "answering", "calling", "answered"]


@attrs.define
class InjectedFault:
    """A fault of requests between providers.

    `caller` is the calling provider (None: any caller, with a certificate or without); `path` is the path called; a
    final slash means all paths below it. The first `skip` requests pass unharmed. With `die`, `point` says where the
    process dies. The called process dies before `handling` or before `answering`; the calling process dies before
    `calling` or once it is `answered`.
    """

    do: Action
    caller: str | None = None
    path: str = "/"
    status: int = 503
    retry_after: int | None = None
    point: Point = "handling"
    skip: int = 0

    def applies(self, path: str) -> bool:
        """Tell whether this fault applies to a request for this path now; counts `skip` down."""
        if path != self.path and not (self.path.endswith("/") and path.startswith(self.path)):
            return False
        self.skip -= 1
        return self.skip < 0


class InjectedFaults:
    """The current faults of one process."""

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


def faulty(app: DirectApp, faults: InjectedFaults) -> DirectApp:
    """Return an application that injects faults in front of `app`."""

    async def answer(request: HttpRequest) -> HttpReply:
        fault = faults.of_request(request.names, unquote(request.path.decode("ascii")))
        if fault is None:
            return await app.answer(request)
        if fault.do == "die":
            if fault.point == "answering":
                await app.answer(request)
            die()
        body = await _body(request)
        if fault.do == "duplicate":
            await app.answer(_again(request, body))
            return await app.answer(_again(request, body))
        return _reply(fault)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(answer, scope, receive, send)
        else:
            await app(scope, receive, send)

    return DirectApp(serve, answer)


def _reply(fault: InjectedFault) -> HttpReply:
    body = b""
    headers = [(b"content-type", b"text/plain")]
    if fault.do == "garbage":
        headers = [(b"content-type", b"application/mimi-ds")]
        body = NO_LENGTH + random.randbytes(random.randrange(GARBAGE_OCTETS))  # noqa: S311  # no secret
    elif fault.retry_after is not None:
        headers.append((b"retry-after", b"%d" % fault.retry_after))
    headers.append((b"content-length", b"%d" % len(body)))
    return HttpReply(200 if fault.do == "garbage" else fault.status, headers, body)


async def _body(request: HttpRequest) -> bytes:
    body, more = await request.receive()
    while more:
        piece, more = await request.receive()
        body += piece
    return body


def _again(request: HttpRequest, body: bytes) -> HttpRequest:
    """Return the request with a body that was received already."""

    async def receive() -> tuple[bytes, bool]:
        return body, False

    return attrs.evolve(request, receive=receive)


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
