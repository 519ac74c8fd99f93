"""Calls to and from providers under terms."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from mimids.ds.terms.peers import HUB_PATHS
from mimids.errors import MimiError, ProviderNotAllowed
from mimids.wire.ids import ProviderId
from tests.support.commands import command
from tests.support.doubles import stopped_clock
from tests.support.federation import Room, device, federated
from tests.support.store_faults import Disk
from tests.support.terms import BOB, bob

A, B = ProviderId("a.example"), ProviderId("b.example")


async def test_a_banned_provider_is_not_dealt_with_either_way_until_its_ban_ends(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (hub, follower):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        await command(hub, "ban add", subject=B, expires_at=clock.now() + 60_000)
        with pytest.raises(ProviderNotAllowed):
            await follower.services.hub_router.hub(A).send(bob(follower), room.send("no"))
        for path in ("/ds/v1/push", "/ds/v1/resume"):
            with pytest.raises(ProviderNotAllowed):
                await hub.services.peers.call(B, "POST", path)
        assert hub.peers.calls == []
        clock.advance(61)
        await follower.services.hub_router.hub(A).send(bob(follower), room.send("yes"))


async def test_calls_that_we_make_as_hub_name_the_revision_of_our_terms_and_no_others_do(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, follower):
        await command(hub, "ban add", subject=BOB)
        for path in (*HUB_PATHS, "/ds/v1/resume", "/ds/v1/send"):
            with suppress(MimiError):  # nothing is in these requests
                await hub.services.peers.call(B, "POST", path)
        named = {called.path: called.terms_revision for called in hub.peers.calls}
        assert named == {**dict.fromkeys(HUB_PATHS, 1), "/ds/v1/resume": None, "/ds/v1/send": None}
        heard = [follower.services.accepted_terms._named.peek(A), hub.services.accepted_terms._named.peek(B)]
        assert heard == [1, 1], "each side remembers the revision that the other one named"


async def test_a_hub_whose_disk_is_full_calls_without_naming_a_revision(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        Disk(hub.services.store).full = True
        with suppress(MimiError):
            await hub.services.peers.call(B, "POST", "/ds/v1/push")
        assert [called.terms_revision for called in hub.peers.calls] == [None]
