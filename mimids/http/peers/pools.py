"""Connections to other providers that are kept for later calls.

A handshake takes as much CPU time as many calls. A call takes the connection that was used last, so that the extra
connections of a burst become idle. Each call also closes a few connections (to any provider) that were idle too long or
that exceed the bound.
"""

from __future__ import annotations

import resource
import ssl
from collections import OrderedDict
from itertools import islice
from typing import Final, Protocol

import trio

from mimids.ds.ports import Clock
from mimids.http.peers.answers import HttpAnswer
from mimids.http.peers.connection import PeerConnection, connect
from mimids.http.peers.dialling import Connects
from mimids.http.peers.exchange import BrokenConnection, PeerRequest
from mimids.wire.ids import ProviderId

MOST_KEPT: Final = 2048  # connections without a call
KEPT_OF_ONE: Final = 16  # connections without a call, to one provider
FILES_FOR_KEPT: Final = 8  # files that the process may open, for each connection that may be kept
IDLE_SECONDS: Final = 30  # shorter than any listener of ours keeps an idle connection
CLOSED_AT_ONCE: Final = 4  # closed after each call; a call adds at most one connection, so the number falls


class Contexts(Protocol):
    """The TLS contexts of a pool's connections; `ClientTls` for other providers."""

    def context(self, provider: ProviderId, /) -> ssl.SSLContext:
        """Return the context for connections to `provider`; it is the same object until a reload."""
        ...

    def reload(self) -> None:
        """Read the files again."""
        ...


class Pools:
    """The connections that are made with the same `Contexts`."""

    def __init__(self, tls: Contexts, dialler: Connects, clock: Clock, *, kept: int | None = None) -> None:
        """Keep at most `kept` connections without a call, by default as many as the limit on open files allows."""
        self._tls = tls
        self._dialler = dialler
        self._clock = clock
        self._most_kept = connections_kept() if kept is None else kept
        # connections without a call; the one used last is at the end
        self._pools: dict[ProviderId, list[PeerConnection]] = {}
        # all connections without a call; the one used longest ago is first
        self._idle: OrderedDict[PeerConnection, None] = OrderedDict()

    @property
    def kept(self) -> int:
        """Return how many connections are open without a call now."""
        return len(self._idle)

    async def exchange(self, request: PeerRequest, octets: int, *, repeatable: bool) -> HttpAnswer:
        """Exchange a request for an answer of at most `octets`.

        If a kept connection breaks, perhaps because the provider closed it just now, a `repeatable` request is sent
        again on a new connection. Raises `CannotConnect`, `BrokenConnection` and `AnswerTooLarge`.
        """
        kept = self._take(request.provider)
        if kept is not None:
            try:
                return await self._exchange(kept, request, octets)
            except BrokenConnection:
                if not repeatable:
                    raise
        new = await connect(self._dialler, request.provider, self._tls.context(request.provider))
        return await self._exchange(new, request, octets)

    async def _exchange(self, connection: PeerConnection, request: PeerRequest, octets: int) -> HttpAnswer:
        try:
            return await connection.exchange(request, octets)
        finally:
            self._give_back(connection)

    def _take(self, provider: ProviderId) -> PeerConnection | None:
        """Return the usable connection that was used last; close connections that are not usable."""
        while provider in self._pools:
            connection = self._pools[provider][-1]
            self._forget(connection)
            if connection.is_usable(self._clock.now() / 1000):
                return connection
            connection.close()
        return None

    def _give_back(self, connection: PeerConnection) -> None:
        """Keep a connection after a call if it can be used again.

        Close some connections that were idle too long or exceed the bound.
        """
        pool = self._pools.get(connection.provider, [])
        is_old = connection.context is not self._tls.context(connection.provider)  # certificates were renewed since
        if is_old or not connection.is_reusable or len(pool) >= KEPT_OF_ONE:
            connection.close()
        else:
            connection.idle_since = trio.current_time()
            pool.append(connection)
            self._pools[connection.provider] = pool
            self._idle[connection] = None
        for oldest in list(islice(self._idle, CLOSED_AT_ONCE)):
            if len(self._idle) > self._most_kept or trio.current_time() - oldest.idle_since >= IDLE_SECONDS:
                self._forget(oldest)
                oldest.close()

    def _forget(self, connection: PeerConnection) -> None:
        del self._idle[connection]
        pool = self._pools[connection.provider]
        pool.remove(connection)
        if not pool:
            del self._pools[connection.provider]

    def reload(self) -> None:
        """Read the certificate and trust files again; calls in flight keep their connections."""
        try:
            self._tls.reload()
        finally:
            self._close_idle()

    def close(self) -> None:
        """Close all connections without a call now, and every other connection when its call ends."""
        self._most_kept = 0
        self._close_idle()

    def _close_idle(self) -> None:
        for connection in list(self._idle):
            self._forget(connection)
            connection.close()


def connections_kept() -> int:
    """Return how many connections without a call may stay open under the limit on open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_KEPT if soft == resource.RLIM_INFINITY else min(MOST_KEPT, soft // FILES_FOR_KEPT)
