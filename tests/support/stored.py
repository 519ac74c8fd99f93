"""A provider with a stopped clock, what its database holds, and its sweeps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from mimids.store.engine.access import read_here
from mimids.testing.clock import MovableClock
from mimids.wire.ids import PartitionKey
from tests.support.doubles import stopped_clock
from tests.support.patience import patience
from tests.support.provider import Assembled, Authority, assembled

DAY = 86_400.0  # seconds


@asynccontextmanager
async def provider(directory: Path, **sections: dict[str, Any]) -> AsyncIterator[tuple[Assembled, MovableClock]]:
    """Run a provider without listeners for the block; `sections` configure it. Its first device has row 1."""
    clock = stopped_clock()
    sections["limits"] = {"device_sends_per_second": 0, **sections.get("limits", {})}
    async with assembled(Authority(directory).config("a.example", **sections), clock=clock) as running:
        await running.add_device()
        yield running, clock


async def rows(running: Assembled, sql: str, *params: object) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    return await running.services.store.read(lambda tx: tx.all(sql, params))


def count(running: Assembled, sql: str, *params: object) -> int:
    """Return the number that a query selects, read beside the store."""
    with read_here(running.config.place) as tx:
        (number,) = tx.one(sql, params) or (0,)
    return int(number)


async def bodies(running: Assembled, key: PartitionKey) -> list[bool]:
    """Return for each message of a partition whether its body is still stored."""
    found = await rows(
        running,
        "SELECT body IS NOT NULL FROM messages m JOIN partitions p ON p.id = m.partition WHERE p.masked_key = ?"
        " ORDER BY counter",
        key.mask(32),
    )
    return [bool(row[0]) for row in found]


async def sweep(running: Assembled) -> None:
    """Save the devices' cursors, and delete everything that has expired."""
    await running.services.cursors.save()
    await running.services.sweeper.sweep()


async def until(check: Callable[[], Awaitable[object]]) -> None:
    """Wait until `check` returns something true; fail after 20 seconds."""
    with patience():
        while True:
            if await check():
                return
            await trio.sleep(0.01)
