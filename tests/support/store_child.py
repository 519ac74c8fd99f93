"""The process that tests of durability kill, stop or trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import trio

from mimids.store.engine.sqlite import Faults, Synchronous, connect, open_store
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx

SENDERS = 64


def create(path: Path) -> None:
    connection = connect(path, create=True)
    connection.execute(
        "CREATE TABLE sent (id INTEGER PRIMARY KEY, arrival INTEGER NOT NULL, sender INTEGER NOT NULL,"
        " number INTEGER NOT NULL, body BLOB NOT NULL, UNIQUE (sender, number)) STRICT"
    )
    connection.execute("CREATE TABLE counted (sender INTEGER PRIMARY KEY, numbers INTEGER NOT NULL) STRICT")
    connection.close()


def append(arrival: int, sender: int, number: int, tx: Tx) -> int:
    """Write to two tables, so that a test could see half a transaction."""
    tx.execute(
        "INSERT INTO counted (sender, numbers) VALUES (?, 1) ON CONFLICT (sender) DO UPDATE SET numbers = numbers + 1",
        (sender,),
    )
    return tx.insert(
        "INSERT INTO sent (arrival, sender, number, body) VALUES (?, ?, ?, ?) RETURNING id",
        (arrival, sender, number, os.urandom(1024)),
    )


def stream(path: Path, acknowledgements: int, faults: Faults | None = None) -> None:
    """Write from SENDERS tasks, continuing after the rows in the file; report each answer at once; never return."""
    trio.run(_stream, path, acknowledgements, faults)


async def _stream(path: Path, acknowledgements: int, faults: Faults | None) -> None:
    async with open_store(path, faults=faults) as store, trio.open_nursery() as jobs:
        await jobs.start(store.run)
        counted: dict[int, int] = dict(await store.read(lambda tx: tx.all("SELECT sender, numbers FROM counted")))
        arrivals = iter(range(1_000_000_000))
        for sender in range(SENDERS):
            jobs.start_soon(_send_on, store, sender, counted.get(sender, 0), arrivals, acknowledgements)


async def _send_on(store: Store, sender: int, number: int, arrivals: Iterator[int], acknowledgements: int) -> None:
    while True:
        row = await store.write(partial(append, next(arrivals), sender, number))
        os.write(acknowledgements, b"%d %d %d\n" % (row, sender, number))
        number += 1


def die_at(point: str, call: int, path: Path, acknowledgements: int) -> None:
    """Run `stream`, and exit at once when the writer reaches `point` for the call-th time."""
    calls = iter(range(1, call))

    def faults(reached: str) -> None:
        if reached == point and next(calls, None) is None:
            os._exit(9)

    stream(path, acknowledgements, faults)


async def answer(path: Path, synchronous: Synchronous, writes: int) -> None:
    """Write one row after the other, and report each on standard output."""
    async with open_store(path, synchronous=synchronous) as store, trio.open_nursery() as jobs:
        await jobs.start(store.run)
        for number in range(writes):
            await store.write(partial(append, number, 0, number))
            os.write(1, b"answer %d\n" % number)
        jobs.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(answer, Path(sys.argv[1]), cast("Synchronous", sys.argv[2]), int(sys.argv[3]))
