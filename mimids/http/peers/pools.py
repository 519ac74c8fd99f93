"""Pools of connections to other providers, one for each SSL context, replaced when certificates are reloaded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ssl import SSLContext
from typing import Final

import attrs
import httpcore
import trio

from mimids.http.peers.dialling import Dialler
from mimids.http.server.tls import ClientTls
from mimids.wire.ids import ProviderId

CONNECTIONS: Final = 256
IDLE_CONNECTIONS: Final = 64
IDLE_SECONDS: Final = 30  # less than any listener of ours keeps an idle connection
CLOSE_SECONDS: Final = 5


@attrs.define(eq=False)
class _Pool:
    """Connections that share an SSL context. After a reload, the last call that uses an old pool closes it."""

    connections: httpcore.AsyncConnectionPool
    calls: int = 0
    retired: bool = False


class Pools:
    """The pools of one `ClientTls`: one for each provider with its own trust file, and one for all others."""

    def __init__(self, tls: ClientTls, dialler: Dialler) -> None:
        self._tls = tls
        self._dialler = dialler
        self._pools: dict[SSLContext, _Pool] = {}

    @asynccontextmanager
    async def borrow(self, provider: ProviderId) -> AsyncIterator[httpcore.AsyncConnectionPool]:
        """Give the pool for calls to a provider for the block."""
        context = self._tls.context(provider)
        pool = self._pools.get(context)
        if pool is None:
            pool = self._pools[context] = _Pool(
                httpcore.AsyncConnectionPool(
                    ssl_context=context,
                    max_connections=CONNECTIONS,
                    max_keepalive_connections=IDLE_CONNECTIONS,
                    keepalive_expiry=IDLE_SECONDS,
                    network_backend=self._dialler,
                )
            )
        pool.calls += 1
        try:
            yield pool.connections
        finally:
            pool.calls -= 1
            if pool.retired and not pool.calls:
                await _close(pool)

    async def reload(self) -> None:
        """Read the certificate and trust files again; calls in flight keep their connections."""
        self._tls.reload()
        await self.close(only_idle=True)

    async def close(self, *, only_idle: bool = False) -> None:
        """Close all pools; with `only_idle` those that calls are using are closed when these have ended."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.retired = True
            if not (only_idle and pool.calls):
                await _close(pool)


async def _close(pool: _Pool) -> None:
    with trio.move_on_after(CLOSE_SECONDS, shield=True):
        await pool.connections.aclose()
