"""Components of the app_data_dictionary extension (draft-ietf-mls-extensions section 4.6), and room policy in them.

The dictionary keeps the data of every component as octets, so unknown ones pass through. Two are known as values:
participant_list (draft-ietf-mimi-protocol, "Participant List") and roles_list (draft-ietf-mimi-room-policy-03
section 3). `apply_update` says what their data becomes by an AppDataUpdate, or which rule the update breaks.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, TypeVar

from mimids.mls.code_points import COMPONENT_ID, ComponentId, ExtensionType
from mimids.mls.faults import Fault, FaultError
from mimids.mls.leaf_node import Extension, extension_data
from mimids.wire.codec import OPAQUE_V, UINT16, UINT32, Codec, WireError, optional, vector
from mimids.wire.declare import codec, decode, encode, struct, wire
from mimids.wire.ids import UserId

T = TypeVar("T")

BANNED_ROLE: Final = 1  # the index; its role_name must be "banned" (draft-ietf-mimi-room-policy-03 section 8)
CAN_SEND_MESSAGE: Final = 0x0100  # draft-ietf-mimi-room-policy-03 section 10.2
_POLICY: Final = "draft-ietf-mimi-room-policy-03 section 3"
_PARTICIPANTS: Final = 'draft-ietf-mimi-protocol, "Participant List"'
_EXTENSIONS: Final = 'draft-ietf-mls-extensions, "Attaching Application Data to MLS Messages"'

_USER: Final[Codec[UserId]] = OPAQUE_V.of(UserId)


@struct
class ComponentData:
    """One component's data."""

    component_id: ComponentId = wire(COMPONENT_ID)
    data: bytes = wire(OPAQUE_V)


@struct
class AppDataDictionary:
    """The content of the app_data_dictionary extension; `dictionary_of` checks that it is sorted and unique."""

    component_data: tuple[ComponentData, ...] = wire(vector(codec(ComponentData)))

    def get(self, component_id: int) -> bytes | None:
        """Return the data of a component, None if it has none."""
        return next((each.data for each in self.component_data if each.component_id == component_id), None)

    def put(self, component_id: int, data: bytes | None) -> AppDataDictionary:
        """Return a dictionary in which the component has this data, or with None is gone, in sorted order."""
        others = [each for each in self.component_data if each.component_id != component_id]
        if data is not None:
            others.append(ComponentData(ComponentId(component_id), data))
        return AppDataDictionary(tuple(sorted(others, key=lambda each: each.component_id)))


@struct
class UserRolePair:
    """A participant and its one role."""

    user: UserId = wire(_USER)
    role_index: int = wire(UINT32)


@struct
class ParticipantList:
    """Data of component 0x0022: who is in the room, with a client or without, or banned from it."""

    participants: tuple[UserRolePair, ...] = wire(vector(codec(UserRolePair)))

    def role_of(self, user: bytes) -> int | None:
        """Return the role index of a user, None if the list does not name it or names it with two roles."""
        found = {each.role_index for each in self.participants if each.user == user}
        return found.pop() if len(found) == 1 else None


@struct
class UserIndexRolePair:
    """A participant, by its index in the list, and its new role."""

    user_index: int = wire(UINT32)
    role_index: int = wire(UINT32)


@struct
class ParticipantListUpdate:
    """Update of component 0x0022: roles changed, then participants removed, then others appended."""

    changed_role_participants: tuple[UserIndexRolePair, ...] = wire(vector(codec(UserIndexRolePair)))
    removed_indices: tuple[int, ...] = wire(vector(UINT32))
    added_participants: tuple[UserRolePair, ...] = wire(vector(codec(UserRolePair)))


@struct
class RoleChangeTargets:
    """Which roles a holder may give to whoever has one role."""

    from_role_index: int = wire(UINT32)
    target_role_indexes: tuple[int, ...] = wire(vector(UINT32))


