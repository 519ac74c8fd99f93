"""Components of the app_data_dictionary extension (draft-ietf-mls-extensions section 4.6), room policy among them.

The dictionary keeps each component's data as octets, so unknown components pass through. Two components are parsed:
participant_list (draft-ietf-mimi-protocol, "Participant List") and roles_list (draft-ietf-mimi-room-policy-03
section 3). `apply_update` returns their data after an AppDataUpdate, or raises the rule that the update breaks.
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
    """The app_data_dictionary extension; `dictionary_of` checks that its components are sorted and unique."""

    component_data: tuple[ComponentData, ...] = wire(vector(codec(ComponentData)))

    def get(self, component_id: int) -> bytes | None:
        """Return the data of a component, None if it has none."""
        return next((each.data for each in self.component_data if each.component_id == component_id), None)

    def put(self, component_id: int, data: bytes | None) -> AppDataDictionary:
        """Return a sorted dictionary in which the component has this data; None removes the component."""
        others = [each for each in self.component_data if each.component_id != component_id]
        if data is not None:
            others.append(ComponentData(ComponentId(component_id), data))
        return AppDataDictionary(tuple(sorted(others, key=lambda each: each.component_id)))


@struct
class UserRolePair:
    """A participant and their only role."""

    user: UserId = wire(_USER)
    role_index: int = wire(UINT32)


@struct
class ParticipantList:
    """Data of component 0x0022: the users in the room, with or without a client, and those banned from it."""

    participants: tuple[UserRolePair, ...] = wire(vector(codec(UserRolePair)))

    def role_of(self, user: bytes) -> int | None:
        """Return a user's role index, None if the list does not name the user or gives them two roles."""
        found = {each.role_index for each in self.participants if each.user == user}
        return found.pop() if len(found) == 1 else None


@struct
class UserIndexRolePair:
    """A participant, by index in the list, and their new role."""

    user_index: int = wire(UINT32)
    role_index: int = wire(UINT32)


@struct
class ParticipantListUpdate:
    """Update of component 0x0022: first changes roles, then removes participants, then appends new ones."""

    changed_role_participants: tuple[UserIndexRolePair, ...] = wire(vector(codec(UserIndexRolePair)))
    removed_indices: tuple[int, ...] = wire(vector(UINT32))
    added_participants: tuple[UserRolePair, ...] = wire(vector(codec(UserRolePair)))


@struct
class RoleChangeTargets:
    """The roles that may be given to participants who have the role `from_role_index`."""

    from_role_index: int = wire(UINT32)
    target_role_indexes: tuple[int, ...] = wire(vector(UINT32))


@struct
class Role:
    """A role and what it permits; field names are the draft's, capabilities are code points."""

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
    """Data of component 0x0025. Its update has the same form and replaces the whole data."""

    roles: tuple[Role, ...] = wire(vector(codec(Role)))

    def role(self, role_index: int) -> Role | None:
        """Return the role with that index, None if there is none or more than one."""
        found = [each for each in self.roles if each.role_index == role_index]
        return found[0] if len(found) == 1 else None


def dictionary_of(extensions: tuple[Extension, ...]) -> AppDataDictionary | None:
    """Return the dictionary among these extensions, None without one; raise `FaultError` if it is invalid."""
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
    """Return a component's data after the updates (one or more) of one commit, applied in its order.

    `data` is None if the component has none yet. Returns None if the component is unknown or the combined effect of the
    updates is undefined. Raises `FaultError` if an update does not parse or does not fit the data.
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
    """Apply one update; `touched` collects the users changed so far, since a commit may change each only once."""
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
        raise FaultError(Fault("a participant is added who is already in the list", _PARTICIPANTS))
    removed = set(update.removed_indices)
    kept = [
        UserRolePair(each.user, roles.get(index, each.role_index))
        for index, each in enumerate(participants)
        if index not in removed
    ]
    return ParticipantList((*kept, *update.added_participants))
