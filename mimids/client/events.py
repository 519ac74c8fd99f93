"""The events of a stream."""

from __future__ import annotations

import attrs

from mimids.client.connection import Problem
from mimids.wire.ids import CipherSuite, Counter, GroupId, PartitionKey, ProtocolVersion, ProviderId
from mimids.wire.messages import InboxWelcome, Message


@attrs.frozen
class Arrived:
    """Messages of a partition, in their order.

    `skipped` counts messages before them that this device does not get, or that are no longer kept. It is almost
    always 0.
    """

    hub: ProviderId
    group_id: GroupId
    partition_key: PartitionKey
    counter: Counter  # of the first
    messages: tuple[Message, ...]
    skipped: int = 0

    @property
    def next_counter(self) -> Counter:
        """Return the counter to present next time, once these messages are stored."""
        return Counter(self.counter + len(self.messages))


@attrs.frozen
class LowStock:
    """Few ordinary KeyPackages are left: upload more. It is repeated on each new connection until there are enough."""

    version: ProtocolVersion
    cipher_suite: CipherSuite
    left: int


@attrs.frozen
class NotServed:
    """The provider refuses to serve a partition. Without a key, the refused frame is not known.

    After `unknown-partition` the key stays presented, because the partition may be opened later. After any other
    refusal the key is withdrawn: present it again when the cause is gone. `messages-expired` names the `next_counter`
    to present.
    """

    hub: ProviderId | None
    partition_key: PartitionKey | None
    problem: Problem


Event = Arrived | InboxWelcome | LowStock | NotServed
