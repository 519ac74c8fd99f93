"""Budgets and quotas: what one sender uses up is not taken from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from mimids.ds.groups.branches import terminate_by_rule
from mimids.errors import MimiError, QuotaExceeded, RateLimited
from mimids.mls.code_points import ExtensionType, WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.leaf_node import Extension
from mimids.store import partitions, providers, welcomes
from mimids.values import Device, DeviceRow, Follower, Milliseconds
from mimids.wire.ids import MLS10, Counter, KeyPackageRef, PartitionKey, ProviderId, local_user_id
from mimids.wire.messages import (
    CommitData,
    Epoch,
    Message,
    PushedEpoch,
    PushRequest,
    SendRequest,
    SendResponse,
)
from tests.support import signing
from tests.support.federation import COMMIT, Room, device
from tests.support.provider import Assembled
from tests.support.stored import DAY, bodies, provider, rows, until
from tests.support.tables import octets_of_tables

MEBI = 1 << 20
B, C = Follower(ProviderId("b.example")), Follower(ProviderId("c.example"))


def group_info(room: Room, octets: int, *, epoch: int = 1) -> MLSMessage:
    """Return a sound GroupInfo of about that size for a group that nobody knows."""
    made = attrs.evolve(
        signing.Room.create(signing.Client.of(1)), epoch=epoch, confirmed=bytes(32), group_id=room.group_id
    )
    info = made.info(Extension(ExtensionType(0xF0F1), bytes(octets)))
    return MLSMessage(MLS10, WireFormat.GROUP_INFO, info)


def noise(room: Room, number: int, info: MLSMessage | None, key: PartitionKey | None = None) -> SendRequest:
    """Return an encrypted commit that nobody will follow."""
    data = CommitData(Room.new_key(), info, None)
    return SendRequest(room.message(f"noise {number}", kind=COMMIT), key or room.key, data)


async def stored_octets(running: Assembled) -> int:
    return await running.services.store.read(octets_of_tables)


async def test_a_flood_of_junk_commits_neither_blocks_others_nor_fills_the_disk(tmp_path: Path) -> None:
    small = {"device_bytes_burst": 32 * MEBI, "device_bytes_per_day": 32 * MEBI, "device_branch_bytes": 4 * MEBI}
    limits = {**small, "device_branches": 0, "device_sends_per_second": 100}
    async with provider(tmp_path, limits=limits) as (running, clock):
        alice, room = device(running), Room()
        mallory = Device(alice.provider, local_user_id(alice.provider, "mallory"), DeviceRow(2), "phone")
        services = running.services
        await services.hub.create_group(room.creation(), alice)
        info = group_info(room, MEBI)
        sent = accepted = 0
        with trio.fail_after(120):
            for second in range(60):
                clock.advance(1)
                batch = [noise(room, sent + n, info) for n in range(20)]
                sent += len(batch)
                results = await services.hub_router.hub(room.hub).send_batch(mallory, batch)
                accepted += sum(isinstance(each, SendResponse) for each in results)
                await services.hub_router.hub(room.hub).send(alice, room.send(f"alice {second}"))
                assert isinstance(await services.hub.send(room.send(f"bob {second}"), B), SendResponse)
        assert 20 <= accepted <= 40 < sent
        assert await stored_octets(running) < 48 * MEBI
        kept = "SELECT coalesce(sum(length(group_info)), 0) FROM {} WHERE group_info IS NOT NULL"
        for table in ("partitions", "messages"):
            ((octets,),) = await rows(running, kept.format(table))
            assert MEBI < octets < 6 * MEBI
        assert (await rows(running, "SELECT count(*) FROM messages WHERE kind = 1")) == [(120,)]


async def test_a_sender_over_its_quota_of_group_infos_loses_its_own_oldest_unused_ones(tmp_path: Path) -> None:
    async with provider(tmp_path, limits={"device_branch_bytes": 3 * MEBI}) as (running, _):
        alice, room = device(running), Room()
        hub = running.services.hub
        await hub.create_group(room.creation(), alice)
        info = group_info(room, MEBI)
        carol = attrs.evolve(alice, row=DeviceRow(3))
        used = noise(room, 0, info)
        await hub.send(used, alice)
        assert used.commit_data is not None
        await hub.send(room.send("used", used.commit_data.next_partition_key, epoch=1), alice)
        await hub.send(noise(room, 1, info), carol)
        answers = [await hub.send(noise(room, n, info), alice) for n in range(2, 7)]
        assert [answer.counter for answer in answers] == [2, 3, 4, 5, 6], "no commit is refused for that"
        found = await rows(running, "SELECT group_info IS NOT NULL FROM partitions WHERE parent > 0 ORDER BY id")
        assert [row[0] for row in found] == [1, 1, 0, 0, 0, 1, 1]
        found = await rows(running, "SELECT group_info IS NOT NULL FROM messages WHERE kind = 3 ORDER BY seq")
        assert [row[0] for row in found] == [1, 1, 0, 0, 0, 1, 1]


async def test_each_provider_has_a_quota_of_its_own_in_each_group(tmp_path: Path) -> None:
    limits = {"provider_branches": 2, "provider_detached_partitions": 1}
    async with provider(tmp_path, limits=limits) as (running, _):
        hub, alice = running.services.hub, device(running)
        room, other = Room(), Room("other")
        for each in (room, other):
            await hub.create_group(each.creation(), alice)
        for n in range(2):
            await hub.send(noise(room, n, None), B)
        await hub.send(room.send("nowhere", Room.new_key()), B)
        with pytest.raises(QuotaExceeded) as refused:
            await hub.send(noise(room, 2, None), B)
        assert refused.value.members == {"limit": "provider_branches"}
        with pytest.raises(QuotaExceeded):
            await hub.send(other.send("nowhere", Room.new_key()), B)
        for sender, where, n in ((C, room, 3), (alice, room, 4), (B, other, 5)):
            await hub.send(noise(where, n, None), sender)
        await hub.send(room.send("nowhere", Room.new_key()), C)


async def test_octets_count_against_a_device_at_every_hub_and_against_a_provider_in_sum(tmp_path: Path) -> None:
    limits = {
        "device_bytes_burst": 32 * MEBI,
        "device_bytes_per_day": 32 * MEBI,
        "provider_bytes_burst": 32 * MEBI,
        "provider_bytes_per_day": 64 * MEBI,
    }
    federation = {"allow": ["b.example"]}
    async with provider(tmp_path, limits=limits, federation=federation) as (running, clock):
        services, alice, room = running.services, device(running), Room()
        await services.hub.create_group(room.creation(), alice)
        info = group_info(room, 8 * MEBI - 4096)
        elsewhere = ProviderId("b.example")
        for n in range(4):
            with pytest.raises(MimiError):  # nobody is there, but it is counted
                await services.hub_router.hub(elsewhere).send(alice, noise(room, n, info))
        with pytest.raises(RateLimited) as refused:
            await services.hub_router.hub(elsewhere).send(alice, noise(room, 4, info))
        assert refused.value.members["limit"] == "device_bytes_per_day"
        for n in range(4):
            await services.hub.send(noise(room, n, info), B)
        for _ in range(2):
            with pytest.raises(RateLimited):
                await services.hub.send(noise(room, 5, info), B)
            await services.hub.send(room.send(f"small {_}"), C)
            await services.hub.send(room.send(f"also small {_}"), B)
        clock.advance(DAY / 4)
        await services.hub.send(noise(room, 6, info), B)


async def test_a_device_creates_at_most_its_quota_of_groups_and_repeats_do_not_count(tmp_path: Path) -> None:
    async with provider(tmp_path, limits={"device_groups": 2}) as (running, _):
        hub, alice = running.services.hub, device(running)
        rooms = [Room(f"{n}") for n in range(3)]
        for room in rooms[:2]:
            await hub.create_group(room.creation(), alice)
        with pytest.raises(QuotaExceeded) as refused:
            await hub.create_group(rooms[2].creation(), alice)
        assert refused.value.members == {"limit": "device_groups"}
        await hub.create_group(rooms[0].creation(), alice)
        await hub.create_group(rooms[2].creation(), attrs.evolve(alice, row=DeviceRow(2)))


# --- what others push ---------------------------------------------------------------------------------------------


def pushed(room: Room, texts: list[str], counter: int = 0) -> PushRequest:
    messages = tuple(Message(room.message(text), None) for text in texts)
    return PushRequest((PushedEpoch(room.group_id, room.key.mask(32), Counter(counter), None, Epoch(messages)),))


async def expect_welcome(running: Assembled, number: int) -> None:
    now = running.services.clock.now()

    def work(tx: Any) -> None:
        hub = providers.ensure_provider(tx, ProviderId("b.example"))
        welcomes.expect(tx, hub, KeyPackageRef(bytes([number]) * 32), DeviceRow(1), now)

    await running.services.store.write(work)


async def test_pushes_for_groups_without_our_devices_are_bounded_and_expire(tmp_path: Path) -> None:
    async with provider(tmp_path, limits={"provider_unmatched_bytes": 1000}) as (running, clock):
        following, receiver = running.services.following, running.services.epoch_receiver
        hub = ProviderId("b.example")
        rooms = [Room(f"{n}", hub) for n in range(3)]
        assert (await receiver.receive_push(hub, pushed(rooms[0], ["0"]))).next_counters == (0xFFFF_FFFF,)
        for number in range(2):
            await expect_welcome(running, number)
        texts = [f"{n}" for n in range(20)]
        assert (await receiver.receive_push(hub, pushed(rooms[0], texts[:5]))).next_counters == (5,)
        assert (await receiver.receive_push(hub, pushed(rooms[0], texts[:5]))).next_counters == (5,), "nothing is new"
        assert (await receiver.receive_push(hub, pushed(rooms[0], texts[5:], 5))).next_counters == (0xFFFF_FFFF,), (
            "no room"
        )
        assert (await receiver.receive_push(hub, pushed(rooms[1], texts[:1]))).next_counters == (1,)
        assert (await receiver.receive_push(hub, pushed(rooms[2], texts[:1]))).next_counters == (0xFFFF_FFFF,)
        alice = device(running)
        await following.note_sent(alice, hub, rooms[0].group_id, [])
        assert (await receiver.receive_push(hub, pushed(rooms[0], texts[5:], 5))).next_counters == (20,)
        clock.advance(91 * DAY)
        assert (await receiver.receive_push(hub, pushed(rooms[0], ["new"], 20))).next_counters == (21,)
        await running.services.sweeper.sweep()
        assert await rows(running, "SELECT group_id FROM groups") == [(rooms[0].group_id,)]
        assert await rows(running, "SELECT count(*) FROM expected_welcomes") == [(0,)]
        assert (await receiver.receive_push(hub, pushed(rooms[1], texts[:1]))).next_counters == (0xFFFF_FFFF,)


# --- the rule that ends branches ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "ended_after_8_days", "ended_after_31_days"),
    [
        ({}, set(), set()),
        ({"terminate_childless_days": 7}, {"early", "late"}, {"early", "late"}),
        ({"terminate_age_days": 30}, set(), {"early", "late"}),
    ],
)
async def test_branches_are_terminated_by_age_or_lack_of_commits_and_not_by_traffic(
    tmp_path: Path, rule: dict[str, Any], ended_after_8_days: set[str], ended_after_31_days: set[str]
) -> None:
    async with provider(tmp_path, group=rule) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        await hub.create_group(room.creation(), alice)
        keys = {name: Room.new_key() for name in ("early", "used", "late", "below")}
        for name in ("early", "used", "late"):
            await hub.send(room.commit(name, keys[name]), alice)
        for n in range(20):
            await hub.send(room.send(f"much is said {n}", keys["late"], epoch=1), alice)
        message = room.message("on", epoch=1, kind=COMMIT)
        await hub.send(SendRequest(message, keys["used"], CommitData(keys["below"], None, None)), alice)
        masks = {key.mask(32): name for name, key in keys.items()}
        for days, expected in ((8, ended_after_8_days), (23, ended_after_31_days)):
            clock.advance(days * DAY)
            await running.services.sweeper.sweep()
            found = await rows(running, "SELECT masked_key FROM partitions WHERE terminated_by IS NOT NULL")
            assert {masks[row[0]] for row in found} == expected


async def test_of_equal_branches_the_first_is_kept(tmp_path: Path) -> None:
    async with provider(tmp_path, group={"terminate_age_days": 1, "terminate_childless_days": 1}) as (running, _):
        hub, alice, room = running.services.hub, device(running), Room()
        await hub.create_group(room.creation(), alice)
        keys = [Room.new_key() for _ in range(3)]
        for n, key in enumerate(keys):
            await hub.send(room.commit(f"{n}", key), alice)
        later = Milliseconds(running.services.clock.now() + 10 * 86_400_000)
        rule = running.config.group

        def end(tx: Any) -> int:
            return terminate_by_rule(tx, partitions.partition_by_row(tx, 1), rule, later)

        assert await running.services.store.write(end) == 2
        assert await running.services.store.write(end) == 0
        ended = "SELECT terminated_by IS NOT NULL FROM partitions WHERE parent = 1 ORDER BY id"
        assert [row[0] for row in await rows(running, ended)] == [0, 1, 1]


# --- Welcomes -----------------------------------------------------------------------------------------------------


async def test_expired_welcomes_are_dropped_and_their_bodies_with_the_last_of_them(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        services, alice, room = running.services, device(running), Room()
        await services.hub.create_group(room.creation(), alice)
        start = clock.now()

        def queue(tx: Any) -> None:
            for number, held in enumerate((True, False, False)):
                row = welcomes.keep_welcome(tx, b"%d" % number, start)
                refs = [KeyPackageRef(bytes(32))]
                welcomes.add_outgoing(tx, welcome=row, partition=1, provider=1, refs=refs, held=held, now=start)
            welcomes.settle_outgoing(tx, 3, "delivered", None)
            for number in (1, 2):  # of the same bodies, two for a device of ours; one is acknowledged
                welcomes.put_in_inbox(tx, DeviceRow(1), number, 1, start)
            welcomes.acknowledge(tx, DeviceRow(1), [2], start)

        await services.store.write(queue)
        states = "SELECT state FROM outgoing_welcomes ORDER BY id"
        seen = []
        for days in (6, 2, 80, 3):
            clock.advance(days * DAY)
            await services.sweeper.sweep()
            left = [row[0] for row in await rows(running, states)]
            ((inbox,),) = await rows(running, "SELECT count(*) FROM inbox")
            ((kept,),) = await rows(running, "SELECT count(*) FROM welcomes")
            ((held,),) = await rows(running, "SELECT held_welcomes FROM partitions")
            seen.append((left, inbox, kept, held))
        assert seen == [
            (["held", "due", "delivered"], 2, 3, 1),
            (["expired", "due", "delivered"], 2, 3, 0),
            (["expired", "due", "delivered"], 2, 3, 0),
            ([], 0, 0, 0),
        ]


async def test_messages_are_kept_while_a_welcome_to_their_partition_is_held(tmp_path: Path) -> None:
    async with provider(tmp_path, welcome={"hold_days": 60}) as (running, clock):
        services, alice, room = running.services, device(running), Room()
        await services.hub.create_group(room.creation(), alice)
        for n in range(2):
            await services.hub.send(room.send(f"{n}"), alice)

        def queue(tx: Any) -> None:
            row = welcomes.keep_welcome(tx, b"welcome", clock.now())
            refs = [KeyPackageRef(bytes(32))]
            welcomes.add_outgoing(tx, welcome=row, partition=1, provider=1, refs=refs, held=True, now=clock.now())

        await services.store.write(queue)
        clock.advance(40 * DAY)
        await services.sweeper.sweep()
        assert await bodies(running, room.key) == [True, True]
        clock.advance(21 * DAY)
        await services.sweeper.sweep()
        assert await bodies(running, room.key) == [False, False]
        await until(lambda: rows(running, "SELECT 1 FROM outgoing_welcomes WHERE state = 'expired'"))
