"""The process of `mimids serve`: signals, exit codes, the deadline after a crash, and tuning for a server."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final

import trio

from mimids.app import JOBS, Job, JobCrashed, OpenPeers, ServingProvider, run
from mimids.config import Config, ConfigError
from mimids.ds.ports import Clock
from mimids.http.peers.calls import open_peers
from mimids.http.server.tls import CertificateFileError
from mimids.store.engine import lock
from mimids.store.engine.migrate import pending

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1
EXIT_CRASHED: Final = 3
OPEN_FILES: Final = 16_384  # the limit asked for, if the hard limit allows it: connections, peers, the store
# mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD, in octets.
MALLOC_OPTIONS: Final = {-3: 32 * 1024 * 1024, -1: 64 * 1024 * 1024, -2: 4 * 1024 * 1024}
CRASH_SECONDS: Final = 4  # from the crash of a job to the end of the process, even if a thread hangs


def serve(
    config: Config,
    *,
    clock: Clock | None = None,
    jobs: tuple[Job, ...] = JOBS,
    open_peers: OpenPeers = open_peers,
    on_ready: Callable[[ServingProvider], None] = lambda bound: None,
) -> int:
    """Run a provider until SIGTERM or SIGINT, and return the exit code of the process.

    The first signal drains the listeners; the second one stops without waiting for them. After the crash of a job the
    process ends within CRASH_SECONDS, if necessary without closing anything; the store recovers from that at its next
    start. Nothing else in the program handles signals.
    """
    due = pending(config.database)
    if due:
        print(f"{config.database}: {len(due)} migrations are due; run `mimids migrate` first", file=sys.stderr)
        return EXIT_REFUSED
    try:
        with lock.hold(config.data_dir):
            return _run_provider(partial(run, config, clock=clock, jobs=jobs, open_peers=open_peers), on_ready)
    except lock.Locked as error:
        print(f"mimids: {error}", file=sys.stderr)
        return EXIT_REFUSED


def _run_provider(provider: Callable[..., Awaitable[None]], on_ready: Callable[[ServingProvider], None]) -> int:
    """Run the event loop, print what ended it, and return the exit code."""
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
            on_ready(bound)


def _tune() -> None:
    """Tune the garbage collector, glibc's allocator and the limit of open files for a server that has started.

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
