"""Two processes of one provider, on one database: what one was told, the other knows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from mimids.config import Config
from mimids.ds.ports import PeerAnswer
from mimids.values import Follower
from mimids.wire.declare import decode, encode
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, ProviderId
from mimids.wire.messages import PushRequest, PushResponse, ReceiveRequest
from tests.support.doubles import Called
from tests.support.federation import Room, device, federated, in_memory_peer, wait_stored
from tests.support.provider import Assembled, assembled
from tests.support.stored import count, until

A, B = ProviderId("a.example"), ProviderId("b.example")


@asynccontextmanager
async def twin_of(config: Config) -> AsyncIterator[Assembled]:
    """Run another process of a provider."""
    async with assembled(config) as twin:
        yield twin


async def test_a_push_is_wanted_by_the_process_that_did_not_request_it(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (a, b), twin_of(b.config) as other:
        alice, bob, room = device(a), device(b, "bob"), Room(hub=A)
        await a.services.hub.create_group(room.creation(), alice)
        assert (await b.services.hub_router.hub(A).receive(bob, ReceiveRequest(room.key, Counter(0)))) is not None
        assert count(b, "SELECT count(*) FROM requested_partitions") == 1
        a.peers.add(B, in_memory_peer(other, A))
        async with trio.open_nursery() as jobs:
            await jobs.start(a.services.delivery.run)
            await a.services.hub.send(room.send("hello"), alice)
            assert await wait_stored(b, A, bob, room.key, 1) == ["hello"]
            jobs.cancel_scope.cancel()
        assert count(b, "SELECT count(*) FROM requested_partitions") == 0
        assert count(b, "SELECT count(*) FROM participations WHERE left_at IS NULL") == 1


async def test_a_key_presented_to_one_process_stays_followed_though_the_other_hears_that_it_is_not(
    tmp_path: Path,
) -> None:
    async with federated(tmp_path, A, jobs_of=()) as (a,), twin_of(a.config) as other:
        room, pushed = Room(hub=A), list[list[int]]()
        key = ReceiveRequest(room.key, Counter(0))
        await a.services.hub.create_group(room.creation(), device(a))
        await a.services.hub.receive(key, Follower(B))

        async def follower(called: Called) -> PeerAnswer:
            epochs = decode(PushRequest, called.body).epochs
            pushed.append([len(epoch.epoch.messages) for epoch in epochs])
            if len(pushed) > 1:
                return PeerAnswer(encode(PushResponse(tuple(Counter(sum(each)) for each in [pushed[-1]]))))
            await other.services.hub.receive(key, Follower(B))  # after it decided
            return PeerAnswer(encode(PushResponse((NO_LONGER_FOLLOWED,))))

        a.peers.add(B, follower)
        async with trio.open_nursery() as jobs:
            await jobs.start(a.services.delivery.run)
            await a.services.hub.send(room.send("hello"), device(a))

            async def is_settled() -> bool:
                return count(a, "SELECT count(*) FROM follows WHERE next_counter = 1 AND presented = 0") == 1

            await until(is_settled)
            jobs.cancel_scope.cancel()
        assert pushed == [[1], [1]]


async def test_what_was_requested_outlives_a_restart(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (a, b):
        await b.add_device("bob")  # the requests of a device that does not exist are deleted
        bob, room = device(b, "bob"), Room(hub=A)
        await a.services.hub.create_group(room.creation(), device(a))
        await b.services.hub_router.hub(A).receive(bob, ReceiveRequest(room.key, Counter(0)))
        async with assembled(b.config) as again:
            a.peers.add(B, in_memory_peer(again, A))
            await a.services.hub.send(room.send("hello"), device(a))
            assert await wait_stored(b, A, bob, room.key, 1) == ["hello"]
