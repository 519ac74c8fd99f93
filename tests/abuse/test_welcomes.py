"""Welcomes to many providers, and other ways to have this server contact many: they cost their sender only."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.ds.following.outgoing_welcomes import TASKS_OF_A_SENDER
from mimids.ds.limits import welcomes as limits
from mimids.ds.ports import PeerAnswer
from mimids.errors import MimiError, PeerUnavailable, QuotaExceeded, RateLimited, TooMany
from mimids.http.api.providers import PROVIDERS
from mimids.values import Device, DeviceRow, Follower
from mimids.wire.declare import encode
from mimids.wire.ids import KeyPackageRef, PartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    GroupInfoRequest,
    ReceiveRequest,
    SendRequest,
    WelcomeData,
    WelcomeInitRequest,
    WelcomeInitResponse,
)
from tests.support.doubles import Called, bound_hits
from tests.support.federation import COMMIT, Room, device, federated
from tests.support.inmemory import InMemory
from tests.support.patience import patience
from tests.support.provider import Assembled
from tests.support.stored import rows, until
from tests.support.welcomes import REF, hand_out, welcome_to

A, B = "a.example", "b.example"


def made_up(count: int, start: int = 0) -> list[ProviderId]:
    return [ProviderId(f"made-up-{n}.example") for n in range(start, start + count)]


def refs(count: int) -> list[KeyPackageRef]:
    return [KeyPackageRef(n.to_bytes(32, "big")) for n in range(1, count + 1)]


def inviting(room: Room, to: list[ProviderId], key: PartitionKey | None = None, text: str = "add") -> SendRequest:
    """Return a commit whose Welcome goes to these providers."""
    data = CommitData(room.new_key(), None, WelcomeData(welcome_to(*refs(len(to))), tuple(to)))
    return SendRequest(room.message(text, kind=COMMIT), key or room.key, data)


async def hangs(called: Called) -> PeerAnswer:
    await trio.sleep_forever()
    raise AssertionError


@asynccontextmanager
async def hub_with(tmp_path: Path, mode: str = "open", **sections: object) -> AsyncIterator[list[Assembled]]:
    federation = {"mode": mode} if mode == "open" else {"mode": mode, "allow": [A, B]}
    async with federated(tmp_path, A, B, federation=federation, **sections) as providers:  # type: ignore[arg-type]
        yield providers


async def count(hub: Assembled, table: str) -> int:
    return int((await rows(hub, f"SELECT count(*) FROM {table}"))[0][0])  # noqa: S608


async def is_invited(hub: Assembled, follower: Assembled, who: Device, room: Room) -> None:
    """Have a device add Bob with the first commit of a new group, and wait until his Welcome is delivered."""
    await hub.services.hub.create_group(room.creation(), who)
    data = CommitData(room.new_key(), None, WelcomeData(welcome_to(REF), (ProviderId(B),)))
    await hub.services.hub.send(SendRequest(room.message("add", kind=COMMIT), room.key, data), who)

    async def arrived() -> bool:
        return bool(await follower.services.incoming_welcomes.inbox(DeviceRow(1)))

    with patience():
        await until(arrived)


@pytest.mark.parametrize("mode", ["open", "allow-list"])
async def test_a_welcome_to_thousands_of_providers_is_refused_and_costs_no_row(mode: str, tmp_path: Path) -> None:
    async with hub_with(tmp_path, mode) as (hub, follower):
        await hand_out(follower)
        room = Room("junk")
        await hub.services.hub.create_group(room.creation(), device(hub))
        request = inviting(room, made_up(20_000))
        began = time.perf_counter()
        with pytest.raises(TooMany):
            await hub.services.hub.send(request, device(hub))
        with pytest.raises(TooMany):
            await hub.services.hub.send(request, Follower(ProviderId(B)))
        assert time.perf_counter() - began < 2
        assert await count(hub, "outgoing_welcomes") == 0
        assert await count(hub, "providers") <= 2
        assert bound_hits(hub.services.telemetry, "welcomes") == 2
        await is_invited(hub, follower, device(hub, "carol", 2), Room("honest"))


async def test_a_name_that_is_not_on_the_allow_list_costs_no_row(tmp_path: Path) -> None:
    async with hub_with(tmp_path, "allow-list") as (hub, follower):
        await hand_out(follower)
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        await hub.services.hub.send(inviting(room, [*made_up(200), ProviderId(B)]), device(hub))
        assert await count(hub, "outgoing_welcomes") == 1
        assert await count(hub, "providers") == 2
        assert {called.provider for called in hub.peers.calls} <= {B}


@pytest.mark.parametrize("who", ["device", "provider"])
async def test_providers_that_nobody_named_before_count_against_the_sender(who: str, tmp_path: Path) -> None:
    limit = {"provider_new_providers_per_day": 50}
    async with hub_with(tmp_path, limits=limit) as (hub, _):
        sender = device(hub) if who == "device" else Follower(ProviderId(B))
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        await hub.services.hub.send(inviting(room, made_up(40), text="first"), sender)
        with pytest.raises(RateLimited):
            await hub.services.hub.send(inviting(room, made_up(40, 40), text="second"), sender)
        batch = [inviting(room, made_up(40, 40), text="third"), room.send("and a message")]
        refused, accepted = await hub.services.hub.send_batch(batch, sender)
        assert isinstance(refused, RateLimited)
        assert not isinstance(accepted, MimiError)
        assert await count(hub, "outgoing_welcomes") == 40
        assert bound_hits(hub.services.telemetry, "new-providers") == 2


async def test_a_device_can_have_few_new_hubs_dialled_whatever_it_asks_them(tmp_path: Path) -> None:
    async with hub_with(tmp_path) as (hub, _):
        mallory, router = device(hub, "mallory", 3), hub.services.hub_router
        room, refused = Room(), 0
        for n, name in enumerate(made_up(120)):
            asked = (
                lambda to: to.send(mallory, room.send("x")),
                lambda to: to.send_batch(mallory, [room.send("x")]),
                lambda to: to.receive(mallory, ReceiveRequest(room.key, 0)),  # type: ignore[arg-type]
                lambda to: to.present(mallory, room.key),
                lambda to: to.group_info(mallory, GroupInfoRequest(room.group_id)),
            )[n % 5]
            try:
                await asked(router.hub(name))  # type: ignore[no-untyped-call]
            except RateLimited:
                refused += 1
            except PeerUnavailable:
                pass
        dialled = {called.provider for called in hub.peers.calls}
        assert (len(dialled), refused) == (50, 70)
        with pytest.raises(PeerUnavailable):  # another device has its own
            await router.hub(ProviderId("new.example")).present(device(hub, "carol", 4), room.key)


async def test_providers_that_do_not_answer_delay_no_other_sender(tmp_path: Path) -> None:
    async with hub_with(tmp_path) as (hub, follower):
        await hand_out(follower)
        for row in range(11, 16):  # five devices, each with 40 providers that hang
            mallory, room = device(hub, "mallory", row), Room(f"junk {row}")
            names = made_up(40, row * 100)
            for name in names:
                hub.peers.add(name, hangs)
            await hub.services.hub.create_group(room.creation(), mallory)
            await hub.services.hub.send(inviting(room, names), mallory)
        with patience():
            await until(lambda: _called(hub, 40))  # calls in flight, none of which ends
        await is_invited(hub, follower, device(hub), Room("honest"))
        assert max(hub.services.outgoing_welcomes._serving.values()) <= TASKS_OF_A_SENDER


async def _called(hub: Assembled, times: int) -> bool:
    return len(hub.peers.calls) >= times


async def test_many_welcomes_for_one_provider_delay_other_senders_by_one_each(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, follower):
        await hand_out(follower)
        mallory, alice = device(hub, "mallory", 9), device(hub)
        junk = Room("junk")
        await hub.services.hub.create_group(junk.creation(), mallory)
        for n in range(50):
            key = junk.new_key()
            await hub.services.hub.send(junk.commit(f"c{n}", key), mallory)
            await hub.services.hub.send(inviting(junk, [ProviderId(B)], key=key, text=f"j{n}"), mallory)
        offered: list[KeyPackageRef] = []
        spec = hub.peers.peers[ProviderId(B)]

        async def listening(called: Called) -> PeerAnswer:
            offered.append(KeyPackageRef(called.body[-32:]))
            return await spec(called)

        hub.peers.add(B, listening)
        room = Room("honest")
        await hub.services.hub.create_group(room.creation(), alice)
        data = CommitData(room.new_key(), None, WelcomeData(welcome_to(REF), (ProviderId(B),)))
        await hub.services.hub.send(SendRequest(room.message("add", kind=COMMIT), room.key, data), alice)
        async with trio.open_nursery() as jobs:
            await jobs.start(hub.services.outgoing_welcomes.run)
            with patience():
                await until(lambda: _is_offered(offered))
            jobs.cancel_scope.cancel()
        assert offered.index(REF) <= 2


async def _is_offered(offered: list[KeyPackageRef]) -> bool:
    return REF in offered


async def test_what_one_sender_has_waiting_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mimids.ds.groups import welcome_rows

    monkeypatch.setattr(welcome_rows, "DEVICE_WAITING", 3)
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        room, mallory, alice = Room(), device(hub, "mallory", 9), device(hub)
        await hub.services.hub.create_group(room.creation(), mallory)
        outcomes = []
        for n in range(6):
            answer = (await hub.services.hub.send_batch([inviting(room, [ProviderId(B)], text=f"j{n}")], mallory))[0]
            outcomes.append(type(answer))
        assert outcomes[3:] == [QuotaExceeded] * 3
        await hub.services.hub.send(inviting(room, [ProviderId(B)], text="alice"), alice)
        assert await count(hub, "outgoing_welcomes") == 4


async def test_a_welcome_counts_for_each_provider_it_goes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEVICE_BURST", 2)
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        room, alice = Room(), device(hub)
        await hub.services.hub.create_group(room.creation(), alice)
        await hub.services.hub.send(inviting(room, [ProviderId(B), ProviderId(A)], text="both"), alice)
        with pytest.raises(RateLimited):
            await hub.services.hub.send(inviting(room, [ProviderId(B)], text="another"), alice)


async def test_references_of_one_offer_are_bounded(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (hub, _):
        ask = InMemory(hub.app(PROVIDERS), [B])
        headers = {"content-type": "application/mimi-ds", "from": f"mimi@{B}"}
        body = encode(WelcomeInitRequest(tuple(refs(120_000))))
        answered = await ask.ask("POST", "/ds/v1/welcome/init", body, headers)
        assert (answered.status, answered.problem) == (400, "malformed")  # the bound is that of the struct
        body = encode(WelcomeInitRequest(tuple(refs(4096))))
        answered = await ask.ask("POST", "/ds/v1/welcome/init", body, headers)
        assert answered.body == encode(WelcomeInitResponse(()))
