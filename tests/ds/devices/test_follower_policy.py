"""What another hub's terms refuse, before a request goes to the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimids.ds.groups.positions import NOT_SAID
from mimids.errors import (
    PolicyRefused,
    RateLimited,
    TooLarge,
)
from mimids.values import Follower
from mimids.wire.ids import Counter, ProviderId
from mimids.wire.messages import GroupInfoRequest, ReceiveRequest, SendRequest, WelcomeStatusRequest
from tests.support.commands import command
from tests.support.doubles import stopped_clock
from tests.support.federation import PROPOSAL, Room, device, federated, read
from tests.support.terms import BOB, JOBS, ask_hub, bob, wait_in_force

A, B = ProviderId("a.example"), ProviderId("b.example")


async def test_whom_the_hub_bans_their_own_provider_keeps_out_but_for_leaving(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        room, who = Room(), bob(follower)
        await hub.services.hub.create_group(room.creation(), device(hub))
        hub_router = follower.services.hub_router
        await hub_router.hub(A).send(who, room.send("before"))
        assert await read(follower, who, A, room.key) == ["before"]
        await command(hub, "ban add", subject=BOB)
        await ask_hub(follower)
        await wait_in_force(follower, 2)
        called = len(follower.peers.calls)
        with pytest.raises(PolicyRefused) as refused:
            await hub_router.hub(A).send(who, room.send("after"))
        assert refused.value.members["rule"] == "hub-banned-sender"
        with pytest.raises(PolicyRefused):
            await read(follower, who, A, room.key)
        with pytest.raises(PolicyRefused):  # what a stream is filled from
            await hub_router.hub(A).page(who, ReceiveRequest(room.key, Counter(0)), limit_octets=1000)
        with pytest.raises(PolicyRefused):
            await hub_router.hub(A).group_info(who, GroupInfoRequest(room.group_id))
        with pytest.raises(PolicyRefused):
            await hub_router.hub(A).welcome_status(who, WelcomeStatusRequest(room.key))
        said = await hub_router.hub(A).positions(who, [room.key, Room.new_key()])
        assert said == (NOT_SAID, NOT_SAID), "as if there were no such partition"
        (position,) = await hub_router.hub(A).positions(device(follower, "ben", 2), [room.key])
        assert (position.known, position.next_counter) == (1, 1)
        assert len(follower.peers.calls) == called  # the hub was not even asked
        leaving = room.message("leave", kind=PROPOSAL)
        await hub_router.hub(A).send(who, SendRequest(leaving, room.key, None))  # it cannot be read: it may be that
        await follower.services.following.leave(who, A, room.group_id)
        other = device(follower, "ben", 2)
        await hub_router.hub(A).send(other, room.send("from somebody else"))
        assert await read(follower, other, A, room.key, 2) == ["from somebody else"]
        # Where b.example is the hub itself, the ban of a.example means nothing.
        own = Room("own", hub=B)
        await follower.services.hub.create_group(own.creation(), who)
        await hub_router.hub(B).send(who, own.send("at home"))


async def test_a_mute_holds_in_its_group_and_stops_application_messages_only(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        rooms, who = [Room("one"), Room("two")], bob(follower)
        for room in rooms:
            await hub.services.hub.create_group(room.creation(), device(hub))
        await command(hub, "limit mute", user=BOB, group=rooms[0].group_id.decode())
        await ask_hub(follower)
        await wait_in_force(follower, 1)
        hub_router = follower.services.hub_router
        with pytest.raises(PolicyRefused) as refused:
            await hub_router.hub(A).send(who, rooms[0].send("muted"))
        assert refused.value.members["rule"] == "hub-muted-sender"
        await hub_router.hub(A).send(who, rooms[1].send("not here"))
        await hub_router.hub(A).send(who, rooms[0].commit("a commit", Room.new_key()))
        await hub_router.hub(A).send(device(follower, "ben", 2), rooms[0].send("somebody else"))
        # The hub itself refuses nobody of whom it does not know that it is Bob.
        await hub.services.hub.send(rooms[0].send("unseen"), Follower(B))
        await command(hub, "limit unmute", user=BOB, group=rooms[0].group_id.decode())
        await ask_hub(follower)
        await wait_in_force(follower, 2)
        await hub_router.hub(A).send(who, rooms[0].send("again"))


async def test_a_batch_is_judged_message_by_message_and_keeps_its_order(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        room, muted, who = Room("one"), Room("two"), bob(follower)
        for each in (room, muted):
            await hub.services.hub.create_group(each.creation(), device(hub))
        await command(hub, "limit mute", user=BOB, group=muted.group_id.decode())
        await ask_hub(follower)
        await wait_in_force(follower, 1)
        batch = [room.send("0"), muted.send("1"), room.send("2"), muted.send("3"), room.send("4")]
        results = await follower.services.hub_router.hub(A).send_batch(who, batch)
        assert [isinstance(each, bytes) for each in results] == [False, True, False, True, False]
        assert await read(follower, who, A, room.key) == ["0", "2", "4"]
        only_refused = await follower.services.hub_router.hub(A).send_batch(who, [muted.send("5")])
        assert [isinstance(each, bytes) for each in only_refused] == [True]


async def test_the_hubs_rates_and_sizes_hold_for_each_of_our_devices_there(tmp_path: Path) -> None:
    clock = stopped_clock()
    limits = {"device_sends_per_second": 1, "device_sends_burst": 2, "message_bytes": 200}
    async with federated(tmp_path, A, B, clock=clock, jobs_of=(), limits=limits) as (hub, follower):
        room, who = Room(), bob(follower)
        await hub.services.hub.create_group(room.creation(), device(hub))
        await follower.services.accepted_terms.renew(A)
        hub_router = follower.services.hub_router
        with pytest.raises(TooLarge):
            await hub_router.hub(A).send(who, room.send("x" * 300))
        await hub_router.hub(A).send(who, room.send("2"))
        with pytest.raises(RateLimited) as limited:
            await hub_router.hub(A).send(who, room.send("3"))
        assert limited.value.members["retry_after"] == 1
        clock.advance(1)
        await hub_router.hub(A).send(who, room.send("3"))
