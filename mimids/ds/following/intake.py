"""Storing, within one transaction, the epochs that a hub pushed or returned in an answer.

New messages are appended under the hub's counters and duplicates are skipped. The answer for each epoch is the counter
that is wanted next, so the hub's next push closes a gap. The group's state is derived as the hub derives it. A message
that contradicts the state is still delivered, because the hub has sequenced it and devices judge for themselves.
The contradiction is reported (semantics: following-and-delivery).

After a restore, other providers return messages to us. These are checked more strictly, because those providers did not
sequence them: a message that contradicts the state is not stored, nor are the messages after it (semantics: restore).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from mimids.ds.following.followed_groups import answer_if_unstored
from mimids.ds.following.pending_requests import LeftGroups
from mimids.ds.groups.appending import (
    Child,
    MessageAppender,
    PartitionEnd,
    can_attach,
    open_child,
    save_child_state,
)
from mimids.ds.groups.contradiction import Contradiction
from mimids.ds.groups.judging import BranchTries, Judged, MlsJudge
from mimids.errors import MimiError, RatchetTreeNeeded
from mimids.mls.group_info import GroupInfo
from mimids.store import groups, messages, moved, participations, partitions, requested_partitions
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import Milliseconds
from mimids.wire.ids import LAST_COUNTER, NO_LONGER_FOLLOWED, Counter, MaskedPartitionKey, ProviderId
from mimids.wire.messages import CommitHint, GroupInfoResponse, Message, PushedEpoch

EMPTY_PARTITIONS: Final = 1000  # partitions of one group that a hub may open without messages
RESTORED_JUMP: Final = 1 << 20  # the most counters that may be missing after a restore; a peer says how many are


@attrs.frozen(kw_only=True)
class Received:
    """The results of a transaction, which are reported after the commit."""

    counters: list[Counter]  # wanted next, one for each epoch
    changed: frozenset[MaskedPartitionKey]
    contradictions: list[Contradiction]
    messages: int
    duplicates: int
    gaps: int
    too_many_empty: int  # partitions that were not added


class Intake:
    """Appends epochs of one hub's groups within a transaction.

    With `restoring`, this provider is the hub, and another provider returns the epochs after a restore.
    """

    def __init__(
        self,
        tx: Tx,
        hub: ProviderId,
        mls: MlsJudge,
        left: LeftGroups,
        now: Milliseconds,
        *,
        restoring: bool = False,
    ) -> None:
        self._left = left
        self._restoring = restoring
        self._tx = tx
        self._hub = hub
        self._mls = mls
        self._branch_tries = BranchTries()
        self._appender = MessageAppender(tx, now=now)
        self._counters: list[Counter] = []
        self._changed: set[MaskedPartitionKey] = set()
        self._contradictions: list[Contradiction] = []
        self._messages = self._duplicates = self._gaps = self._too_many_empty = 0

    def append(self, group: Group, epoch: PushedEpoch) -> None:
        """Append the new messages of an epoch."""
        self._counters.append(self._append_epoch(group, epoch))

    def answer(self, counter: Counter) -> None:
        """Answer an epoch of which nothing is stored."""
        self._counters.append(counter)

    def finish(self) -> Received:
        """Write everything, and return what was received."""
        return Received(
            counters=self._counters,
            changed=frozenset(self._changed | self._appender.changed.keys()),
            contradictions=self._contradictions,
            messages=self._messages,
            duplicates=self._duplicates,
            gaps=self._gaps,
            too_many_empty=self._too_many_empty,
        )

    # --- one epoch ----------------------------------------------------------------------------------------------

    def _append_epoch(self, group: Group, epoch: PushedEpoch) -> Counter:
        new = epoch.epoch.messages
        if epoch.counter + len(new) > LAST_COUNTER:
            return NO_LONGER_FOLLOWED
        partition = partitions.find_partition(self._tx, group.hub, [epoch.masked_partition_key])
        if partition is None:
            if (answer := self._answer_without_row(group, epoch)) is not None:
                return answer
            partition = find_or_add_partition(
                self._tx, group, epoch.masked_partition_key, self._appender.now, self._left
            )
        elif partition.group != group.id:
            message = new[0].message.encoded if new else b""
            self._contradictions.append(Contradiction(self._hub, group.group_id, message, "partition-exists"))
            return NO_LONGER_FOLLOWED
        if epoch.opening is not None and partition.state is None:
            group, partition = self._store_opening(group, partition, epoch.opening)
        if epoch.counter > partition.next_counter:
            return self._note_gap(partition, epoch)
        known = partition.next_counter - epoch.counter
        if known and new:
            self._duplicates += min(known, len(new))
            if self._differs_from_stored(group, partition, epoch):
                return partition.next_counter
        if group.successor is not None and new[known:]:
            groups.clear_successor(self._tx, group.id)  # the hub sequences again: it was restored
        return self._append_messages(group, partition, new[known:])

    def _answer_without_row(self, group: Group, epoch: PushedEpoch) -> Counter | None:
        """Return the answer to an epoch of an unknown partition; None if the partition must be stored first."""
        if (answer := answer_if_unstored(epoch)) is not None:
            self._gaps += bool(epoch.epoch.messages)
            return answer
        if epoch.epoch.messages:
            return None
        if partitions.count_empty(self._tx, group.id, at_most=EMPTY_PARTITIONS) >= EMPTY_PARTITIONS:
            self._too_many_empty += 1
            return NO_LONGER_FOLLOWED
        return None

    def _store_opening(self, group: Group, partition: Partition, opening: GroupInfoResponse) -> tuple[Group, Partition]:
        """Verify a partition's opening as the hub does, and store the state that it describes."""
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
        """Return the answer to an epoch that begins after the partition's next counter: the counter wanted next."""
        self._gaps += 1
        if epoch.epoch.messages:
            return partition.next_counter
        if self._restoring and epoch.counter > messages.end_of_known(self._tx, partition.id) + RESTORED_JUMP:
            return partition.next_counter
        # The hub keeps no earlier messages: an epoch without messages says at which counter the partition continues.
        partitions.advance(self._tx, partition.id, next_counter=epoch.counter, last_seq=partition.last_seq)
        moved.touch(self._tx, [partition.id])
        self._changed.add(partition.masked_key)
        return epoch.counter

    def _differs_from_stored(self, group: Group, partition: Partition, epoch: PushedEpoch) -> bool:
        """Tell whether the hub sent another message under one of these counters before; record the contradiction."""
        stored = messages.digests_between(self._tx, partition.id, epoch.counter, partition.next_counter)
        for counter, message in enumerate(
            epoch.epoch.messages[: partition.next_counter - epoch.counter], epoch.counter
        ):
            known = stored.get(Counter(counter))
            next_key = None if message.commit is None else message.commit.next_partition_key
            if known is not None and known != (messages.digest_of(message.message.encoded), next_key):
                first = message.message.encoded
                self._contradictions.append(Contradiction(self._hub, group.group_id, first, "sequenced-differently"))
                return True
        return False

    def _append_messages(self, group: Group, partition: Partition, new: Sequence[Message]) -> Counter:
        end = PartitionEnd(partition, partition.next_counter, partition.last_seq)
        for message in new:
            appended = self._append_message(group, end, message)
            if appended is None:
                break
            group = appended
        self._appender.flush()
        self._messages += end.next_counter - partition.next_counter
        return Counter(end.next_counter)

    # --- one message --------------------------------------------------------------------------------------------

    def _append_message(self, group: Group, end: PartitionEnd, message: Message) -> Group | None:
        """Append a message as the hub sequenced it, and record what it shows; return None if a restore refuses it."""
        mls, hint = message.message, message.commit
        judged: Judged | None = None
        self._appender.flush_before_judging(mls)
        try:
            judged = self._mls.judge(self._tx, group, end.partition, mls, self._branch_tries)
        except MimiError as error:
            self._note_error(group, mls.encoded, error)
        if self._restoring and judged is None:
            return None
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
        """Open the partition that a commit leads to, with its state as far as it is known."""
        existing = partitions.find_partition(self._tx, group.hub, [hint.next_partition_key])
        if existing is not None and not can_attach(self._appender, group, parent, existing):
            self._contradictions.append(Contradiction(self._hub, group.group_id, commit, "partition-exists"))
            return
        child = Child(masked_key=hint.next_partition_key, existing=existing, detached=False)
        row = open_child(self._appender, group, parent, child)
        if existing is None:
            match_request(self._tx, group, child.masked_key, self._appender.now, self._left)
        self._changed.add(child.masked_key)  # a device may have presented its key before
        if judged is None or (existing is not None and existing.state is not None):
            return
        try:
            knowledge = self._mls.after_commit(judged, hint.group_info)
        except MimiError as error:
            self._note_error(group, b"" if hint.group_info is None else hint.group_info.encoded, error)
            return
        save_child_state(self._tx, self._mls.states, row, knowledge, judged, hint.group_info)

    def _note_error(self, group: Group, message: bytes, error: MimiError) -> None:
        if isinstance(error, RatchetTreeNeeded):
            return  # a hub that knows the tree accepts a GroupInfo without a tree
        self._contradictions.append(Contradiction.of_error(self._hub, group.group_id, message, error))


def find_or_add_partition(
    tx: Tx, group: Group, key: MaskedPartitionKey, now: Milliseconds, left: LeftGroups | None = None
) -> Partition:
    """Return the partition of a masked key; if it is new, add it with an unknown state."""
    found = partitions.find_partition(tx, group.hub, [key])
    if found is not None:
        return found
    row = partitions.add_partition(tx, group=group.id, hub=group.hub, masked_key=key, epoch=None, now=now)
    match_request(tx, group, key, now, left)
    return partitions.partition_by_row(tx, row)


def match_request(
    tx: Tx, group: Group, key: MaskedPartitionKey, now: Milliseconds, left: LeftGroups | None = None
) -> None:
    """Let the device that requested a partition take part in its group, unless it has left the group since.

    Call this when the partition is stored.
    """
    requested = requested_partitions.find(tx, group.hub, key)
    if requested is None:
        return
    requested_partitions.forget(tx, group.hub, [key])
    if left is None or not left.has_left(requested, group.hub, group.group_id):
        participations.take_part(tx, group.id, requested.device, now)
    if requested.linear and not group.linear:
        groups.learn_linear(tx, group.id)
