"""The nursery tree of one provider: its jobs, the stages they start in, and `run` (architecture: tasks).

A job is a named task that runs as long as the provider. A job that raises, or returns before shutdown, ends the
process: the nurseries around it close, and the store and the connections to peers close within a bounded time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import trio

from mimids import causes
from mimids.assembly import AssembledProvider, assemble, watched_files
from mimids.causes import StartRefused
from mimids.config import Config
from mimids.ds.clock import SystemClock
from mimids.ds.ports import Clock
from mimids.ds.processes import StartedOnce
from mimids.ds.services import Services
from mimids.ds.upkeep.acknowledging import record_acknowledged
from mimids.errors import StorageUnavailable
from mimids.http.api.endpoints import Listener
from mimids.http.peers.calls import HttpPeers, open_peers
from mimids.http.server import certificates
from mimids.http.server.listener import serve as listen
from mimids.http.server.tls import CertificateFileError
from mimids.listeners import SOCKET
from mimids.reload import reload
from mimids.store.damage import damage_says
from mimids.store.engine.access import open_store
from mimids.store.federation_rules import every_rule
from mimids.telemetry import COUNT_SECONDS, Telemetry, new_telemetry

AGAIN_SECONDS: Final = 1.0  # the wait before a job that could not read the database starts again


class JobCrashed(Exception):
    """A job raised, or returned before shutdown. `name` is the job's name; the exception is in `__cause__`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name


class Stage(Enum):
    """The stages start in this order and stop in the reverse order. A job may use all jobs of earlier stages."""

    STORE = 1
    WORK = 2
    LISTEN = 3


@attrs.frozen
class Job:
    """A task of the tree. `run(provider, task_status=...)` calls `task_status.started` once the job is ready."""

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


