"""Values that several layers share: row ids, times, positions, and the kinds of callers."""

from __future__ import annotations

from typing import NewType

import attrs

from mimids.wire.ids import ProviderId, UserId

UserRow = NewType("UserRow", int)  # users.id
DeviceRow = NewType("DeviceRow", int)  # devices.id
TokenId = NewType("TokenId", int)  # tokens.id, which is not secret
Milliseconds = NewType("Milliseconds", int)  # since the epoch


@attrs.frozen
class Anyone:
    """A caller that is not authenticated: of the directory and the OHTTP gateway."""


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


Caller = Anyone | Follower | Device | Operator
Sender = Follower | Device