@struct
class Role:
    """One role and what it may do; the draft's names, its capabilities as their code points."""

    role_index: int = wire(UINT32)
    role_name: bytes = wire(OPAQUE_V)
    role_description: bytes = wire(OPAQUE_V)
    role_capabilities: tuple[int, ...] = wire(vector(UINT16))
    minimum_participants_constraint: int = wire(UINT32)
    maximum_participants_constraint: int | None = wire(optional(UINT32))
    minimum_active_participants_constraint: int = wire(UINT32)
    maximum_active_participants_constraint: int | None = wire(optional(UINT32))
    authorized_role_changes: tuple[RoleChangeTargets, ...] = wire(vector(codec(RoleChangeTargets)))


@struct
class RolesList:
    """Data of component 0x0025, and its update, which replaces the data as a whole."""

    roles: tuple[Role, ...] = wire(vector(codec(Role)))

    def role(self, role_index: int) -> Role | None:
        """Return the role of that index, None if there is none or more than one."""
        found = [each for each in self.roles if each.role_index == role_index]
        return found[0] if len(found) == 1 else None


def dictionary_of(extensions: tuple[Extension, ...]) -> AppDataDictionary | None:
    """Return the dictionary among these extensions, None where there is none; raise `FaultError` if it is not sound."""
    data = extension_data(extensions, ExtensionType.APP_DATA_DICTIONARY)
    if data is None:
        return None
    try:
        dictionary = decode(AppDataDictionary, data)
    except WireError as error:
        raise FaultError(Fault("the app_data_dictionary does not parse", _EXTENSIONS)) from error
    ids = [each.component_id for each in dictionary.component_data]
    if any(one >= other for one, other in pairwise(ids)):
        raise FaultError(Fault("the app_data_dictionary is not sorted and unique", _EXTENSIONS))
    return dictionary


def apply_update(component_id: int, data: bytes | None, updates: tuple[bytes, ...]) -> bytes | None:
    """Return what a component's data becomes by the updates (one or more) of one commit, in its order.

    None where nobody here knows the component, or what the updates together do. `FaultError` where they are wrong for
    certain: they do not parse, or do not fit the data. `data` is None where the component has none yet.
    """
    if component_id == ComponentId.ROLES_LIST:
        for update in updates:
            _parse(RolesList, update, _POLICY)
        return updates[-1]  # section 3: "completely replaces the value of the data field"
    if component_id == ComponentId.PARTICIPANT_LIST:
        current = ParticipantList(()) if data is None else _parse(ParticipantList, data, _PARTICIPANTS)
        touched: set[bytes] = set()
        parsed = [_parse(ParticipantListUpdate, update, _PARTICIPANTS) for update in updates]
        shifted = False
        for each in parsed:
            if shifted and (each.changed_role_participants or each.removed_indices):
                return None  # the draft does not say whether indices count before or after an earlier removal
            current = _update_participants(current, each, touched)
            shifted = shifted or bool(each.removed_indices)
        return encode(current)
    return None


def _parse(cls: type[T], octets: bytes, section: str) -> T:
    try:
        return decode(cls, octets)
    except WireError as error:
        raise FaultError(Fault(f"{cls.__name__} does not parse", section)) from error


def _update_participants(
    current: ParticipantList, update: ParticipantListUpdate, touched: set[bytes]
) -> ParticipantList:
    """Apply one update; `touched` gathers the users of the whole commit, since none may be touched twice in it."""
    participants = list(current.participants)
    roles = {each.user_index: each.role_index for each in update.changed_role_participants}
    indices = [each.user_index for each in update.changed_role_participants] + list(update.removed_indices)
    if any(index >= len(participants) for index in indices):
        raise FaultError(Fault("a participant index is out of range", _PARTICIPANTS))
    users = [participants[index].user for index in indices] + [each.user for each in update.added_participants]
    for user in users:
        if user in touched:
            raise FaultError(Fault("a commit changes the same participant more than once", _PARTICIPANTS))
        touched.add(user)
    known = {each.user for each in participants}
    if any(each.user in known for each in update.added_participants):
        raise FaultError(Fault("a participant is added who is in the list", _PARTICIPANTS))
    removed = set(update.removed_indices)
    kept = [
        UserRolePair(each.user, roles.get(index, each.role_index))
        for index, each in enumerate(participants)
        if index not in removed
    ]
    return ParticipantList((*kept, *update.added_participants))
