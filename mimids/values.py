"""Values that several layers share: row ids, times, positions, and the kinds of callers."""

from __future__ import annotations

from typing import Final, NewType

import attrs

from mimids.wire.ids import ProviderId, UserId

UserRow = NewType("UserRow", int)  # users.id
DeviceRow = NewType("DeviceRow", int)  # devices.id
TokenId = NewType("TokenId", int)  # tokens.id, which is not secret
Milliseconds = NewType("Milliseconds", int)  # milliseconds since 1970

HOUR_MILLISECONDS: Final = 3_600_000
DAY_MILLISECONDS: Final = 24 * HOUR_MILLISECONDS


def hour_of(moment: Milliseconds) -> Milliseconds:
    """Return the start of the hour of a moment.

    If a time says what a person did, the database has only the hour (docs/privacy.md).
    """
    return Milliseconds(moment - moment % HOUR_MILLISECONDS)


@attrs.frozen
class Anyone:
    """A caller that is not authenticated, such as a caller of the directory or the OHTTP gateway."""


@attrs.frozen
class Operator:
    """The operator of this provider, on the loopback listener or the operator socket (http: operator)."""


@attrs.frozen
class Follower:
    """Another provider, known by its certificate. We do not learn which of its users caused the request."""

    provider: ProviderId


@attrs.frozen
class Device:
    """One of our own users' devices, known by its token."""

    provider: ProviderId  # our own
    user_id: UserId
    row: DeviceRow
    name: str
    token_digest: bytes = attrs.field(default=b"", repr=False, eq=False)  # of the token that authenticated it


Caller = Anyone | Follower | Device | Operator
Sender = Follower | Device


@attrs.frozen
class Cause:
    """Why something does not work, for the operator: what happened, and what to do about it."""

    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}; {self.fix}"
