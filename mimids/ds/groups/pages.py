"""Reading messages page by page, and the epochs that a hub hints at (semantics: following-and-delivery).

These functions run inside a transaction; none of them writes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Final

import attrs

from mimids.ds.groups.recent import Recent
from mimids.errors import MessagesExpired
from mimids.mls.code_points import ContentType
from mimids.store import messages, partitions
from mimids.store.engine.transaction import Tx
from mimids.store.messages import StoredMessage
from mimids.store.partitions import Partition
from mimids.wire.ids import Counter
from mimids.wire.messages import encode_epoch, encode_message

HINTED_PARTITIONS: Final = 64  # in one answer
_APPLICATIONS: Final = frozenset({int(ContentType.APPLICATION)})


@attrs.frozen
class Page:
    """Consecutive messages of one partition, encoded as `Message`s."""

    partition: Partition
    counter: Counter
    messages: tuple[bytes, ...]
    kinds: frozenset[int]  # content types of the messages
    complete: bool  # it reaches the end of the partition as it is now

    @property
    def octets(self) -> int:
        """Return the size of the messages."""
        return sum(map(len, self.messages))

    @property
    def epoch(self) -> bytes:
        """Return the page as an encoded `Epoch`."""
        return encode_epoch(self.messages)

    def without_messages(self) -> Page:
        """Return an empty page at the same counter."""
        return attrs.evolve(self, messages=(), kinds=frozenset(), complete=self.counter >= self.partition.next_counter)


def page(
    tx: Tx,
    partition: Partition,
    counter: Counter,
    *,
    limit_octets: int,
    handshakes_only: bool = False,
    recent: Recent | None = None,
) -> Page:
    """Return messages from `counter` on, at least one if there is one; raise `MessagesExpired` if it was dropped.

    Messages in `recent` are not fetched from the store. With `handshakes_only` application messages are skipped: the
    page begins at the first handshake message and ends before the next application message.
    """
    if recent is not None and not handshakes_only:
        bodies = recent.messages(partition.id, counter, partition.next_counter, limit_octets=limit_octets)
        if bodies:
            end = counter + len(bodies)
            return Page(partition, counter, tuple(bodies), _APPLICATIONS, end >= partition.next_counter)
    found = messages.messages_from(tx, partition.id, counter, limit_octets=limit_octets)
    while handshakes_only and found:
        skipped = list(takewhile(_is_application, found))
        counter = Counter(skipped[-1].counter + 1) if skipped else counter
        if len(skipped) < len(found):
            found = list(takewhile(lambda message: not _is_application(message), found[len(skipped) :]))
            break
        found = messages.messages_from(tx, partition.id, counter, limit_octets=limit_octets)
    encoded: list[bytes] = []
    for message in found:
        if message.body is None or message.counter != counter + len(encoded):
            break
        encoded.append(encode_message(message.body, message.next_masked_key, message.group_info))
    if not encoded and counter < partition.next_counter:
        raise MessagesExpired(next_counter=messages.first_kept(tx, partition.id, counter))
    kinds = frozenset(message.kind for message in found[: len(encoded)])
    return Page(partition, counter, tuple(encoded), kinds, counter + len(encoded) >= partition.next_counter)


def _is_application(message: StoredMessage) -> bool:
    return message.kind == ContentType.APPLICATION


def kept_page(
    tx: Tx, partition: Partition, counter: Counter, *, limit_octets: int, recent: Recent | None = None
) -> Page:
    """Return messages from `counter` on; if retention dropped the first ones, from the first that is kept."""
    try:
        return page(tx, partition, counter, limit_octets=limit_octets, recent=recent)
    except MessagesExpired:
        first = messages.first_kept(tx, partition.id, counter)
        return page(tx, partition, first, limit_octets=limit_octets)


def hinted(
    tx: Tx,
    asked: Partition,
    *,
    may_have: Callable[[Partition], bool],
    limit_octets: int,
) -> list[Page]:
    """Return the epochs below `asked` in the tree of partitions, breadth first, as far as `may_have` allows.

    Each begins with its first message and comes once. The last may be cut at its end, never at its start
    (wire: where-the-draft-is-loose).
    """
    found: list[Page] = []
    waiting = [asked]
    while waiting and limit_octets > 0 and len(found) < HINTED_PARTITIONS:
        for child in partitions.children(tx, waiting.pop(0).id):
            if child.detached or not may_have(child):
                continue
            waiting.append(child)
            hint = kept_page(tx, child, Counter(0), limit_octets=limit_octets)
            if hint.messages and hint.counter == 0 and hint.octets <= limit_octets:
                found.append(hint)
                limit_octets -= hint.octets
    return found
