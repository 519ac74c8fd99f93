"""Endpoints for the operator (DESIGN 4.4): read-only, on loopback, Host checked."""

from __future__ import annotations

from typing import Final

from mimids.ds.services import Services
from mimids.errors import Busy, StorageUnavailable
from mimids.http.endpoints import Access, Answer, Call, Endpoint, Listener, octets
from mimids.telemetry import METRICS_TYPE

# A page in the operator's browser could name us by a domain of its own; it cannot make the browser say these.
HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


async def healthz(services: Services, call: Call[None]) -> bytes:
    """Say that the process runs its loop."""
    return b"ok\n"


async def readyz(services: Services, call: Call[None]) -> bytes:
    """Say that requests are answered: the disk takes writes, the store is read, the gateway has keys."""
    if not services.store.statistics().writable:
        raise StorageUnavailable
    await services.store.read(lambda tx: tx.one("SELECT 1"))
    services.ohttp_keys.served()
    return b"ready\n"


async def metrics(services: Services, call: Call[None]) -> Answer[bytes]:
    """Return all metrics."""
    return Answer(services.telemetry.metrics())


OPERATOR: Final[tuple[Endpoint, ...]] = (
    Endpoint(
        name="healthz",
        listener=Listener.OPERATOR,
        method="GET",
        path="/healthz",
        access=Access.ANYONE,
        request=None,
        answer=octets("text/plain"),
        handler=healthz,
        summary="the process runs",
    ),
    Endpoint(
        name="readyz",
        listener=Listener.OPERATOR,
        method="GET",
        path="/readyz",
        access=Access.ANYONE,
        request=None,
        answer=octets("text/plain"),
        handler=readyz,
        summary="requests are answered: the disk takes writes, the gateway has keys",
        problems=(StorageUnavailable, Busy),
    ),
    Endpoint(
        name="metrics",
        listener=Listener.OPERATOR,
        method="GET",
        path="/metrics",
        access=Access.ANYONE,
        request=None,
        answer=octets(METRICS_TYPE),
        handler=metrics,
        summary="Prometheus text",
    ),
)
