"""Repeats of commits: they add the GroupInfo and the Welcomes that the commit lacked, and change nothing else.

(semantics: sequencing, welcomes-and-leaving)
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mimids.config import Limits
from mimids.ds.groups.appending import MessageAppender, save_child_state
from mimids.ds.groups.judging import BranchTries, Judged, MlsJudge
from mimids.ds.groups.sequencing.commits import CommitSequencer
from mimids.ds.groups.sequencing.submitter import Submitter
from mimids.ds.groups.visible_proposals import added_references
from mimids.ds.groups.welcome_rows import Recipient, WelcomeQueue, recipients_of, sender_number
from mimids.ds.limits.sizes import check_sizes
from mimids.errors import CommitDataDiffers
from mimids.mls.framing import MLSMessage
from mimids.mls.knowledge import Knowledge
from mimids.store import messages, open_branches, openers, partitions, welcome_outcomes
from mimids.store.groups import Group
from mimids.store.messages import StoredCommit
from mimids.store.partitions import Partition
from mimids.wire.ids import Counter, MaskedPartitionKey
from mimids.wire.messages import CommitData


@attrs.frozen
class _Missing:
    """The GroupInfo and Welcome that a repeat adds to the commit, determined before anything is written."""

    commit: StoredCommit
    child: Partition
    recipients: Sequence[Recipient]  # the recipients to which the Welcome has yet to be sent
    group_info: MLSMessage | None


@attrs.frozen
class RepeatedCommits:
    """Compares the CommitData of a repeat with the stored commit, and stores the missing parts."""

    appender: MessageAppender
    submitter: Submitter
    mls: MlsJudge
    limits: Limits
    welcomes: WelcomeQueue
    commits: CommitSequencer

    def supply(
        self,
        group: Group,
        partition: Partition,
        message: MLSMessage,
        data: CommitData,
        accepted: tuple[Counter, MaskedPartitionKey | None],
    ) -> bool:
        """Store the GroupInfo and the Welcome of a repeat, if the commit came without them.

        `accepted` is the commit's counter in `partition`, and the masked key of the partition that the commit leads to.
        Returns whether there is a Welcome that can be sent. Raises `CommitDataDiffers` if the repeat contradicts what
        is stored, or if it adds something and comes from another sender than the commit. Also raises what
        `MlsJudge.after_commit` and `WelcomeQueue` raise.
        """
        counter, opened = accepted
        if opened is None or opened not in data.next_partition_key.masks():
            raise CommitDataDiffers
        if data.group_info is None and data.welcome_data is None:
            return False
        self.appender.flush()
        commit = messages.commit_at(self.appender.tx, partition.id, counter)
        child = partitions.find_partition(self.appender.tx, group.hub, [opened])
        if commit is None or child is None:
            return False
        missing = self._missing(group, partition, message, data, commit, child)
        if missing.group_info is None and not missing.recipients:
            return False
        check_sizes(self.limits, message, data)
        self._check_sender(child)
        following = None if missing.group_info is None else self._following(group, partition, message, missing)

        # Nothing below refuses the repeat.
        if following is not None:
            self._store_group_info(group, missing, *following)
        return self._queue_welcome(group, data, missing)

    def _missing(
        self,
        group: Group,
        partition: Partition,
        message: MLSMessage,
        data: CommitData,
        commit: StoredCommit,
        child: Partition,
    ) -> _Missing:
        tx = self.appender.tx
        group_info = None if commit.expired else data.group_info  # retention may have deleted the first GroupInfo
        if group_info is not None and commit.group_info is not None:
            if group_info.encoded != commit.group_info:
                raise CommitDataDiffers("the commit came with another GroupInfo")
            group_info = None
        if child.terminated:
            group_info = None
        recipients: Sequence[Recipient] = ()
        if data.welcome_data is not None:
            added = added_references(tx, group, partition, message)
            recipients = recipients_of(data.welcome_data, group, added)
            recipients = self.welcomes.missing(tx, data.welcome_data, recipients, child)
            if recipients:
                self.welcomes.check_waiting(tx, self._sender_number)
        return _Missing(commit, child, recipients, group_info)

    def _check_sender(self, child: Partition) -> None:
        """Refuse a repeat by another sender, who could send a false Welcome before the commit's sender repeats."""
        ours = (self.submitter.provider, self.submitter.device)
        opener = openers.opener_of(self.appender.tx, child.id)
        if opener != (None, None) and opener != ours:
            raise CommitDataDiffers("only the sender of a commit can add data that the commit lacked")

    def _following(
        self, group: Group, partition: Partition, message: MLSMessage, missing: _Missing
    ) -> tuple[Knowledge, Judged]:
        judged = self.mls.judge(self.appender.tx, group, partition, message, BranchTries())
        return self.mls.after_commit(judged, missing.group_info), judged

    def _store_group_info(self, group: Group, missing: _Missing, following: Knowledge, judged: Judged) -> None:
        if missing.group_info is None:
            return
        tx, row = self.appender.tx, missing.child.id
        messages.set_group_info(tx, missing.commit.seq, missing.group_info.encoded)
        if missing.child.state is None:
            save_child_state(tx, self.mls.states, row, following, judged, missing.group_info)
        else:
            partitions.set_group_info(tx, row, missing.group_info.encoded)
        self.commits.drop_group_infos(group, keep=missing.commit.seq)

    def _queue_welcome(self, group: Group, data: CommitData, missing: _Missing) -> bool:
        if data.welcome_data is None or not missing.recipients:
            return False
        tx, child = self.appender.tx, missing.child
        used = child.next_counter > 0 and not child.held_welcomes
        held = not (group.linear or used) and open_branches.has_open_sibling_before(tx, child.id)
        welcome_outcomes.forget_undelivered(tx, child.id, {ref for ref, _ in missing.recipients})
        self.welcomes.queue(
            tx,
            data.welcome_data,
            missing.recipients,
            child.id,
            sender=self._sender_number,
            held=held,
            now=self.appender.now,
        )
        return not held

    @property
    def _sender_number(self) -> int:
        return sender_number(self.submitter.provider, self.submitter.device)
