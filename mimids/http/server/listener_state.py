"""What the connections of one listener share: limits, counts, pools, and the set of open connections."""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING, Final

import attrs
import trio
from hypercorn.trio.worker_context import WorkerContext

from mimids.http.server.buffers import Buffers
from mimids.http.server.holding import Holding
from mimids.http.server.peer_watch import BusyConnections
from mimids.http.server.protocols import ProtocolSettings
from mimids.http.server.shares import RESERVE, SHARE, Shares
from mimids.http.server.tls import ServerTls
from mimids.http.server.turns import Turns
from mimids.http.server.waits import Waits
from mimids.owners import Owner
from mimids.wire.ids import ProviderId

if TYPE_CHECKING:
    from mimids.http.server.connection import ServerConnection

SMALLEST_SHARE: Final = 16  # connections that one owner may have, however few there are in all
NOT_YET_ADMITTED: Final = 32  # connections beyond an address's share: their callers may have shares of their own


@attrs.frozen
class ConnectionLimits:
    """Limits of a listener's connections. The times limit the peer, except `tail_seconds`, which limits the app."""

    connections: int = 1000
    head_bytes: int = 16 * 1024
    message_bytes: int = 1024 * 1024  # of a WebSocket message
    handshake_seconds: float = 10  # TLS
    head_seconds: float = 10  # for the whole head of a request, however slowly it arrives
    body_seconds: float = 20  # the longest time without any byte of the body ...
    body_bytes_per_second: float = 4096  # ... a peer that sends slower than this uses up body_seconds
    idle_seconds: float = 60  # between requests
    ping_seconds: float = 30  # silence on a WebSocket before a ping is sent, and again before the WebSocket is closed
    send_seconds: float = 20  # for the peer to take 32 KiB
    tail_seconds: float = 5  # for the app to return after its answer, or after its WebSocket was closed cleanly


@attrs.frozen
class ConnectionInfo:
    """The connection of a request, in `scope["extensions"]["mimids"]`."""

    listener: str
    certificate: bytes | None  # the client's verified certificate, DER
    names: frozenset[ProviderId] | None  # the providers it is valid for; None without a certificate
    draining: trio.Event  # set at shutdown: a handler that waits should answer now
    holding: Holding = attrs.field(factory=Holding)
    user: int | None = None  # on a Unix socket: the user of the operating system that connected


@attrs.define
class Tally:
    """Counts of a listener since it started."""

    accepted: int = 0
    refused: int = 0  # beyond ConnectionLimits.connections, or beyond the share of the peer's address
    evicted: int = 0  # closed without a request, to make room for others
    timed_out: int = 0  # handshake, head, body or pong did not come
    forced: int = 0  # closed by force: the peer did not read, or the drain was over
    failed: int = 0  # ended by an exception of this server, logged with its traceback


class ListenerState:
    """What the connections of one listener share: settings, counts, and the set of open connections."""

    def __init__(
        self, name: str, tls: ServerTls | None, limits: ConnectionLimits, log: logging.Logger, buffers: Buffers
    ) -> None:
        self.name = name
        self.tls = tls
        self.limits = limits
        self.buffers = buffers
        share = max(limits.connections // SHARE, min(limits.connections, SMALLEST_SHARE))
        self.pool = Shares(
            limits.connections,
            share=share,
            reserve=limits.connections // RESERVE if share < limits.connections else 0,
            little=max(1, share // SMALLEST_SHARE),
        )
        self.waits = Waits(limits.connections)
        self.turns = Turns()
        self.log = log
        self.settings = ProtocolSettings(head_bytes=limits.head_bytes, message_bytes=limits.message_bytes)
        self.worker = WorkerContext(None)  # Hypercorn's protocols close connections once `terminated` is set
        self.draining = trio.Event()
        self.all_closed = trio.Event()
        self.tally = Tally()
        self.open: set[ServerConnection] = set()
        self.busy = BusyConnections()  # with a request on the direct path
        # Connections without a request, the longest idle first, each with the time when it is closed. The time is `inf`
        # before the first request, because another time limit counts then.
        self.idle: dict[ServerConnection, float] = {}

    @property
    def most_of_an_address(self) -> int:
        """The connections that an address may have, with those whose callers are not known yet."""
        return self.pool.share + NOT_YET_ADMITTED

    def make_room(self, owner: Owner) -> bool:
        """Make sure that `owner` may have one more connection; return False if it may not.

        If there is no room, a connection without a request is evicted. If the owner's share is used up, one of the
        owner's connections is evicted; otherwise one of the owner that has the most connections.
        """
        pool = self.pool
        victim: ServerConnection | None
        if owner is not None and pool.held(owner) >= self.most_of_an_address:
            victim = next((each for each in self.idle if each.holding.owner == owner), None)
        elif pool.has_room_at_all(owner):
            return True
        else:
            victim = max(self.idle, key=lambda each: pool.held(each.holding.owner), default=None)
        if victim is None:
            self.tally.refused += 1
            return False
        self.tally.evicted += 1
        victim.evict()
        return True

    def may_refuse(self, owner: Owner, most: int) -> bool:
        """Tell whether a connection without room gets an answer: not while `most` others are being answered."""
        pool = self.pool
        held = pool.held(owner) if owner is not None else 0
        return pool.used < pool.total + most and held < self.most_of_an_address + most

    def note_idle(self, connection: ServerConnection) -> None:
        """Record that a connection has answered its request and waits for the next one."""
        self.idle[connection] = trio.current_time() + self.limits.idle_seconds

    async def close_idle(self) -> None:
        """Close connections that wait for a request for longer than `idle_seconds`, forever.

        One timer for all connections costs less than a cancel scope for each request.
        """
        while True:
            now = trio.current_time()
            wake_at = now + self.limits.idle_seconds
            for connection, until in tuple(self.idle.items()):
                if until <= now:
                    self.idle[connection] = inf
                    connection.end_reading()
                elif until < inf:  # all others are idle for a shorter time
                    wake_at = until
                    break
            await trio.sleep_until(wake_at)

    async def drain(self, seconds: float) -> None:
        """Accept no further requests, and wait until all connections have closed, for at most `seconds`."""
        self.draining.set()
        await self.worker.terminated.set()
        for connection in tuple(self.open):
            connection.drain()
        if self.open:
            self.all_closed = trio.Event()
            with trio.move_on_after(seconds):
                await self.all_closed.wait()

    def log_fault(self, what: str, errors: BaseExceptionGroup[Exception]) -> None:
        """Count and log an exception of this server, with its traceback."""
        self.tally.failed += 1
        error = errors.exceptions[0] if len(errors.exceptions) == 1 else errors
        self.log.error("%s on the %s listener", what, self.name, exc_info=error)
