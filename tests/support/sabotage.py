"""A program that runs `mimids serve` once for each job and makes that job fail.

For each job it prints a line of JSON: the job, the exit code, the seconds from the failure to the end. The providers
are forked from this process, which has already imported everything.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from mimids.app import JOBS, Job, ServingProvider
from mimids.process import serve
from tests.support.provider import Authority

HANGING = "hanging thread"


def failing(job: Job, ready: trio.Event, failed_at: Callable[[], None]) -> Job:
    """Return a job that works until all jobs are ready, and fails then."""

    async def run(provider: object, *, task_status: trio.TaskStatus[object]) -> None:
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                await ready.wait()
                failed_at()
                raise RuntimeError("sabotaged")

            nursery.start_soon(fail)
            await job.run(provider, task_status=task_status)

    return attrs.evolve(job, run=run)


def hang(bound: ServingProvider) -> None:
    """Make the store's writer hang in a write."""
    trio.lowlevel.spawn_system_task(bound.provider.services.store.write, lambda tx: time.sleep(60))


def child(name: str, directory: Path, pipe: int) -> int:
    ready = trio.Event()

    def failed() -> None:
        os.write(pipe, f"{time.monotonic()}".encode())

    victim = "sweeper" if name == HANGING else name

    def on_ready(bound: ServingProvider) -> None:
        if name == HANGING:
            hang(bound)
        ready.set()

    jobs = tuple(failing(job, ready, failed) if job.name == victim else job for job in JOBS)
    return serve(Authority(directory).config(), jobs=jobs, on_ready=on_ready)


def main(directory: Path) -> None:
    for name in (*(job.name for job in JOBS), HANGING):
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.dup2(os.open(directory / f"{name}.log", os.O_CREAT | os.O_WRONLY, 0o600), 2)
            place = directory / name
            place.mkdir()
            code = 99
            try:
                code = child(name, place, writing)
            finally:
                os._exit(code)
        os.close(writing)
        _, status = os.waitpid(pid, 0)
        failed_at = float(os.read(reading, 100) or "nan")
        os.close(reading)
        seconds = time.monotonic() - failed_at
        print(json.dumps({"job": name, "code": os.waitstatus_to_exitcode(status), "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
