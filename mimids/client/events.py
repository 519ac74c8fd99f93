"""The events of a stream."""

from __future__ import annotations

import attrs

from mimids.client.connection import Problem
from mimids.wire.ids import CipherSuite, Counter, GroupId, PartitionKey, ProtocolVersion, ProviderId
from mimids.wire.messages import CaughtUp, InboxWelcome, Message


@attrs.frozen
class Arrived:
    """Messages of a partition, in their order.

    `skipped` counts messages before them that this device does not get, or that are no longer kept. It is almost
    always 0.
    """

    hub: ProviderId
    group_id: GroupId
    partition_key: PartitionKey
    counter: Counter  # the counter of the first message
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
    """The provider refuses to serve a partition; `partition_key` is None if the partition is not known.

    After `unknown-partition` the key stays presented, because the partition may be opened later. After any other
    refusal the key is withdrawn: present it again when the cause is gone. `messages-expired` names the `next_counter`
    to present.
    """

    hub: ProviderId | None
    partition_key: PartitionKey | None
    problem: Problem


@attrs.frozen
class StartedAgain:
    """The hub lost messages in a restore: the stream continues at `next_counter` instead of `counter`.

    Messages from that counter on are new, even if the device received others with the same counters before. The device
    has to send its own lost messages again.
    """

    hub: ProviderId
    partition_key: PartitionKey
    counter: Counter  # the counter that the stream had reached before
    next_counter: Counter


Event = Arrived | InboxWelcome | LowStock | NotServed | StartedAgain | CaughtUp
