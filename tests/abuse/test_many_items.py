"""Thousands of small items in one commit or leaf: their cost grows with their number, not with its square."""

from __future__ import annotations

import time

import pytest

from mimids.mls.code_points import MOST_CODE_POINTS, AppDataUpdateOperation, ComponentId, ExtensionType
from mimids.mls.components import (
    AppDataDictionary,
    ParticipantList,
    ParticipantListUpdate,
    UserRolePair,
    apply_update,
)
from mimids.mls.leaf_node import Capabilities, Extension
from mimids.mls.opening import open_group
from mimids.mls.proposals import AppDataUpdate
from mimids.mls.public_group import Valid
from mimids.mls.rules.checks import check
from mimids.wire.codec import WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import UserId
from tests.support.mls_makers import replace
from tests.support.signing import Client, Room, by_value

MANY = 8_000
MOST_CPU_SECONDS = 2.0  # each took more than 10 s


def user(number: int) -> UserId:
    return UserId(b"mimi://a.example/u/%d" % number)


def test_thousands_of_components_are_removed_at_once() -> None:
    components = {0xF000 - n: b"" for n in range(MANY)}
    dictionary = Extension(ExtensionType.APP_DATA_DICTIONARY, encode(AppDataDictionary.of(components)))
    room = Room.create(Client.of(1), dictionary)
    group = open_group(room.info())
    removes = [by_value(AppDataUpdate(ComponentId(each), AppDataUpdateOperation.REMOVE, None)) for each in components]
    commit, _ = room.commit(0, *removes)
    began = time.process_time()
    verdict = check(group, commit)
    assert time.process_time() - began < MOST_CPU_SECONDS
    assert isinstance(verdict, Valid), verdict
    assert verdict.next is not None
    assert verdict.next.parameters.dictionary == AppDataDictionary(())


def test_thousands_of_updates_of_a_long_participant_list() -> None:
    before = encode(ParticipantList(tuple(UserRolePair(user(n), 2) for n in range(MANY))))
    updates = [encode(ParticipantListUpdate((), (), (UserRolePair(user(MANY + n), 2),))) for n in range(MANY)]
    began = time.process_time()
    after = apply_update(ComponentId.PARTICIPANT_LIST, before, tuple(updates))
    assert time.process_time() - began < MOST_CPU_SECONDS
    assert after is not None
    assert [each.user for each in decode(ParticipantList, after).participants] == [user(n) for n in range(2 * MANY)]


def test_a_list_of_capabilities_is_bounded() -> None:
    """Each different list becomes a set of a hundred octets an item, which is kept."""
    capabilities = Client.of(1).capabilities
    most = replace(capabilities, extensions=tuple(map(ExtensionType, range(0x1000, 0x1000 + MOST_CODE_POINTS))))
    assert decode(Capabilities, encode(most)) == most
    with pytest.raises(WireError):
        decode(Capabilities, encode(replace(most, extensions=(*most.extensions, ExtensionType(0xF000)))))
