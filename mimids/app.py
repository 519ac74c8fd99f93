"""One provider: the nursery tree, written once; shutdown is the same text read upward (architecture: tasks).

Each child is a named job. A job that fails, or ends before it should, ends the process: the nurseries close around it,
the store and the connections to peers within a bounded, shielded time of their own.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from enum import Enum
from functools import partial
from typing import Any, Final

import attrs
import trio

from mimids.assembly import SOCKET, AssembledProvider, assemble
from mimids.config import Config, ConfigError
from mimids.ds.clock import SystemClock
from mimids.ds.ports import Clock
from mimids.ds.upkeep import sweeper
from mimids.http.api.endpoints import Listener
from mimids.http.peers.calls import HttpPeers, open_peers
from mimids.http.server import certificates
from mimids.http.server.listener import serve as listen
from mimids.http.server.tls import CertificateFileError
from mimids.store.engine import lock
from mimids.store.engine.migrate import pending
from mimids.store.engine.sqlite import open_store
from mimids.telemetry import Telemetry, new_telemetry

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1
EXIT_CRASHED: Final = 3
FILES: Final = 16_384  # that may be open at once, where the system lets us: listeners, peers and the store together
# mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD, in octets.
MALLOC_OPTIONS: Final = {-3: 32 * 1024 * 1024, -1: 64 * 1024 * 1024, -2: 4 * 1024 * 1024}
CRASH_SECONDS: Final = 4  # from a job's crash to the end of the process, whatever hangs


class JobCrashed(Exception):
    """A job failed, or ended before it should; `name` is the job's, the cause is why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name


class Stage(Enum):
    """What a job may rely on: those of an earlier stage start before it and end after it."""

    STORE = 1
    WORK = 2
    LISTEN = 3


@attrs.frozen
class Job:
    """A child of the tree: `run(provider, task_status=...)` reports once it can be relied on."""

    name: str
    stage: Stage
    run: Callable[..., Awaitable[None]]


