"""What is refused does not tell a caller which groups and partitions there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimids.errors import MimiError, UnknownGroup
from mimids.values import Follower
from mimids.wire.ids import Counter, GroupId, MaskedPartitionKey, ProviderId
from mimids.wire.messages import ResumeRequest
from tests.support.federation import Room, device, federated
from tests.support.provider import Assembled
from tests.support.stored import provider


async def refusal_of_resume(a: Assembled, caller: str, group: GroupId, key: bytes, counter: int) -> tuple[object, ...]:
    request = ResumeRequest(group, MaskedPartitionKey(key), Counter(counter))
    with pytest.raises(MimiError) as refused:
        await a.services.delivery.resume(request, Follower(ProviderId(caller)))
    return refused.value.code, refused.value.status, str(refused.value), tuple(refused.value.members.items())


@pytest.mark.parametrize("counter", [0, 1, 7])
async def test_a_stranger_cannot_find_groups_by_resuming(tmp_path: Path, counter: int) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, _):
        alice, room, other = device(a), Room(), Room("other")
        await a.services.hub.create_group(room.creation(), alice)
        await a.services.hub.create_group(other.creation(), alice)
        known, unknown = room.key.mask(32), bytes(32)
        refused = {
            await refusal_of_resume(a, "b.example", group, key, counter)
            for group in (room.group_id, other.group_id, GroupId(b"none"), GroupId(b""))
            for key in (known, unknown, bytes(48))
        }
        assert len(refused) == 1


async def test_leaving_does_not_tell_which_groups_our_provider_hosts(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, _):
        alice, mallory, room = device(running), device(running, "mallory"), Room()
        await running.services.hub.create_group(room.creation(), alice)
        hub = running.config.provider
        for group in (room.group_id, GroupId(b"none"), GroupId(b"")):
            await running.services.following.leave(mallory, hub, group)


async def test_leaving_does_not_tell_which_groups_of_other_hubs_are_known(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, mallory, room = device(a), device(b, "mallory"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        for group in (room.group_id, GroupId(b"none")):
            with pytest.raises(UnknownGroup):
                await b.services.following.leave(mallory, room.hub, group)
