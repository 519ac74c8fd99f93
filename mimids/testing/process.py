"""The main program of a test's process: a provider as `mimids serve` runs it, or the links between providers."""

from __future__ import annotations

import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import trio

from mimids import config
from mimids.app import JOBS, Job, Stage
from mimids.assembly import AssembledProvider
from mimids.cli.setup import migrate_database
from mimids.http.api.endpoints import Listener
from mimids.process import serve
from mimids.testing import links
from mimids.testing.clock import MovableClock
from mimids.testing.control import Json, read_start, send_message, serve_requests
from mimids.testing.faults import InjectedFaults, faulty, open_faulty_peers

if TYPE_CHECKING:
    from mimids.http.server.messages import DirectApp

CONTROL: Final = "testing-control"  # the job that serves the control connection


class Crash(Exception):
    """Raised in a job because the test asked for a crash."""


def main(control: socket.socket) -> int:
    """Run what the test's first message says; return the exit code."""
    start = read_start(control)
    if "provider" in start:
        return _provide(start["provider"], control)
    return links.main(start["links"], control)


def _provide(start: Json, control: socket.socket) -> int:
    path = Path(start["config"])
    loaded = config.load(path)
    migrate_database(loaded)
    inside = _Inside(MovableClock(*start["clock"]), InjectedFaults(start["faults"]))
    return serve(
        loaded,
        clock=inside.clock,
        jobs=(Job(CONTROL, Stage.WORK, partial(inside.listen, control)), *map(inside.breakable, JOBS)),
        open_peers=partial(open_faulty_peers, inside.faults),
        on_ready=lambda _: send_message(control, {"ready": True}),
        load_config=partial(config.load, path),
    )


class _Inside:
    """The parts of a provider's process that a test controls: clock, faults, crashes of jobs."""

    def __init__(self, clock: MovableClock, faults: InjectedFaults) -> None:
        self.clock = clock
        self.faults = faults
        self._crashes: dict[str, trio.Event] = {}

    async def listen(
        self, control: socket.socket, provider: AssembledProvider, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Serve the control connection; this is one more job beside the provider's own jobs."""
        task_status.started()
        await serve_requests(control, self._handle)

    async def _handle(self, request: Json) -> Json:
        match request:
            case {"clock": [offset, stopped_at]}:
                self.clock.set(offset, stopped_at)
            case {"faults": faults}:
                self.faults.set(faults)
            case {"crash": job}:
                self._crashes[job].set()
            case _:
                raise ValueError(f"no such request: {request}")
        return {}

    def breakable(self, job: Job) -> Job:
        """Return a job that does the same as `job`, but that the test can crash."""
        crash = self._crashes[job.name] = trio.Event()

        async def run(provider: AssembledProvider, *, task_status: trio.TaskStatus[Any]) -> None:
            if job.name == Listener.PUBLIC.value + "-listener":
                provider = _with_faulty_listener(provider, self.faults)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_crash_at, crash, job.name)
                await job.run(provider, task_status=task_status)
                nursery.cancel_scope.cancel()

        return attrs.evolve(job, run=run)


def _with_faulty_listener(provider: AssembledProvider, faults: InjectedFaults) -> AssembledProvider:
    spec = provider.listeners[Listener.PUBLIC.value]
    spec = attrs.evolve(spec, app=faulty(cast("DirectApp", spec.app), faults))
    return attrs.evolve(provider, listeners={**provider.listeners, Listener.PUBLIC.value: spec})


async def _crash_at(event: trio.Event, name: str) -> None:
    await event.wait()
    raise Crash(f"{name} was told to crash")


if __name__ == "__main__":
    sys.exit(main(socket.socket(fileno=int(sys.argv[1]))))
