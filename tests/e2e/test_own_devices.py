"""What a device asks about its user's other devices and its own partitions, over TLS at running providers."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime

import pytest

from mimids.client import Problem
from mimids.mls.leaf_node import HpkePublicKey, Lifetime
from mimids.testing import DeviceAccount, PretendGroup, Session, open_federation
from mimids.wire.ids import CipherSuite, Counter, PartitionKey, ProviderId, UserId
from mimids.wire.messages import MOST_POSITIONS, KeyPackageStatus, Position
from tests.support.mls_makers import DAY, Signer, key_package, leaf_node

SUITE = CipherSuite(1)
UNKNOWN = Position(0, Counter(0), Counter(0), 0, ())


def key_packages(account: DeviceAccount, count: int) -> list[bytes]:
    signer, now = Signer.of(SUITE), int(time.time())
    leaf = leaf_node(signer, UserId(account.user_id.encode()), origin=Lifetime(now - DAY, now + DAY))
    init_keys = [HpkePublicKey(secrets.token_bytes(32)) for _ in range(count)]
    return [key_package(signer, leaf, init_key=init_key).encoded for init_key in init_keys]


async def test_a_device_gets_a_key_package_of_each_of_its_siblings(mimids_session: Session) -> None:
    async with open_federation("a.example", session=mimids_session) as (a,):
        accounts = [a.add_device("alice", name) for name in ("phone", "laptop", "tablet")]
        made = [key_packages(each, 2) for each in accounts]
        for account, own in zip(accounts, made, strict=True):
            async with account.client() as device:
                assert (await device.upload(own)).accepted == 2
        async with accounts[0].client() as phone:
            for _ in range(2):
                results = await phone.siblings(SUITE)
                assert [each.status for each in results] == [KeyPackageStatus.OK] * 2
                in_order = sorted(results, key=lambda each: each.key_package in made[2])
                for result, own in zip(in_order, made[1:], strict=True):
                    own.remove(result.key_package or b"")
            assert made == [made[0], [], []]
            with pytest.raises(Problem) as refused:
                await phone.siblings(SUITE)
            assert (refused.value.status, refused.value.code) == (404, "key-packages-exhausted")
            assert [each["left"] for each in (await phone.me())["stock"]] == [2]


async def test_a_device_that_wakes_asks_once_how_far_its_partitions_go(mimids_session: Session) -> None:
    async with open_federation("a.example", "b.example", session=mimids_session) as (a, b):
        group, hub = PretendGroup.at(a.name), ProviderId(a.name)
        async with a.add_device("alice").client() as alice, b.add_device("bob").client() as bob:
            await alice.create_group(group.creation())
            commit, following = group.commit()
            await alice.send_batch(hub, [group.message(b"0"), group.message(b"1"), commit])
            keys = [group.key, PartitionKey(secrets.token_bytes(16))]
            expected = Position(1, Counter(0), Counter(3), 0, (following.key.mask(32),))
            assert await alice.positions(hub, keys) == (expected, UNKNOWN)
            assert await bob.positions(hub, keys) == (UNKNOWN, UNKNOWN), "nobody presented the key here"
            assert len(await bob.receive(hub, group.key)) == 3
            while (told := await bob.positions(hub, keys))[0].next_counter < 3:
                pass
            assert told == (expected, UNKNOWN)
            many = [PartitionKey(number.to_bytes(16, "big")) for number in range(MOST_POSITIONS)]
            assert await alice.positions(hub, [*many, group.key]) == (UNKNOWN,) * MOST_POSITIONS + (expected,)


async def test_many_positions_count_as_several_requests(mimids_session: Session) -> None:
    limits = {"limits": {"device_requests_per_minute": 12}}
    async with open_federation("a.example", session=mimids_session, config=limits) as (a,):
        keys = [PartitionKey(number.to_bytes(16, "big")) for number in range(256)]
        a.clock.stop(datetime.now(UTC))
        async with a.add_device("alice").client() as alice:
            for _ in range(3):
                await alice.positions(ProviderId(a.name), keys)
            with pytest.raises(Problem) as refused:
                await alice.positions(ProviderId(a.name), keys[:1])
            assert refused.value.code == "rate-limited"
