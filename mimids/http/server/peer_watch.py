"""Watching for peers that disconnect while their requests are answered by the connection's own task.

Most answers take milliseconds, so starting a task for each request to watch its peer would cost more than the answer.
Only a request that lasts longer than WATCH_SECONDS gets such a task. Every WATCH_SECONDS, `BusyConnections.watch` looks
for such requests; it rests while there are no requests.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final, Protocol

import trio

from mimids.http.server.holding import Holding
from mimids.http.server.transport import FIRST_BYTES, PeerGone, PlainTransport, TlsTransport

WATCH_SECONDS: Final = 0.1


class Watchable(Protocol):
    """A request whose peer can be watched: nothing else receives from it, because its body has arrived."""

    @property
    def may_watch(self) -> bool:
        """Whether the peer may be watched now."""
        ...

    def watch(self) -> None:
        """Start a task that watches the peer; called at most once."""
        ...


class BusyConnections:
    """The requests that are being answered by the tasks of their connections."""

    def __init__(self) -> None:
        # with the number of looks that `watch` had made when the request began
        self._requests: dict[Watchable, int] = {}
        self._looks = 0
        self._rest = trio.lowlevel.ParkingLot()
        self._resting = False

    def begin(self, request: Watchable) -> None:
        """Add a request."""
        self._requests[request] = self._looks
        if self._resting:
            self._resting = False
            self._rest.unpark()

    def end(self, request: Watchable) -> None:
        """Remove a request."""
        self._requests.pop(request, None)

    async def watch(self) -> None:
        """Watch the peers of requests that last longer than WATCH_SECONDS, forever."""
        while True:
            if not self._requests:
                self._resting = True
                await self._rest.park()
            await trio.sleep(WATCH_SECONDS)
            for request, looks in tuple(self._requests.items()):
                if looks < self._looks and request.may_watch:
                    del self._requests[request]
                    request.watch()
            self._looks += 1


class PeerWatch:
    """Receives while a request is answered; if the peer is gone, cancels the connection with the request's handler.

    The octets that it receives are the beginning of the next request. They count against the budget of buffered octets
    until `take` returns them.
    """

    def __init__(
        self, transport: PlainTransport | TlsTransport, connection: trio.CancelScope, holding: Holding
    ) -> None:
        self._transport = transport
        self._connection = connection
        self._holding = holding
        self._scope = trio.CancelScope()
        self._received = b""
        self._ended = trio.Event()
        self._taken = trio.Event()
        self._waited_for = False

    async def run(self) -> None:
        """Wait until the peer sends something or disconnects, and keep what it sent for `take`."""
        with self._scope:
            with suppress(PeerGone):
                self._received = await self._transport.receive(FIRST_BYTES)
            with self._holding.keep(len(self._received)) as kept:
                if not kept or not (self._received or self._waited_for):
                    self._connection.cancel()
                self._ended.set()
                await self._taken.wait()

    def stop(self) -> None:
        """Stop receiving, and drop the octets received so far; another task may receive now."""
        self._scope.cancel()

    async def take(self) -> bytes:
        """Return what the peer sends next, once the request is answered; return no octets if the peer is gone."""
        self._waited_for = True
        await self._ended.wait()
        self._taken.set()
        return self._received
