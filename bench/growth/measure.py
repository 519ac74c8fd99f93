"""Measure one database: `python -m bench.growth.measure DIRECTORY MESSAGES` prints figures by name as JSON."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import trio

from mimids.ds.upkeep.pacing import Pacing
from mimids.ds.upkeep.tree_sweep import sweep_trees
from mimids.http.api import operator
from mimids.http.api.kept_page import KeptPage
from mimids.http.console import overview as console
from mimids.store import backup
from mimids.store.engine.sqlite import connect_to_read
from mimids.values import Milliseconds
from tests.support.big_hub import BigHub, running

TIMES: Final = 300  # each foreground work is done
SENDS_A_SECOND: Final = 10
DELIVERY_SECONDS: Final = 20
WAIT_SECONDS: Final = 0.09
GB: Final = 1_000_000_000
Figures = dict[str, float]


async def cpu_ms(work: Callable[[], Awaitable[object]], times: int = TIMES) -> float:
    """Return the CPU milliseconds of this process for one work, in the fastest of ten parts."""
    parts = []
    for _ in range(10):
        began = time.process_time()
        for _ in range(max(1, times // 10)):
            await work()
        parts.append((time.process_time() - began) * 1000 / max(1, times // 10))
    return min(parts)


async def foreground(hub: BigHub) -> Figures:
    """Measure requests, in groups in use."""
    return {f"{name}, CPU ms": await cpu_ms(work) for name, work in hub.requests().items()}


async def background(hub: BigHub) -> Figures:
    """Measure work beside requests. Pages are made anew each time, apart from the totals of the stock."""
    never = math.inf
    operator._KEPT = KeptPage(quick_seconds=never)  # type: ignore[misc]
    console._KEPT = KeptPage(quick_seconds=never)  # type: ignore[misc]
    times = {"/metrics": 10, "/console": 10, "a sweep that finds nothing": 10}
    works = hub.beside()
    for work in works.values():
        await work()
    return {f"{name}, CPU ms": await cpu_ms(work, times.get(name, TIMES)) for name, work in works.items()}


async def delivery(hub: BigHub) -> Figures:
    """Measure pushes while ten messages are sent each second."""
    services = hub.services
    waits: list[float] = []
    async with trio.open_nursery() as jobs:
        await jobs.start(services.delivery.run)
        await trio.sleep(1)
        began, cpu = time.perf_counter(), time.process_time()
        for n in range(SENDS_A_SECOND * DELIVERY_SECONDS):
            await trio.sleep(max(0, began + n / SENDS_A_SECOND - time.perf_counter()))
            hub.first_push, sent = trio.Event(), time.perf_counter()
            await services.hub.send(hub.message(), hub.device())
            with trio.move_on_after(WAIT_SECONDS):  # the group may have only followers that are down
                await hub.first_push.wait()
                waits.append((time.perf_counter() - sent) * 1000)
        cores = (time.process_time() - cpu) / (time.perf_counter() - began)
        jobs.cancel_scope.cancel()

    return {
        "delivery at 10 sends a second, cores": cores,
        "send to first push, p50 ms": statistics.median(waits),
    }


async def trees(hub: BigHub) -> Figures:
    """Measure the sweep of trees, which reads all nodes once a day."""
    written, cpu, began = _written(), time.process_time(), time.perf_counter()
    await sweep_trees(hub.services.store, hub.services.clock.now(), Pacing(hub.services.store).pause)
    return {
        "tree sweep, GB written": (_written() - written) / GB,
        "tree sweep once a day, CPU s, linear": time.process_time() - cpu,
        "tree sweep once a day, s, linear": time.perf_counter() - began,
    }


def whole_database(database: Path) -> Figures:
    """Measure backup and check, for each GB."""
    size = database.stat().st_size / GB
    target = database.with_name("backup.sqlite3")
    began = time.perf_counter()
    backup.copy(database, target, Milliseconds(0))
    copied = time.perf_counter() - began
    target.unlink()
    began = time.perf_counter()
    with closing(connect_to_read(database)) as connection:
        assert connection.execute("PRAGMA integrity_check(3)").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchone() is None
    checked = time.perf_counter() - began
    return {"database, GB": size, "backup, s a GB": copied / size, "check, s a GB": checked / size}


def _written() -> int:
    return int(Path("/proc/self/io").read_text().split("write_bytes: ")[1].split()[0])


async def measure(directory: Path, messages: int) -> Figures:
    """Return all figures of one database."""
    async with running(directory, messages) as hub:
        figures: Figures = {}
        for part in (delivery, trees, background, foreground):
            found = await part(hub)
            figures |= found
            print(f"{messages:,}: {json.dumps(found)}", file=sys.stderr)
    return figures | whole_database(hub.services.config.database)


if __name__ == "__main__":
    print(json.dumps(trio.run(measure, Path(sys.argv[1]), int(sys.argv[2]))))
