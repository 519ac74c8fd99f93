"""Sends with several processes on one PostgreSQL, and with one process on SQLite (bench: processes-on-postgresql).

Each row is a number of processes of one provider. Devices send messages of 1 KiB through HTTP, `IN_FLIGHT` at a time to
each process: into as many groups as there are connections, or all into one group. The program prints the CPU
microseconds that a send costs in the processes of mimids and in those of the database. From these follow ceilings: how
many sends one core could take if it did nothing else. Rounds of all rows alternate, and the median is printed.

    python -m bench.postgresql                    1, 2 and 4 processes
    python -m bench.postgresql --rounds 5 1 2     more rounds than usual, 1 and 2 processes
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import ssl
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from bench.versus_side import BODY_OCTETS, CPU_CLOCK, HUB, Connection, _answered_first, no_limits
from mimids.store.engine import access
from mimids.testing import DeviceAccount, PretendGroup, Provider, federation
from mimids.wire.declare import encode
from tests.support import postgresql
from tests.support.cli_runs import serving

PROCESSES: Final = (1, 2, 4)
IN_FLIGHT: Final = 16  # to each process
DEVICES: Final = 4
SENDS: Final = 1500  # in a round
ROUNDS: Final = 3
SEPARATE, SHARED = "separate groups", "one group"


@attrs.frozen
class Cost:
    """What a round of sends cost, for each send."""

    mimids: float  # CPU microseconds
    database: float  # likewise; 0 for SQLite, whose work is that of mimids
    per_second: float


@attrs.frozen
class Row:
    """Some processes of one provider, with their devices and groups."""

    pids: tuple[int, ...]
    urls: tuple[str, ...]
    devices: tuple[DeviceAccount, ...]
    groups: tuple[PretendGroup, ...]
    ca_file: Path
    database: int | None  # the first process of the server

    def measure(self, groups: Sequence[PretendGroup], sends: int) -> Cost:
        """Send messages at all processes at once; the handshakes and first answers do not count."""
        return asyncio.run(self._measure(groups, sends))

    async def _measure(self, groups: Sequence[PretendGroup], sends: int) -> Cost:
        headers = [f"authorization: Bearer {device.token}\r\n" for device in self.devices]
        many = IN_FLIGHT * len(self.urls)
        bodies = [
            encode(group.message(os.urandom(BODY_OCTETS))) for group, _ in zip(cycle(groups), range(sends + many))
        ]
        waiting: list[list[bytes]] = [[] for _ in self.urls]
        for number, body in enumerate(bodies):
            at = number % len(self.urls)
            head = (
                f"POST /client/v1/hubs/{HUB}/send HTTP/1.1\r\nhost: {urlsplit(self.urls[at]).netloc}\r\n"
                f"{headers[number % DEVICES]}content-type: application/mimi-ds\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            waiting[at].append(head.encode() + body)
        context = ssl.create_default_context(cafile=str(self.ca_file))
        connections = []
        for url, requests in zip(self.urls, waiting, strict=True):
            address = urlsplit(url)
            for _ in range(IN_FLIGHT):
                one = [requests.pop()]
                making = partial(Connection, one)
                _, connection = await asyncio.get_running_loop().create_connection(
                    making, address.hostname, address.port, ssl=context if address.scheme == "https" else None
                )
                await _answered_first(connection, one)
                connections.append((connection, requests))
        before, began = self._spent(), time.perf_counter()
        for connection, requests in connections:
            connection._waiting = requests
            connection.go_on()
        await asyncio.gather(*(connection.ended for connection, _ in connections))
        mimids, database = (after - earlier for after, earlier in zip(self._spent(), before, strict=True))
        return Cost(mimids / sends * 1e6, database / sends * 1e6, sends / (time.perf_counter() - began))

    def _spent(self) -> tuple[float, float]:
        """Return the CPU seconds of mimids and of the database so far; sessions must not end while it is measured."""
        database = [] if self.database is None else [self.database, *_children(self.database)]
        return sum(map(_cpu_seconds, self.pids)), sum(map(_cpu_seconds, database))


def _cpu_seconds(pid: int) -> float:
    return time.clock_gettime(~pid << 3 | CPU_CLOCK)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def row(processes: int, url: str | None) -> Iterator[Row]:
    """Run a provider with so many processes for the block, on SQLite if there is no `url`."""
    config: dict[str, dict[str, Any]] = {"limits": no_limits(), "listen": {"drain_seconds": 1}}
    if url is not None:
        config["store"] = {"url": url}
    with federation(HUB, config=config, links=False) as (hub,), ExitStack() as stack:
        beside = [stack.enter_context(_serving_beside(hub, f"process{n}")) for n in range(1, processes)]
        devices = tuple(hub.add_device("alice", f"phone{n}") for n in range(DEVICES))
        groups = tuple(PretendGroup.at(HUB) for _ in range(IN_FLIGHT * processes))
        for group in groups:
            devices[0].ask(lambda device, group=group: device.create_group(group.creation()))
        yield Row(
            (_pid(hub), *(pid for pid, _ in beside)),
            (devices[0].url, *(client for _, client in beside)),
            devices,
            groups,
            hub.ca_file,
            None if url is None else int((postgresql.server() / "data/postmaster.pid").read_text().split()[0]),
        )


@contextmanager
def _serving_beside(provider: Provider, name: str) -> Iterator[tuple[int, str]]:
    """Run another process of a provider for the block; yield its process id, and its URL for devices."""
    text = provider.config_file.read_text().replace('data_dir = "data"', f'data_dir = "{name}"')
    text = re.sub(r'^(public|client|operator) = "127\.0\.0\.1:\d+"', r'\1 = "127.0.0.1:0"', text, flags=re.MULTILINE)
    (provider.directory / f"{name}.toml").write_text(text)
    with serving("--config", f"{name}.toml", cwd=provider.directory) as (process, said):
        (client,) = [line.split()[1] for line in said if line.startswith("  client ")]
        yield process.pid, client


def _migrated_database() -> str:
    url = postgresql.new_database()
    access.migrate(url)
    return url


def _pid(provider: Provider) -> int:
    assert provider.pid is not None
    return provider.pid


def line(name: str, cost: Cost, sqlite: Cost, alone: Cost, processes: int) -> str:
    """Return the figures of a row."""
    text = f"{name:<24} mimids {cost.mimids:>5.0f}"
    if not cost.database:
        return f"{text}{'':<46} ceiling {1e6 / cost.mimids:>6.0f}/s on a core   {cost.per_second:>6.0f}/s here"
    scale = processes * alone.mimids / cost.mimids
    return (
        f"{text}   database {cost.database:>5.0f}   of SQLite {cost.mimids / sqlite.mimids:.2f}"
        f"   scale {scale:.2f}   ceiling {1e6 / cost.mimids:>6.0f}/s on a core of mimids,"
        f" {1e6 / cost.database:>6.0f}/s on one of the database   {cost.per_second:>6.0f}/s here"
    )


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("processes", type=int, nargs="*", default=list(PROCESSES))
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--sends", type=int, default=SENDS)
    chosen = arguments.parse_args()
    why = postgresql.why_missing()
    if why is not None:
        print(f"skipped: {why}")
        return
    postgresql.SETTINGS.update(fsync="on", full_page_writes="on", shared_buffers="128MB")
    costs: dict[tuple[int, str], list[Cost]] = {}
    for _ in range(chosen.rounds):
        for processes in (0, *chosen.processes):
            with row(max(processes, 1), _migrated_database() if processes else None) as measured:
                for kind, groups in ((SEPARATE, measured.groups), (SHARED, measured.groups[:1])):
                    measured.measure(groups, chosen.sends // 5)
                    costs.setdefault((processes, kind), []).append(measured.measure(groups, chosen.sends))
    for kind in (SEPARATE, SHARED):
        print(f"--- sends of 1 KiB into {kind}, {IN_FLIGHT} in flight to each process, CPU microseconds for each")
        found = {
            processes: min(some, key=lambda cost: abs(cost.mimids - statistics.median(c.mimids for c in some)))
            for (processes, of), some in costs.items()
            if of == kind
        }
        for processes, cost in found.items():
            name = f"PostgreSQL, {processes} process{'es' if processes > 1 else ''}" if processes else "SQLite"
            print(line(name, cost, found[0], found[min(chosen.processes)], processes))


if __name__ == "__main__":
    main()
