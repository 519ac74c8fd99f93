"""Welcomes and crashes: each arrives once, after its commit is durable, and stays until it is acknowledged."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from mimids.client import Device
from mimids.testing import Provider, Session
from mimids.wire.messages import SendRequest
from tests.support.stage import AWAY, HUB, NAMES, SUITE, Stage, eventually, staged

pytestmark = [pytest.mark.slow, AWAY]

INIT, WELCOME = "/ds/v1/welcome/init", "/ds/v1/welcome"
INVITED = {"bob": "b.example", "carol": "c.example"}


async def invite(stage: Stage) -> bytes:
    """Add Bob and Carol by one commit of Alice; return its Welcome."""
    for person, provider in INVITED.items():
        await stage.devices[person].upload([stage.recording.key_packages[person].octets])
        await stage.alice.fetch_key_package(stage.federation[provider].contact(person), SUITE)
    await stage.alice.create_group(stage.recording.creation())
    request = next(iter(stage.recording.messages())).request
    assert isinstance(request, SendRequest)
    assert request.commit_data is not None
    assert request.commit_data.welcome_data is not None
    await stage.alice.send(HUB, request)
    assert stage.federation[HUB].stored(request.partition_key) == [request.message.encoded]
    return request.commit_data.welcome_data.welcome.encoded


async def inbox(device: Device) -> list[bytes]:
    return [each.welcome.encoded for each in await device.welcomes()]


@pytest.mark.parametrize(
    ("who", "point", "path"),
    [
        (HUB, "calling", INIT),
        (HUB, "answered", INIT),
        (HUB, "answered", WELCOME),
        ("b.example", "answering", INIT),
        ("b.example", "handling", WELCOME),
        ("b.example", "answering", WELCOME),
    ],
)
async def test_a_welcome_arrives_once_despite_a_crash_on_either_side(
    who: str, point: Any, path: str, mimids_session: Session
) -> None:
    async with staged("public", mimids_session) as stage:
        victim: Provider = stage.federation[who]
        victim.die_at(point, path)
        welcome = await invite(stage)
        assert await trio.to_thread.run_sync(victim.wait_ended) == -9
        await trio.to_thread.run_sync(victim.start)
        for person in INVITED:
            device = stage.devices[person]

            async def has_arrived(device: Device = device) -> bool:
                return await inbox(device) == [welcome]

            await eventually(has_arrived)
        for name in NAMES:
            await trio.to_thread.run_sync(stage.federation[name].restart)
        for person in INVITED:
            device = stage.devices[person]
            assert await inbox(device) == [welcome]
            (waiting,) = await device.welcomes()
            await device.acknowledge(waiting.welcome_id)
            assert await inbox(device) == []


async def test_a_welcome_answered_by_another_program_is_sent_again(mimids_session: Session) -> None:
    """For example a proxy that answers 200 to everything while the provider behind it is down."""
    async with staged("public", mimids_session) as stage:
        hub, home = stage.federation[HUB], stage.federation["b.example"]
        home.put_faults(HUB, [{"do": "garbage", "path": WELCOME}])
        welcome = await invite(stage)

        async def was_tried() -> bool:
            tried = "SELECT 1 FROM outgoing_welcomes WHERE provider = (SELECT id FROM providers WHERE domain = ?)"
            return hub.read(f"{tried} AND (failures > 0 OR state = 'delivered')", [home.name]) != []

        await eventually(was_tried)
        assert await inbox(stage.devices["bob"]) == []
        home.put_faults(HUB, [])

        async def has_arrived() -> bool:
            return await inbox(stage.devices["bob"]) == [welcome]

        await eventually(has_arrived)
