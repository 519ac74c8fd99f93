"""What a process of a test runs: a provider as `mimids serve` runs it, or the links between providers."""

from __future__ import annotations

import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from mimids import app, config
from mimids.app import Job, Stage
from mimids.assembly import AssembledProvider
from mimids.cli.setup import migrate_database
from mimids.http.api.endpoints import Listener
from mimids.testing import links
from mimids.testing.clock import MovableClock
from mimids.testing.control import Json, answer, first, say
from mimids.testing.faults import Faults, faulty, open_faulty_peers

CONTROL: Final = "testing-control"  # the job that listens to the test


class Crash(Exception):
    """What a job is made to raise."""


def main(control: socket.socket) -> int:
    """Be the process that the test says first; return its exit code."""
    start = first(control)
    if "provider" in start:
        return _provide(start["provider"], control)
    return links.main(start["links"], control)


def _provide(start: Json, control: socket.socket) -> int:
    loaded = config.load(Path(start["config"]))
    migrate_database(loaded)
    inside = _Inside(MovableClock(*start["clock"]), Faults(start["faults"]))
    return app.serve(
        loaded,
        clock=inside.clock,
        jobs=(Job(CONTROL, Stage.WORK, partial(inside.listen, control)), *map(inside.breakable, app.JOBS)),
        open_peers=partial(open_faulty_peers, inside.faults),
        on_ready=lambda _: say(control, {"ready": True}),
    )


class _Inside:
    """A provider's process, as the test reaches into it."""

    def __init__(self, clock: MovableClock, faults: Faults) -> None:
        self.clock = clock
        self.faults = faults
        self._crashes: dict[str, trio.Event] = {}

    async def listen(
        self, control: socket.socket, provider: AssembledProvider, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Do what the test says; a job of the provider's, beside its own."""
        task_status.started()
        await answer(control, self._obey)

    async def _obey(self, request: Json) -> Json:
        match request:
            case {"clock": [offset, stopped_at]}:
                self.clock.move(offset, stopped_at)
            case {"faults": faults}:
                self.faults.set(faults)
            case {"crash": job}:
                self._crashes[job].set()
            case _:
                raise ValueError(f"no such request: {request}")
        return {}

    def breakable(self, job: Job) -> Job:
        """Return a job of the provider's as the test can break it."""
        crash = self._crashes[job.name] = trio.Event()

        async def run(provider: AssembledProvider, *, task_status: trio.TaskStatus[Any]) -> None:
            if job.name == Listener.PUBLIC.value + "-listener":
                provider = _with_faulty_listener(provider, self.faults)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_crash_at, crash, job.name)
                await job.run(provider, task_status=task_status)
                nursery.cancel_scope.cancel()

        return attrs.evolve(job, run=run)


def _with_faulty_listener(provider: AssembledProvider, faults: Faults) -> AssembledProvider:
    spec = provider.listeners[Listener.PUBLIC.value]
    spec = attrs.evolve(spec, app=faulty(spec.app, faults))
    return attrs.evolve(provider, listeners={**provider.listeners, Listener.PUBLIC.value: spec})


async def _crash_at(event: trio.Event, name: str) -> None:
    await event.wait()
    raise Crash(f"{name} was told to crash")


if __name__ == "__main__":
    sys.exit(main(socket.socket(fileno=int(sys.argv[1]))))
