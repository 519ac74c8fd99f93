"""The terms that a hub offers: their revision, and their acceptance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mimids.ds.terms.hub_terms import HubTerms
from mimids.errors import (
    ArrangementOutdated,
    ArrangementRequired,
    NotFound,
    ProviderNotAllowed,
)
from mimids.store import arrangements
from mimids.wire.ids import ProviderId
from tests.support.commands import command
from tests.support.doubles import stopped_clock
from tests.support.federation import federated
from tests.support.terms import BOB

A, B = ProviderId("a.example"), ProviderId("b.example")


async def test_a_revision_counts_the_changes_of_what_concerns_the_follower(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        ours = hub.services.offered_terms
        await ours.load(B)
        assert ours.revision(B) == 1
        await command(hub, "ban add", subject="mimi://c.example/u/carol")
        await ours.load(B)
        assert ours.revision(B) == 1  # not about b.example's users
        await command(hub, "ban add", subject=BOB, reason="spam")
        await ours.load(B)
        assert ours.revision(B) == 2
        await command(hub, "ban add", subject=BOB, reason="again spam")
        await ours.load(B)
        assert ours.revision(B) == 2  # why is not part of the terms
        await command(hub, "limit mute", user=BOB, group="mimi://a.example/g/1")
        offer = await ours.terms_for(B)
        assert offer.revision == 3
        assert offer.as_json()["bans"] == [BOB]
        assert offer.as_json()["mutes"] == [{"user_id": BOB, "group_id": "bWltaTovL2EuZXhhbXBsZS9nLzE"}]
        assert HubTerms.read(json.loads(json.dumps(offer.as_json())), A).as_json() == offer.as_json()
        await command(hub, "ban remove", subject=BOB)
        assert (await ours.terms_for(B)).bans == ()


async def test_a_ban_of_a_provider_holds_as_soon_as_it_is_stored(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        ours = hub.services.offered_terms
        await ours.load(B)
        await command(hub, "ban add", subject=B)
        with pytest.raises(ProviderNotAllowed):
            await ours.load(B)


async def test_a_ban_that_ends_is_a_change_too(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (hub, _):
        ours = hub.services.offered_terms
        await command(hub, "ban add", subject=BOB, expires_at=clock.now() + 5000)
        await ours.load(B)
        assert (ours.revision(B), (await ours.terms_for(B)).bans) == (1, (BOB.encode(),))
        clock.advance(4.999)
        await ours.load(B)
        assert ours.revision(B) == 1
        clock.advance(0.001)
        await ours.load(B)
        assert (ours.revision(B), (await ours.terms_for(B)).bans) == (2, ())


async def test_the_revision_before_is_enough_for_exactly_the_grace_period(tmp_path: Path) -> None:
    clock = stopped_clock()
    rule = {"required": True, "grace_seconds": 60}
    async with federated(tmp_path, A, B, clock=clock, jobs_of=(), arrangement=rule) as (hub, _):
        ours = hub.services.offered_terms
        await ours.load(B)
        with pytest.raises(ArrangementRequired) as refused:  # nothing was accepted before
            ours.require(B)
        assert refused.value.members == {"revision": 1}
        await ours.record_acceptance(B, 1)
        ours.require(B)
        for revision, user in ((2, "bob"), (3, "ben")):
            await command(hub, "ban add", subject=f"mimi://b.example/u/{user}")
            await ours.load(B)
            assert ours.revision(B) == revision
            if revision == 2:
                ours.require(B)
                clock.advance(59.999)
                ours.require(B)
                clock.advance(0.001)
            with pytest.raises(ArrangementRequired):  # the period is over; two revisions behind
                ours.require(B)
        await ours.record_acceptance(B, 3)
        ours.require(B)


async def test_an_old_revision_is_not_taken_for_the_current_one(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, follower):
        call = follower.peers.call
        await call(A, "PUT", "/ds/v1/arrangement/1")
        await command(hub, "ban add", subject=BOB)
        for old in (1, 0, 7):
            with pytest.raises(ArrangementOutdated) as outdated:
                await call(A, "PUT", f"/ds/v1/arrangement/{old}")
            assert outdated.value.members["revision"] == 2
        named: list[int] = []
        await call(A, "PUT", "/ds/v1/arrangement/2", on_terms_revision=named.append)
        assert named == [2]
        with pytest.raises(NotFound):
            await call(A, "PUT", "/ds/v1/arrangement/two")


async def test_after_a_restore_no_revision_is_given_twice(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, follower):
        await follower.services.accepted_terms.renew(A)
        await command(hub, "ban add", subject=BOB)
        await follower.services.accepted_terms.renew(A)
        await hub.services.store.write(lambda tx: tx.execute("UPDATE offered_terms SET revision = 1"))
        await command(hub, "ban remove", subject=BOB)  # the database is the one before the ban
        await hub.services.store.write(arrangements.skip_revisions)
        assert await follower.services.accepted_terms.renew(A)
        shown = await command(follower, "provider show", provider=A)
        assert shown["they_ban"] == []
        assert shown["their_terms"] > 2
