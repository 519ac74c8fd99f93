"""Phones that are connected to another process than the one that wakes phones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest
import trio

from mimids.ds.notifier import WAKE_UPS
from mimids.ds.ports import PushAnswer
from mimids.store import push_subscriptions
from mimids.store.engine.transaction import Tx
from mimids.values import Device
from mimids.web_push.subscription import EndpointUrl
from mimids.wire.ids import Counter, Secret
from mimids.wire.messages import ReceiveRequest
from tests.support import postgresql
from tests.support.federation import Room, device
from tests.support.provider import Assembled
from tests.support.push_keys import browser
from tests.support.stored import count, until
from tests.support.twins import twins

pytestmark = pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing()))

LOOKS_SECONDS = 0.5
CONNECTED = "SELECT count(*) FROM connected_devices"
STORED = "SELECT count(*) FROM device_cursors"
CRASHED = "SELECT count(*) FROM hearing_processes WHERE process = 'killed'"


@attrs.frozen
class Phones:
    """Two processes, of which the first wakes phones; Bob's phone is subscribed, and Alice writes to him."""

    waking: Assembled
    other: Assembled
    room: Room
    bob: Device

    async def say(self, text: str) -> None:
        await self.waking.services.hub.send(self.room.send(text), device(self.waking))

    async def wait_connected(self, connections: int) -> None:
        async def reached() -> bool:
            return await trio.to_thread.run_sync(count, self.waking, CONNECTED) == connections

        await until(reached)

    def pushes(self) -> int:
        return len(self.waking.push_services.pushes) + len(self.other.push_services.pushes)


@asynccontextmanager
async def phones(directory: Path, **push: Any) -> AsyncIterator[Phones]:
    async with twins(directory, push=push) as (waking, other), trio.open_nursery() as jobs:
        for each in (waking, other):
            await jobs.start(each.services.wake_ups.run)
        room = Room()
        await waking.add_device()
        await waking.services.hub.create_group(room.creation(), device(waking))
        token = await waking.add_device("bob")
        bob = await other.services.devices.authenticate(Secret(token.encode()))
        assert bob is not None
        await other.services.wake_ups.subscribe(bob, browser().subscription)

        async def is_watched() -> bool:
            return bob.row in waking.services.listening

        await until(is_watched)
        other.services.cursors.note(bob, room.hub, ReceiveRequest(room.key, Counter(0)))
        yield Phones(waking, other, room, bob)
        jobs.cancel_scope.cancel()


async def test_a_phone_is_not_woken_while_it_is_connected_to_another_process(tmp_path: Path) -> None:
    async with phones(tmp_path) as at:
        async with at.other.services.sessions.open(at.bob):
            await at.wait_connected(1)
            await at.say("while it listens")
            await trio.sleep(LOOKS_SECONDS)
            assert at.pushes() == 0
        await at.waking.push_services.wait(1)
        await at.wait_connected(0)


async def test_a_phone_that_was_connected_to_a_process_that_was_killed_is_woken(tmp_path: Path) -> None:
    async with phones(tmp_path) as at:

        def leave_behind(tx: Tx) -> None:
            tx.execute("INSERT INTO connected_devices (device, process) VALUES (?, 'killed')", (at.bob.row,))
            push_subscriptions.begin_hearing(tx, "killed")

        await at.waking.services.store.write(leave_behind)
        await at.say("after that")
        await at.waking.push_services.wait(1)
        await at.wait_connected(0)


async def test_a_woken_phone_that_a_killed_process_may_have_heard_is_woken_again(tmp_path: Path) -> None:
    async with phones(tmp_path, quiet_seconds=0) as at:
        await at.say("news")
        await at.waking.push_services.wait(1)
        await at.say("more news, before it is heard")
        await trio.sleep(LOOKS_SECONDS)
        assert at.pushes() == 1
        await at.waking.services.store.write(lambda tx: push_subscriptions.begin_hearing(tx, "killed"))
        await at.say("after that")
        await at.waking.push_services.wait(2)


# --- a phone that is heard at another process than the one that woke it -----------------------------------------


@asynccontextmanager
async def push_in_flight(at: Phones) -> AsyncIterator[None]:
    """Have news wake the phone; the push service has the push during the block, and answers after the block."""
    answered = trio.Event()

    async def answer(endpoint: EndpointUrl) -> PushAnswer:
        await answered.wait()
        return PushAnswer(201)

    at.waking.push_services.answer = answer
    await at.say("news")
    await at.waking.push_services.wait(1)
    yield
    answered.set()

    async def settled() -> bool:
        statistics = at.waking.services.wake_ups.statistics()
        return statistics.pushed > 0 and not statistics.waiting

    await until(settled)
    at.waking.push_services.answer = at.waking.push_services.accept


async def read_all(at: Phones) -> None:
    """Let the phone ask the other process for messages after those that it has read, and store this."""
    end = await trio.to_thread.run_sync(count, at.waking, "SELECT max(next_counter) FROM partitions")
    at.other.services.cursors.note(at.bob, at.room.hub, ReceiveRequest(at.room.key, Counter(end)))
    await at.other.services.wake_ups.heard(at.bob.row)

    async def is_stored() -> bool:
        return await trio.to_thread.run_sync(count, at.waking, f"{STORED} WHERE next_counter = {end}") > 0

    await until(is_stored)
    await trio.sleep(LOOKS_SECONDS)


@asynccontextmanager
async def unfinished_transaction(at: Phones) -> AsyncIterator[None]:
    """Keep a transaction open, so that no process can count what is written from now on as looked at."""
    with psycopg.connect(str(at.waking.services.config.store.url)) as connection:
        connection.execute("SELECT pg_current_xact_id()")
        yield


async def test_a_phone_that_is_heard_during_its_push_is_woken_by_later_news(tmp_path: Path) -> None:
    async with phones(tmp_path, quiet_seconds=0) as at, unfinished_transaction(at):
        await read_all(at)
        async with push_in_flight(at):
            await read_all(at)
        await trio.sleep(LOOKS_SECONDS)
        assert at.pushes() == 1
        await at.say("later news")
        await at.waking.push_services.wait(2)


async def test_news_wakes_a_phone_even_if_the_process_that_heard_it_stores_this_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with phones(tmp_path, quiet_seconds=0) as at:
        async with push_in_flight(at):
            pass
        await trio.sleep(LOOKS_SECONDS)
        with monkeypatch.context() as late:
            late.setattr(at.other.services.listening, "take_contacts", list)
            await at.other.services.wake_ups.heard(at.bob.row)
            await at.say("later news")
            await trio.sleep(LOOKS_SECONDS)
            assert at.pushes() == 1
        at.other.services.notifier.notify_here(WAKE_UPS)
        await at.waking.push_services.wait(2)


async def test_a_crash_during_a_push_lets_news_wake_the_phone_again(tmp_path: Path) -> None:
    """The process that crashed may have heard the phone after the push had come."""
    async with phones(tmp_path, quiet_seconds=0) as at:
        async with push_in_flight(at):
            await at.waking.services.store.write(lambda tx: push_subscriptions.begin_hearing(tx, "killed"))

            async def is_noted() -> bool:
                at.waking.services.notifier.notify_here(WAKE_UPS)
                return not await trio.to_thread.run_sync(count, at.waking, CRASHED)

            await until(is_noted)
        await at.say("later news")
        await at.waking.push_services.wait(2)
