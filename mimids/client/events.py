"""What a stream tells a device. Nothing here waits or opens anything."""

from __future__ import annotations

import attrs

from mimids.client.connection import Problem
from mimids.wire.ids import CipherSuite, Counter, GroupId, PartitionKey, ProtocolVersion, ProviderId
from mimids.wire.messages import InboxWelcome, Message


@attrs.frozen
class Arrived:
    """Messages of a partition, in their order.

    `skipped` messages before them are not for this device or no longer kept; in all but rare cases 0.
    """

    hub: ProviderId
    group_id: GroupId
    partition_key: PartitionKey
    counter: Counter  # of the first
    messages: tuple[Message, ...]
    skipped: int = 0

    @property
    def next_counter(self) -> Counter:
        """Return the counter to present the next time, once these are stored."""
        return Counter(self.counter + len(self.messages))


@attrs.frozen
class LowStock:
    """Few ordinary KeyPackages are left: upload more. Said again with every connection until there are enough."""

    version: ProtocolVersion
    cipher_suite: CipherSuite
    left: int


@attrs.frozen
class NotServed:
    """The provider refuses a partition, or (without a key) something that is not known here.

    For `unknown-partition` the key stays presented, since the partition may come yet. Any other refusal ends that:
    present the key again when there is reason to; `messages-expired` says from which `next_counter` on.
    """

    hub: ProviderId | None
    partition_key: PartitionKey | None
    problem: Problem


Event = Arrived | InboxWelcome | LowStock | NotServed
