"""The nursery tree of one provider: its jobs, the stages they start in, and `run` (architecture: tasks).

A job is a named task that runs as long as the provider. A job that raises, or returns before shutdown, ends the
process: the nurseries around it close, and the store and the connections to peers close within a bounded time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Any, Final, Protocol

import attrs
import trio

from mimids.assembly import AssembledProvider, assemble, watched_files
from mimids.config import Config
from mimids.ds.clock import SystemClock
from mimids.ds.ports import Clock
from mimids.ds.services import Services
from mimids.http.api.endpoints import Listener
from mimids.http.peers.calls import HttpPeers, open_peers
from mimids.http.server import certificates
from mimids.http.server.listener import serve as listen
from mimids.http.server.tls import CertificateFileError
from mimids.listeners import SOCKET
from mimids.store.engine.sqlite import open_store
from mimids.telemetry import Telemetry, new_telemetry


class JobCrashed(Exception):
    """A job raised, or returned before shutdown. `name` is the job's name; the exception is in `__cause__`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name


class Stage(Enum):
    """The order of starting; the order of stopping is the reverse. A job may use all jobs of earlier stages."""

    STORE = 1
    WORK = 2
    LISTEN = 3


@attrs.frozen
class Job:
    """A task of the tree. `run(provider, task_status=...)` calls `task_status.started` once others may rely on it."""

    name: str
    stage: Stage
    run: Callable[..., Awaitable[None]]


class _LongRunning(Protocol):
    async def run(self, *, task_status: trio.TaskStatus[None]) -> None: ...


def _service(find: Callable[[Services], _LongRunning]) -> Callable[..., Awaitable[None]]:
    """Return the body of a job that runs one service of the provider."""

    async def run(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
        await find(provider.services).run(task_status=task_status)

    return run


def _listener(name: str) -> Callable[..., Awaitable[None]]:
    """Return the body of a job that runs one listener of the provider."""

    async def run(provider: AssembledProvider, *, task_status: trio.TaskStatus[Any]) -> None:
        services = provider.services
        spec = provider.listeners[name]
        await listen(
            spec.app,
            spec.bind,
            drain=provider.drain,
            drain_seconds=services.config.listen.drain_seconds,
            log=services.telemetry.logger,
            task_status=task_status,
        )

    return run


async def _watch_certificates(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    services = provider.services
    log = services.telemetry.log

    def on_failure(error: CertificateFileError) -> None:
        log.error("certificates not reloaded", reason=str(error))

    await certificates.watch(
        watched_files(services.config),
        provider.reload_certificates,
        sleep=services.clock.sleep,
        seconds=services.config.tls.watch_seconds,
        on_reload=lambda: log.info("certificates reloaded"),
        on_failure=on_failure,
        task_status=task_status,
    )


async def _recover(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    services = provider.services
    async with trio.open_nursery() as recovering:
        recovering.start_soon(services.recovery_as_follower.run)
        await services.recovery_as_hub.run(task_status=task_status)


JOBS: Final[tuple[Job, ...]] = (
    Job("store-writer", Stage.STORE, _service(lambda services: services.store)),
    Job("ohttp-keys", Stage.WORK, _service(lambda services: services.ohttp_keys)),
    Job("welcomes", Stage.WORK, _service(lambda services: services.outgoing_welcomes)),
    Job("delivery", Stage.WORK, _service(lambda services: services.delivery)),
    Job("sync", Stage.WORK, _service(lambda services: services.sync)),
    Job("recovery", Stage.WORK, _recover),
    Job("arrangements", Stage.WORK, _service(lambda services: services.accepted_terms)),
    Job("rates", Stage.WORK, _service(lambda services: services.rates)),
    Job("cursors", Stage.WORK, _service(lambda services: services.cursors)),
    Job("reports", Stage.WORK, _service(lambda services: services.reports)),
    Job("certificate-watch", Stage.WORK, _watch_certificates),
    Job("sweeper", Stage.WORK, _service(lambda services: services.sweeper)),
    Job("public-listener", Stage.LISTEN, _listener(Listener.PUBLIC.value)),
    Job("client-listener", Stage.LISTEN, _listener(Listener.CLIENT.value)),
    Job("operator-listener", Stage.LISTEN, _listener(Listener.OPERATOR.value)),
    Job("operator-socket", Stage.LISTEN, _listener(SOCKET)),
)


OpenPeers = Callable[[Config, Clock], AbstractAsyncContextManager[HttpPeers]]


@attrs.frozen
class ServingProvider:
    """A provider that accepts connections: the address of each listener (`public`, `client`, `operator`, ...)."""

    addresses: Mapping[str, str]
    provider: AssembledProvider


# Longer than 40 lines, so that the whole tree is in one function.
async def run(
    config: Config,
    *,
    clock: Clock | None = None,
    telemetry: Telemetry | None = None,
    stop: trio.Event | None = None,
    jobs: tuple[Job, ...] = JOBS,
    open_peers: OpenPeers = open_peers,
    on_crash: Callable[[JobCrashed], None] = lambda crash: None,
    task_status: trio.TaskStatus[ServingProvider] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a provider until `stop` is set, then drain its listeners and return. Cancelling stops it without draining.

    The database must be migrated, and the caller must hold the lock of the data directory. Raises an exception group
    with a `JobCrashed` for a job that failed (an address in use among them), `CertificateFileError` for a certificate
    file that cannot be used, and `ConfigError`.
    """
    clock = clock or SystemClock()
    stop = trio.Event() if stop is None else stop
    telemetry = telemetry or new_telemetry(config.provider, format=config.log.format, level=config.log.level)
    async with open_store(config.database) as store, open_peers(config, clock) as peers:
        provider = assemble(config, clock, telemetry, store, peers)

        async def start(job: Job, nursery: trio.Nursery) -> Any:
            return await nursery.start(_guarded, job, provider, on_crash)

        async with trio.open_nursery() as writing:
            for job in _of(jobs, Stage.STORE):
                await start(job, writing)
            async with trio.open_nursery() as working:
                for job in _of(jobs, Stage.WORK):
                    await start(job, working)
                async with trio.open_nursery() as listening:
                    bound = [await start(job, listening) for job in _of(jobs, Stage.LISTEN)]
                    for each in bound:
                        telemetry.watch("listener", each.statistics, listener=each.name)
                    task_status.started(ServingProvider({each.name: each.address for each in bound}, provider))
                    await stop.wait()
                    provider.services.notifier.shut_down()
                    provider.drain.set()
                working.cancel_scope.cancel(reason="listeners closed")
            writing.cancel_scope.cancel(reason="jobs ended")
        telemetry.log_counts()


def _of(jobs: tuple[Job, ...], stage: Stage) -> Iterator[Job]:
    return (job for job in jobs if job.stage is stage)


async def _guarded(
    job: Job, provider: AssembledProvider, on_crash: Callable[[JobCrashed], None], *, task_status: trio.TaskStatus[Any]
) -> None:
    """Run a job. Log its failure under its name first: closing the nurseries may hang."""
    try:
        await job.run(provider, task_status=task_status)
        if not provider.drain.is_set():
            raise RuntimeError("the job ended before shutdown")
    except Exception as error:
        crash = JobCrashed(job.name, str(error) or type(error).__name__)
        provider.services.telemetry.log.critical("a job crashed", job=job.name, exc_info=error)
        on_crash(crash)
        raise crash from error
