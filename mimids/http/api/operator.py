"""The operator's endpoints on the loopback listener (http: operator): they only read, and check Host."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import attrs
import trio
from cryptography.x509 import load_pem_x509_certificates

from mimids.config import Config
from mimids.ds.following.delivery import OPEN_CIRCUIT_FAILURES
from mimids.ds.services import Services
from mimids.errors import Busy, StorageUnavailable
from mimids.http.api.bodies import NO_BODY, octets
from mimids.http.api.endpoints import Answer, AnyEndpoint, Call, Endpoint, Listener
from mimids.http.api.kept_page import KeptPage
from mimids.http.api.stock_totals import stock_totals
from mimids.store import overview, reports
from mimids.store.damage import damage_says
from mimids.store.engine.transaction import Tx
from mimids.store.overview import PeerLag
from mimids.telemetry import METRICS_TYPE, Reading
from mimids.values import Milliseconds, Operator
from mimids.wire.ids import ProviderId

MIB: Final = 1024 * 1024
FULL_OCTETS: Final = 32 * MIB  # the largest push needs that much; with less, writes are about to fail
# A page in the operator's browser could reach this listener by a domain that resolves to loopback (DNS rebinding).
# Its requests then have that domain as Host, never one of these.
HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


async def healthz(services: Services, call: Call[Operator, None]) -> bytes:
    """Answer as long as the event loop runs."""
    return b"ok\n"


async def readyz(services: Services, call: Call[Operator, None]) -> bytes:
    """Answer if requests can be served: the disk has room for writes, the store can be read, the gateway has keys."""
    store = services.store.statistics()
    if store.damage:
        raise StorageUnavailable(str(damage_says(services.config.place, store.damage)))
    if not store.writable:
        raise StorageUnavailable
    free = await trio.to_thread.run_sync(_free_octets, services.config)
    if free is not None and free < FULL_OCTETS:
        raise StorageUnavailable(f"the disk of data_dir is full: {free // MIB} MiB are free; free some space")
    await services.store.read(lambda tx: tx.one("SELECT 1"))
    services.ohttp_keys.served()
    return b"ready\n"


def _free_octets(config: Config) -> int | None:
    """Return the free space on the disk of the data directory, None if the system does not say."""
    with suppress(OSError):
        return shutil.disk_usage(config.data_dir).free
    return None


@attrs.frozen
class PeerNumbers:
    """The metrics of one follower, or of several together."""

    behind_messages: int
    behind_seconds: float
    failures: int  # in a row
    circuit_open: int  # 1: after many failures it is tried only rarely
    stuck_partitions: int


@attrs.frozen
class StockNumbers:
    """The number of devices, and how many of them have no KeyPackages, so that nobody can add them to groups."""

    devices: int
    devices_empty: int


@attrs.frozen
class ReportNumbers:
    """Reports that the operator has not closed."""

    open: int


@attrs.frozen
class DiskNumbers:
    """Free space on the disk, and the size of the database."""

    free_bytes: int
    database_bytes: int


@attrs.frozen
class CertificateNumbers:
    """When the certificate that we serve expires, in seconds since the epoch."""

    expires_seconds: float


OTHERS: Final = "others"
_KEPT: Final = KeptPage[list[Reading]]()


async def metrics(services: Services, call: Call[Operator, None]) -> Answer[bytes]:
    """Return all metrics.

    The `[metrics] named_peers` followers that are furthest behind have metrics of their own. The numbers of all other
    followers are added up.
    """
    config, now = services.config, services.clock.now()

    def read(tx: Tx) -> list[Reading]:
        numbers = [(domain, _numbers(lag, now)) for domain, lag in overview.peer_lags(tx)]
        named, rest = numbers[: config.metrics.named_peers], numbers[config.metrics.named_peers :]
        if rest:
            named.append((ProviderId(OTHERS), _together([each for _, each in rest])))
        return [
            *(Reading("peer", each, {"peer": domain}) for domain, each in named),
            Reading("reports", ReportNumbers(reports.count_open(tx))),
        ]

    of_database = await _KEPT.read(services.store, read)
    stock = await stock_totals(services)
    of_database = [*of_database, Reading("stock", StockNumbers(stock.devices, stock.devices_empty))]
    of_machine = await trio.to_thread.run_sync(machine_readings, config)
    return Answer(services.telemetry.metrics([*of_database, *of_machine]))


def machine_readings(config: Config) -> list[Reading]:
    """Return the metrics of the disk and the certificate; leave out those whose files cannot be read."""
    found = []
    with suppress(OSError):
        log = config.database.with_name(f"{config.database.name}-wal")
        size = sum(path.stat().st_size for path in (config.database, log) if path.exists())
        found.append(Reading("disk", DiskNumbers(shutil.disk_usage(config.data_dir).free, size)))
    with suppress(OSError, ValueError):
        chain = load_pem_x509_certificates(config.tls.certificate.read_bytes())
        ends = min(each.not_valid_after_utc for each in chain)
        found.append(Reading("certificate", CertificateNumbers(ends.timestamp())))
    return found


def _numbers(lag: PeerLag, now: Milliseconds) -> PeerNumbers:
    seconds = 0.0 if lag.oldest_at is None else max(0, now - lag.oldest_at) / 1000
    return PeerNumbers(lag.messages, seconds, lag.failures, int(lag.failures >= OPEN_CIRCUIT_FAILURES), lag.stuck)


def _together(numbers: Sequence[PeerNumbers]) -> PeerNumbers:
    """Return the sum of each count, the largest time, and the largest number of failures in a row."""
    return PeerNumbers(
        sum(each.behind_messages for each in numbers),
        max(each.behind_seconds for each in numbers),
        max(each.failures for each in numbers),
        sum(each.circuit_open for each in numbers),
        sum(each.stuck_partitions for each in numbers),
    )


# Not annotated, so that mypy checks each handler against its row (see `endpoints.AnyEndpoint`).
_ROWS = (
    Endpoint(
        name="healthz",
        listener=Listener.OPERATOR,
        method="GET",
        path="/healthz",
        caller=Operator,
        request=NO_BODY,
        answer=octets("text/plain"),
        handler=healthz,
        summary="the process runs",
    ),
    Endpoint(
        name="readyz",
        listener=Listener.OPERATOR,
        method="GET",
        path="/readyz",
        caller=Operator,
        request=NO_BODY,
        answer=octets("text/plain"),
        handler=readyz,
        summary="requests can be served: the disk has room and takes writes, the gateway has keys",
        problems=(StorageUnavailable, Busy),
    ),
    Endpoint(
        name="metrics",
        listener=Listener.OPERATOR,
        method="GET",
        path="/metrics",
        caller=Operator,
        request=NO_BODY,
        answer=octets(METRICS_TYPE),
        handler=metrics,
        summary="metrics as Prometheus text",
    ),
)
OPERATOR: Final[tuple[AnyEndpoint, ...]] = _ROWS
