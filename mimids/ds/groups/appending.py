"""Appending messages to partitions within one transaction: what a hub's sequencing and a follower's intake share.

A `MessageAppender` gives each message the next counter of its partition and the next number of the store's one global
sequence. It keeps the rows in memory and writes them with one statement on `flush`.
"""

from __future__ import annotations

import attrs

from mimids.ds.groups.judging import Judged
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.states import States
from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLSMessage, PrivateMessage, PublicMessage
from mimids.mls.knowledge import Knowledge
from mimids.mls.proposals import Proposal, ProposalRef, SelfRemove
from mimids.store import groups, messages, partitions, proposals
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.messages import NewMessage
from mimids.store.partitions import Partition
from mimids.values import Milliseconds
from mimids.wire.ids import Counter, MaskedPartitionKey


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
        self.seq = messages.last_seq(tx)  # of the message that was appended last
        self.changed: set[MaskedPartitionKey] = set()  # partitions with new messages in the store
        self.provider = provider
        self.device = device
        self._recent = recent
        self._pending: list[NewMessage] = []
        self._pending_proposals: list[tuple[int, ProposalRef, int, int]] = []
        self._ends: dict[int, PartitionEnd] = {}  # of the partitions of the pending messages, by row

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
                self.provider,
                self.device,
                body,
                group_info,
            )
        )
        return counter

    def note_content(self, group: Group, end: PartitionEnd, message: MLSMessage, judged: Judged | None) -> Group:
        """Record what the message appended last says of its group, and return the group with it.

        That is: the group encrypts its handshakes; the message is a proposal; or the message contradicts the claimed
        state of its partition, which is unknown from then on (semantics: public-group-state). `judged` is None if the
        message is invalid in the state as it is known.
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
            self._recent.add(self._pending)
        proposals.add_sequenced(self.tx, self._pending_proposals)
        for row, end in self._ends.items():
            self.changed.add(end.partition.masked_key)
            partitions.advance(self.tx, row, next_counter=Counter(end.next_counter), last_seq=end.last_seq)
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


def can_attach(tx: Tx, group: Group, parent: Partition, existing: Partition) -> bool:
    """Tell whether a commit in `parent` may lead to an existing partition of the group.

    No commit may lead to that partition yet, and it may not be `parent` or lie above it, or the tree would have a
    cycle.
    """
    if existing.group != group.id or existing.parent is not None:
        return False
    return all(above.id != existing.id for above in partitions.ancestors(tx, parent))


def open_child(appender: MessageAppender, group: Group, parent: Partition, child: Child) -> int:
    """Open or attach the partition that the commit appended last leads to; return its row."""
    epoch = None if parent.epoch is None else parent.epoch + 1  # every commit adds one (semantics: sequencing)
    if child.existing is not None:
        row = child.existing.id
        partitions.attach(
            appender.tx, row, parent=parent.id, opened_by=appender.seq, epoch=epoch, detached=child.detached
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
