"""One transaction's worth of what a hub pushed or answered.

New messages are appended under the hub's counters and duplicates are skipped. The answer for each epoch is the counter
wanted next, so the hub's next push closes a gap. State is followed as the hub follows it. A message that contradicts
the state is delivered all the same, because the hub has sequenced it and devices judge for themselves; the
contradiction is reported (semantics: following-and-delivery).
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mimids.ds.groups.appending import (
    Child,
    MessageAppender,
    PartitionEnd,
    can_attach,
    open_child,
    save_child_state,
)
from mimids.ds.groups.contradiction import Contradiction
from mimids.ds.groups.judging import Judged, MlsJudge
from mimids.errors import InvalidMessage, MimiError, WrongBranch
from mimids.mls.group_info import GroupInfo
from mimids.store import groups, messages, partitions
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import Milliseconds
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, MaskedPartitionKey, ProviderId
from mimids.wire.messages import CommitHint, GroupInfoResponse, Message, PushedEpoch


@attrs.frozen(kw_only=True)
class Received:
    """What a transaction received; reported once it is committed."""

    counters: list[Counter]  # wanted next, one for each epoch
    changed: frozenset[MaskedPartitionKey]
    contradictions: list[Contradiction]
    messages: int
    duplicates: int
    gaps: int


class Intake:
    """Appends epochs of one hub's groups within one transaction."""

    def __init__(self, tx: Tx, hub: ProviderId, mls: MlsJudge, now: Milliseconds) -> None:
        self._tx = tx
        self._hub = hub
        self._mls = mls
        self._appender = MessageAppender(tx, now=now)
        self._counters: list[Counter] = []
        self._changed: set[MaskedPartitionKey] = set()
        self._contradictions: list[Contradiction] = []
        self._messages = self._duplicates = self._gaps = 0

    def append(self, group: Group | None, epoch: PushedEpoch) -> None:
        """Append the new messages of an epoch. If `group` is None, the epoch's answer is `NO_LONGER_FOLLOWED`."""
        self._counters.append(NO_LONGER_FOLLOWED if group is None else self._append_epoch(group, epoch))

    def finish(self) -> Received:
        """Return what was received; everything is written."""
        return Received(
            counters=self._counters,
            changed=frozenset(self._changed | self._appender.changed),
            contradictions=self._contradictions,
            messages=self._messages,
            duplicates=self._duplicates,
            gaps=self._gaps,
        )

    # --- one epoch ----------------------------------------------------------------------------------------------

    def _append_epoch(self, group: Group, epoch: PushedEpoch) -> Counter:
        partition = find_or_add_partition(self._tx, group, epoch.masked_partition_key, self._appender.now)
        if epoch.opening is not None and partition.state is None:
            group, partition = self._store_opening(group, partition, epoch.opening)
        if epoch.counter > partition.next_counter:
            return self._note_gap(partition, epoch)
        known = partition.next_counter - epoch.counter
        if known and epoch.epoch.messages:
            self._duplicates += min(known, len(epoch.epoch.messages))
            if self._differs_from_stored(group, partition, epoch):
                return partition.next_counter
        return self._append_messages(group, partition, epoch.epoch.messages[known:])

    def _store_opening(self, group: Group, partition: Partition, opening: GroupInfoResponse) -> tuple[Group, Partition]:
        """Store the state that the hub says a partition opened with, verified as the hub verifies it."""
        try:
            knowledge = self._mls.claimed(group, partition.epoch, opening)
        except MimiError as error:
            self._note_error(group, opening.group_info.encoded, error)
            return group, partition
        info = opening.group_info.message
        if isinstance(info, GroupInfo):
            context = info.group_context
            groups.learn_suite(self._tx, group.id, context.version, context.cipher_suite)
            partitions.learn_epoch(self._tx, partition.id, context.epoch)
        self._mls.states.save(self._tx, partition.id, knowledge)
        partitions.set_group_info(self._tx, partition.id, opening.group_info.encoded)
        return groups.group_by_row(self._tx, group.id), partitions.partition_by_row(self._tx, partition.id)

    def _note_gap(self, partition: Partition, epoch: PushedEpoch) -> Counter:
        """Return the counter wanted next where an epoch begins after it."""
        self._gaps += 1
        if epoch.epoch.messages:
            return partition.next_counter
        # The hub keeps nothing earlier: an epoch without messages says at which counter it continues.
        partitions.advance(self._tx, partition.id, next_counter=epoch.counter, last_seq=partition.last_seq)
        self._changed.add(partition.masked_key)
        return epoch.counter

    def _differs_from_stored(self, group: Group, partition: Partition, epoch: PushedEpoch) -> bool:
        """Tell whether the hub sent another message under this counter before, and note the contradiction."""
        first = epoch.epoch.messages[0].message.encoded
        stored = messages.digest_at(self._tx, partition.id, epoch.counter)
        if stored is None or stored == messages.digest_of(first):
            return False
        self._contradictions.append(Contradiction(self._hub, group.group_id, first, "sequenced-differently"))
        return True

    def _append_messages(self, group: Group, partition: Partition, new: Sequence[Message]) -> Counter:
        end = PartitionEnd(partition, partition.next_counter, partition.last_seq)
        for message in new:
            group = self._append_message(group, end, message)
        self._appender.flush()
        self._messages += len(new)
        return Counter(end.next_counter)

    # --- one message --------------------------------------------------------------------------------------------

    def _append_message(self, group: Group, end: PartitionEnd, message: Message) -> Group:
        """Append a message as the hub sequenced it; note a proposal, or open the partition that a commit leads to."""
        mls, hint = message.message, message.commit
        judged: Judged | None = None
        self._appender.flush_before_judging(mls)
        try:
            judged = self._mls.judge(self._tx, group, end.partition, mls)
        except (InvalidMessage, WrongBranch) as error:
            self._note_error(group, mls.encoded, error)
        self._appender.append(
            end,
            mls.encoded,
            messages.digest_of(mls.encoded),
            kind=mls.content_type or 0,
            next_masked_key=None if hint is None else hint.next_partition_key,
            group_info=None if hint is None or hint.group_info is None else hint.group_info.encoded,
        )
        group = self._appender.note_content(group, end, mls, judged)
        if hint is not None:
            self._open_child(group, end.partition, mls.encoded, hint, judged)
        return group

    def _open_child(
        self, group: Group, parent: Partition, commit: bytes, hint: CommitHint, judged: Judged | None
    ) -> None:
        """Open the partition that a commit leads to, with its state as far as that is known."""
        existing = partitions.find_partition(self._tx, group.hub, [hint.next_partition_key])
        if existing is not None and not can_attach(self._tx, group, parent, existing):
            self._contradictions.append(Contradiction(self._hub, group.group_id, commit, "partition-exists"))
            return
        child = Child(masked_key=hint.next_partition_key, existing=existing, detached=False)
        row = open_child(self._appender, group, parent, child)
        if judged is None or (existing is not None and existing.state is not None):
            return
        try:
            knowledge = self._mls.after_commit(judged, hint.group_info)
        except MimiError as error:
            self._note_error(group, b"" if hint.group_info is None else hint.group_info.encoded, error)
            return
        save_child_state(self._tx, self._mls.states, row, knowledge, judged, hint.group_info)

    def _note_error(self, group: Group, message: bytes, error: MimiError) -> None:
        self._contradictions.append(Contradiction.of_error(self._hub, group.group_id, message, error))


def find_or_add_partition(tx: Tx, group: Group, key: MaskedPartitionKey, now: Milliseconds) -> Partition:
    """Return the partition of a masked key; add it, with nothing known of its state, if it is new."""
    found = partitions.find_partition(tx, group.hub, [key])
    if found is not None:
        return found
    row = partitions.add_partition(tx, group=group.id, hub=group.hub, masked_key=key, epoch=None, now=now)
    return partitions.partition_by_row(tx, row)
