"""Waking devices that sleep: a live provider, a push service over HTTPS on loopback, and the client library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import http_ece
import pytest
import trio

from mimids.client import Device, Problem
from mimids.ds.wake_ups.listening import AWAKE_SECONDS
from mimids.store.engine.access import read_here
from mimids.testing import PretendGroup, Provider, PushService, ReceivedPush, Session, open_federation, push_service
from mimids.web_push.message import PLAINTEXT
from mimids.web_push.vapid import TOKEN_SECONDS
from mimids.wire.base64url import base64url, from_base64url
from tests.support.stage import HUB, eventually
from tests.support.tables import ON_POSTGRESQL, table_names

B = "b.example"


@pytest.fixture
def service(mimids_session: Session) -> Iterator[PushService]:
    with push_service(mimids_session) as running:
        yield running


def pushing(service: PushService, **push: object) -> dict[str, dict[str, object]]:
    return {"push": {"endpoints": [service.origin], **push}}


async def pushes(service: PushService, number: int) -> list[ReceivedPush]:
    return await trio.to_thread.run_sync(service.wait, number)


async def present(provider: Provider, device: Device, group: PretendGroup, devices: int = 1) -> None:
    """Let a device present the group's key, and wait until the provider has stored that."""
    await device.receive(group.hub, group.key)

    async def stored() -> bool:
        known = "SELECT device FROM device_cursors UNION SELECT device FROM early_positions"
        return provider.read(f"SELECT count(*) FROM ({known}) AS known") >= [(devices,)]  # noqa: S608

    await eventually(stored)


async def wait_settled(provider: Provider, **counts: int) -> None:
    async def settled() -> bool:
        now = await trio.to_thread.run_sync(provider.metrics)
        names = {name: f"mimids_wake_ups_{name}" for name in counts}
        return all(now.get(names[name], now.get(f"{names[name]}_total")) == counts[name] for name in counts)

    await eventually(settled)


async def test_a_phone_at_a_follower_is_woken_once_and_learns_nothing_from_the_push(
    mimids_session: Session, service: PushService
) -> None:
    async with open_federation(HUB, B, config=pushing(service), session=mimids_session) as (a, b):
        group, endpoint = PretendGroup.at(HUB), service.endpoint()
        async with a.add_device("alice").client() as alice, b.add_device("bob").client() as bob:
            await alice.create_group(group.creation())
            await bob.subscribe(endpoint.url, endpoint.p256dh, endpoint.auth)
            await present(b, bob, group)
            for number in range(3):
                await alice.send(HUB, group.message(b"%d" % number))
            (push,) = await pushes(service, 1)
            assert push.path == endpoint.url.removeprefix(service.origin)
            opened = http_ece.decrypt(
                push.body, private_key=endpoint.private_key, auth_secret=endpoint.auth, version="aes128gcm"
            )
            assert opened == PLAINTEXT
            token, key = push.headers["authorization"].removeprefix("vapid t=").split(", k=")
            assert from_base64url(key) == await bob.push_public_key()
            claims = json.loads(from_base64url(token.split(".")[1]))
            assert claims.keys() == {"aud", "exp", "sub"}
            assert (claims["aud"], claims["sub"]) == (service.origin, f"https://{B}")
            assert claims["exp"] <= b.read("SELECT max(accepted_at) FROM messages")[0][0] // 1000 + TOKEN_SECONDS + 60
            await wait_settled(b, subscriptions=1, pushed=1, waiting=0)
            assert len(service.pushes) == 1


async def test_a_sleeping_device_is_woken_within_a_second(mimids_session: Session, service: PushService) -> None:
    """The quickest of some wake-ups counts, because the machine may be busy."""
    config, took = pushing(service, quiet_seconds=0), []
    async with open_federation(HUB, B, config=config, session=mimids_session) as (a, b):
        group, endpoint = PretendGroup.at(HUB), service.endpoint()
        async with a.add_device("alice").client() as alice, b.add_device("bob").client() as bob:
            await alice.create_group(group.creation())
            await bob.subscribe(endpoint.url, endpoint.p256dh, endpoint.auth)
            await present(b, bob, group)
            for number in range(3):
                await bob.me()
                await trio.sleep(2 * AWAKE_SECONDS)
                began = trio.current_time()
                await alice.send(HUB, group.message(b"%d" % number))
                await pushes(service, number + 1)
                took.append(trio.current_time() - began)
    assert min(took) < 1, took


