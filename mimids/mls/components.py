"""Components of the app_data_dictionary extension (draft-ietf-mls-extensions section 4.6), such as the room policy.

The dictionary keeps each component's data as octets, so unknown components pass through. Two components are parsed:
participant_list (draft-ietf-mimi-protocol, "Participant List") and roles_list (draft-ietf-mimi-room-policy-03 section
3). `apply_update` returns the data of such a component after an AppDataUpdate; it raises a `FaultError` if the update
breaks a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
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
        found: dict[int, bytes] = {each.component_id: each.data for each in self.component_data}
        found.pop(component_id, None)
        return AppDataDictionary.of(found if data is None else {**found, component_id: data})

    @classmethod
    def of(cls, data: Mapping[int, bytes]) -> AppDataDictionary:
        """Return the dictionary of components' data, by component."""
        return cls(tuple(ComponentData(ComponentId(component), data[component]) for component in sorted(data)))


@struct
class UserRolePair:
    """A participant and their only role."""

    user: UserId = wire(_USER)
    role_index: int = wire(UINT32)


@struct
class ParticipantList:
    """Data of component 0x0022: the users in the room, with or without a client, and the users banned from the room."""

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
        """Return the role with that index, None unless there is exactly one."""
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
    """Return a component's data after the updates (one or more) of one commit, applied in the commit's order.

    `data` is None if the component has no data yet. Returns None if the component is unknown or the combined effect of
    the updates is undefined. Raises `FaultError` if an update does not parse or does not fit the data.
    """
    if component_id == ComponentId.ROLES_LIST:
        for update in updates:
            _parse(RolesList, update, _POLICY)
        return updates[-1]  # section 3: "completely replaces the value of the data field"
    if component_id == ComponentId.PARTICIPANT_LIST:
        current = ParticipantList(()) if data is None else _parse(ParticipantList, data, _PARTICIPANTS)
        participants = _Participants(current)
        parsed = [_parse(ParticipantListUpdate, update, _PARTICIPANTS) for update in updates]
        shifted = False
        for each in parsed:
            if shifted and (each.changed_role_participants or each.removed_indices):
                return None  # the draft does not say whether indices count before or after an earlier removal
            participants.update(each)
            shifted = shifted or bool(each.removed_indices)
        return encode(ParticipantList(tuple(participants.pairs)))
    return None


def _parse(cls: type[T], octets: bytes, section: str) -> T:
    try:
        return decode(cls, octets)
    except WireError as error:
        raise FaultError(Fault(f"{cls.__name__} does not parse", section)) from error


class _Participants:
    """A participant list while a commit changes it. The cost of most updates is proportional to the change."""

    def __init__(self, before: ParticipantList) -> None:
        self.pairs = list(before.participants)
        self._users = {each.user for each in before.participants}
        self._touched: set[bytes] = set()  # the commit may change each user only once

    def update(self, update: ParticipantListUpdate) -> None:
        """Apply one update; raise `FaultError` if it does not fit."""
        roles = {each.user_index: each.role_index for each in update.changed_role_participants}
        indices = [each.user_index for each in update.changed_role_participants] + list(update.removed_indices)
        if any(index >= len(self.pairs) for index in indices):
            raise FaultError(Fault("a participant index is out of range", _PARTICIPANTS))
        users = [self.pairs[index].user for index in indices] + [each.user for each in update.added_participants]
        for user in users:
            if user in self._touched:
                raise FaultError(Fault("a commit changes the same participant more than once", _PARTICIPANTS))
            self._touched.add(user)
        if any(each.user in self._users for each in update.added_participants):
            raise FaultError(Fault("a participant is added who is already in the list", _PARTICIPANTS))
        for index, role in roles.items():
            self.pairs[index] = UserRolePair(self.pairs[index].user, role)
        if update.removed_indices:  # once in a commit
            removed = set(update.removed_indices)
            self.pairs = [each for index, each in enumerate(self.pairs) if index not in removed]
            self._users = {each.user for each in self.pairs}
        self.pairs += update.added_participants
        self._users.update(each.user for each in update.added_participants)
