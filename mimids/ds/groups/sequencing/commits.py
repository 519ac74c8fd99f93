"""What a commit leads to: the next partition, its state, and its Welcome."""

from __future__ import annotations

import attrs

from mimids.ds.groups.appending import Child, MessageAppender, can_attach, open_child, save_child_state
from mimids.ds.groups.judging import Judged, MlsJudge
from mimids.ds.groups.sequencing.partition_writer import PartitionWriter, PartitionWriters
from mimids.ds.groups.sequencing.submitter import Submitter
from mimids.ds.groups.states import mask_of
from mimids.ds.groups.welcome_rows import check_welcome, queue_welcome
from mimids.ds.limits.quotas import SenderQuotas
from mimids.errors import PartitionExists
from mimids.mls.knowledge import Knowledge
from mimids.store import messages, partitions
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.store.welcomes import drop_held
from mimids.wire.ids import Counter
from mimids.wire.messages import CommitData


@attrs.frozen
class Opening:
    """Where a commit leads, found out before anything is written."""

    child: Child
    knowledge: Knowledge  # of the child's state
    judged: Judged


class CommitSequencer:
    """Checks where a commit leads, and opens the partition once the commit is appended."""

    def __init__(
        self,
        appender: MessageAppender,
        writers: PartitionWriters,
        submitter: Submitter,
        mls: MlsJudge,
        quotas: SenderQuotas,
    ) -> None:
        self._tx = appender.tx
        self._appender = appender
        self._writers = writers
        self._submitter = submitter
        self._mls = mls
        self._quotas = quotas

    def check(self, group: Group, writer: PartitionWriter, judged: Judged, data: CommitData) -> Opening:
        """Return where a commit leads.

        Raises `QuotaExceeded`, `PartitionExists`, `WelcomeMismatch`, and for the GroupInfo what `MlsJudge.after_commit`
        raises.
        """
        masks = data.next_partition_key.masks()
        self._appender.flush()
        existing = self._writers.find(masks)
        if existing is not None:
            # Otherwise a member could graft one branch onto another (semantics: partitions-and-forks).
            if not existing.detached or not can_attach(self._tx, group, writer.partition, existing):
                raise PartitionExists
        elif writer.partition.detached:  # then the child is detached too
            self._quotas.check_detached_partitions()
        else:
            self._quotas.check_branches(group.id)
        knowledge = self._mls.after_commit(judged, data.group_info)
        if data.welcome_data is not None:
            check_welcome(data.welcome_data, group)
        masked_key = existing.masked_key if existing else mask_of(group, masks)
        child = Child(masked_key=masked_key, existing=existing, detached=writer.partition.detached)
        return Opening(child, knowledge, judged)

    def open(self, group: Group, writer: PartitionWriter, opening: Opening, data: CommitData) -> bool:
        """Open the partition that the commit appended last leads to, and queue the commit's Welcome.

        Returns whether there is a Welcome that can be sent at once.
        """
        row = open_child(self._appender, group, writer.partition, opening.child)
        if opening.child.existing is not None:
            self._writers.reload()
        save_child_state(self._tx, self._mls.states, row, opening.knowledge, opening.judged, data.group_info)
        if data.group_info is not None:
            self._drop_group_infos(group)
        first = not self._has_open_siblings(writer.partition)
        writer.commits.append((Counter(writer.next_counter - 1), opening.child.masked_key))
        self._writers.note_opened(row, data.next_partition_key)
        # The next key of a CommitData counts as presented (semantics: following-and-delivery).
        self._submitter.follow(self._tx, row, writer.partition.id)
        if data.welcome_data is None:
            return False
        # RFC 9420 section 14: a Welcome goes out only once its commit is accepted.
        queue_welcome(self._tx, data.welcome_data, row, held=not first, now=self._appender.now)
        return first

    def _drop_group_infos(self, group: Group) -> None:
        """Drop the GroupInfos and held Welcomes beyond the sender's quota, the oldest first.

        Only branches that carry no message lose theirs (semantics: limits-and-retention); the commit that is being
        sequenced keeps its own.
        """
        self._appender.flush()  # or a branch whose messages are still pending would seem to carry none
        for row, opened_by in self._quotas.group_infos_to_drop(group.id):
            if opened_by != self._appender.seq:
                partitions.set_group_info(self._tx, row, None)
                messages.drop_group_info(self._tx, opened_by)
                drop_held(self._tx, row)

    def _has_open_siblings(self, parent: Partition) -> bool:
        """Tell whether an earlier commit of the partition leads to a branch that is not terminated.

        Then the Welcome of this one is held (semantics: welcomes-and-leaving).
        """
        return any(not child.terminated for child in partitions.children(self._tx, parent.id)[:-1])
