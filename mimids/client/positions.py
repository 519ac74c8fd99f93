"""The partitions whose messages a stream asks for, and how far each one was received. Nothing here waits."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from mimids.client.events import Arrived
from mimids.wire.ids import Counter, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import Frame, FrameType, Present, PushedEpoch, ReceiveRequest, Withdraw


@attrs.define(eq=False)
class StreamPosition:
    """How far a partition was received: `counter` is the counter of the next message."""

    hub: ProviderId
    key: PartitionKey
    counter: Counter
    frame: int = 0  # the frame that presented the position on this connection
    reported_unknown: bool = False


class Positions:
    """All positions of a stream, and which of them the next frames to the provider must present or withdraw."""

    def __init__(self) -> None:
        self._by_key: dict[PartitionKey, StreamPosition] = {}
        self._by_mask: dict[MaskedPartitionKey, StreamPosition] = {}
        self._by_frame: dict[int, StreamPosition] = {}
        self._to_present: dict[PartitionKey, None] = {}
        self._to_withdraw: list[PartitionKey] = []
        self._presented: set[PartitionKey] = set()  # on this connection

    def __len__(self) -> int:
        return len(self._by_key)

    def present(self, hub: ProviderId, key: PartitionKey, counter: Counter) -> bool:
        """Ask for a partition from `counter` on. Return whether a new connection is needed for this.

        This is so if the key was already presented on the current connection: messages under way could be mistaken for
        the messages that are asked for now.
        """
        known = self._by_key.get(key)
        if known is not None and known.counter == counter and known.hub == hub:
            return False
        position = StreamPosition(hub, key, counter)
        self._by_key[key] = position
        for mask in key.masks():
            self._by_mask[mask] = position
        self._to_present[key] = None
        return key in self._presented

    def present_all(self) -> None:
        """Present every partition again, from the counter it has reached."""
        self._to_present = dict.fromkeys(self._by_key)

    def present_again(self, position: StreamPosition) -> None:
        """Present one partition again."""
        self._to_present[position.key] = None

    def withdraw(self, key: PartitionKey) -> None:
        """Ask for no more messages of a partition."""
        if self._by_key.pop(key, None) is not None:
            for mask in key.masks():
                del self._by_mask[mask]
            self._to_present.pop(key, None)
            self._to_withdraw.append(key)

    def withdraw_refused(self, position: StreamPosition) -> None:
        """Withdraw a partition that the provider refuses: no messages of it are under way."""
        self.withdraw(position.key)
        self._presented.discard(position.key)

    def is_current(self, position: StreamPosition) -> bool:
        """Tell whether a position was neither withdrawn nor replaced by another one for its key."""
        return self._by_key.get(position.key) is position

    def presented_in(self, frame: int) -> StreamPosition | None:
        """Return the position that was presented in a frame of this connection."""
        return self._by_frame.get(frame)

    def forget_connection(self) -> None:
        """Forget what was sent on a connection that is lost. Nothing is presented until `present_all`."""
        self._by_frame.clear()
        self._presented.clear()
        self._to_withdraw.clear()
        self._to_present.clear()

    def next_frames(self, numbers: Iterator[int]) -> Iterator[Frame]:
        """Yield the frames to be sent now: one with all keys to withdraw, and one for each key to present.

        A refusal names only the frame. With one key in each frame, this shows which partition is refused.
        """
        if self._to_withdraw:
            yield Frame(next(numbers), FrameType.WITHDRAW, Withdraw(tuple(self._to_withdraw)))
            self._to_withdraw.clear()
        for key in self._to_present:
            position = self._by_key[key]
            self._by_frame.pop(position.frame, None)
            position.frame = next(numbers)
            self._by_frame[position.frame] = position
            self._presented.add(key)
            request = ReceiveRequest(position.key, position.counter)
            yield Frame(position.frame, FrameType.PRESENT, Present(position.hub, (request,)))
        self._to_present.clear()

    def receive(self, pushed: PushedEpoch) -> Arrived | None:
        """Return the new messages, and advance the position.

        Return None if none is new, or if the partition is not asked for.
        """
        position = self._by_mask.get(pushed.masked_partition_key)
        if position is None:
            return None
        messages = pushed.epoch.messages[max(0, position.counter - pushed.counter) :]
        if not messages:
            return None
        first = Counter(max(position.counter, pushed.counter))
        skipped = first - position.counter
        arrived = Arrived(position.hub, pushed.group_id, position.key, first, messages, skipped)
        position.counter = arrived.next_counter
        return arrived
