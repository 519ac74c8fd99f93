"""The terms of a hub as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mimids.ds.limits.rates import Rate
from mimids.ds.terms.hub_terms import HubTerms
from mimids.store import arrangements
from mimids.store.arrangements import Restriction
from mimids.wire.ids import GroupId, ProviderId, UserId
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


USER = f"mimi://{B}/u/"
TERMS: dict[str, Any] = {"revision": 1, "hub": A, "bans": [], "mutes": [], "rates": {}, "sizes": {}}


@pytest.mark.parametrize(
    ("at_the_bound", "beyond"),
    [
        ({"revision": 0}, {"revision": -1}),
        ({"revision": (1 << 63) - 1}, {"revision": 1 << 63}),
        ({"revision": 1}, {"revision": True}),
        ({"rates": {"device_sends_burst": 999_999_999_999}}, {"rates": {"device_sends_burst": 1e12}}),
        ({"rates": {"device_sends_burst": 0}}, {"rates": {"device_sends_burst": True}}),
        ({"sizes": {"message_bytes": (1 << 63) - 1}}, {"sizes": {"message_bytes": 1 << 63}}),
        ({"sizes": {"message_bytes": 0}}, {"sizes": {"message_bytes": False}}),
        ({"bans": [USER + "x" * (1024 - len(USER))]}, {"bans": [USER + "x" * (1025 - len(USER))]}),
        ({"mutes": [{"user_id": USER + "bob", "group_id": None}]}, {"mutes": [{"user_id": USER, "group_id": None}]}),
        ({"mutes": [{"user_id": USER + "bob", "group_id": "QQ"}]}, {"mutes": [{"user_id": USER + "b", "group_id": 1}]}),
    ],
)
def test_each_member_of_terms_has_an_exact_bound(at_the_bound: dict[str, Any], beyond: dict[str, Any]) -> None:
    read = HubTerms.read({**TERMS, **at_the_bound}, A)
    assert {**TERMS, **at_the_bound, "rates": {}, "sizes": {}} == {**read.as_json(), "rates": {}, "sizes": {}}
    with pytest.raises(ValueError, match=r"whole number|a rate|member|id of a ban"):
        HubTerms.read({**TERMS, **beyond}, A)


def test_a_limit_of_zero_is_no_limit_and_unknown_members_are_ignored() -> None:
    said = {**TERMS, "rates": {"device_sends_per_second": 2.5, "x": "?"}, "sizes": {"group_info_bytes": 0, "y": "?"}}
    read = HubTerms.read({**said, "new": 1}, A)
    assert (read.rates, read.sizes) == ({"device_sends_per_second": 2.5}, {})
    assert HubTerms.read({**TERMS, "rates": None, "sizes": None}, A).rates == {}


def test_a_rate_of_a_hub_needs_its_burst() -> None:
    rates = {"device_sends_per_second": 2, "device_joins_per_hour": 36, "device_joins_burst": 5}
    read = HubTerms.read({**TERMS, "rates": rates}, A)
    assert read.rate("device_sends", 1) is None
    assert read.rate("device_joins", 3600) == Rate("hub_device_joins_per_hour", 0.01, 5)


def test_stored_terms_of_earlier_versions_lose_what_is_not_a_user() -> None:
    bob = {"user_id": BOB, "group_id": None}
    said = {**TERMS, "bans": ["bob", BOB], "mutes": [{"user_id": "bob", "group_id": None}, bob]}
    read = HubTerms.read(said, A, stored=True)
    assert (read.as_json()["bans"], read.as_json()["mutes"]) == ([BOB], [bob])
    with pytest.raises(ValueError, match="id of a ban"):
        HubTerms.read(said, A)
    bob_id = UserId(BOB.encode())
    assert read.terms_for(B) == {Restriction(bob_id, None), Restriction(bob_id, GroupId(b""))}
    assert read.terms_for(A) == set()
