"""Records that travel between layers, and who a caller is."""

from __future__ import annotations

from typing import NewType

import attrs

from mimids.wire.ids import Counter, MaskedPartitionKey, ProviderId, UserId

UserRow = NewType("UserRow", int)  # users.id
DeviceRow = NewType("DeviceRow", int)  # devices.id
TokenId = NewType("TokenId", int)  # tokens.id: no secret, the token is
Milliseconds = NewType("Milliseconds", int)  # since the epoch


@attrs.frozen
class Anyone:
    """Nobody in particular: the public listener without a certificate."""


@attrs.frozen
class Follower:
    """Another provider, known by its certificate; which of its users sends is not known."""

    provider: ProviderId


@attrs.frozen
class Device:
    """One of our own users' devices, known by its token."""

    provider: ProviderId  # our own
    user_id: UserId
    row: DeviceRow
    name: str


Caller = Anyone | Follower | Device
Sender = Follower | Device


@attrs.frozen
class Position:
    """Where a message was sequenced. Sending the same bytes again yields an equal Position."""

    partition: MaskedPartitionKey
    counter: Counter
