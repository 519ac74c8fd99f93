"""Room policy in the app_data_dictionary: its encoding, compared with recorded bytes, and the effect of updates."""

from __future__ import annotations

from typing import Any

import pytest

from mimids.mls.code_points import ComponentId, ExtensionType, ProposalType
from mimids.mls.components import (
    BANNED_ROLE,
    CAN_SEND_MESSAGE,
    AppDataDictionary,
    ComponentData,
    ParticipantList,
    ParticipantListUpdate,
    RolesList,
    UserIndexRolePair,
    UserRolePair,
    apply_update,
    dictionary_of,
)
from mimids.mls.faults import FaultError
from mimids.mls.framing import MLS_MESSAGE, PublicMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.leaf_node import Extension
from mimids.mls.proposals import Commit, GroupContextExtensions, Proposal
from mimids.wire.declare import decode, encode
from mimids.wire.ids import UserId
from tests import vectors
from tests.support.strategies import rebuilt

ALICE, BOB, CAROL = UserId(b"mimi://a.example/u/alice"), UserId(b"mimi://b.example/u/bob"), UserId(b"carol")


def pairs(**roles: int) -> tuple[UserRolePair, ...]:
    names = {"alice": ALICE, "bob": BOB, "carol": CAROL}
    return tuple(UserRolePair(names[name], role) for name, role in roles.items())


def update(
    changed: dict[int, int] | None = None, removed: tuple[int, ...] = (), added: tuple[UserRolePair, ...] = ()
) -> bytes:
    roles = tuple(UserIndexRolePair(index, role) for index, role in (changed or {}).items())
    return encode(ParticipantListUpdate(roles, removed, added))


def recorded_dictionaries() -> list[tuple[dict[str, Any], AppDataDictionary]]:
    found = []
    for line in vectors.load_lines("conversations/policy.jsonl"):
        lists: list[tuple[Extension, ...]] = []
        if "bytes" in line and line["kind"] != "ratchet_tree":
            message = MLS_MESSAGE.decode(bytes.fromhex(line["bytes"])).message
            if isinstance(message, GroupInfo):
                lists.append(message.group_context.extensions)
            if isinstance(message, PublicMessage):
                content = message.content.content
                proposals = [content]
                if isinstance(content, Commit):
                    proposals = [each.value for each in content.proposals]
                for proposal in proposals:
                    if isinstance(proposal, Proposal) and isinstance(proposal.body, GroupContextExtensions):
                        lists.append(proposal.body.extensions)
        for extensions in lists:
            dictionary = dictionary_of(extensions)
            if dictionary is not None:
                found.append((line, dictionary))
    return found


def test_recorded_policy_parses_to_the_recorded_values() -> None:
    seen = 0
    for line, dictionary in recorded_dictionaries():
        participants = decode(ParticipantList, dictionary.get(ComponentId.PARTICIPANT_LIST) or b"")
        roles = decode(RolesList, dictionary.get(ComponentId.ROLES_LIST) or b"")
        assert encode(rebuilt(participants)) == dictionary.get(ComponentId.PARTICIPANT_LIST)
        assert encode(rebuilt(roles)) == dictionary.get(ComponentId.ROLES_LIST)
        banned, muted, member = (roles.role(index) for index in (BANNED_ROLE, 2, 3))
        assert banned is not None
        assert banned.role_name == b"banned"
        assert muted is not None
        assert CAN_SEND_MESSAGE not in muted.role_capabilities
        assert member is not None
        assert CAN_SEND_MESSAGE in member.role_capabilities
        if line["kind"] == "group_info" and "policy" in line:
            seen += 1
            assert {each.user.decode(): each.role_index for each in participants.participants} == line["policy"]
    assert seen > 10


def test_unknown_components_pass_through() -> None:
    lines = [it for line, it in recorded_dictionaries() if line["name"] == "A_dictionary_with_unknown_component"]
    assert [each.component_id for each in lines[0].component_data] == [0x22, 0x25, 0xFF00]
    assert apply_update(0xFF00, b"old", (b"new",)) is None


def extension(*ids: int) -> tuple[Extension, ...]:
    data = encode(AppDataDictionary(tuple(ComponentData(ComponentId(each), b"") for each in ids)))
    return (Extension(ExtensionType.APP_DATA_DICTIONARY, data),)


