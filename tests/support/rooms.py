"""Rooms with a policy: groups whose dictionary says who is banned and who is muted."""

from __future__ import annotations

from collections.abc import Mapping

from mimids.mls.code_points import AppDataUpdateOperation, ComponentId, ContentType, ExtensionType, WireFormat
from mimids.mls.components import (
    AppDataDictionary,
    ComponentData,
    ParticipantList,
    ParticipantListUpdate,
    Role,
    RolesList,
    UserIndexRolePair,
    UserRolePair,
)
from mimids.mls.framing import MLSMessage, PrivateMessage
from mimids.mls.leaf_node import Extension
from mimids.mls.proposals import Add, AppDataUpdate, GroupContextExtensions
from mimids.values import Device, DeviceRow, Follower
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, ProviderId, UserId
from tests.support.signing import Client, Room, by_value

BANNED, MUTED, MEMBER = 1, 2, 3
ALICE, BOB, CAROL = (UserId(f"mimi://a.example/u/{name}".encode()) for name in ("alice", "bob", "carol"))
FOLLOWER = Follower(ProviderId("a.example"))  # with users of the same names as those in the room

ROLES = RolesList(
    (
        Role(BANNED, b"banned", b"", (), 0, None, 0, None, ()),
        Role(MUTED, b"muted", b"", (0x0001,), 0, None, 0, None, ()),
        Role(MEMBER, b"member", b"", (0x0100,), 0, None, 0, None, ()),
    )
)


def device(user: UserId) -> Device:
    return Device(ProviderId("a.example"), user, DeviceRow(1), "phone")


def listed(roles: Mapping[UserId, int]) -> bytes:
    return encode(ParticipantList(tuple(UserRolePair(user, role) for user, role in roles.items())))


def dictionary(roles: Mapping[UserId, int] | None, defined: RolesList | None = ROLES) -> Extension:
    """Return the extension that assigns these roles to users; None leaves a component out."""
    data = []
    if roles is not None:
        data.append(ComponentData(ComponentId.PARTICIPANT_LIST, listed(roles)))
    if defined is not None:
        data.append(ComponentData(ComponentId.ROLES_LIST, encode(defined)))
    return Extension(ExtensionType.APP_DATA_DICTIONARY, encode(AppDataDictionary(tuple(data))))


def client(user: UserId, seed: int) -> Client:
    """Return a client of a user, a device for each seed."""
    return Client.of(seed, user.decode().rpartition("/")[2])


def room(roles: Mapping[UserId, int], *members: UserId) -> Room:
    """Return a room in its second epoch, with Alice, who created it, and one device of each member."""
    founded = Room.create(client(ALICE, 1), dictionary(roles))
    adds = [by_value(Add(client(user, 10 + at).key_package())) for at, user in enumerate(members)]
    return founded.commit(0, *adds)[1]


def sets(roles: Mapping[UserId, int] | None, defined: RolesList | None = ROLES) -> GroupContextExtensions:
    """Return a proposal that replaces the whole policy."""
    return GroupContextExtensions((dictionary(roles, defined),))


def changes(roles: Mapping[UserId, int], user: UserId, role: int) -> AppDataUpdate:
    """Return a proposal that changes the role of one listed user."""
    update = ParticipantListUpdate((UserIndexRolePair(list(roles).index(user), role),), (), ())
    return AppDataUpdate(ComponentId.PARTICIPANT_LIST, AppDataUpdateOperation.UPDATE, encode(update))


def sealed(of: Room, kind: ContentType = ContentType.APPLICATION) -> MLSMessage:
    """Return an encrypted message of zero octets, which nobody can decrypt."""
    message = PrivateMessage(of.group_id, of.epoch, kind, b"", bytes(28), bytes(200))
    return MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, message)
