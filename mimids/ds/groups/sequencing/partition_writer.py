"""The partitions that one transaction appends to, found by their rows and by their raw keys."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs

from mimids.ds.groups.appending import PartitionEnd
from mimids.ds.groups.sequencing.submitter import Submitter
from mimids.ds.groups.states import mask_of
from mimids.ds.groups.successors import check_not_replaced
from mimids.ds.limits.quotas import SenderQuotas
from mimids.errors import PartitionExists, UnknownPartition
from mimids.store import messages, partitions
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.messages import AcceptedMessage
from mimids.store.partitions import Partition
from mimids.values import Milliseconds
from mimids.wire.ids import Counter, GroupId, MaskedPartitionKey, PartitionKey
from mimids.wire.messages import SendRequest, SendResponse

Answer = tuple[SendResponse, MaskedPartitionKey | None]  # with the key of the partition that the message opened


@attrs.define
class PartitionWriter(PartitionEnd):
    """A partition while a transaction appends messages to it."""

    commits: list[tuple[Counter, MaskedPartitionKey]]  # the first commits in it
    opened_here: bool  # in this batch
    stored: dict[bytes, AcceptedMessage | None] = attrs.field(factory=dict)  # earlier messages that were looked up
    answers: dict[bytes, Answer] = attrs.field(factory=dict)  # of the messages of this transaction, by digest
    followed: bool = False  # the sender follows the partition, or need not follow it
    judged_for: GroupId | None = None  # the group, once an application message of the sender was accepted here

    def find_repeat(self, tx: Tx, digest: bytes) -> Answer | None:
        """Return the answer that was given to this message before; None if the message is new."""
        answer = self.answers.get(digest)
        if answer is not None:
            return answer
        known = digest in self.stored
        stored = self.stored[digest] if known else messages.find_repeat(tx, self.partition.id, digest)
        if stored is None:
            return None
        return self.response(stored.counter, stored.accepted_at), stored.next_masked_key

    def note_commit(self, opened: MaskedPartitionKey) -> None:
        """Record that the last appended message is a commit, which leads to the partition `opened`."""
        if len(self.commits) < messages.COMMITS_READ:
            self.commits.append((Counter(self.next_counter - 1), opened))

    def response(self, counter: Counter, accepted_at: Milliseconds) -> SendResponse:
        """Return the answer to a message, which names the first commits that came before it."""
        return SendResponse(
            counter,
            accepted_at,
            self.partition.masked_key,
            int(self.partition.detached),
            tuple([key for at, key in self.commits if at < counter]) if self.commits else (),
        )


class PartitionWriters:
    """The writers of one transaction, one for each partition."""

    def __init__(
        self, tx: Tx, submitter: Submitter, quotas: SenderQuotas, *, now: Milliseconds, opened: set[int]
    ) -> None:
        """Begin; `opened` has the rows of the partitions that this batch has opened so far.

        This transaction adds its own.
        """
        self._tx = tx
        self._opened = opened
        self._submitter = submitter
        self._quotas = quotas
        self._now = now
        self._by_row: dict[int, PartitionWriter] = {}
        self._by_key: dict[bytes, PartitionWriter] = {}  # raw keys, kept until the transaction ends

    @property
    def rows(self) -> Collection[int]:
        """The rows of all partitions that were looked up."""
        return self._by_row.keys()

    def known(self, key: PartitionKey) -> PartitionWriter | None:
        """Return the writer of a key that this transaction has looked up before."""
        return self._by_key.get(key.reveal())

    def find(self, masks: Sequence[MaskedPartitionKey]) -> Partition | None:
        """Return the partition that is stored under any of the masks of one key."""
        return partitions.find_partition(self._tx, self._submitter.hub, masks)

    def of(self, partition: Partition, *, opened_here: bool = False) -> PartitionWriter:
        """Return the writer of a partition."""
        writer = self._by_row.get(partition.id)
        if opened_here:
            self._opened.add(partition.id)
        if writer is None:
            opened_here = partition.id in self._opened
            commits = messages.commits_of(self._tx, partition.id)
            writer = PartitionWriter(partition, partition.next_counter, partition.last_seq, commits, opened_here)
            self._by_row[partition.id] = writer
        return writer

    def look_up_repeats(self, requests: Sequence[SendRequest], digests: Sequence[bytes]) -> None:
        """Find out, with few statements, which messages of a batch are repeats."""
        if len(requests) == 1:
            return  # a single message is looked up when it is sequenced
        by_key: dict[bytes, list[bytes]] = {}
        for request, digest in zip(requests, digests, strict=True):
            by_key.setdefault(request.partition_key.reveal(), []).append(digest)
        for raw, wanted in by_key.items():
            found = self.find(PartitionKey(raw).masks())
            if found is not None:
                writer = self._by_key[raw] = self.of(found)
                writer.stored = messages.find_repeats(self._tx, found.id, wanted)

    def find_or_open(self, key: PartitionKey, group: Group) -> PartitionWriter:
        """Return the writer of a key; an unknown key opens a detached partition (semantics: partitions-and-forks).

        Raises `PartitionExists` if the key belongs to another group, and `QuotaExceeded`. For a linear group it raises
        `UnknownPartition` instead (semantics: linear-groups), and for a replaced group `GroupReplaced`.
        """
        writer = self.known(key)
        if writer is None:
            masks = key.masks()
            found = self.find(masks)
            writer = self._open_detached(group, masks) if found is None else self.of(found)
            self._by_key[key.reveal()] = writer
        if writer.partition.group != group.id:
            raise PartitionExists("partition_key is the key of a partition of another group")
        return writer

    def _open_detached(self, group: Group, masks: Sequence[MaskedPartitionKey]) -> PartitionWriter:
        check_not_replaced(group)
        if group.linear:
            raise UnknownPartition
        self._tx.run_alone()  # the quota counts the partitions of all groups
        self._quotas.check_detached_partitions()
        row = partitions.add_partition(
            self._tx,
            group=group.id,
            hub=self._submitter.hub,
            masked_key=mask_of(group, masks),
            epoch=None,
            now=self._now,
            detached=True,
            opener_provider=self._submitter.provider,
            opener_device=self._submitter.device,
        )
        return self.of(partitions.partition_by_row(self._tx, row), opened_here=True)

    def remove_if_empty(self, writer: PartitionWriter, key: PartitionKey) -> None:
        """Remove the partition that was opened for a message, if the message was then refused."""
        if writer.opened_here and not writer.next_counter and writer.partition.parent is None:
            partitions.remove_empty(self._tx, writer.partition.id)
            del self._by_row[writer.partition.id], self._by_key[key.reveal()]

    def note_opened(self, row: int, key: PartitionKey) -> None:
        """Start a new writer for the partition that a commit opened or attached."""
        self._by_row.pop(row, None)
        self._by_key[key.reveal()] = self.of(partitions.partition_by_row(self._tx, row), opened_here=True)

    def reload(self) -> None:
        """Read all partitions again after a commit attached one, because partitions below it changed too."""
        for writer in self._by_row.values():
            writer.partition = partitions.partition_by_row(self._tx, writer.partition.id)
