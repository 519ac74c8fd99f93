"""Follow a room's public state, and compare it with what its members computed."""

from __future__ import annotations

from mimids.mls.code_points import AppDataUpdateOperation, ComponentId, ExtensionType
from mimids.mls.components import AppDataDictionary, ComponentData
from mimids.mls.framing import MLS_MESSAGE, MLSMessage
from mimids.mls.group_info import EXTERNAL_SENDERS, ExternalSender
from mimids.mls.leaf_node import Extension
from mimids.mls.proposals import (
    AppDataUpdate,
    ExternalInit,
    ProposalOrRef,
)
from mimids.mls.public_group import PublicGroup, Valid
from mimids.mls.rules.checks import check, record
from mimids.wire.declare import encode
from tests.support.signing import Client, Room, by_reference, by_value, fresh_key, ref_of

OUTSIDER = Client.of(70, "service@s.example")
SENDERS = Extension(
    ExtensionType.EXTERNAL_SENDERS,
    EXTERNAL_SENDERS.encode(
        (
            ExternalSender(Client.of(71).signer.public, Client.of(71).credential),
            ExternalSender(OUTSIDER.signer.public, OUTSIDER.credential),
        )
    ),
)


def followed(group: PublicGroup, message: MLSMessage, after: Room) -> PublicGroup:
    """Return the state after a commit, which must equal the committer's."""
    message = MLS_MESSAGE.decode(message.encoded)
    before = snapshot(group)
    found = check(group, message)
    assert isinstance(found, Valid), found
    assert found.next is not None
    assert snapshot(group) == before
    assert found.next.context == after.context()
    assert found.next.confirmation_tag == after.tag
    assert found.next.tree.encode() == after.tree.encode()
    return found.next


def snapshot(group: PublicGroup) -> tuple[object, ...]:
    return group.context.encoded, group.tree.encode(), group.confirmation_tag, dict(group.pending), dict(group.refused)


def kept(group: PublicGroup, *messages: MLSMessage) -> PublicGroup:
    """Return the state of the same epoch with these valid proposals recorded."""
    for message in messages:
        found = check(group, message)
        assert isinstance(found, Valid), found
        assert found.ref == ref_of(message, group.suite)
        group = record(group, message, found)
    return group


def refs(room: Room, *messages: MLSMessage) -> list[ProposalOrRef]:
    return [by_reference(ref_of(message, room.suite)) for message in messages]


def init(room: Room) -> ProposalOrRef:
    return by_value(ExternalInit(fresh_key(room.suite)[: room.suite.kem_output_size]))


def component(component_id: int, update: bytes | None) -> AppDataUpdate:
    op = AppDataUpdateOperation.REMOVE if update is None else AppDataUpdateOperation.UPDATE
    return AppDataUpdate(ComponentId(component_id), op, update)


def dictionary(**entries: bytes) -> Extension:
    data = tuple(ComponentData(ComponentId(int(name[1:], 16)), octets) for name, octets in sorted(entries.items()))
    return Extension(ExtensionType.APP_DATA_DICTIONARY, encode(AppDataDictionary(data)))
