"""Group ids have a bound wherever they come in, so that a few of them cannot fill the lists of the operator."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimids.ds.terms.hub_terms import HubTerms
from mimids.errors import Malformed
from mimids.http.api.parameters import group_id_in
from mimids.wire.base64url import base64url
from mimids.wire.codec import WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import GROUP_ID, GROUP_ID_OCTETS, MLS10, CipherSuite, GroupId, ProviderId
from mimids.wire.messages import CreateGroupRequest, GroupInfoRequest, HeldGroupsResponse
from tests.support.federation import Room, device, federated
from tests.support.stored import count

LONGEST, TOO_LONG = GroupId(bytes(GROUP_ID_OCTETS)), GroupId(bytes(GROUP_ID_OCTETS + 1))


def creation(group_id: GroupId) -> CreateGroupRequest:
    return CreateGroupRequest(group_id, MLS10, CipherSuite(1), Room.new_key(), None, None, None)


@pytest.mark.parametrize(
    "value",
    [GroupInfoRequest(TOO_LONG), HeldGroupsResponse((TOO_LONG,)), creation(TOO_LONG)],
)
def test_the_wire_format_has_no_longer_group_id(value: object) -> None:
    with pytest.raises(WireError, match=f"longer than {GROUP_ID_OCTETS} octets"):
        decode(type(value), encode(value))


def test_the_longest_group_id_is_read() -> None:
    assert GROUP_ID.decode(GROUP_ID.encode(LONGEST)) == LONGEST


def test_a_path_and_the_terms_of_a_hub_have_no_longer_group_id() -> None:
    assert group_id_in({"group_id": base64url(LONGEST)}) == LONGEST
    with pytest.raises(Malformed, match="group id"):
        group_id_in({"group_id": base64url(TOO_LONG)})
    mute = {"user_id": "mimi://b.example/u/bob", "group_id": base64url(TOO_LONG)}
    with pytest.raises(ValueError, match="group id"):
        HubTerms.read({"revision": 1, "hub": "a.example", "bans": [], "mutes": [mute]}, ProviderId("a.example"))


async def test_a_group_without_an_id_is_not_created(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=()) as (a,):
        with pytest.raises(Malformed, match="group_id"):
            await a.services.hub.create_group(creation(GroupId(b"")), device(a))
        assert count(a, "SELECT count(*) FROM groups") == 0
