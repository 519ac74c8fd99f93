"""The process of `mimids serve`: signals, exit codes, the deadline after a crash, and tuning for a server."""

from __future__ import annotations

import ctypes
import gc
import linecache
import os
import resource
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import trio

from mimids.app import JOBS, Job, JobCrashed, OpenPeers, ServingProvider, run
from mimids.causes import StartRefused
from mimids.config import Config, ConfigError
from mimids.ds.ports import Clock
from mimids.errors import MimiError
from mimids.http.peers.calls import open_peers
from mimids.http.server.tls import CertificateFileError
from mimids.memory import give_back_free_memory, overwrite_free_blocks
from mimids.store.damage import why_not_served
from mimids.store.engine import lock
from mimids.telemetry import Log
from mimids.values import Cause

LogFindings = Callable[[Config, Log], None]

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1
EXIT_CRASHED: Final = 3
# the limit that we ask for, if the hard limit allows it: for connections, peers and the store
OPEN_FILES: Final = 16_384
# mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD, in octets.
MALLOC_OPTIONS: Final = {-3: 32 * 1024 * 1024, -1: 64 * 1024 * 1024, -2: 4 * 1024 * 1024}
M_PERTURB: Final = -6  # mallopt(3): freed memory is overwritten
PR_SET_DUMPABLE: Final = 4  # prctl(2)
_CERTIFICATE_FIX: Final = (
    "set the files in [tls]: a PEM certificate with its chain, and its key without a password; "
    "`mimids check` looks at them"
)
CRASH_SECONDS: Final = 4  # from the crash of a job to the end of the process, even if a thread hangs


def serve(
    config: Config,
    *,
    clock: Clock | None = None,
    jobs: tuple[Job, ...] = JOBS,
    open_peers: OpenPeers = open_peers,
    on_ready: Callable[[ServingProvider], None] = lambda bound: None,
    load_config: Callable[[], Config] | None = None,
    log_findings: LogFindings = lambda config, log: None,
) -> int:
    """Run a provider until SIGTERM or SIGINT, and return the exit code of the process.

    The first signal drains the listeners; the second one stops without waiting for them. SIGHUP reloads the
    configuration by `load_config`; if the terminal was closed, it stops the provider as SIGTERM does. `log_findings`
    runs in a thread once the provider serves, and after each SIGHUP; it warns of problems that the operator should look
    at. After the crash of a job the process ends within CRASH_SECONDS, if necessary without closing anything; the store
    recovers from that at its next start. Nothing else in the program handles signals.
    """
    protect_memory()
    linecache.clearcache()  # attrs keeps the source of each method that it generates there
    raise_file_limit()
    try:
        with lock.hold(config.data_dir), _ignoring_hangups():
            refusal = why_not_served(config.place, replicated=config.store.replicated)
            if refusal is not None:
                return _refuse(refusal)
            provider = partial(run, config, clock=clock, jobs=jobs, open_peers=open_peers, load_config=load_config)
            return _run_provider(provider, on_ready, log_findings)
    except lock.Locked as error:
        return _refuse(Cause(str(error), "stop that process first: only one may write to the directory"))


