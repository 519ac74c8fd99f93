"""The room policy in a group state: each user's role, and what each role may do (draft-ietf-mimi-room-policy-03).

The participant list (component 0x0022) and the roles list (0x0025) are read from the app_data_dictionary. A list that
does not parse, a user who is listed with two roles, and a role that is defined twice are treated as unknown, and rules
then refuse nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, TypeVar

import attrs

from mimids.mls.code_points import AppDataUpdateOperation, ComponentId
from mimids.mls.components import (
    BANNED_ROLE,
    CAN_SEND_MESSAGE,
    ParticipantList,
    Role,
    RolesList,
    apply_update,
    dictionary_of,
)
from mimids.mls.faults import FaultError
from mimids.mls.proposals import AppDataUpdate, GroupContextExtensions, ProposalRef
from mimids.mls.public_group import PublicGroup
from mimids.mls.rules.proposal_list import Covered
from mimids.wire.codec import WireError
from mimids.wire.declare import decode
from mimids.wire.ids import UserId, normal_user_id

T = TypeVar("T")

BANNED_NAME: Final = b"banned"  # role 1 must have this name (draft-ietf-mimi-room-policy-03 section 8)
_READ: Final = (ComponentId.PARTICIPANT_LIST, ComponentId.ROLES_LIST)


@attrs.frozen
class Room:
    """The role index of each user and the definition of each role; ambiguous ones are left out."""

    role_of: Mapping[bytes, int]
    roles: Mapping[int, Role]

    def bans(self, user: UserId) -> bool:
        """Return whether a user is certainly banned; a user who is not in the list is not banned."""
        role = self.roles.get(BANNED_ROLE)
        return self.role_of.get(user) == BANNED_ROLE and role is not None and role.role_name == BANNED_NAME

    def mutes(self, user: UserId) -> bool:
        """Return whether a user certainly has a role without canSendMessage."""
        role = self.roles.get(self.role_of.get(user, -1))
        return role is not None and CAN_SEND_MESSAGE not in role.role_capabilities

    def role_named(self, user: UserId) -> str:
        """Return a user's role in words, as `role 1, "banned"`."""
        index = self.role_of.get(user)
        role = self.roles.get(-1 if index is None else index)
        name = "" if role is None else f', "{role.role_name.decode("utf-8", "replace")}"'
        return f"role {index}{name}"


def room_of(group: PublicGroup) -> Room:
    """Return the room policy in a group state."""
    dictionary = group.parameters.dictionary
    return _room({} if dictionary is None else {each: dictionary.get(each) for each in _READ})


def room_after(group: PublicGroup, covered: Iterable[Covered | ProposalRef], *, joins: bool) -> Room | None:
    """Return the room policy after a commit, even if the rest of the group state after the commit is not known.

    Returns None if a covered proposal could change the policy in an unknown way, because it was not seen or its type is
    unknown. There is one exception: the proposals that an external commit (`joins`) covers by reference are
    SelfRemoves, which change no policy (draft-ietf-mls-extensions, "SelfRemove Proposal").
    """
    dictionary = group.parameters.dictionary
    updates: dict[int, list[AppDataUpdate]] = {}
    for each in covered:
        if not isinstance(each, Covered):
            if joins:
                continue
            return None
        body = each.proposal.body
        if not each.proposal.is_understood:
            if joins and each.ref is not None:  # it can only be a SelfRemove with another code point
                continue
            return None
        if isinstance(body, AppDataUpdate):
            updates.setdefault(int(body.component_id), []).append(body)
        elif isinstance(body, GroupContextExtensions):  # before all other proposals (RFC 9420 section 12.3)
            try:
                dictionary = dictionary_of(body.extensions)
            except FaultError:
                return None
    data = {each: None if dictionary is None else dictionary.get(each) for each in _READ}
    for component in _READ:
        several = updates.get(component)
        if several is None:
            continue
        if several[0].op is AppDataUpdateOperation.REMOVE:
            data[component] = None
            continue
        try:
            data[component] = apply_update(component, data[component], tuple(each.update or b"" for each in several))
        except FaultError:
            return None
    return _room(data)


def _room(data: Mapping[ComponentId, bytes | None]) -> Room:
    return _parsed(data.get(ComponentId.PARTICIPANT_LIST), data.get(ComponentId.ROLES_LIST))


@lru_cache(maxsize=64)
def _parsed(participants: bytes | None, roles: bytes | None) -> Room:
    listed = _decoded(ParticipantList, participants)
    role_of: dict[bytes, set[int]] = {}
    for pair in listed.participants if listed else ():
        role_of.setdefault(normal_user_id(pair.user) or pair.user, set()).add(pair.role_index)
    defined = _decoded(RolesList, roles)
    by_index: dict[int, list[Role]] = {}
    for role in defined.roles if defined else ():
        by_index.setdefault(role.role_index, []).append(role)
    return Room(
        {user: indices.pop() for user, indices in role_of.items() if len(indices) == 1},
        {index: several[0] for index, several in by_index.items() if len(several) == 1},
    )


def _decoded(cls: type[T], octets: bytes | None) -> T | None:
    try:
        return None if octets is None else decode(cls, octets)
    except WireError:
        return None
