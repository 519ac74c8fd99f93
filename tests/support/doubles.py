"""Doubles of what the Delivery Service asks of the world: the clock and other providers. `SpyLog` reads the log.

Each is held to the real part by the contract tests of tests/http/peers/test_calls.py and tests/ds/test_clock.py.
"""

from __future__ import annotations

import io
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import attrs
import trio

from mimids.ds.ports import PeerAnswer, RelayedAnswer
from mimids.errors import PeerUnavailable
from mimids.telemetry import Telemetry, new_telemetry
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId

T = TypeVar("T")

START = Milliseconds(1_900_000_000_000)  # spring 2030


class FakeClock:
    """`ports.Clock` that stands still until `advance` moves it; sleepers wake in order of their time."""

    def __init__(self, now: int = START) -> None:
        self._now = now
        self._sleepers: list[tuple[int, trio.Event]] = []

    def now(self) -> Milliseconds:
        return Milliseconds(self._now)

    async def sleep(self, seconds: float) -> None:
        until = self._now + int(seconds * 1000)
        if until <= self._now:
            await trio.lowlevel.checkpoint()
            return
        sleeper = (until, trio.Event())
        self._sleepers.append(sleeper)
        try:
            await sleeper[1].wait()
        finally:
            self._sleepers.remove(sleeper)

    @property
    def sleepers(self) -> int:
        return len(self._sleepers)

    def advance(self, seconds: float) -> None:
        """Move on; whoever slept until then or less wakes."""
        self._now += int(seconds * 1000)
        for until, event in sorted(self._sleepers, key=lambda sleeper: sleeper[0]):
            if until <= self._now:
                event.set()


@attrs.frozen
class Called:
    """One call that was made of `FakePeers`."""

    provider: ProviderId
    method: str
    path: str
    body: bytes
    media_type: str
    wait_seconds: int | None = None
    on_terms_revision: Callable[[int], None] = lambda _: None


Peer = Callable[[Called], Awaitable[PeerAnswer]]
Gateway = Callable[[Called], Awaitable[RelayedAnswer]]


class FakePeers:
    """`ports.PeerTransport` in memory: each provider is a function; one that is not there is unavailable."""

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
        timeout_seconds: float = 30,
        wait_seconds: int | None = None,
        on_terms_revision: Callable[[int], None] | None = None,
    ) -> PeerAnswer:
        called = Called(provider, method, path, body, media_type, wait_seconds, on_terms_revision or (lambda _: None))
        try:
            with trio.fail_after(timeout_seconds + (wait_seconds or 0)):
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


class _Heard(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.more = trio.Event()

    def write(self, text: str) -> int:
        self.more.set()
        self.more = trio.Event()
        return super().write(text)


class SpyLog:
    """A provider's telemetry that writes its lines here."""

    def __init__(self, provider: str = "a.example") -> None:
        self._text = _Heard()
        self.telemetry: Telemetry = new_telemetry(ProviderId(provider), format="json", level="debug", to=self._text)

    @property
    def text(self) -> str:
        return self._text.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    async def wait_for(self, event: str) -> None:
        """Wait until a line of this event was logged, or return if one was."""
        while all(line["event"] != event for line in self.lines):
            await self._text.more.wait()