async def test_a_message_before_a_kill_wakes_after_it(mimids_session: Session, service: PushService) -> None:
    """The device is connected when the message comes, so there is no push before the server is killed."""
    async with open_federation(HUB, config=pushing(service), session=mimids_session) as (hub,):
        group, endpoint = PretendGroup.at(HUB), service.endpoint()
        async with hub.add_device("alice").client() as alice, hub.add_device("bob").client() as bob:
            await alice.create_group(group.creation())
            await bob.subscribe(endpoint.url, endpoint.p256dh, endpoint.auth)
            await present(hub, bob, group)
            async with bob.stream():
                await wait_open(hub)
                await alice.send(HUB, group.message(b"just before"))
                await trio.to_thread.run_sync(hub.kill)
        assert service.pushes == []
        await trio.to_thread.run_sync(hub.start)
        assert len(await pushes(service, 1)) == 1


async def test_a_kill_during_a_push_repeats_it_and_a_kill_after_it_does_not(
    mimids_session: Session, service: PushService
) -> None:
    async with open_federation(HUB, config=pushing(service), session=mimids_session) as (hub,):
        group, endpoint = PretendGroup.at(HUB), service.endpoint()
        async with hub.add_device("alice").client() as alice, hub.add_device("bob").client() as bob:
            await alice.create_group(group.creation())
            await bob.subscribe(endpoint.url, endpoint.p256dh, endpoint.auth)
            await present(hub, bob, group)
            service.answer(None)
            await alice.send(HUB, group.message(b"news"))
            await pushes(service, 1)
            await trio.to_thread.run_sync(hub.kill)
            service.answer(201)
            await trio.to_thread.run_sync(hub.start)
            await pushes(service, 2)
            await wait_settled(hub, pushed=1, waiting=0)
            await trio.to_thread.run_sync(hub.kill)
            await trio.to_thread.run_sync(hub.start)
            await alice.send(HUB, group.message(b"more"))
            await wait_settled(hub, subscriptions=1, pushed=0, waiting=0)
            assert len(service.pushes) == 2


@pytest.mark.parametrize(
    ("status", "counts"),
    [
        (404, {"gone": 1, "subscriptions": 0}),
        (410, {"gone": 1, "subscriptions": 0}),
        (429, {"failed": 1, "failing": 1, "waiting": 1}),
        (503, {"failed": 1, "failing": 1, "waiting": 1}),
        (400, {"refused": 1, "failing": 0, "waiting": 0}),
    ],
)
async def test_what_a_push_service_refuses(
    mimids_session: Session, service: PushService, status: int, counts: dict[str, int]
) -> None:
    async with open_federation(HUB, config=pushing(service), session=mimids_session) as (hub,):
        group, endpoint = PretendGroup.at(HUB), service.endpoint()
        service.answer(status, retry_after="60")
        async with hub.add_device("alice").client() as alice, hub.add_device("bob").client() as bob:
            await alice.create_group(group.creation())
            await bob.subscribe(endpoint.url, endpoint.p256dh, endpoint.auth)
            await present(hub, bob, group)
            await alice.send(HUB, group.message(b"news"))
            await wait_settled(hub, **counts)
            if counts.get("waiting"):
                service.answer(201)
                hub.clock.advance(61)
                await wait_settled(hub, pushed=1, failing=0, waiting=0)


async def test_a_service_that_never_answers_delays_no_other(mimids_session: Session, service: PushService) -> None:
    with push_service(mimids_session) as silent:
        silent.answer(None)
        config = {"push": {"endpoints": [service.origin, silent.origin]}}
        async with open_federation(HUB, config=config, session=mimids_session) as (hub,):
            group = PretendGroup.at(HUB)
            async with hub.add_device("alice").client() as alice:
                await alice.create_group(group.creation())
                for number, at in enumerate([silent] * 5 + [service], 1):
                    endpoint = at.endpoint()
                    async with hub.add_device("bob", f"phone{number}").client() as phone:
                        await phone.subscribe(endpoint.url, endpoint.p256dh, endpoint.auth)
                        await present(hub, phone, group, number)
                await alice.send(HUB, group.message(b"news"))
                await pushes(silent, 5)
                await pushes(service, 1)
                await wait_settled(hub, pushed=1, failed=0)


