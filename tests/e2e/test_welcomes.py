"""Welcomes and crashes: each arrives once, after its commit is durable, and stays until it is acknowledged."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from mimids.client import Device, Problem, WelcomeState
from mimids.testing import Provider, Session
from mimids.wire.messages import SendRequest, WelcomeData
from tests.support.mls_makers import replace
from tests.support.stage import AWAY, HUB, NAMES, SUITE, Stage, eventually, staged
from tests.support.welcomes import part_for

pytestmark = [pytest.mark.slow, AWAY]

INIT, WELCOME = "/ds/v1/welcome/init", "/ds/v1/welcome"
INVITED = {"bob": "b.example", "carol": "c.example"}


async def invitation(stage: Stage) -> SendRequest:
    """Have Alice create the group and fetch KeyPackages; return the commit that adds Bob and Carol."""
    for person, provider in INVITED.items():
        await stage.devices[person].upload([stage.recording.key_packages[person].octets])
        await stage.alice.fetch_key_package(stage.federation[provider].contact(person), SUITE)
    await stage.alice.create_group(stage.recording.creation())
    request = next(iter(stage.recording.messages())).request
    assert isinstance(request, SendRequest)
    return request


async def invite(stage: Stage) -> WelcomeData:
    """Add Bob and Carol by one commit of Alice; return its Welcome, with their providers."""
    request = await invitation(stage)
    assert request.commit_data is not None
    assert request.commit_data.welcome_data is not None
    await stage.alice.send(HUB, request)
    assert stage.federation[HUB].stored(request.partition_key) == [request.message.encoded]
    return request.commit_data.welcome_data


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

            async def has_arrived(device: Device = device, part: bytes = part_for(INVITED[person], welcome)) -> bool:
                return await inbox(device) == [part]

            await eventually(has_arrived)
        for name in NAMES:
            await trio.to_thread.run_sync(stage.federation[name].restart)
        for person in INVITED:
            device = stage.devices[person]
            assert await inbox(device) == [part_for(INVITED[person], welcome)]
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
            return await inbox(stage.devices["bob"]) == [part_for(INVITED["bob"], welcome)]

        await eventually(has_arrived)


async def test_swapped_providers_are_told_and_the_same_commit_sends_the_welcome_again(
    mimids_session: Session,
) -> None:
    async with staged("public", mimids_session) as stage:
        request = await invitation(stage)
        data = request.commit_data
        assert data is not None
        assert data.welcome_data is not None
        swapped = replace(data.welcome_data, service_providers=data.welcome_data.service_providers[::-1])
        accepted = await stage.alice.send(HUB, replace(request, commit_data=replace(data, welcome_data=swapped)))

        async def states() -> set[WelcomeState]:
            return {each.state for each in await stage.alice.welcome_status(HUB, data.next_partition_key)}

        async def are_refused() -> bool:
            return await states() == {WelcomeState.REFUSED}

        await eventually(are_refused)
        assert {each.reason for each in await stage.alice.welcome_status(HUB, data.next_partition_key)} == {
            b"not-accepted"
        }
        for person in INVITED:
            assert await inbox(stage.devices[person]) == []
        assert await stage.alice.send(HUB, request) == accepted

        async def are_delivered() -> bool:
            return await states() == {WelcomeState.DELIVERED}

        await eventually(are_delivered)
        for person in INVITED:
            assert await inbox(stage.devices[person]) == [part_for(INVITED[person], data.welcome_data)]
        bob = await stage.devices["bob"].welcome_status(HUB, data.next_partition_key)  # through his provider
        assert bob == await stage.alice.welcome_status(HUB, data.next_partition_key)
        metrics = await trio.to_thread.run_sync(stage.federation[HUB].metrics)
        assert metrics["mimids_welcomes_refused_total"] == metrics["mimids_welcomes_delivered_total"] == 2


async def test_a_welcome_that_cannot_fit_its_commit_is_refused_by_the_hub(mimids_session: Session) -> None:
    async with staged("public", mimids_session) as stage:
        request = await invitation(stage)
        later = [
            each.request
            for each in stage.recording.messages()
            if isinstance(each.request, SendRequest)
            and each.request.commit_data is not None
            and each.request.commit_data.welcome_data is not None
        ]
        assert request.commit_data is not None
        other = later[1].commit_data
        assert other is not None
        wrong = replace(request, commit_data=replace(request.commit_data, welcome_data=other.welcome_data))
        with pytest.raises(Problem) as refused:
            await stage.alice.send(HUB, wrong)
        assert refused.value.code == "welcome-mismatch"
        assert stage.federation[HUB].read("SELECT count(*) FROM messages") == [(0,)]
        await stage.alice.send(HUB, request)
        with pytest.raises(Problem) as refused:
            await stage.alice.send(HUB, wrong)
        assert refused.value.code == "welcome-mismatch"


async def test_a_repeat_brings_the_welcome_and_the_group_info_that_the_commit_lacked(
    mimids_session: Session,
) -> None:
    async with staged("public", mimids_session) as stage:
        request = await invitation(stage)
        data = request.commit_data
        assert data is not None
        assert data.welcome_data is not None
        bare = replace(data, welcome_data=None, group_info=None)
        accepted = await stage.alice.send(HUB, replace(request, commit_data=bare))
        missing = await stage.alice.welcome_status(HUB, data.next_partition_key)
        assert {each.state for each in missing} == {WelcomeState.MISSING}
        assert await stage.alice.send(HUB, request) == accepted
        for person in INVITED:

            async def has_arrived(device: Device = stage.devices[person]) -> bool:
                return await inbox(device) != []

            await eventually(has_arrived)
        other = replace(data, group_info=stage.recording.creation().group_info)
        with pytest.raises(Problem) as refused:
            await stage.alice.send(HUB, replace(request, commit_data=other))
        assert refused.value.code == ("commit-data-differs" if data.group_info else "group-info-mismatch")
