"""The terms of a hub as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mimids.ds.terms.hub_terms import HubTerms
from mimids.store import arrangements
from mimids.wire.ids import ProviderId
from tests.support.federation import federated
from tests.support.terms import BOB

A, B = ProviderId("a.example"), ProviderId("b.example")


async def test_a_hub_is_not_believed_about_other_providers_users(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (_, follower):
        said = {
            "revision": 4,
            "hub": A,
            "bans": ["mimi://a.example/u/alice", BOB],
            "mutes": [],
            "rates": {},
            "sizes": {},
        }
        assert {each.user_id for each in HubTerms.read(said, A).terms_for(B)} == {BOB.encode()}
        wrongs: tuple[Any, ...] = (
            {**said, "hub": "c.example"},
            {**said, "revision": "4"},
            {**said, "bans": "all"},
            {**said, "bans": [7]},
            {**said, "mutes": [{"user_id": BOB}]},
            {**said, "rates": {"device_sends_per_second": -1}},
            {**said, "sizes": {"message_bytes": "big"}},
            [],
        )
        for wrong in wrongs:
            with pytest.raises(ValueError, match=r"terms|must|member|encoding"):
                HubTerms.read(wrong, A)
        assert await follower.services.store.read(arrangements.every_accepted) == []
