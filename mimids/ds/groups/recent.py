"""The newest application messages of the hub's partitions, as the store has them.

What is sequenced is nearly always read a moment later, for each follower and each device that listens, and always from
a position that the store gives. So the sequencer leaves here what it writes, and `reading` takes from here what lies
below the counter that its own snapshot says comes next: that has been committed, and a message never changes. What a
transaction left here that was then undone lies beyond that, and gives way to what is sequenced there instead.

It is no truth of its own: it is bounded, forgets when it likes, and does not survive the process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock
from typing import Final

import attrs

from mimids.mls.code_points import ContentType
from mimids.store.messages import NewMessage
from mimids.wire.ids import Counter

OCTETS: Final = 16 * 1024 * 1024  # a follower slower than its senders stays within it for seconds


@attrs.frozen
class _Tail:
    """Messages that follow each other, up to the newest; `bodies` only ever grows."""

    first: int
    bodies: list[bytes]

    @property
    def octets(self) -> int:
        return sum(map(len, self.bodies))


class Recent:
    """Tails of partitions; the one that grew last is the last to go."""

    def __init__(self, octets: int = OCTETS) -> None:
        self._most = octets
        self._octets = 0
        self._tails: OrderedDict[int, _Tail] = OrderedDict()
        self._changing = Lock()  # the writer's thread adds, a sweep forgets; readers only look

    def take(self, messages: Iterable[NewMessage]) -> None:
        """Take up what is about to be committed, in order; what is no application message ends a tail."""
        with self._changing:
            for message in messages:
                partition, body = message.partition, message.body
                if message.kind != ContentType.APPLICATION:
                    self._drop(partition)
                    continue
                tail = self._tails.get(partition)
                if tail is None or message.counter != tail.first + len(tail.bodies):
                    self._drop(partition)
                    tail = self._tails[partition] = _Tail(message.counter, [])
                tail.bodies.append(body)
                self._octets += len(body)
                self._tails.move_to_end(partition)
            while self._octets > self._most:
                self._shrink()

    def messages(self, partition: int, counter: Counter, end: Counter, *, limit_octets: int) -> list[bytes]:
        """Return messages from `counter` on and below `end`, if it is here: one, then as many as fit."""
        tail = self._tails.get(partition)
        if tail is None or counter < tail.first:
            return []
        found = tail.bodies[counter - tail.first : end - tail.first]
        for number, body in enumerate(found):
            limit_octets -= len(body)
            if limit_octets < 0 and number:
                return found[:number]
        return found

    def clear(self) -> None:
        """Forget all, after something was dropped from the store."""
        with self._changing:
            self._tails.clear()
            self._octets = 0

    def _drop(self, partition: int) -> _Tail | None:
        tail = self._tails.pop(partition, None)
        if tail is not None:
            self._octets -= tail.octets
        return tail

    def _shrink(self) -> None:
        """Drop the oldest tail; of the only one there is, the older half."""
        partition = next(iter(self._tails))
        tail = self._drop(partition)
        if tail is not None and not self._tails:
            half = (len(tail.bodies) + 1) // 2
            kept = self._tails[partition] = _Tail(tail.first + half, tail.bodies[half:])
            self._octets = kept.octets
