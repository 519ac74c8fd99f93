"""The primary of PostgreSQL is killed under load: no message that was acknowledged or read is lost or renumbered."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import attrs
import pytest
import trio

from mimids.errors import StorageUnavailable
from mimids.store.engine.postgresql import engine
from mimids.wire.ids import Counter
from mimids.wire.messages import ReceiveRequest
from tests.support import postgresql
from tests.support.federation import Room, device, texts
from tests.support.postgresql_pair import Pair, pair
from tests.support.provider import Assembled, Authority, assembled
from tests.support.stored import until

pytestmark = [
    pytest.mark.slow,  # two servers of PostgreSQL are made
    pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing())),
]

SENDERS: Final = 4
RESUME_SECONDS: Final = 15
AGAIN_SECONDS: Final = 0.05


async def _returns(value: bool) -> bool:
    return value


@attrs.define
class Load:
    """Messages into one group, repeated until they are acknowledged, and a reader."""

    room: Room
    acknowledged: dict[int, str] = attrs.field(factory=dict)
    read: dict[int, str] = attrs.field(factory=dict)
    refused: int = 0
    ends: bool = False

    async def send(self, at: Assembled, name: str) -> None:
        number = 0
        while not self.ends:
            text = f"{name} {number}"
            request = self.room.send(text)
            sent = None
            while sent is None:
                try:
                    sent = await at.services.hub.send(request, device(at))
                except StorageUnavailable:
                    self.refused += 1
                    await trio.sleep(AGAIN_SECONDS)
            assert sent.counter not in self.acknowledged
            self.acknowledged[sent.counter] = text
            number += 1

    async def receive(self, at: Assembled) -> None:
        """Read until everything that was acknowledged has been read."""
        while not self.ends or self.read.keys() < self.acknowledged.keys():
            with suppress(StorageUnavailable):
                self.note_read(await self.page(at, len(self.read)))
            await trio.sleep(0.01)

    async def page(self, at: Assembled, counter: int) -> list[str]:
        request = ReceiveRequest(self.room.key, Counter(counter))
        return texts(await at.services.hub.receive(request, device(at)))

    def note_read(self, page: list[str]) -> None:
        for text in page:
            self.read[len(self.read)] = text

    async def grown(self, count: int) -> None:
        """Wait until so many more messages were acknowledged."""
        wanted = len(self.acknowledged) + count
        await until(lambda: _returns(len(self.acknowledged) >= wanted))

    async def check(self, at: Assembled) -> None:
        stored: list[str] = []
        while page := await self.page(at, len(stored)):
            stored += page
        assert len(set(stored)) == len(stored)
        assert {counter: stored[counter] for counter in self.acknowledged} == self.acknowledged
        assert stored[: len(self.read)] == list(self.read.values())


async def fail_over(directory: Path, servers: Pair, *, freeze: bool) -> Load:
    limits = {"device_sends_per_second": 0, "user_sends_per_second": 0}
    config = Authority(directory).config(store={"url": servers.url, "replicated": True}, limits=limits)
    async with assembled(config) as at:
        load = Load(Room())
        await at.add_device()
        await at.services.hub.create_group(load.room.creation(), device(at))
        async with trio.open_nursery() as running:
            running.start_soon(load.receive, at)
            for number in range(SENDERS):
                running.start_soon(load.send, at, f"sender {number}")
            await load.grown(30)
            if freeze:
                await let_no_standby_confirm(load, servers)
            else:
                await trio.sleep(Random(5).random())
                await trio.to_thread.run_sync(servers.first.kill)
            await trio.to_thread.run_sync(servers.second.promote)
            with trio.fail_after(RESUME_SECONDS):
                await load.grown(1)
            await load.grown(30)
            load.ends = True
        await load.check(at)
    return load


async def let_no_standby_confirm(load: Load, servers: Pair) -> None:
    """Freeze the receiver of the standby, wait until sends are refused, then kill the primary."""
    receiver = servers.second.answer("SELECT pid FROM pg_stat_wal_receiver")
    os.kill(receiver, signal.SIGSTOP)
    enough = load.refused + 2 * SENDERS
    await until(lambda: _returns(load.refused >= enough))
    acknowledged = len(load.acknowledged)
    await until(lambda: _returns(load.refused >= enough + SENDERS))
    assert len(load.acknowledged) == acknowledged
    await trio.to_thread.run_sync(servers.first.kill)
    os.kill(receiver, signal.SIGCONT)


async def test_a_primary_that_is_killed_loses_and_renumbers_nothing(tmp_path: Path) -> None:
    with pair() as servers:
        load = await fail_over(tmp_path, servers, freeze=False)
        assert load.refused


@pytest.mark.soak
async def test_nothing_that_no_standby_has_is_acknowledged_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "COMMIT_SECONDS", 0.5)
    with pair() as servers:
        await fail_over(tmp_path, servers, freeze=True)
