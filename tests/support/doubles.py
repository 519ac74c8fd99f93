"""Test doubles of the ports of the Delivery Service, the clock and other providers, and a log that can be read.

tests/http/peers/test_calls.py and tests/ds/test_clock.py run the same contract tests on these and on the real ones.
"""

from __future__ import annotations

import io
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import trio

from mimids.ds.ports import PeerAnswer, PushAnswer, RelayedAnswer
from mimids.errors import PeerUnavailable
from mimids.telemetry import Telemetry, new_telemetry
from mimids.testing.clock import MovableClock
from mimids.web_push.subscription import EndpointUrl
from mimids.wire.ids import ProviderId
from tests.support.patience import patience

T = TypeVar("T")

START_SECONDS = 1_900_000_000  # spring 2030


def stopped_clock(seconds: int = START_SECONDS) -> MovableClock:
    """Return a clock that stands at `seconds` since the epoch until the test advances it."""
    return MovableClock(stopped_at=seconds * 1000)


@attrs.frozen
class Called:
    """One call to `FakePeers`."""

    provider: ProviderId
    method: str
    path: str
    body: bytes
    media_type: str
    wait_seconds: int | None = None
    on_terms_revision: Callable[[int], None] = lambda _: None
    terms_revision: int | None = None


Peer = Callable[[Called], Awaitable[PeerAnswer]]
Gateway = Callable[[Called], Awaitable[RelayedAnswer]]


class FakePushServices:
    """`ports.PushServices` in memory; `answer` is the status for each endpoint, or a function that makes the answer."""

    def __init__(self) -> None:
        self.pushes: list[tuple[EndpointUrl, dict[str, str], bytes]] = []
        self.answer: Callable[[EndpointUrl], Awaitable[PushAnswer]] = self.accept
        self.closed = False
        self._more = trio.Event()

    async def accept(self, endpoint: EndpointUrl) -> PushAnswer:
        return PushAnswer(201)

    async def wait(self, number: int) -> list[str]:
        """Wait until there were so many pushes; return the paths of their endpoints."""
        with patience():
            while len(self.pushes) < number:
                await self._more.wait()
        return [endpoint.path for endpoint, _, _ in self.pushes]

    async def push(self, endpoint: EndpointUrl, headers: Sequence[tuple[str, str]], body: bytes) -> PushAnswer:
        self.pushes.append((endpoint, dict(headers), body))
        self._more.set()
        self._more = trio.Event()
        return await self.answer(endpoint)

    def close(self) -> None:
        self.closed = True


class FakePeers:
    """`ports.Peers` in memory: each provider is a function; others are unavailable."""

    def __init__(self, **peers: Peer) -> None:
        self.peers: dict[ProviderId, Peer] = {ProviderId(name): peer for name, peer in peers.items()}
        self.gateways: dict[ProviderId, Gateway] = {}
        self.calls: list[Called] = []

    def add(self, provider: str, peer: Peer) -> None:
        self.peers[ProviderId(provider)] = peer

    def add_gateway(self, provider: str, gateway: Gateway) -> None:
        """Have a function answer the calls that name nobody."""
        self.gateways[ProviderId(provider)] = gateway

    async def call(
        self,
        provider: ProviderId,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        media_type: str = "application/mimi-ds",
        timeout_seconds: float | None = None,
        wait_seconds: int | None = None,
        on_terms_revision: Callable[[int], None] | None = None,
        terms_revision: int | None = None,
    ) -> PeerAnswer:
        heard = on_terms_revision or (lambda _: None)
        called = Called(provider, method, path, body, media_type, wait_seconds, heard, terms_revision)
        try:
            with trio.fail_after((30 if timeout_seconds is None else timeout_seconds) + (wait_seconds or 0)):
                return await self._exchange(self.peers, called)
        except trio.TooSlowError:
            raise PeerUnavailable from None

    async def call_plainly(
        self, provider: ProviderId, method: str, path: str, body: bytes = b"", *, media_type: str
    ) -> RelayedAnswer:
        return await self._exchange(self.gateways, Called(provider, method, path, body, media_type))

    async def _exchange(self, peers: Mapping[ProviderId, Callable[[Called], Awaitable[T]]], called: Called) -> T:
        await trio.lowlevel.checkpoint()
        self.calls.append(called)
        if called.provider not in peers:
            raise PeerUnavailable
        return await peers[called.provider](called)


class _Lines(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.written = trio.Event()

    def write(self, text: str) -> int:
        self.written.set()
        self.written = trio.Event()
        return super().write(text)


class SpyLog:
    """Telemetry whose log lines the test can read."""

    def __init__(self, provider: str = "a.example") -> None:
        self._text = _Lines()
        self.telemetry: Telemetry = new_telemetry(ProviderId(provider), format="json", level="debug", to=self._text)

    @property
    def text(self) -> str:
        return self._text.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    async def wait_for(self, event: str) -> None:
        """Wait until an event is logged; return at once if it was logged before."""
        while all(line["event"] != event for line in self.lines):
            await self._text.written.wait()


def bound_hits(telemetry: Telemetry, bound: str) -> int:
    """Return how often a bound was reached; the metric shows it minutes later."""
    return telemetry._bound_hits[bound]