def test_a_dictionary_must_be_sorted_and_unique() -> None:
    assert dictionary_of(()) is None
    assert dictionary_of(extension(1, 2, 0xFF00)) is not None
    for ids in ((2, 1), (1, 1), (1, 3, 2)):
        with pytest.raises(FaultError, match="not sorted and unique"):
            dictionary_of(extension(*ids))
    with pytest.raises(FaultError, match="does not parse"):
        dictionary_of((Extension(ExtensionType.APP_DATA_DICTIONARY, b"\x05"),))


def test_putting_keeps_the_order() -> None:
    dictionary = AppDataDictionary(())
    for component, data in ((3, b"c"), (1, b"a"), (2, b"b"), (3, b"C")):
        dictionary = dictionary.put(component, data)
    assert [(int(each.component_id), each.data) for each in dictionary.component_data] == [
        (1, b"a"),
        (2, b"b"),
        (3, b"C"),
    ]
    assert dictionary.put(2, None).get(2) is None
    assert dictionary.get(2) == b"b"


def test_a_participant_list_changes_removes_and_appends_in_that_order() -> None:
    before = encode(ParticipantList(pairs(alice=4, bob=3)))
    after = apply_update(ComponentId.PARTICIPANT_LIST, before, (update({1: BANNED_ROLE}, (0,), pairs(carol=3)),))
    assert after == encode(ParticipantList(pairs(bob=BANNED_ROLE, carol=3)))


def test_updates_of_one_commit_build_on_each_other() -> None:
    first, second = update(added=pairs(alice=4)), update(added=pairs(bob=3))
    after = apply_update(ComponentId.PARTICIPANT_LIST, None, (first, second))
    assert after == encode(ParticipantList(pairs(alice=4, bob=3)))


def test_indices_after_an_earlier_removal_are_ambiguous() -> None:
    before = encode(ParticipantList(pairs(alice=4, bob=3)))
    for later in (update({1: 2}), update(removed=(1,))):
        assert apply_update(ComponentId.PARTICIPANT_LIST, before, (update(removed=(0,)), later)) is None
    in_turn = (update({1: 2}), update(removed=(0,)), update(added=pairs(carol=3)))
    after = apply_update(ComponentId.PARTICIPANT_LIST, before, in_turn)
    assert after == encode(ParticipantList(pairs(bob=2, carol=3)))


@pytest.mark.parametrize(
    ("updates", "reason"),
    [
        ((update({2: 1}),), "out of range"),
        ((update(removed=(2,)),), "out of range"),
        ((update({0: 1}, (0,)),), "more than once"),
        ((update({0: 1}), update({0: 2})), "more than once"),
        ((update(removed=(0,), added=pairs(alice=1)),), "more than once"),
        ((update(added=pairs(bob=3)),), "who is already in the list"),
        ((update(added=pairs(carol=3) * 2),), "more than once"),
        ((update() + b"\0",), "does not parse"),
        ((b"",), "does not parse"),
    ],
)
def test_an_invalid_update_is_refused(updates: tuple[bytes, ...], reason: str) -> None:
    before = encode(ParticipantList(pairs(alice=4, bob=3)))
    with pytest.raises(FaultError, match=reason):
        apply_update(ComponentId.PARTICIPANT_LIST, before, updates)


def test_roles_are_replaced_as_a_whole() -> None:
    _, dictionary = recorded_dictionaries()[0]
    roles = dictionary.get(ComponentId.ROLES_LIST) or b""
    assert apply_update(ComponentId.ROLES_LIST, b"anything", (encode(RolesList(())), roles)) == roles
    with pytest.raises(FaultError, match="RolesList does not parse"):
        apply_update(ComponentId.ROLES_LIST, None, (roles[:-1],))


def test_a_user_listed_twice_has_no_certain_role() -> None:
    participants = ParticipantList((*pairs(alice=4, bob=3), UserRolePair(ALICE, 1)))
    assert participants.role_of(ALICE) is None
    assert participants.role_of(BOB) == 3
    assert participants.role_of(CAROL) is None


def test_an_app_data_update_has_no_extra_length() -> None:
    # draft-ietf-mls-extensions: component_id, op, and for `update` one opaque<V>
    octets = bytes.fromhex("0008 0022 01 03 010203")
    proposal = decode(Proposal, octets)
    assert proposal.proposal_type is ProposalType.APP_DATA_UPDATE
    assert encode(proposal) == octets
    assert encode(decode(Proposal, bytes.fromhex("0008 0022 02"))) == bytes.fromhex("0008002202")
    assert encode(decode(Proposal, bytes.fromhex("000a"))) == bytes.fromhex("000a")
    assert decode(Proposal, bytes.fromhex("f001 02 abcd")).body == bytes.fromhex("abcd")
