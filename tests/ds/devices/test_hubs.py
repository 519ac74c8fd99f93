"""The hub of a group as a device uses it: which one a provider's is, and what both kinds answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimids.ds.devices.hubs import encode_outcomes, insert_refusals
from mimids.ds.devices.own_hub import OwnHub
from mimids.ds.devices.remote_hub import RemoteHub
from mimids.errors import MimiError, NotFound, RateLimited, UnknownPartition
from mimids.wire.ids import Counter, ProviderId
from mimids.wire.messages import ReceiveRequest
from tests.support.federation import Room, device, federated

A, B = ProviderId("a.example"), ProviderId("b.example")


async def test_a_providers_hub_is_our_own_or_a_remote_one(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (own, _):
        ours, theirs = own.services.hub_router.hub(A), own.services.hub_router.hub(B)
        assert isinstance(ours, OwnHub)
        assert isinstance(theirs, RemoteHub)
        assert (ours.provider, theirs.provider) == (A, B)
        assert (ours.needs_keys, theirs.needs_keys) == (False, True)


async def test_a_partition_that_the_hub_does_not_have_is_unknown_and_one_to_be_pushed_is_none(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, follower):
        asked = ReceiveRequest(Room().key, Counter(0))
        own = hub.services.hub_router.hub(A)
        await own.present(device(hub), asked.partition_key)  # changes nothing
        with pytest.raises(UnknownPartition):
            await own.page(device(hub), asked, limit_octets=1000)
        remote = follower.services.hub_router.hub(A)
        assert await remote.page(device(follower, "bob"), asked, limit_octets=1000) is None
        assert follower.peers.calls == []


def test_refusals_and_answers_keep_the_order_of_the_messages() -> None:
    def problem(error: MimiError) -> bytes:
        return error.code.encode()

    answers = encode_outcomes([NotFound(), NotFound()], problem)
    refusals = [None, RateLimited("device_sends_per_second", 1), None]
    assert insert_refusals(refusals, answers, problem) == [b"not-found", b"rate-limited", b"not-found"]
