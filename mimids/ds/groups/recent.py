"""A cache of the newest application messages of the hub's partitions: bounded, droppable, empty after a restart.

A sequenced message is nearly always read a moment later, once for each follower and each listening device. So the
sequencer adds new messages to the cache after their commit, and `pages` reads them from there.

A reader gets only messages below the next counter of its own snapshot of the store. A committed message never changes,
so the cache may be ahead of the snapshot or behind it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from threading import Lock
from typing import Final

import attrs

from mimids.ds.lru import LeastRecentlyUsed
from mimids.mls.code_points import ContentType
from mimids.store.messages import NewMessage
from mimids.wire.ids import Counter

OCTETS: Final = 16 * 1024 * 1024  # enough for a follower that is seconds behind its senders


@attrs.frozen
class _Tail:
    """The newest messages of a partition, without a gap; `bodies` only grows."""

    first: int
    bodies: list[bytes]

    @property
    def octets(self) -> int:
        return sum(map(len, self.bodies))


class Recent:
    """The newest messages of each partition; evicts the partitions that have gone longest without a new message."""

    def __init__(self, octets: int = OCTETS) -> None:
        self._limit = octets
        self._octets = 0
        self._tails: LeastRecentlyUsed[int, _Tail] = LeastRecentlyUsed(sys.maxsize)  # bounded by octets
        self._lock = Lock()  # the writer's thread adds, a sweep clears; readers change nothing and need no lock

    def add(self, messages: Iterable[NewMessage]) -> None:
        """Add messages that were committed, in order; a handshake message empties its partition's cache."""
        with self._lock:
            tail, tail_of = None, -1  # the tail to which a message was added last, and its partition
            for message in messages:
                partition, body = message.partition, message.body
                if message.kind != ContentType.APPLICATION:
                    self._drop(partition)
                    tail_of = -1
                    continue
                if partition != tail_of:
                    tail = self._tails.peek(partition)
                if tail is None or message.counter != tail.first + len(tail.bodies):
                    self._drop(partition)
                    tail, tail_of = _Tail(message.counter, []), -1
                tail.bodies.append(body)
                self._octets += len(body)
                if partition != tail_of:
                    self._tails.put(partition, tail)
                    tail_of = partition
            while self._octets > self._limit:
                self._shrink()

    def messages(self, partition: int, counter: Counter, end: Counter, *, limit_octets: int) -> list[bytes]:
        """Return cached messages from `counter` on and below `end`: the first, then as many as fit."""
        tail = self._tails.peek(partition)
        if tail is None or counter < tail.first:
            return []
        found = tail.bodies[counter - tail.first : end - tail.first]
        for number, body in enumerate(found):
            limit_octets -= len(body)
            if limit_octets < 0 and number:
                return found[:number]
        return found

    def clear(self) -> None:
        """Empty the cache, after messages were dropped from the store."""
        with self._lock:
            self._tails.clear()
            self._octets = 0

    def _drop(self, partition: int) -> None:
        tail = self._tails.pop(partition)
        if tail is not None:
            self._octets -= tail.octets

    def _shrink(self) -> None:
        """Drop the oldest partition's messages; if there is only one partition, drop the older half of its messages."""
        partition, tail = self._tails.pop_oldest()
        self._octets -= tail.octets
        if not self._tails:
            half = (len(tail.bodies) + 1) // 2
            kept = _Tail(tail.first + half, tail.bodies[half:])
            self._tails.put(partition, kept)
            self._octets = kept.octets
