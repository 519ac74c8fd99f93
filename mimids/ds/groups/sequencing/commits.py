"""What a commit leads to: the next partition, its state, and its Welcome."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mimids.ds.groups.appending import Child, MessageAppender, can_attach, open_child, save_child_state
from mimids.ds.groups.judging import Judged, MlsJudge
from mimids.ds.groups.sequencing.partition_writer import PartitionWriter, PartitionWriters
from mimids.ds.groups.sequencing.submitter import Submitter
from mimids.ds.groups.states import mask_of
from mimids.ds.groups.visible_proposals import added_references
from mimids.ds.groups.welcome_rows import Recipient, WelcomeQueue, recipients_of, sender_number
from mimids.ds.limits.quotas import SenderQuotas
from mimids.errors import CommitSuperseded, PartitionExists
from mimids.mls.knowledge import Knowledge
from mimids.store import messages, open_branches, partitions
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.store.welcomes import drop_held
from mimids.wire.base64url import base64url
from mimids.wire.ids import FIRST_COUNTER
from mimids.wire.messages import CommitData


@attrs.frozen
class Opening:
    """Where a commit leads, determined before anything is written."""

    child: Child
    used: bool  # an earlier request sent messages to the child
    knowledge: Knowledge  # what is known of the child's state
    judged: Judged
    recipients: Sequence[Recipient]  # the recipients of the commit's Welcome


class CommitSequencer:
    """Determines where a commit leads, and opens the partition once the commit is appended."""

    def __init__(
        self,
        appender: MessageAppender,
        writers: PartitionWriters,
        submitter: Submitter,
        mls: MlsJudge,
        quotas: SenderQuotas,
        welcomes: WelcomeQueue,
    ) -> None:
        self._tx = appender.tx
        self._appender = appender
        self._writers = writers
        self._submitter = submitter
        self._mls = mls
        self._quotas = quotas
        self._welcomes = welcomes
        self._sender = sender_number(submitter.provider, submitter.device)

    def check_is_first(self, writer: PartitionWriter) -> None:
        """Raise `CommitSuperseded` if the partition of a linear group has an open child (semantics: linear-groups)."""
        winner = open_branches.open_child(self._tx, writer.partition.id)
        if winner is not None:
            # The winner is not known once retention has deleted its digest, nor after very many terminations.
            counter = next((at for at, opened in writer.commits if opened == winner), FIRST_COUNTER)
            raise CommitSuperseded(counter, base64url(winner))

    def check(self, group: Group, writer: PartitionWriter, judged: Judged, data: CommitData) -> Opening:
        """Return where a commit leads.

        Raises `QuotaExceeded`, `PartitionExists`, `WelcomeMismatch`, and what `MlsJudge.after_commit` raises for the
        GroupInfo.
        """
        masks = data.next_partition_key.masks()
        self._appender.flush()
        existing = self._writers.find(masks)
        if existing is not None:
            # A member must not graft one branch onto another (semantics: partitions-and-forks).
            if not existing.detached or not can_attach(self._appender, group, writer.partition, existing):
                raise PartitionExists
        elif writer.partition.detached:  # then the child is detached too
            self._quotas.check_detached_partitions()
        else:
            self._quotas.check_branches(group.id)
        knowledge = self._mls.after_commit(judged, data.group_info)
        recipients: Sequence[Recipient] = ()
        if data.welcome_data is not None:
            added = added_references(self._tx, group, writer.partition, judged.message)
            recipients = recipients_of(data.welcome_data, group, added)
            self._welcomes.check_waiting(self._tx, self._sender)
        masked_key = existing.masked_key if existing else mask_of(group, masks)
        child = Child(masked_key=masked_key, existing=existing, detached=writer.partition.detached)
        return Opening(child, existing is not None and self._is_used(existing), knowledge, judged, recipients)

    def open(self, group: Group, writer: PartitionWriter, opening: Opening, data: CommitData) -> bool:
        """Open the partition to which the last appended commit leads, and queue the Welcome of that commit.

        Returns whether there is a Welcome that can be sent at once.
        """
        row = open_child(self._appender, group, writer.partition, opening.child)
        if opening.child.existing is not None:
            self._writers.reload()
        save_child_state(self._tx, self._mls.states, row, opening.knowledge, opening.judged, data.group_info)
        if data.group_info is not None:
            self.drop_group_infos(group, keep=self._appender.seq)
        writer.note_commit(opening.child.masked_key)
        self._writers.note_opened(row, data.next_partition_key)
        # The next key of a CommitData counts as presented (semantics: following-and-delivery).
        self._submitter.follow(self._tx, row, writer.partition.id)
        if data.welcome_data is None:
            return False
        # RFC 9420 section 14: a Welcome goes out only once its commit is accepted.
        held = not (group.linear or opening.used) and open_branches.has_open_sibling_before(self._tx, row)
        self._welcomes.queue(
            self._tx,
            data.welcome_data,
            opening.recipients,
            row,
            sender=self._sender,
            held=held,
            now=self._appender.now,
        )
        return not held

    def drop_group_infos(self, group: Group, *, keep: int) -> None:
        """Drop the GroupInfos and held Welcomes beyond the sender's quota, the oldest first.

        Only branches that carry no message lose their GroupInfos and Welcomes (semantics: limits-and-retention). The
        commit whose seq is `keep` keeps its GroupInfo and Welcome.
        """
        self._appender.flush()  # otherwise a branch whose messages are not written yet would seem to have no messages
        for row, opened_by in self._quotas.group_infos_to_drop(group.id):
            if opened_by != keep:
                partitions.set_group_info(self._tx, row, None)
                messages.drop_group_info(self._tx, opened_by)
                drop_held(self._tx, row)

    def _is_used(self, existing: Partition) -> bool:
        """Tell whether a detached partition had messages before this transaction (semantics: welcomes-and-leaving)."""
        writer = self._writers.of(existing)
        return writer.partition.next_counter > 0 and not writer.opened_here
