"""Another provider as the hub of our devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimids.errors import (
    ArrangementRequired,
    Malformed,
)
from mimids.wire.declare import encode
from mimids.wire.ids import ProviderId
from tests.support.commands import command
from tests.support.doubles import stopped_clock
from tests.support.federation import Room, device, federated, read, wait_stored
from tests.support.terms import bob

A, B = ProviderId("a.example"), ProviderId("b.example")


async def test_terms_that_must_be_accepted_are_and_then_the_request_is_made_again(tmp_path: Path) -> None:
    required = {"required": True, "grace_seconds": 60}
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=(), arrangement=required) as (hub, follower):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        spec = follower.services.peers
        with pytest.raises(ArrangementRequired) as wanted:
            await spec.call(A, "POST", "/ds/v1/receive", b"")
        assert wanted.value.members["revision"] == 1
        for path in ("welcome/init", "push", "resume"):
            with pytest.raises(Malformed):  # of the empty body: these are open to everybody
                await spec.call(A, "POST", f"/ds/v1/{path}")
        await spec.call(A, "GET", "/ds/v1/arrangement")
        await follower.services.hub_router.hub(A).send(bob(follower), room.send("accepted on the way"))
        assert (await command(hub, "provider show", provider=B))["our_terms_accepted"] == 1
        # The terms before the current ones suffice for the grace period, and no longer.
        await command(hub, "ban add", subject="mimi://b.example/u/ben")
        peers = follower.peers
        await peers.call(A, "POST", "/ds/v1/send", encode(room.send("in the grace period")))
        clock.advance(61)
        with pytest.raises(ArrangementRequired) as wanted:
            await peers.call(A, "POST", "/ds/v1/send", encode(room.send("too late")))
        assert wanted.value.members["revision"] == 2
        await follower.services.hub_router.hub(A).send(
            bob(follower), room.send("too late")
        )  # which accepts, and asks again


@pytest.mark.parametrize("way", ["receive", "present"])
async def test_terms_that_must_be_accepted_are_before_a_key_is_presented(way: str, tmp_path: Path) -> None:
    """The first thing that the provider of somebody who was added asks of a hub."""
    async with federated(tmp_path, A, B, arrangement={"required": True}) as (hub, follower):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        await hub.services.hub.send(room.send("hello"), device(hub))
        if way == "receive":
            assert await read(follower, bob(follower), A, room.key) == ["hello"]
        else:
            await follower.services.hub_router.hub(A).present(bob(follower), room.key)
        assert await wait_stored(follower, A, bob(follower), room.key, 1) == ["hello"]
