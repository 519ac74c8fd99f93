"""Reading messages page by page, and the epochs that a hub hints at (semantics: following-and-delivery).

These functions run inside a transaction, and do not write.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
HINTS_LOOKED_AT: Final = 256  # partitions below the one that was asked for: there may be thousands without messages
MESSAGES_IN_A_PAGE: Final = 1024  # in one answer: about 5 ms of a reader, for a request of a hundred octets
MESSAGES_IN_A_PUSHED_EPOCH: Final = 16_384  # in one epoch of a push, which needs no request of a peer
_APPLICATIONS: Final = frozenset({int(ContentType.APPLICATION)})


@attrs.frozen
class Page:
    """Consecutive messages of one partition, encoded as `Message`s."""

    partition: Partition
    counter: Counter
    messages: tuple[bytes, ...]
    kinds: frozenset[int]  # content types of the messages
    complete: bool  # the page reaches the current end of the partition

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
    limit_messages: int = MESSAGES_IN_A_PAGE,
    handshakes_only: bool = False,
    recent: Recent | None = None,
) -> Page:
    """Return messages from `counter` on, at least one if there are any.

    Raise `MessagesExpired` if the message at `counter` was dropped. Messages in `recent` are not fetched from the
    store. With `handshakes_only` application messages are skipped: the page begins at the first handshake message and
    ends before the next application message.
    """
    if recent is not None and not handshakes_only:
        end = Counter(min(partition.next_counter, counter + limit_messages))
        bodies = recent.messages(partition.id, counter, end, limit_octets=limit_octets)
        if bodies:
            reached = counter + len(bodies)
            return Page(partition, counter, tuple(bodies), _APPLICATIONS, reached >= partition.next_counter)
    fetch = partial(messages.messages_from, tx, partition.id, limit_octets=limit_octets, limit_messages=limit_messages)
    found = fetch(counter)
    while handshakes_only and found:
        skipped = list(takewhile(_is_application, found))
        counter = Counter(skipped[-1].counter + 1) if skipped else counter
        if len(skipped) < len(found):
            found = list(takewhile(lambda message: not _is_application(message), found[len(skipped) :]))
            break
        found = fetch(counter)
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
    tx: Tx,
    partition: Partition,
    counter: Counter,
    *,
    limit_octets: int,
    limit_messages: int = MESSAGES_IN_A_PAGE,
    recent: Recent | None = None,
) -> Page:
    """Return messages from `counter` on or, if retention dropped the first ones, from the first kept message on."""
    try:
        return page(tx, partition, counter, limit_octets=limit_octets, limit_messages=limit_messages, recent=recent)
    except MessagesExpired:
        first = messages.first_kept(tx, partition.id, counter)
        return page(tx, partition, first, limit_octets=limit_octets, limit_messages=limit_messages)


def hinted(
    tx: Tx,
    asked: Partition,
    *,
    may_have: Callable[[Partition], bool],
    limit_octets: int,
    limit_messages: int = MESSAGES_IN_A_PAGE,
) -> list[Page]:
    """Return the epochs below `asked` in the tree of partitions, breadth first, as far as `may_have` allows.

    Each epoch begins with its first message and appears once. The last epoch may lack messages at its end, never at its
    start (wire: where-the-draft-is-loose).
    """
    found: list[Page] = []
    waiting = [asked]
    looked_at = 0
    while waiting and limit_octets > 0 and limit_messages > 0 and len(found) < HINTED_PARTITIONS:
        below = partitions.children(tx, waiting.pop(0).id, limit=HINTS_LOOKED_AT - looked_at)
        looked_at += len(below)
        for child in below:
            if child.detached or not may_have(child):
                continue
            waiting.append(child)
            hint = kept_page(tx, child, Counter(0), limit_octets=limit_octets, limit_messages=max(1, limit_messages))
            if hint.messages and hint.counter == 0 and hint.octets <= limit_octets:
                found.append(hint)
                limit_octets -= hint.octets
                limit_messages -= len(hint.messages)
    return found
