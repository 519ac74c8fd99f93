"""Calls to and from providers under terms."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimids.errors import (
    ProviderNotAllowed,
)
from mimids.wire.ids import ProviderId
from tests.support.commands import command
from tests.support.doubles import stopped_clock
from tests.support.federation import Room, device, federated
from tests.support.terms import bob

A, B = ProviderId("a.example"), ProviderId("b.example")


async def test_a_banned_provider_is_not_dealt_with_either_way_until_its_ban_ends(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (hub, follower):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        await command(hub, "ban add", subject=B, expires_at=clock.now() + 60_000)
        with pytest.raises(ProviderNotAllowed):
            await follower.services.hub_router.hub(A).send(bob(follower), room.send("no"))
        with pytest.raises(ProviderNotAllowed):
            await hub.services.peers.call(B, "POST", "/ds/v1/push")
        assert hub.peers.calls == []
        clock.advance(61)
        await follower.services.hub_router.hub(A).send(bob(follower), room.send("yes"))
