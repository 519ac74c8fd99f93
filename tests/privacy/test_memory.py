"""Partition keys do not stay in the memory of a server, and its memory reaches no core dump."""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from mimids.client import Device, Problem, Stream
from mimids.memory import OVERWRITE_SECONDS
from mimids.testing import DeviceAccount, PretendGroup, Provider, Session, federation, open_federation
from mimids.wire.ids import PartitionKey
from mimids.wire.messages import CommitData, SendRequest

EPOCHS = 25
LAST = 10  # epochs whose keys may still be in buffers that are in use
AT_ONCE = 100  # keys in requests of one kind
MOST_COPIES = 8  # of keys that are no longer used, in one process (docs/privacy.md)
TAG = secrets.token_bytes(8)  # the first octets of every key, by which a copy is found quickly
SERVICE = Path(__file__).parents[2] / "examples/mimids.service"
UNLIMITED = {"limits": {"device_sends_per_second": 0, "user_sends_per_second": 0}}

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


async def in_thread(function: Callable[..., Any], *arguments: object) -> Any:
    return await trio.to_thread.run_sync(function, *arguments)


def key() -> PartitionKey:
    return PartitionKey(TAG + secrets.token_bytes(PartitionKey.SIZE - len(TAG)))


def copies(provider: Provider, keys: Iterable[PartitionKey]) -> int:
    """Return how often these keys are in the memory of a provider's process."""
    wanted, found = {each.reveal() for each in keys}, 0
    with Path(f"/proc/{provider.pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{provider.pid}/maps").read_text().splitlines():
            span, mode, *_, name = [*f"{line} -".split()[:2], line.rpartition(" ")[2]]
            start, end = (int(each, 16) for each in span.split("-"))
            if mode.startswith("rw-p") and not name.startswith("[v"):
                memory.seek(start)
                octets = memory.read(end - start)
                at = octets.find(TAG)
                while at >= 0:
                    found += octets[at : at + PartitionKey.SIZE] in wanted
                    at = octets.find(TAG, at + 1)
    return found


@attrs.define
class Use:
    """A device that uses keys in every kind of request, and the keys that it used."""

    device: Device
    group: PretendGroup
    used: list[PartitionKey] = attrs.field(factory=list)

    def new(self, count: int) -> list[PartitionKey]:
        made = [key() for _ in range(count)]
        self.used += made
        return made

    async def change_epochs(self, stream: Stream) -> None:
        """Send, receive and commit, once over a stream and once by a request, through many epochs."""
        for number in range(EPOCHS):
            sender = (self.device, stream)[number % 2]
            self.used.append(self.group.key)
            stream.present(self.group.hub, self.group.key)
            await sender.send(self.group.hub, self.group.message(b"hello"))
            await self.device.receive(self.group.hub, self.group.key)
            commit, following = self.group.commit(bytes(600))
            following = attrs.evolve(following, key=key())
            data = CommitData(following.key, None, None)
            await sender.send(self.group.hub, SendRequest(commit.message, self.group.key, data))
            stream.withdraw(self.group.key)
            self.group = following

    async def ask_at_once(self, stream: Stream) -> None:
        """Make many requests at the same time, most of which are refused."""
        async with trio.open_nursery() as asking:
            for each in self.new(AT_ONCE):
                message = self.group.message(b"opens a partition or is over a quota").message
                request = SendRequest(message, each, None)
                asking.start_soon(self.ignoring_refusals, partial(stream.send, self.group.hub, request))
            for each in self.new(AT_ONCE):
                asking.start_soon(self.ignoring_refusals, partial(self.device.receive, self.group.hub, each))
        await self.device.positions(self.group.hub, self.new(AT_ONCE))
        presented = self.new(AT_ONCE)
        for each in presented:
            stream.present(self.group.hub, each)
        await stream.send(self.group.hub, self.group.message(b"after the keys"))
        stream.withdraw(*presented)

    async def ignoring_refusals(self, request: Callable[[], Awaitable[object]]) -> None:
        with suppress(Problem):
            await request()


async def use_keys(account: DeviceAccount, group: PretendGroup) -> Sequence[PartitionKey]:
    """Use keys over a stream and by requests; return those that are no longer in use."""
    async with account.client() as device, device.stream() as stream, trio.open_nursery() as nursery:
        nursery.start_soon(read_all, stream)
        use = Use(device, group)
        await use.change_epochs(stream)
        over = use.used[:-LAST]
        use.used.clear()
        await use.ask_at_once(stream)
        for _ in range(20):  # ordinary requests use the buffers again
            await device.me()
        nursery.cancel_scope.cancel()
    return [*over, *use.used]


async def read_all(stream: Stream) -> None:
    async for _ in stream:
        pass


async def few_copies(provider: Provider, keys: Iterable[PartitionKey]) -> int:
    """Wait until few copies of the keys are left, for four overwritings at most; return how many there are then."""
    give_up_at = trio.current_time() + 4 * OVERWRITE_SECONDS
    while (found := copies(provider, keys)) > MOST_COPIES:
        if trio.current_time() > give_up_at:
            break
        await trio.sleep(0.5)
    return found


@linux
async def test_partition_keys_do_not_stay_in_memory(mimids_session: Session) -> None:
    """Takes a few seconds, because small objects are overwritten every OVERWRITE_SECONDS."""
    async with open_federation("a.example", "b.example", config=UNLIMITED, session=mimids_session) as federation:
        a, b = federation
        alice, bob = await in_thread(a.add_device, "alice"), await in_thread(b.add_device, "bob")
        over: list[PartitionKey] = []
        for account in (alice, bob):
            group = attrs.evolve(PretendGroup.at(a.name), key=key())
            async with alice.client() as device:
                await device.create_group(group.creation())
            over += await use_keys(account, group)
        assert len(over) == 2 * (EPOCHS - LAST + 4 * AT_ONCE)
        for provider in federation:
            try:
                assert await few_copies(provider, over) <= MOST_COPIES, provider.name
            except PermissionError:
                pytest.skip("only root may read the memory of a server")


@linux
def test_a_server_makes_no_core_dump_and_only_root_reads_its_memory(mimids_session: Session) -> None:
    with federation("a.example", session=mimids_session) as (a,):
        process = Path(f"/proc/{a.pid}")
        limits = (process / "limits").read_text() if process.owner() != "root" or _is_root() else ""
        assert process.joinpath("environ").stat().st_uid == 0, "a process that is not dumpable belongs to root"
        if limits:
            assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


def _is_root() -> bool:
    return Path("/proc/self").stat().st_uid == 0


@pytest.mark.parametrize("line", ["LimitCORE=0", "MemorySwapMax=0"])
def test_the_unit_file_keeps_memory_off_the_disk(line: str) -> None:
    assert line in SERVICE.read_text().splitlines()