@contextmanager
def _ignoring_hangups() -> Iterator[None]:
    """Ignore SIGHUP while the event loop does not run: before it starts and after it ends, nothing needs a reload."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _refuse(cause: Cause) -> int:
    print(f"mimids: {cause.what}\n  {cause.fix}", file=sys.stderr)
    return EXIT_REFUSED


def _run_provider(
    provider: Callable[..., Awaitable[None]],
    on_ready: Callable[[ServingProvider], None],
    log_findings: LogFindings,
) -> int:
    """Run the event loop, print what ended it, and return the exit code."""
    code = EXIT_OK
    try:
        trio.run(_until_signalled, provider, on_ready, log_findings)
    except* JobCrashed as crashes:
        for crash in _leaves(crashes):
            if isinstance(crash.__cause__, StartRefused):
                code = code or _refuse(crash.__cause__.cause)
            else:
                code = EXIT_CRASHED
                print(f"mimids: {crash}", file=sys.stderr)
    except* lock.Locked as refusals:
        for refusal in _leaves(refusals):
            code = _refuse(Cause(str(refusal), "stop that process first: only one may write to the database"))
    except* ConfigError as refusals:
        for refusal in _leaves(refusals):
            code = _refuse(Cause(str(refusal), "change the configuration; `mimids check` checks all of it"))
    except* CertificateFileError as refusals:
        for refusal in _leaves(refusals):
            code = _refuse(Cause(str(refusal), _CERTIFICATE_FIX))
    return code


async def _until_signalled(
    provider: Callable[..., Awaitable[None]],
    on_ready: Callable[[ServingProvider], None],
    log_findings: LogFindings,
) -> None:
    stop = trio.Event()
    with (
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
        trio.open_signal_receiver(signal.SIGHUP) as hangups,
    ):
        async with trio.open_nursery() as nursery:

            async def handle_signals() -> None:
                await anext(signals)
                stop.set()
                await anext(signals)
                nursery.cancel_scope.cancel(reason="second signal")

            async def provide(*, task_status: trio.TaskStatus[ServingProvider]) -> None:
                await provider(stop=stop, on_crash=_exit_after_deadline, task_status=task_status)
                nursery.cancel_scope.cancel(reason="the provider ended")

            nursery.start_soon(handle_signals)
            bound = await nursery.start(provide)
            _tune()
            nursery.start_soon(give_back_free_memory)
            nursery.start_soon(overwrite_free_blocks)
            on_ready(bound)
            await _reload_at(hangups, bound, log_findings)
            stop.set()


async def _reload_at(hangups: AsyncIterator[int], bound: ServingProvider, log_findings: LogFindings) -> None:
    """Log what the checks find; at each SIGHUP, reload the configuration and log the findings again.

    Return when the terminal is closed.
    """
    services = bound.provider.services
    find = partial(log_findings, services.config, services.telemetry.log)
    on_terminal = _has_terminal()
    await trio.to_thread.run_sync(find, abandon_on_cancel=True)
    async for _ in hangups:
        if on_terminal and not _has_terminal():
            return
        try:
            await services.server.reload()
        except (ConfigError, MimiError) as error:
            services.telemetry.log.error("configuration not reloaded", reason=str(error))
        else:
            await trio.to_thread.run_sync(find, abandon_on_cancel=True)


def _has_terminal() -> bool:
    """Tell whether the process has a terminal that is not closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def protect_memory() -> None:
    """Keep partition keys and gateway keys out of core dumps and out of freed memory.

    Python cannot overwrite bodies with partition keys, but glibc overwrites most objects of more than 512 octets when
    it frees them, and `overwrite_free_blocks` overwrites smaller objects and those that glibc keeps for a thread. Only
    root can read the memory of the process; other processes of the same user cannot.
    """
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    library = ctypes.CDLL(None)
    if sys.platform == "linux":
        library.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    mallopt = getattr(library, "mallopt", None)
    if mallopt is not None:
        mallopt(M_PERTURB, 1)


def _tune() -> None:
    """Tune the garbage collector and glibc's allocator for a server that has started.

    Objects made at the start are never garbage, so the collector skips them; running it less often saved about a
    twentieth of the CPU time of a KeyPackage claim. With larger thresholds glibc keeps the memory of a one-megabyte
    request and reuses it for the next, which saved about a twentieth of the CPU time of a batch.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, octets in MALLOC_OPTIONS.items():
            mallopt(option, octets)


def raise_file_limit() -> None:
    """Raise the limit on open files, on which the number of kept connections to other providers depends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _exit_after_deadline(crash: JobCrashed) -> None:
    """End the process CRASH_SECONDS from now, unless it has ended by then: a thread that hangs would keep it alive."""

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
