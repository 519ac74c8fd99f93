"""The day on which a device was last seen."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from mimids.cli import running as commands
from mimids.ds.commands import command_named
from mimids.errors import StorageUnavailable
from mimids.http.api.devices import DEVICES
from mimids.http.api.operator_socket import OPERATOR_SOCKET
from mimids.testing.clock import MovableClock
from mimids.wire.ids import ProviderId, Secret
from mimids.wire.messages import FrameType
from tests.support.device_streams import Wire
from tests.support.federation import present
from tests.support.inmemory import InMemory
from tests.support.provider import Assembled, Authority
from tests.support.provider import running as serving
from tests.support.stored import DAY, provider, rows

DAY_MILLISECONDS = 86_400_000


@asynccontextmanager
async def begun(directory: Path) -> AsyncIterator[tuple[Assembled, MovableClock, str]]:
    async with provider(directory) as (running, clock):
        yield running, clock, await running.add_device("bob")


async def seen(running: Assembled, user: str = "bob") -> int | None:
    headers = {"content-type": "application/json"}
    answer = await InMemory(running.app(OPERATOR_SOCKET)).ask(
        "POST", "/v1/device/list", json.dumps({"user": user}).encode(), headers
    )
    day: int | None = answer.json()["devices"][0]["last_seen_on"]
    return day


async def ask_me(running: Assembled, token: str) -> int:
    answer = await InMemory(running.app(DEVICES)).ask(
        "GET", "/client/v1/me", headers={"authorization": f"Bearer {token}"}
    )
    return answer.status


async def test_the_day_of_a_request_is_kept_and_not_its_moment(tmp_path: Path) -> None:
    async with begun(tmp_path) as (running, clock, token):
        assert await seen(running) is None
        assert await ask_me(running, token) == 200
        today = clock.now() - clock.now() % DAY_MILLISECONDS
        assert await seen(running) == today
        clock.advance(3600)
        assert await ask_me(running, token) == 200
        assert await seen(running) == today
        clock.advance(3 * DAY)
        assert await seen(running) == today
        assert await ask_me(running, token) == 200
        assert await seen(running) == today + 3 * DAY_MILLISECONDS
        assert await seen(running, "alice") is None


async def test_a_request_between_midnight_and_the_next_save_counts_for_the_new_day(tmp_path: Path) -> None:
    async with begun(tmp_path) as (running, clock, token):
        await known(running, token)
        await running.services.last_seen.save()
        clock.advance(DAY)
        await known(running, token)
        assert await seen(running) == clock.now() - clock.now() % DAY_MILLISECONDS


async def test_a_device_with_an_open_session_is_seen_every_day(tmp_path: Path) -> None:
    async with begun(tmp_path) as (running, clock, token):
        device = await known(running, token)
        async with running.services.sessions.open(device):
            clock.advance(5 * DAY)
            assert await seen(running) == clock.now() - clock.now() % DAY_MILLISECONDS


async def test_what_cannot_be_written_is_kept_for_the_next_time(tmp_path: Path) -> None:
    async with begun(tmp_path) as (running, _, token):
        await known(running, token)

        async def full(work: object) -> None:
            raise StorageUnavailable

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(running.services.store, "write", full)
            await running.services.last_seen.save()
        assert await rows(running, "SELECT count(*) FROM devices WHERE seen_on IS NOT NULL") == [(0,)]
        await running.services.last_seen.save()
        assert await rows(running, "SELECT count(*) FROM devices WHERE seen_on IS NOT NULL") == [(1,)]


async def test_the_job_saves_when_it_is_stopped(tmp_path: Path) -> None:
    async with begun(tmp_path) as (running, _, token):
        async with trio.open_nursery() as jobs:
            await jobs.start(running.services.last_seen.run)
            await known(running, token)
            jobs.cancel_scope.cancel()
        assert await rows(running, "SELECT count(*) FROM devices WHERE seen_on IS NOT NULL") == [(1,)]


async def known(running: Assembled, token: str) -> Any:
    device = await running.services.devices.authenticate(Secret(token.encode()))
    assert device is not None
    return device


async def test_a_list_of_devices_counts_their_streams_and_stock(tmp_path: Path) -> None:
    async with begun(tmp_path) as (running, _, token):
        device, wire = await known(running, token), Wire()
        async with trio.open_nursery() as streams:
            streams.start_soon(running.services.streams.serve, device, wire)
            await wire.say(FrameType.PRESENT, present(ProviderId("a.example")))
            answer = await InMemory(running.app(OPERATOR_SOCKET)).ask(
                "POST", "/v1/user/show", b'{"user": "bob"}', {"content-type": "application/json"}
            )
            (listed,) = answer.json()["devices"]
            assert (listed["streams"], listed["key_packages"], listed["groups_pushed"]) == (1, 0, 0)
            wire.hang_up()


async def test_in_a_shell_the_number_of_streams_is_known_while_the_server_runs(tmp_path: Path) -> None:
    config = Authority(tmp_path).config()

    def shown() -> Any:
        return commands.run(config, command_named("device list"), {"user": "bob"})["devices"][0]["streams"]

    commands.run(config, command_named("user add"), {"name": "bob"})
    commands.run(config, command_named("device add"), {"user": "bob", "name": "phone"})
    assert shown() is None
    async with serving(config):
        assert await trio.to_thread.run_sync(shown) == 0