async def _write(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    await provider.services.store.run(task_status=task_status)


async def _keep_ohttp_keys(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    await provider.services.ohttp_keys.run(task_status=task_status)


async def _send_welcomes(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    await provider.services.outgoing_welcomes.run(task_status=task_status)


async def _deliver(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    await provider.services.delivery.run(task_status=task_status)


async def _sync(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    await provider.services.following.run(task_status=task_status)


async def _keep_arrangements(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    await provider.services.accepted_terms.run(task_status=task_status)


async def _keep_rates(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    await provider.services.rates.run(task_status=task_status)


async def _recover(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    services = provider.services
    async with trio.open_nursery() as recovering:
        recovering.start_soon(services.recovery_as_follower.run)
        await services.recovery_as_hub.run(task_status=task_status)


async def _keep_cursors(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    await provider.services.cursors.run(task_status=task_status)


async def _look_at_reports(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    await provider.services.reports.run(task_status=task_status)


async def _watch_certificates(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    services = provider.services
    await certificates.watch(
        certificates.watched_files(services.config),
        provider.reload_certificates,
        clock=services.clock,
        seconds=services.config.tls.watch_seconds,
        telemetry=services.telemetry,
        task_status=task_status,
    )


async def _sweep(provider: AssembledProvider, *, task_status: trio.TaskStatus[None]) -> None:
    await sweeper.run(provider.services, task_status=task_status)


def _listen(name: str) -> Callable[..., Awaitable[None]]:
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


JOBS: Final[tuple[Job, ...]] = (
    Job("store-writer", Stage.STORE, _write),
    Job("ohttp-keys", Stage.WORK, _keep_ohttp_keys),
    Job("welcomes", Stage.WORK, _send_welcomes),
    Job("delivery", Stage.WORK, _deliver),
    Job("sync", Stage.WORK, _sync),
    Job("recovery", Stage.WORK, _recover),
    Job("arrangements", Stage.WORK, _keep_arrangements),
    Job("rates", Stage.WORK, _keep_rates),
    Job("cursors", Stage.WORK, _keep_cursors),
    Job("reports", Stage.WORK, _look_at_reports),
    Job("certificate-watch", Stage.WORK, _watch_certificates),
    Job("sweeper", Stage.WORK, _sweep),
    Job("public-listener", Stage.LISTEN, _listen(Listener.PUBLIC.value)),
    Job("client-listener", Stage.LISTEN, _listen(Listener.CLIENT.value)),
    Job("operator-listener", Stage.LISTEN, _listen(Listener.OPERATOR.value)),
    Job("operator-socket", Stage.LISTEN, _listen(SOCKET)),
)


OpenPeers = Callable[[Config, Clock], AbstractAsyncContextManager[HttpPeers]]


@attrs.frozen
class ServingProvider:
    """A provider that serves: the addresses that were taken, by listener (`public`, `client`, `operator`, ...)."""

    addresses: Mapping[str, str]
    provider: AssembledProvider


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
    """Run a provider on its migrated database until `stop` is set, and drain then; or until cancelled.

    The caller holds the lock of the data directory. Raises a group with the `JobCrashed` of a job that failed (a
    listener whose address is taken among them), `CertificateFileError` or `ConfigError` where files do not do.
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
                    provider.services.notifier.end()
                    provider.drain.set()
                working.cancel_scope.cancel(reason="listeners closed")
            writing.cancel_scope.cancel(reason="jobs ended")
        telemetry.tell_counts()


def _of(jobs: tuple[Job, ...], stage: Stage) -> Iterator[Job]:
    return (job for job in jobs if job.stage is stage)


async def _guarded(
    job: Job, provider: AssembledProvider, on_crash: Callable[[JobCrashed], None], *, task_status: trio.TaskStatus[Any]
) -> None:
    """Run a job; its failure gets its name, and is in the log before anything hangs on it."""
    try:
        await job.run(provider, task_status=task_status)
        if not provider.drain.is_set():
            raise RuntimeError("it ended by itself")
    except Exception as error:
        crash = JobCrashed(job.name, str(error) or type(error).__name__)
        provider.services.telemetry.log.critical("a job crashed", job=job.name, exc_info=error)
        on_crash(crash)
        raise crash from error


# --- the process --------------------------------------------------------------------------------------------------


def serve(
    config: Config,
    *,
    clock: Clock | None = None,
    jobs: tuple[Job, ...] = JOBS,
    open_peers: OpenPeers = open_peers,
    on_ready: Callable[[ServingProvider], None] = lambda bound: None,
) -> int:
    """Be the process of `mimids serve`: run a provider until SIGTERM or SIGINT; return the exit code.

    The only place that handles signals. The first lets what is in flight end, the second does not wait for it. After
    a crash the process ends within CRASH_SECONDS, if need be without closing anything: the store bears that.
    """
    waiting = pending(config.database)
    if waiting:
        print(f"{config.database}: {len(waiting)} migrations are due; run `mimids migrate` first", file=sys.stderr)
        return EXIT_REFUSED
    try:
        with lock.hold(config.data_dir):
            return _run_here(partial(run, config, clock=clock, jobs=jobs, open_peers=open_peers), on_ready)
    except lock.Locked as error:
        print(f"mimids: {error}", file=sys.stderr)
        return EXIT_REFUSED


def _run_here(provider: Callable[..., Awaitable[None]], on_ready: Callable[[ServingProvider], None]) -> int:
    code = EXIT_OK
    try:
        trio.run(_until_signalled, provider, on_ready)
    except* JobCrashed as crashes:
        code = EXIT_CRASHED
        for crash in _leaves(crashes):
            print(f"mimids: {crash}", file=sys.stderr)
    except* (ConfigError, CertificateFileError) as refusals:
        code = EXIT_REFUSED
        for refusal in _leaves(refusals):
            print(f"mimids: {refusal}", file=sys.stderr)
    return code


async def _until_signalled(
    provider: Callable[..., Awaitable[None]], on_ready: Callable[[ServingProvider], None]
) -> None:
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def obey() -> None:
                await anext(signals)
                stop.set()
                await anext(signals)
                nursery.cancel_scope.cancel(reason="signalled twice")

            async def provide(*, task_status: trio.TaskStatus[ServingProvider]) -> None:
                await provider(stop=stop, on_crash=_end_soon, task_status=task_status)
                nursery.cancel_scope.cancel(reason="ended")

            nursery.start_soon(obey)
            bound = await nursery.start(provide)
            _settle_in()
            on_ready(bound)


def _settle_in() -> None:
    """Suit the process to serving: what a start leaves is never garbage, and every connection takes a file.

    Looking for cycles less often saved about a twentieth of the CPU time of a KeyPackage's claim; keeping what a
    request of a megabyte took, where glibc would give it back and fetch it again for the next, as much of a batch.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, octets in MALLOC_OPTIONS.items():
            mallopt(option, octets)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _end_soon(crash: JobCrashed) -> None:
    """See to it that the process ends in time: a thread that hangs would hold it."""

    def end() -> None:
        print(f"mimids: {crash}", file=sys.stderr, flush=True)
        os._exit(EXIT_CRASHED)

    timer = threading.Timer(CRASH_SECONDS, end)
    timer.daemon = True
    timer.start()


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
