"""Several processes of one provider on one database in PostgreSQL, behind a balancer."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import attrs
import trio

from mimids.config import load
from mimids.testing import Federation, Provider
from mimids.testing.federations import HOST

PROCESSES = 4
_LISTEN = re.compile(r'^(public|client|operator) = "[^"]*"', re.MULTILINE)


@attrs.define
class Cluster:
    """The processes of a provider; each is a handle like that of the provider, with addresses of its own."""

    provider: Provider
    processes: list[Provider]

    async def kill(
        self, kills: int, chance: random.Random, *, up: tuple[float, float], down: tuple[float, float]
    ) -> None:
        """Kill one process after the other, and start it again; all run in the end."""
        for _ in range(kills):
            await trio.sleep(chance.uniform(*up))
            victim = chance.choice(self.processes)
            await trio.to_thread.run_sync(victim.kill)
            await trio.sleep(chance.uniform(*down))
            await trio.to_thread.run_sync(victim.start)


@asynccontextmanager
async def cluster(federation: Federation, provider: Provider, chance: random.Random) -> AsyncIterator[Cluster]:
    """Serve a provider of a federation by `PROCESSES` processes for the block, instead of by its own process.

    Devices and other providers reach them at the provider's addresses, each connection a random one that runs.
    """
    await trio.to_thread.run_sync(provider.kill)
    found = Cluster(provider, [_process(federation, provider, number) for number in range(PROCESSES)])
    try:
        for each in found.processes:
            await trio.to_thread.run_sync(each.start)
        async with trio.open_nursery() as balancing:
            for name in ("client", "public"):
                port = _port(provider, name)
                carry = partial(_carry, partial(_chosen, found, name, chance))
                await balancing.start(partial(trio.serve_tcp, carry, port, host=HOST))
            yield found
            balancing.cancel_scope.cancel()
    finally:
        for each in found.processes:
            await trio.to_thread.run_sync(each.close)


def _process(federation: Federation, provider: Provider, number: int) -> Provider:
    directory = provider.directory / f"process-{number}"
    directory.mkdir()
    text = _LISTEN.sub(
        lambda found: f'{found[1]} = "{HOST}:{federation._hold_port()}"', provider.config_file.read_text()
    )
    (directory / "mimids.toml").write_text(text)
    return attrs.evolve(provider, directory=directory, config=load(directory / "mimids.toml"), process=None, faults=[])


def _port(provider: Provider, listener: str) -> int:
    return int(str(getattr(provider.config.listen, listener)).rpartition(":")[2])


def _chosen(found: Cluster, listener: str, chance: random.Random) -> list[int]:
    """Return the ports of all processes, in the order in which to try them."""
    ports = [_port(each, listener) for each in found.processes]
    return chance.sample(ports, len(ports))


async def _carry(choose: Callable[[], list[int]], caller: trio.SocketStream) -> None:
    for port in choose():
        with suppress(OSError):
            process = await trio.open_tcp_stream(HOST, port)
            break
    else:
        return
    async with process, trio.open_nursery() as both:
        both.start_soon(_copy, caller, process, both.cancel_scope)
        both.start_soon(_copy, process, caller, both.cancel_scope)


async def _copy(source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for octets in source:
            await target.send_all(octets)
    scope.cancel()
