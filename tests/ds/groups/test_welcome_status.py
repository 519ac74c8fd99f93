"""What a member learns of the Welcomes that it sent, at its own hub and through its provider."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mimids.ds.groups import branches
from mimids.ds.groups.welcome_status import _STATES
from mimids.ds.ports import PeerAnswer
from mimids.errors import PeerFailed, RateLimited, UnknownPartition
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.proposals import Add
from mimids.store import partitions, welcomes
from mimids.testing.clock import MovableClock
from mimids.values import Device, Follower, Milliseconds
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, KeyPackageRef, PartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    CreateGroupRequest,
    SendRequest,
    WelcomeData,
    WelcomeState,
    WelcomeStatusRequest,
    WelcomeStatusResponse,
)
from tests.support import signing
from tests.support.doubles import Called, stopped_clock
from tests.support.federation import COMMIT, Room, device, federated
from tests.support.mls_makers import replace
from tests.support.provider import Assembled
from tests.support.stored import until
from tests.support.welcomes import REF, hand_out, invite, reaches, welcome_to

A, B, C = "a.example", "b.example", "c.example"
HUB = ProviderId(A)
OTHER = KeyPackageRef(b"of nobody's KeyPackage".ljust(32, b"."))

Told = list[tuple[KeyPackageRef, str, str]]


async def status(at: Assembled, who: Device, key: PartitionKey) -> Told:
    """Ask the hub for the status of the Welcomes to a partition, from a device at any provider."""
    answer = await at.services.hub_router.hub(HUB).welcome_status(who, WelcomeStatusRequest(key))
    return told(decode(WelcomeStatusResponse, answer))


def told(answer: WelcomeStatusResponse) -> Told:
    return [(each.key_package_ref, each.state.name.lower(), each.reason.decode()) for each in answer.statuses]


async def send_welcome(
    hub: Assembled, room: Room, refs: Sequence[KeyPackageRef], to: Sequence[str], sender: Any = None
) -> PartitionKey:
    """Create the group and send a commit with a Welcome; return the key of the next partition."""
    following = room.new_key()
    await hub.services.hub.create_group(room.creation(), device(hub))
    data = CommitData(following, None, WelcomeData(welcome_to(*refs), tuple(map(ProviderId, to))))
    request = SendRequest(room.message("add", kind=COMMIT), room.key, data)
    await hub.services.hub.send(request, sender or device(hub))
    return following


async def test_a_delivered_welcome_is_told_at_the_hub_and_through_a_follower(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (hub, follower):
        await hand_out(follower)
        key = await invite(hub, Room())
        await reaches(hub, "delivered")
        assert await status(hub, device(hub), key) == [(REF, "delivered", "")]
        assert await status(follower, device(follower, "bob"), key) == [(REF, "delivered", "")]


async def test_references_that_a_provider_does_not_accept_are_told_one_by_one(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (hub, follower):
        await hand_out(follower)
        key = await send_welcome(hub, Room(), [OTHER, REF], [B, B])
        await until(lambda: _is_told(hub, key, [(REF, "delivered", ""), (OTHER, "refused", "not-accepted")]))
        assert (hub.services.outgoing_welcomes.statistics().refused, len(await inbox(follower))) == (1, 1)
        (line,) = [each for each in hub.log.lines if each["event"] == "Welcome refused"]
        assert (line["peer"], line["references"], line["reason"]) == (B, 1, "not-accepted")
        assert OTHER.hex() not in hub.log.text


async def _is_told(hub: Assembled, key: PartitionKey, expected: Told) -> bool:
    return await status(hub, device(hub), key) == expected


async def inbox(provider: Assembled) -> list[Any]:
    return await provider.services.incoming_welcomes.inbox(device(provider).row)


async def test_swapped_providers_are_told_and_the_welcome_is_sent_again_by_a_repeat(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, C) as (hub, b, c):
        await hand_out(b)
        await hand_out(c, OTHER)
        room = Room()
        key = await send_welcome(hub, room, [REF, OTHER], [C, B])
        await until(lambda: _is_told(hub, key, [(REF, "refused", "not-accepted"), (OTHER, "refused", "not-accepted")]))
        assert await inbox(b) == await inbox(c) == []
        right = WelcomeData(welcome_to(REF, OTHER), (ProviderId(B), ProviderId(C)))
        again = SendRequest(room.message("add", kind=COMMIT), room.key, CommitData(key, None, right))
        await hub.services.hub.send(again, device(hub))
        await until(lambda: _is_told(hub, key, [(REF, "delivered", ""), (OTHER, "delivered", "")]))
        assert (len(await inbox(b)), len(await inbox(c))) == (1, 1)


async def test_a_provider_that_may_not_be_contacted_is_told_and_costs_no_row_of_its_own(tmp_path: Path) -> None:
    names = [f"made-up-{n}.example" for n in range(3)]
    refs = [KeyPackageRef(bytes([n]) * 32) for n in range(3)]
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        room = Room()
        key = await send_welcome(hub, room, refs, names)
        refused = [(ref, "refused", "provider-not-allowed") for ref in refs]
        assert await status(hub, device(hub), key) == refused
        right = WelcomeData(welcome_to(*refs), (ProviderId(B), *map(ProviderId, names[1:])))
        again = SendRequest(room.message("add", kind=COMMIT), room.key, CommitData(key, None, right))
        for _ in range(2):  # it is repeated, and the rows stay as they are
            await hub.services.hub.send(again, device(hub))
            assert await status(hub, device(hub), key) == [(refs[0], "waiting", ""), *refused[1:]]
            rows = await hub.services.store.read(lambda tx: tx.all("SELECT count(*) FROM unsendable_welcomes"))
            assert rows == [(1,)]


async def test_a_welcome_that_waits_is_told_with_the_last_failure(tmp_path: Path) -> None:
    async with federated(tmp_path, A, jobs_of=("outgoing_welcomes",), federation={"allow": [A, B]}) as (hub,):
        key = await invite(hub, Room())
        await until(lambda: _is_told(hub, key, [(REF, "waiting", "peer-unavailable")]))


@pytest.mark.parametrize("state", ["held", "expired", "cancelled"])
async def test_a_welcome_that_is_not_sent_is_told(state: str, tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        key, now = await invite(hub, Room()), hub.services.clock.now()

        def change(tx: Any) -> None:
            if state == "held":
                tx.execute("UPDATE outgoing_welcomes SET state = 'held'")
            elif state == "expired":
                later = Milliseconds(now + 1)
                welcomes.expire_unsent(tx, held_before=later, due_before=later)
            else:
                branches.terminate(tx, partitions.partition_by_row(tx, 2), "ended", now)

        await hub.services.store.write(change)
        assert await status(hub, device(hub), key) == [(REF, state, "")]


async def test_the_welcome_of_a_creation_is_told_by_the_key_of_the_first_partition(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (hub, follower):
        await hand_out(follower)
        room = Room()
        data = WelcomeData(welcome_to(REF), (ProviderId(B),))
        await hub.services.hub.create_group(replace(room.creation(), welcome_data=data), device(hub))
        await until(lambda: _is_told(hub, room.key, [(REF, "delivered", "")]))


async def test_adds_without_a_welcome_are_told_where_they_are_certain(tmp_path: Path) -> None:
    room, key, following = signing.Room.create(signing.Client.of(1)), Room.new_key(), Room.new_key()
    packages = [signing.Client.of(seed).key_package() for seed in (2, 3)]
    first, second = (package.ref(room.suite) for package in packages)
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        info = MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info())
        creation = CreateGroupRequest(room.group_id, MLS10, room.suite.code, key, info, None, None)
        await hub.services.hub.create_group(creation, device(hub))
        proposal = room.propose(0, Add(packages[0]))
        await hub.services.hub.send(SendRequest(proposal, key, None), device(hub))
        by_reference = signing.by_reference(signing.ref_of(proposal, room.suite))
        commit, _ = room.commit(0, by_reference, signing.by_value(Add(packages[1])))
        data = CommitData(following, None, WelcomeData(welcome_to(second), (ProviderId(B),)))
        await hub.services.hub.send(SendRequest(commit, key, data), device(hub))
        assert await status(hub, device(hub), following) == [(second, "waiting", ""), (first, "missing", "")]
        assert await status(hub, device(hub), key) == []
        await hub.services.store.write(lambda tx: tx.execute("UPDATE messages SET body = NULL"))
        assert await status(hub, device(hub), following) == [(second, "waiting", "")]


async def test_the_status_of_an_encrypted_commit_has_only_what_came(tmp_path: Path) -> None:
    async with federated(tmp_path, A, jobs_of=()) as (hub,):
        room, following = Room(), Room.new_key()
        await hub.services.hub.create_group(room.creation(), device(hub))
        await hub.services.hub.send(room.commit("a commit", following), device(hub))
        assert await status(hub, device(hub), following) == []


async def test_a_key_that_the_hub_does_not_know_has_no_status(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, follower):
        for at in (hub, follower):
            with pytest.raises(UnknownPartition):
                await status(at, device(at), Room.new_key())
        assert await hub.services.store.read(lambda tx: tx.all("SELECT * FROM follows")) == []


async def test_a_question_counts_like_a_message(tmp_path: Path) -> None:
    clock: MovableClock = stopped_clock()
    limits = {
        "device_sends_per_second": 1,
        "device_sends_burst": 1,
        "provider_sends_per_second": 1,
        "provider_sends_burst": 1,
    }
    async with federated(tmp_path, A, B, jobs_of=(), clock=clock, limits=limits) as (hub, follower):
        request = WelcomeStatusRequest(Room.new_key())
        for ask in (
            lambda: status(hub, device(hub), request.partition_key),
            lambda: hub.services.hub.welcome_status(request, Follower(ProviderId(B))),
            lambda: status(follower, device(follower, "bob"), request.partition_key),
        ):
            clock.advance(10)
            with pytest.raises(UnknownPartition):
                await ask()
            with pytest.raises(RateLimited):
                await ask()


async def test_an_answer_that_makes_no_sense_is_a_fault_of_the_hub(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (_, follower):

        async def garbage(called: Called) -> PeerAnswer:
            return PeerAnswer(b"garbage")

        follower.peers.add(A, garbage)
        with pytest.raises(PeerFailed):
            await status(follower, device(follower), Room.new_key())


def test_each_state_of_a_row_has_a_state_on_the_wire() -> None:
    assert {*_STATES.values(), WelcomeState.MISSING} == set(WelcomeState)
    assert encode(WelcomeStatusRequest(PartitionKey(bytes(16)))) == bytes(16)
