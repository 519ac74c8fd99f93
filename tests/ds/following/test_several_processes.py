"""A hub pushes to one process of a provider while another one waits for the hub's answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from mimids.ds.following.pending_requests import record_answer
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, PartitionKey, ProviderId
from mimids.wire.messages import Epoch, Message, PushedEpoch, PushRequest
from tests.support import postgresql
from tests.support.federation import Room
from tests.support.stored import until
from tests.support.twins import twins

pytestmark = pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing()))

B = ProviderId("b.example")


def pushing_to(room: Room, *keys: PartitionKey) -> PushRequest:
    epoch = Epoch((Message(room.message("early"), None),))
    return PushRequest(tuple(PushedEpoch(room.group_id, key.mask(32), Counter(0), None, epoch) for key in keys))


@pytest.mark.parametrize("is_answered", [True, False])
async def test_a_push_waits_for_the_answer_to_a_request_of_another_process(is_answered: bool, tmp_path: Path) -> None:
    async with twins(tmp_path) as (one, other):
        token, room = await one.add_device(), Room(hub=B)
        assert token
        row = (await one.services.store.read(lambda tx: tx.all("SELECT id FROM devices")))[0][0]
        push = pushing_to(room, room.key)
        answers: list[Counter] = []

        async def receive() -> None:
            answers.extend((await other.services.epoch_receiver.receive_push(B, push)).next_counters)

        pending = one.services.epoch_receiver.pending
        with pending.waiting_for(B, room.key.masks(), row) as request:
            async with trio.open_nursery() as pushing:
                pushing.start_soon(receive)
                await trio.sleep(0.1)
                services = one.services
                if is_answered:
                    await record_answer(
                        services.store, services.clock, pending.left, B, room.key.masks(), request, linear=False
                    )
        assert answers == [Counter(1) if is_answered else NO_LONGER_FOLLOWED]


async def test_one_push_of_a_hub_waits_and_its_next_is_answered_at_once(tmp_path: Path) -> None:
    async with twins(tmp_path) as (_, other):
        room, first = Room(hub=B), trio.Event()

        async def receive() -> None:
            await other.services.epoch_receiver.receive_push(B, pushing_to(room, room.key))
            first.set()

        async with trio.open_nursery() as pushing:
            pushing.start_soon(receive)
            await until(lambda: _returns(other.services.epoch_receiver._looking == {B}))
            answer = await other.services.epoch_receiver.receive_push(B, pushing_to(room, *map(room_key, range(64))))
            assert not first.is_set()
        assert set(answer.next_counters) == {NO_LONGER_FOLLOWED}


def room_key(number: int) -> PartitionKey:
    return PartitionKey(number.to_bytes(PartitionKey.SIZE, "big"))


async def _returns(value: bool) -> bool:
    return value
