"""What a provider stores when the request of a device makes it ask a hub."""

from __future__ import annotations

from pathlib import Path

from tests.support.federation import Room, device, federated, read


async def test_the_messages_of_a_known_partition_are_stored_and_stay_readable_without_the_hub(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example", jobs_of=()) as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("here"))
        await a.services.hub.send(room.send("nobody pushes this"), alice)
        everything = ["here", "nobody pushes this"]
        assert await read(b, bob, room.hub, room.key) == everything
        b.peers.peers.clear()
        assert await read(b, bob, room.hub, room.key) == everything
