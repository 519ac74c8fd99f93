"""Reading the bans and mutes of a group's hub: our operator's own, or those that we accepted from another hub."""

from __future__ import annotations

from collections.abc import Set
from typing import Final, Protocol

from mimids.policy.rules import NO_TERMS, Terms
from mimids.store import arrangements, bans
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import GroupId, ProviderId, UserId


class RestrictionSource(Protocol):
    """Reads bans and mutes: those of our own operator, or those in the terms of other hubs."""

    def terms_of(self, tx: Tx, hub: int, users: Set[UserId], group_id: GroupId, now: Milliseconds) -> Terms:
        """Return the bans and mutes that a hub's operator set for these users; `hub` is the hub's row."""
        ...


class OwnRestrictions:
    """The bans and mutes of this server's operator, for groups that this server hosts."""

    def terms_of(self, tx: Tx, hub: int, users: Set[UserId], group_id: GroupId, now: Milliseconds) -> Terms:
        """Return the bans and mutes that are in force now."""
        if not users:
            return NO_TERMS
        return Terms(bans.banned_users(tx, users, now), bans.muted_users(tx, users, group_id, now))


class AcceptedRestrictions:
    """The bans and mutes in the terms that this server accepted, for groups of other hubs."""

    def terms_of(self, tx: Tx, hub: int, users: Set[UserId], group_id: GroupId, now: Milliseconds) -> Terms:
        """Return the bans and mutes of the terms in force."""
        if not users:
            return NO_TERMS
        return Terms(arrangements.banned_by(tx, hub, users), arrangements.muted_by(tx, hub, users, group_id))


OWN: Final[RestrictionSource] = OwnRestrictions()
ACCEPTED: Final[RestrictionSource] = AcceptedRestrictions()


def source_for(hub: ProviderId, *, us: ProviderId) -> RestrictionSource:
    """Return the source from which the terms of a hub are read."""
    return OWN if hub == us else ACCEPTED
