"""Sequencing within one transaction.

The sequencer runs inside a transaction and is not a job: a `SequencingTransaction` takes messages in order, accepts or
refuses each as a whole, and `finish` writes the accepted ones. Of a refused message only a proposal's reference is
written. The caller answers the sender after the commit, because only then the messages are durable.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final

import attrs

from mimids.config import Limits
from mimids.ds.groups.appending import MessageAppender
from mimids.ds.groups.judging import BranchTries, Judged, MlsJudge
from mimids.ds.groups.policy import GroupPolicy
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.restrictions import OWN
from mimids.ds.groups.sequencing.commits import CommitSequencer, Opening
from mimids.ds.groups.sequencing.joins import partition_of_join
from mimids.ds.groups.sequencing.partition_writer import PartitionWriter, PartitionWriters
from mimids.ds.groups.sequencing.refused_proposals import remember_refusal
from mimids.ds.groups.sequencing.repeats import RepeatedCommits
from mimids.ds.groups.sequencing.submitter import Submitter
from mimids.ds.groups.successors import check_not_replaced
from mimids.ds.groups.welcome_rows import WelcomeQueue
from mimids.ds.limits.quotas import SenderQuotas
from mimids.ds.limits.sizes import check_sizes
from mimids.errors import (
    BranchTerminated,
    Malformed,
    MimiError,
    QuotaExceeded,
    Recovering,
    TooLarge,
    UnknownGroup,
    WelcomeMismatch,
    WrongEpoch,
)
from mimids.mls.code_points import ContentType, SenderType
from mimids.mls.framing import MLSMessage, PrivateMessage, PublicMessage
from mimids.mls.rules.checks import check_framing
from mimids.mls.rules.verdict import RuleError
from mimids.store import follows, groups, messages
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.store.welcomes import release_held
from mimids.tracebacks import release_frames
from mimids.values import Milliseconds, Sender
from mimids.wire.ids import LAST_COUNTER, MaskedPartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    ExternalJoinRequest,
    ExternalProposalRequest,
    SendRequest,
    SendResponse,
)

Outcome = SendResponse | MimiError

# A partition takes no messages from this counter on. So one transaction never appends beyond the largest counter.
FULL_COUNTER: Final = LAST_COUNTER - (1 << 20)


@attrs.frozen
class Changes:
    """The changes to notify of once the transaction is committed."""

    partitions: dict[MaskedPartitionKey, int]  # partitions that have new messages, and their rows
    welcomes: bool  # there are Welcomes that can be sent
    hub: int  # the row of this provider
    pushes: bool  # there may be messages to push to followers


class SequencingTransaction:
    """Sequences the messages of one sender within one transaction."""

    def __init__(
        self,
        tx: Tx,
        sender: Sender,
        *,
        provider: ProviderId,
        now: Milliseconds,
        mls: MlsJudge,
        recent: Recent,
        limits: Limits,
        welcomes: WelcomeQueue,
        opened: set[int] | None = None,
    ) -> None:
        """Begin; if a batch takes several transactions, they share `opened` (`PartitionWriters`)."""
        self.tx = tx
        self._submitter = submitter = Submitter.of(tx, sender, provider)
        self._quotas = SenderQuotas(tx, limits, submitter.provider, submitter.device)
        self._mls = mls
        self._branch_tries = BranchTries()
        self._limits = limits
        self._welcome_queue = welcomes
        self._policy = GroupPolicy(tx, mls.states, now, OWN)
        self._appender = MessageAppender(
            tx, now=now, provider=submitter.provider, device=submitter.device, recent=recent
        )
        self._writers = PartitionWriters(
            tx, submitter, self._quotas, now=now, opened=set() if opened is None else opened
        )
        self._groups: dict[bytes, Group] = {}
        self._refused: dict[
            int, int
        ] = {}  # how many proposals are stored as refused, by partition, where they were counted
        self._welcomes = False  # there are Welcomes that can be sent
        self._opened_any = False  # a commit opened or attached a partition

    @cached_property
    def _commits(self) -> CommitSequencer:
        """The sequencer of commits; made for the first commit, because most transactions have no commits."""
        self.tx.run_alone()  # quotas and Welcomes are counted over all groups
        return CommitSequencer(
            self._appender, self._writers, self._submitter, self._mls, self._quotas, self._welcome_queue
        )

    @cached_property
    def _repeats(self) -> RepeatedCommits:
        return RepeatedCommits(
            self._appender, self._submitter, self._mls, self._limits, self._welcome_queue, self._commits
        )

    # --- the three ways in --------------------------------------------------------------------------------------

    def send(self, requests: Sequence[SendRequest]) -> list[Outcome]:
        """Sequence messages to the partitions of their keys; an unknown key opens a detached partition.

        (semantics: partitions-and-forks)
        """
        digests = [messages.digest_of(request.message.encoded) for request in requests]
        self._writers.look_up_repeats(requests, digests)
        return [
            self._send_like_the_one_before(request, digest) or self._send(request, digest)
            for request, digest in zip(requests, digests, strict=True)
        ]

    def join(self, request: ExternalJoinRequest) -> Outcome:
        """Sequence an external commit to the open partition for which it was made (semantics: joining-from-outside)."""
        message = request.message.message
        try:
            if not isinstance(message, PublicMessage):
                raise Malformed("an external commit must be a PublicMessage")  # RFC 9420 section 12.4.3.2: MUST
            if message.content.sender.sender_type is not SenderType.NEW_MEMBER_COMMIT:
                raise Malformed("the sender of an external commit must be new_member_commit")
            if request.commit_data.welcome_data is not None:
                raise WelcomeMismatch("an external commit must not have welcome_data: it adds no other member")
            group = self._group(request.message)
            digest = messages.digest_of(request.message.encoded)
            partition = partition_of_join(self.tx, self._mls, group, request.message, digest)
            return self._sequence(group, self._writers.of(partition), request.message, digest, request.commit_data)
        except MimiError as error:
            return release_frames(error)

    def propose(self, request: ExternalProposalRequest, default: Partition | None) -> Outcome:
        """Sequence a proposal from outside to the partition that it names, or to `default` if it names no partition.

        `default` is the partition whose GroupInfo the group-info request returns (semantics: joining-from-outside).
        """
        try:
            group, partition = self._target_of_proposal(request, default)
            writer = self._writers.of(partition)
        except MimiError as error:
            return release_frames(error)
        try:
            digest = messages.digest_of(request.message.encoded)
            return self._sequence(group, writer, request.message, digest, None, has_key=False)
        except MimiError as error:
            self._remember_refusal(writer, request.message, error)
            return release_frames(error)

    def finish(self) -> Changes:
        """Write the accepted messages; return the changes to notify of once the transaction is committed."""
        pushes = self._opened_any or follows.have_followers(self.tx, self._writers.rows)
        self._appender.flush()
        return Changes(self._appender.changed, self._welcomes, self._submitter.hub, pushes)

    # --- where a message goes -----------------------------------------------------------------------------------

    def _send(self, request: SendRequest, digest: bytes) -> Outcome:
        writer = None
        try:
            group = self._group(request.message)
            writer = self._writers.find_or_open(request.partition_key, group)
            return self._sequence(group, writer, request.message, digest, request.commit_data)
        except MimiError as error:
            if writer is not None:
                self._remember_refusal(writer, request.message, error)
                self._writers.remove_if_empty(writer, request.partition_key)
            return release_frames(error)

    def _send_like_the_one_before(self, request: SendRequest, digest: bytes) -> SendResponse | None:
        """Append an application message without judging it, if an earlier message to the same partition was judged.

        This is the fast path: nearly all messages of a batch take it. Returns None for every other message, for a
        repeat, and for a message that would be refused: `_send` answers those.
        """
        writer = self._writers.known(request.partition_key)
        message, framed = request.message, request.message.message
        if (
            writer is None
            or not isinstance(framed, PrivateMessage)
            or framed.content_type is not ContentType.APPLICATION
            or framed.group_id != writer.judged_for
            or writer.partition.epoch not in (framed.epoch, None)
            or writer.find_repeat(self.tx, digest) is not None
        ):
            return None
        try:
            check_framing(message)
            check_sizes(self._limits, message, None)
        except (RuleError, TooLarge):
            return None
        counter = self._appender.append(writer, message.encoded, digest)
        response = writer.response(counter, self._appender.now)
        writer.answers[digest] = response, None
        return response

    def _target_of_proposal(
        self, request: ExternalProposalRequest, default: Partition | None
    ) -> tuple[Group, Partition]:
        message = request.message.message
        outside = (SenderType.EXTERNAL, SenderType.NEW_MEMBER_PROPOSAL)
        if not isinstance(message, PublicMessage):
            raise Malformed("an external proposal must be a PublicMessage")
        if message.content_type is not ContentType.PROPOSAL or message.content.sender.sender_type not in outside:
            raise Malformed("only proposals of senders external and new_member_proposal are accepted here")
        group = self._group(request.message)
        partition = default if request.partition is None else self._writers.find([request.partition])
        if partition is None:
            check_not_replaced(group)
        if partition is None or partition.group != group.id:
            raise UnknownGroup
        return group, partition

    def _group(self, message: MLSMessage) -> Group:
        """Return the group of a message; an unknown group is refused (later revision, "Sending Messages")."""
        group_id = message.group_id
        if group_id is None:
            raise Malformed("the message must be a PublicMessage or a PrivateMessage")
        group = self._groups.get(group_id) or groups.find_group(self.tx, self._submitter.hub, group_id)
        if group is None:
            raise UnknownGroup
        if group.held:  # before the restore its next counters may have been given to other messages
            raise Recovering
        self._groups[group_id] = group
        return group

    def _remember_refusal(self, writer: PartitionWriter, message: MLSMessage, error: MimiError) -> None:
        states, sender = self._mls.states, self._submitter.sender
        remember_refusal(self.tx, states, writer.partition, message, error, sender, counted=self._refused)

    # --- one message --------------------------------------------------------------------------------------------

    def _sequence(
        self,
        group: Group,
        writer: PartitionWriter,
        message: MLSMessage,
        digest: bytes,
        data: CommitData | None,
        *,
        has_key: bool = True,
    ) -> SendResponse:
        """Append a message to a partition, or raise its refusal; `has_key` tells whether the sender has the key."""
        repeat = writer.find_repeat(self.tx, digest)
        if repeat is not None:  # checked before policy and termination (semantics: sequencing)
            response, opened = repeat
            if data is not None:
                accepted = response.counter, opened
                self._welcomes |= self._repeats.supply(group, writer.partition, message, data, accepted)
            return response
        check_not_replaced(group)
        kind = self._check_message(writer.partition, message, data)
        if group.linear and kind is ContentType.COMMIT:
            self._commits.check_is_first(writer)
        judged, opening = self._judge(group, writer, message, data)

        # Nothing below refuses the message.
        response = self._append(writer, message, digest, kind, opening, data)
        if has_key and not writer.followed:
            self._submitter.follow(self.tx, writer.partition.id, writer.partition.parent)
        writer.followed = True
        if kind is ContentType.APPLICATION:
            writer.judged_for = group.group_id
        self._groups[group.group_id] = self._appender.note_content(group, writer, message, judged)
        if judged.contradicts_claim:
            writer.judged_for = None
        if writer.partition.held_welcomes and not writer.opened_here:
            self._release_welcomes(writer)
        if opening is not None and data is not None:
            self._opened_any = True
            self._welcomes |= self._commits.open(group, writer, opening, data)
        return response

    def _check_message(self, partition: Partition, message: MLSMessage, data: CommitData | None) -> ContentType:
        """Return the content type of a message; raise a refusal that does not depend on the group's state."""
        framed = message.message
        if partition.terminated:
            raise BranchTerminated
        if partition.next_counter > FULL_COUNTER:
            raise QuotaExceeded("partition_messages")
        if not isinstance(framed, PrivateMessage | PublicMessage):
            raise Malformed("the message must be a PublicMessage or a PrivateMessage")
        if partition.epoch is not None and framed.epoch != partition.epoch:
            raise WrongEpoch(epoch=partition.epoch)
        check_sizes(self._limits, message, data)
        return framed.content_type

    def _judge(
        self, group: Group, writer: PartitionWriter, message: MLSMessage, data: CommitData | None
    ) -> tuple[Judged, Opening | None]:
        """Judge a message by its partition's state and by policy, and a commit also by the state that it leads to."""
        self._appender.flush_before_judging(message)
        judged = self._mls.judge(self.tx, group, writer.partition, message, self._branch_tries)
        opening = None if data is None else self._commits.check(group, writer, judged, data)
        ahead = None if opening is None else opening.knowledge
        self._policy.check(group, writer.partition, judged, ahead, self._submitter.sender)
        return judged, opening

    def _append(
        self,
        writer: PartitionWriter,
        message: MLSMessage,
        digest: bytes,
        kind: ContentType,
        opening: Opening | None,
        data: CommitData | None,
    ) -> SendResponse:
        next_masked_key = None if opening is None else opening.child.masked_key
        group_info = None if data is None or data.group_info is None else data.group_info.encoded
        counter = self._appender.append(
            writer, message.encoded, digest, kind=kind, next_masked_key=next_masked_key, group_info=group_info
        )
        response = writer.response(counter, self._appender.now)
        writer.answers[digest] = response, next_masked_key
        return response

    def _release_welcomes(self, writer: PartitionWriter) -> None:
        """Release the held Welcomes of a partition that is used now (semantics: welcomes-and-leaving)."""
        release_held(self.tx, writer.partition.id)
        self._welcomes = True
        writer.partition = attrs.evolve(writer.partition, held_welcomes=0)
