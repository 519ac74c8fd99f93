"""Appending messages to partitions within one transaction; a hub's sequencing and a follower's intake both use it.

A `MessageAppender` gives each message the next counter of its partition and the next number of the store's one global
sequence. It keeps the rows in memory and writes them with one statement on `flush`.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import attrs

from mimids.ds.groups.judging import Judged
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.states import States
from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLSMessage, PrivateMessage, PublicMessage
from mimids.mls.knowledge import Knowledge
from mimids.mls.proposals import Proposal, ProposalRef, SelfRemove
from mimids.store import groups, messages, moved, partitions, proposals
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.messages import NewMessage
from mimids.store.partitions import Partition
from mimids.values import Milliseconds
from mimids.wire.ids import Counter, MaskedPartitionKey

LEVELS_AT_ONCE: Final = 64  # of the tree of partitions, in one statement


@attrs.define
class PartitionEnd:
    """Where the next message of a partition goes."""

    partition: Partition
    next_counter: int
    last_seq: int


class MessageAppender:
    """Appends the messages of one sender within one transaction; nothing is in the store before `flush`.

    `provider` and `device` are the sender's rows. Both are None for messages that another hub sequenced.
    """

    def __init__(
        self,
        tx: Tx,
        *,
        now: Milliseconds,
        provider: int | None = None,
        device: int | None = None,
        recent: Recent | None = None,
    ) -> None:
        self.tx = tx
        self.now = now
        self.seq = 0  # the number of the message that was appended last
        self._last_seq = 0  # the last number that is free; more are taken when they are needed
        self.changed: dict[MaskedPartitionKey, int] = {}  # partitions with new messages in the store, and their rows
        self.provider = provider
        self.device = device
        self._recent = recent
        self._pending: list[NewMessage] = []
        self._pending_proposals: list[tuple[int, ProposalRef, int, int]] = []
        self._ends: dict[int, PartitionEnd] = {}  # of the partitions of the pending messages, by row
        self._above: dict[int, int] = {}  # for a partition's row, the row of a partition above it

    def append(
        self,
        end: PartitionEnd,
        body: bytes,
        digest: bytes,
        *,
        kind: int = ContentType.APPLICATION,
        next_masked_key: MaskedPartitionKey | None = None,
        group_info: bytes | None = None,
    ) -> Counter:
        """Append a message to a partition; return its counter. `digest` is the SHA-256 of `body`."""
        if self.seq == self._last_seq:
            self._take_seqs()
        self.seq = end.last_seq = seq = self.seq + 1
        counter = Counter(end.next_counter)
        end.next_counter += 1
        row = end.partition.id
        self._ends[row] = end
        self._pending.append(
            NewMessage(
                seq,
                row,
                counter,
                self.now,
                kind,
                digest,
                messages.digest_key(digest),
                next_masked_key,
                body,
                group_info,
            )
        )
        return counter

    def _take_seqs(self) -> None:
        free = messages.free_seqs(self.tx)
        self.seq, self._last_seq = free.start - 1, free.stop - 1

    def note_content(self, group: Group, end: PartitionEnd, message: MLSMessage, judged: Judged | None) -> Group:
        """Record what the message that was appended last shows about its group; return the updated group.

        The message may show that the group encrypts its handshakes. It may be a proposal. It may contradict the claimed
        state of its partition. After a contradiction the state is unknown (semantics: public-group-state). `judged` is
        None if the message is invalid in the known state.
        """
        if isinstance(message.message, PrivateMessage):
            if message.content_type is not ContentType.APPLICATION and not group.encrypted_handshakes:
                groups.note_encrypted_handshakes(self.tx, group.id)
                group = attrs.evolve(group, encrypted_handshakes=True)
        elif judged is not None and (proposal := judged.proposal) is not None:
            self._pending_proposals.append((end.partition.id, *proposal, self.seq))
        if judged is not None and judged.contradicts_claim:
            partitions.set_state(self.tx, end.partition.id, None)
            end.partition = attrs.evolve(end.partition, state=None)
        return group

    def root_of(self, partition: Partition) -> int:
        """Return the row of the root: the uppermost partition above this one, or this one itself.

        A group may have any number of epochs, so the result is kept for the rest of the transaction.
        """
        root, passed = partition.id, list[int]()
        while len(way := self._way_up(root)) > 1:
            passed += way[:-1]
            root = way[-1]
        self._above.update(dict.fromkeys(passed, root))
        return root

    def _way_up(self, row: int) -> list[int]:
        """Return the rows from a partition up to a partition whose root is known.

        For a root, return only its own row.
        """
        if row in self._above:
            return [row, self._above[row]]
        way = partitions.way_up(self.tx, row, levels=LEVELS_AT_ONCE)
        known = next((at for at, each in enumerate(way) if each in self._above), len(way))
        return way[: known + 1]

    def flush_before_judging(self, message: MLSMessage) -> None:
        """Write the pending proposals if judging `message` reads the proposals of its partition."""
        if self._pending_proposals and _reads_proposals(message):
            self.flush()

    def flush(self) -> None:
        """Write the pending messages and proposals, and the counters of their partitions."""
        if not self._pending:
            return
        messages.append(self.tx, self._pending)
        if self._recent is not None:
            self.tx.after_commit(partial(self._recent.add, self._pending))
        if self._pending_proposals:
            proposals.add_sequenced(self.tx, self._pending_proposals)
        for row, end in self._ends.items():
            self.changed[end.partition.masked_key] = row
            partitions.advance(
                self.tx,
                row,
                next_counter=Counter(end.next_counter),
                last_seq=end.last_seq,
                was_empty=not end.partition.next_counter,
            )
        moved.touch(self.tx, self._ends)
        self._pending, self._pending_proposals, self._ends = [], [], {}


def _reads_proposals(message: MLSMessage) -> bool:
    public = message.message
    return isinstance(public, PublicMessage) and (
        not isinstance(public.content.content, Proposal) or isinstance(public.content.content.body, SelfRemove)
    )


@attrs.frozen(kw_only=True)
class Child:
    """The partition that a commit leads to."""

    masked_key: MaskedPartitionKey
    existing: Partition | None  # the partition if it is known already: the commit attaches it
    detached: bool


def can_attach(appender: MessageAppender, group: Group, parent: Partition, existing: Partition) -> bool:
    """Tell whether a commit in `parent` may lead to an existing partition of the group.

    No other commit may lead to that partition already. The partition may not be `parent` or an ancestor of `parent`,
    because the tree would then have a cycle.
    """
    if existing.group != group.id or existing.parent is not None or existing.id == parent.id:
        return False
    if existing.detached and not parent.detached:
        return True  # a partition below a detached one is detached too
    return not partitions.has_child(appender.tx, existing.id) or appender.root_of(parent) != existing.id


def open_child(appender: MessageAppender, group: Group, parent: Partition, child: Child) -> int:
    """Open or attach the partition that the commit appended last leads to; return its row."""
    epoch = None if parent.epoch is None else parent.epoch + 1  # every commit adds one (semantics: sequencing)
    if child.existing is not None:
        row = child.existing.id
        partitions.attach(
            appender.tx,
            row,
            parent=parent.id,
            opened_by=appender.seq,
            epoch=epoch,
            detached=child.detached,
            opener_provider=appender.provider,
            opener_device=appender.device,
        )
        return row
    return partitions.add_partition(
        appender.tx,
        group=group.id,
        hub=group.hub,
        masked_key=child.masked_key,
        epoch=epoch,
        now=appender.now,
        parent=parent.id,
        opened_by=appender.seq,
        detached=child.detached,
        opener_provider=appender.provider,
        opener_device=appender.device,
    )


def save_child_state(
    tx: Tx, states: States, row: int, knowledge: Knowledge, judged: Judged, group_info: MLSMessage | None
) -> None:
    """Store what is known of the partition that a commit leads to, and its GroupInfo."""
    states.save(tx, row, knowledge, judged.before)
    if group_info is not None:
        partitions.set_group_info(tx, row, group_info.encoded)
