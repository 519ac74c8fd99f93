"""The store floor: one INSERT of 1 KiB for each message through `Store.write` (bench: how-to-read-the-figures).

    python -m bench.store_floor [--messages N] [--in-flight N] [--json]

It prints messages for each CPU second of this process, with all its threads, and for each second. The difference
between a send and this floor is the cost of the rest of the server."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import attrs
import trio

from mimids.store.engine.sqlite import connect, open_store
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx

BODY_OCTETS = 1024
WARM_UP_MESSAGES = 1000


@attrs.frozen
class Floor:
    """The result of one run."""

    messages: int
    in_flight: int
    cpu_seconds: float
    seconds: float
    commits: int

    @property
    def messages_per_cpu_second(self) -> float:
        """Return the figure that others are compared with."""
        return self.messages / self.cpu_seconds


async def measure(directory: Path, *, messages: int = 50_000, in_flight: int = 256) -> Floor:
    """Write `messages` rows to a new database in `directory`, which should be on the disk to be measured."""
    path = directory / "floor.sqlite"
    connection = connect(path, create=True)
    connection.execute("CREATE TABLE messages (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT")
    connection.close()
    async with open_store(path) as store, trio.open_nursery() as jobs:
        await jobs.start(store.run)
        await _write_all(store, WARM_UP_MESSAGES, in_flight)
        commits, cpu, clock = store.statistics().commits, time.process_time(), time.perf_counter()
        await _write_all(store, messages, in_flight)
        cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
        commits = store.statistics().commits - commits
        jobs.cancel_scope.cancel()
    return Floor(messages, in_flight, cpu, clock, commits)


async def _write_all(store: Store, messages: int, in_flight: int) -> None:
    body = os.urandom(BODY_OCTETS)
    remaining = iter(range(messages))
    async with trio.open_nursery() as senders:
        for _ in range(in_flight):
            senders.start_soon(_write_each, store, body, remaining)


async def _write_each(store: Store, body: bytes, remaining: Iterator[int]) -> None:
    for _ in remaining:
        await store.write(partial(_insert, body))


def _insert(body: bytes, tx: Tx) -> int:
    return tx.insert("INSERT INTO messages (body) VALUES (?) RETURNING id", (body,))


def main() -> None:
    """Measure once and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--messages", type=int, default=50_000)
    arguments.add_argument("--in-flight", type=int, default=256)
    arguments.add_argument("--json", action="store_true")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as directory:
        floor = trio.run(partial(measure, Path(directory), messages=chosen.messages, in_flight=chosen.in_flight))
    if chosen.json:
        print(json.dumps(attrs.asdict(floor) | {"messages_per_cpu_second": floor.messages_per_cpu_second}))
        return
    print(
        f"store floor, {floor.in_flight} in flight: {floor.messages_per_cpu_second:,.0f} messages per CPU second, "
        f"{floor.messages / floor.seconds:,.0f} per second, {floor.messages / floor.commits:.0f} to a commit"
    )


if __name__ == "__main__":
    main()
