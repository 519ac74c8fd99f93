"""Flip each byte of sample messages, one at a time: each gives a verdict, never an exception.

A flip is accepted only where noticing it would need secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from mimids.mls.code_points import LeafNodeSource, SenderType
from mimids.mls.framing import MLS_MESSAGE, MLSMessage, PrivateMessage, PublicMessage, Sender
from mimids.mls.group_info import GroupInfo
from mimids.mls.knowledge import Claimed, NotKnown, begin, judge
from mimids.mls.opening import open_group
from mimids.mls.proposals import (
    Add,
    ExternalInit,
    GroupContextExtensions,
    Remove,
    SelfRemove,
    Update,
)
from mimids.mls.public_group import PublicGroup, Valid
from mimids.mls.rules.checks import check, record
from mimids.mls.rules.verdict import Invalid, RuleError
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.wire import varint
from mimids.wire.codec import WireError
from mimids.wire.declare import decode
from tests import vectors
from tests.support.signing import Client, Room, by_reference, by_value, crowd, fresh_key, ref_of

MASKS = (0x01, 0xFF)


def flips(octets: bytes) -> Iterator[tuple[int, bytes]]:
    for place in range(len(octets)):
        for mask in MASKS:
            yield place, octets[:place] + bytes((octets[place] ^ mask,)) + octets[place + 1 :]


def accepted(group: PublicGroup, octets: bytes) -> set[int]:
    """Return the places where a flip is not noticed."""
    found = set()
    for place, flipped in flips(octets):
        try:
            message = MLS_MESSAGE.decode(flipped)
        except WireError:
            continue
        if not isinstance(message.message, PublicMessage | PrivateMessage):
            continue
        for knowledge in (Claimed(group), NotKnown(group.epoch, group.group_id, group.suite), NotKnown()):
            judge(knowledge, message)
        if not isinstance(check(group, message), Invalid):
            found.add(place)
    return found


def tags(message: MLSMessage) -> set[int]:
    """Return the places of both tags' octets, which only the epoch's keys can verify."""
    public = message.message
    assert isinstance(public, PublicMessage)
    end = len(message.encoded)
    found: set[int] = set()
    for tag in (public.membership_tag, public.confirmation_tag):
        if tag is not None:
            found |= set(range(end - len(tag), end))
            end -= len(tag) + len(varint.mls(len(tag)))
    return found


def with_pending(room: Room) -> tuple[PublicGroup, MLSMessage]:
    group = open_group(room.info())
    gone = room.propose(3, SelfRemove())
    return record(group, gone, check(group, gone)), gone


SAMPLE: dict[str, Callable[[Room], MLSMessage]] = {
    "commit with path, an Add and a Remove": lambda room: room.commit(
        0, by_value(Add(Client.of(20).key_package())), by_value(Remove(2))
    )[0],
    "commit without path": lambda room: room.commit(0, by_value(Add(Client.of(20).key_package())), path=False)[0],
    "commit by reference": lambda room: room.commit(0, by_reference(ref_of(room.propose(3, SelfRemove()), room.suite)))[
        0
    ],
    "external commit": lambda room: room.commit(Client.of(20), by_value(ExternalInit(fresh_key(room.suite))))[0],
    "update": lambda room: room.propose(1, Update(room.clients[1].leaf(LeafNodeSource.UPDATE, 1))),
    "extensions": lambda room: room.propose(1, GroupContextExtensions(())),
    "newcomer's proposal": lambda room: room.propose(
        Sender(SenderType.NEW_MEMBER_PROPOSAL, None), Add(Client.of(21).key_package()), by=Client.of(21).signer
    ),
}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_flipped_byte_of_a_public_message_is_noticed_except_in_its_tags(name: str) -> None:
    room = crowd(4)
    group, _ = with_pending(room)
    message = SAMPLE[name](room)
    assert not isinstance(check(group, message), Invalid)
    assert accepted(group, message.encoded) == tags(message)


@pytest.mark.parametrize("suite", [2, 4])
def test_a_flipped_byte_is_noticed_in_other_suites_too(suite: int) -> None:
    room = crowd(3, suite=suite)
    message, _ = room.commit(1)
    group = open_group(room.info())
    assert isinstance(check(group, message), Valid)
    assert accepted(group, message.encoded) == tags(message)


def test_a_flipped_byte_of_a_recorded_private_message_is_noticed_only_in_its_header() -> None:
    lines = {line.get("name"): line for line in vectors.load_lines("conversations/private.jsonl")}
    info = MLS_MESSAGE.decode(bytes.fromhex(lines["group_info_epoch10"]["bytes"])).message
    assert isinstance(info, GroupInfo)
    group = open_group(info)
    octets = bytes.fromhex(lines["good_commit"]["bytes"])
    message = MLS_MESSAGE.decode(octets).message
    assert isinstance(message, PrivateMessage)
    header = 4 + 1 + len(message.group_id) + 8
    content_type = {header}  # authenticated by the AEAD
    sealed = set(range(header + 3, header + 3 + 28)) | set(range(len(octets) - len(message.ciphertext), len(octets)))
    assert accepted(group, octets) == content_type | sealed


def test_a_flipped_byte_of_a_group_info_or_its_tree_is_noticed() -> None:
    room = crowd(3)
    info, tree = room.info(tree=False), room.tree.encode()
    for _, flipped in flips(info.encoded):
        try:
            other = decode(GroupInfo, flipped)
        except WireError:
            continue
        with pytest.raises(RuleError):
            open_group(other, tree)
    for _, flipped in flips(tree):
        with pytest.raises(RuleError):
            open_group(info, flipped)
        try:
            RatchetTree.decode(room.suite, flipped)
        except WireError:
            continue


def test_a_flipped_byte_of_a_stored_creation_is_noticed() -> None:
    room = Room.create(Client.of(1))
    whole = room.info()
    for _, flipped in flips(whole.encoded):
        try:
            other = decode(GroupInfo, flipped)
        except WireError:
            continue
        with pytest.raises(RuleError):
            begin(other, group_id=room.group_id, suite=room.suite)