async def test_no_row_and_no_line_joins_a_group_with_an_endpoint(mimids_session: Session, service: PushService) -> None:
    async with open_federation(HUB, config={**pushing(service), "log": {"level": "debug"}}, session=mimids_session) as (
        hub,
    ):
        group, endpoint = PretendGroup.at(HUB), service.endpoint()
        async with hub.add_device("alice").client() as alice, hub.add_device("bob").client() as bob:
            await alice.create_group(group.creation())
            before = set(tables(hub))
            await bob.subscribe(endpoint.url, endpoint.p256dh, endpoint.auth)
            await present(hub, bob, group)
            await alice.send(HUB, group.message(b"news"))
            await pushes(service, 1)
            await wait_settled(hub, pushed=1)
        path = endpoint.url.removeprefix(service.origin)
        for secret in (path.strip("/"), service.origin.removeprefix("https://"), base64url(endpoint.p256dh)):
            assert secret not in hub.log
        found = {name for name in tables(hub) if path in str(hub.read(f"SELECT * FROM {name}"))}  # noqa: S608
        assert found == {"push_subscriptions"}
        assert before == set(tables(hub))
        ((row,),) = [hub.read("SELECT * FROM push_subscriptions")]
        shown = str(row)
        for joined in (group.group_id, *group.key.masks()):
            assert joined.hex() not in shown
            assert str(joined) not in shown
        assert [each for each in row if isinstance(each, int) and each > 10**9] == []  # nor the time of a message
        assert columns_of(hub, "push_subscriptions") == {
            "device",
            "endpoint",
            "p256dh",
            "auth",
            "next_stamp",
            "next_welcome",
            "is_woken",
            "last_contact",
        }


async def test_subscribing_is_refused_where_it_makes_no_sense(mimids_session: Session, service: PushService) -> None:
    async with open_federation(HUB, B, configs={B: {"push": {"enabled": False}}}, session=mimids_session) as (
        hub,
        without,
    ):
        endpoint = service.endpoint()
        alice = hub.add_device("alice")
        async with alice.client() as phone, without.add_device("bob").client() as other:
            subscribe = partial(phone.subscribe, endpoint.url, endpoint.p256dh, endpoint.auth)
            with pytest.raises(Problem) as refused:
                await subscribe()  # at a port that the operator has not listed
            assert (refused.value.code, refused.value.status) == ("malformed", 400)
            assert endpoint.url not in str(refused.value)
            with pytest.raises(Problem) as refused:
                await phone.subscribe("https://push.example/x", b"\4" + bytes(64), endpoint.auth)
            assert refused.value.code == "malformed"
            await phone.subscribe("https://push.example/x", endpoint.p256dh, endpoint.auth)
            (listed,) = hub.command("device list", user="alice")["devices"]
            assert (listed["woken_by"], listed["woken"]) == ("push.example", False)
            await phone.unsubscribe()
            await phone.unsubscribe()
            (listed,) = hub.command("device list", user="alice")["devices"]
            assert (listed["woken_by"], listed["woken"]) == (None, False)
            assert await other.push_public_key() is None
            with pytest.raises(Problem) as refused:
                await other.subscribe("https://push.example/x", endpoint.p256dh, endpoint.auth)
            assert refused.value.code == "not-found"
            await other.unsubscribe()


def tables(provider: Provider) -> list[str]:
    with read_here(provider.config.place) as tx:
        return table_names(tx)


def columns_of(provider: Provider, table: str) -> set[str]:
    if ON_POSTGRESQL:
        return {
            name
            for (name,) in provider.read(
                "SELECT column_name FROM information_schema.columns WHERE table_name = ?", (table,)
            )
        }
    return {name for _, name, *_ in provider.read(f"PRAGMA table_info({table})")}


async def wait_open(provider: Provider) -> None:
    async def is_open() -> bool:
        return (await trio.to_thread.run_sync(provider.metrics))["mimids_streams_open"] == 1

    await eventually(is_open)