def _in_one_process(run: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Return the body of a job that only one process of a provider runs at a time."""

    async def run_alone(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
        await provider.services.processes.run_in_one_process(partial(run, provider), task_status=task_status)

    return run_alone


_KEYS: Final = {SOCKET: "operator_socket"}  # listeners whose key in [listen] has another name


def _listener(name: str) -> Callable[..., Awaitable[None]]:
    """Return the body of a job that runs one listener of the provider."""

    async def run(provider: AssembledProvider, *, task_status: trio.TaskStatus[Any]) -> None:
        services = provider.services
        spec = provider.listeners[name]
        try:
            await listen(
                spec.app,
                spec.bind,
                drain=provider.drain,
                drain_seconds=services.config.listen.drain_seconds,
                log=services.telemetry.logger,
                task_status=task_status,
            )
        except (OSError, ValueError) as error:  # once a listener listens, its errors are exception groups
            raise StartRefused(causes.of_listener(_KEYS.get(name, name), spec.bind.address, error), error) from error

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


async def _record_acknowledged(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    services = provider.services
    if isinstance(services.config.place, Path):
        await record_acknowledged(services.store, services.config.place, task_status=task_status)
    else:  # PostgreSQL notices by itself that its log is incomplete
        task_status.started()
        await trio.sleep_forever()


async def _log_counts(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    services = provider.services
    task_status.started()
    while True:
        await services.clock.sleep(COUNT_SECONDS)
        services.telemetry.log_counts()


async def _recover(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    services = provider.services
    async with trio.open_nursery() as recovering:
        recovering.start_soon(services.recovery_as_follower.run)
        await services.recovery_as_hub.run(task_status=task_status)


JOBS: Final[tuple[Job, ...]] = (
    Job("store-writer", Stage.STORE, _service(lambda services: services.store)),
    Job("processes", Stage.STORE, _service(lambda services: services.processes)),
    Job("ohttp-keys", Stage.WORK, _service(lambda services: services.ohttp_keys)),
    Job("gateway", Stage.WORK, _service(lambda services: services.gateway)),
    Job("welcomes", Stage.WORK, _in_one_process(_service(lambda services: services.outgoing_welcomes))),
    Job("delivery", Stage.WORK, _in_one_process(_service(lambda services: services.delivery))),
    Job("sync", Stage.WORK, _service(lambda services: services.sync)),
    Job("recovery", Stage.WORK, _in_one_process(_recover)),
    Job("departures", Stage.WORK, _in_one_process(_service(lambda services: services.departures))),
    Job("arrangements", Stage.WORK, _service(lambda services: services.accepted_terms)),
    Job("rates", Stage.WORK, _service(lambda services: services.rates)),
    Job("cursors", Stage.WORK, _service(lambda services: services.cursors)),
    Job("last-seen", Stage.WORK, _service(lambda services: services.last_seen)),
    Job("reports", Stage.WORK, _service(lambda services: services.reports)),
    Job("wake-ups", Stage.WORK, _service(lambda services: services.wake_ups)),
    Job("certificate-watch", Stage.WORK, _watch_certificates),
    Job("acknowledged", Stage.WORK, _record_acknowledged),
    Job("counts", Stage.WORK, _log_counts),
    Job("sweeper", Stage.WORK, _in_one_process(_service(lambda services: services.sweeper))),
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
    load_config: Callable[[], Config] | None = None,
    task_status: trio.TaskStatus[ServingProvider] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a provider until `stop` is set, then drain its listeners and return. Cancelling stops it without draining.

    The database must be migrated, and the caller must hold the lock of the data directory. `load_config` reads the
    configuration again for a reload. Raises an exception group with a `JobCrashed` if a job failed; the cause is
    `StartRefused` if a listener cannot listen. Also raises `CertificateFileError` if a certificate file cannot be used,
    and `ConfigError`.
    """
    clock = clock or SystemClock()
    stop = trio.Event() if stop is None else stop
    telemetry = telemetry or new_telemetry(config.provider, format=config.log.format, level=config.log.level)

    def on_damage(damage: str) -> None:
        telemetry.log.critical("the database is damaged", reason=str(damage_says(config.place, damage)))

    async with (
        open_store(config.place, readers=config.store.read_connections, on_damage=on_damage) as store,
        open_peers(config, clock) as peers,
    ):
        config.federation.decide(await store.read(every_rule))
        provider = assemble(config, clock, telemetry, store, peers)
        server = provider.services.server
        server.started_at = clock.now()
        if load_config is not None:
            server.reload = partial(reload, provider, load_config)

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
                    server.addresses = {each.name: each.address for each in bound}
                    task_status.started(ServingProvider(server.addresses, provider))
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
    """Run a job, and log its failure under its name at once, because closing the nurseries may hang."""
    try:
        await _run_while_unavailable(job, provider, task_status=task_status)
        if not provider.drain.is_set():
            raise RuntimeError("the job ended before shutdown")
    except Exception as error:
        crash = JobCrashed(job.name, str(error) or type(error).__name__)
        if isinstance(error, StartRefused):  # the caller shows it to the operator, so it is not logged
            raise crash from error
        provider.services.telemetry.log.critical("a job crashed", job=job.name, exc_info=error)
        on_crash(crash)
        raise crash from error


async def _run_while_unavailable(job: Job, provider: AssembledProvider, *, task_status: trio.TaskStatus[Any]) -> None:
    """Run a job; start it again if it ends because the database could not be read, unless the database is damaged."""
    if job.stage is not Stage.WORK:
        await job.run(provider, task_status=task_status)
        return
    once = StartedOnce(task_status)
    while True:
        try:
            await job.run(provider, task_status=once)
            return
        except Exception as error:
            if not (once.is_started and _is_unavailable(error)):
                raise
        provider.services.telemetry.log.warning("a job starts again: the database could not be read", job=job.name)
        await trio.sleep(AGAIN_SECONDS)


def _is_unavailable(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(isinstance(each, Exception) and _is_unavailable(each) for each in error.exceptions)
    return isinstance(error, StorageUnavailable) and not error.damage
