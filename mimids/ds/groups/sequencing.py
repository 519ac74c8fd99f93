"""Sequencing (semantics: sequencing, partitions-and-forks): the one place where a message becomes part of a partition.

The sequencer is a function of a transaction, not a job. One `SequencingTransaction` is one transaction's worth: it
takes messages
one after the other, each either accepted as a whole or refused with nothing written but the reference of a refused
proposal, and `finish` writes what was accepted. Messages of one run keep their order; the transaction is committed,
and so they are durable, before anybody is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from mimids.config import Limits
from mimids.ds.groups.judging import Judged, MlsJudge
from mimids.ds.groups.policy import GroupPolicy, is_lasting
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.states import mask_of
from mimids.ds.groups.visible_proposals import store_refused
from mimids.ds.groups.welcome_rows import check_welcome, queue_welcome
from mimids.errors import (
    BranchTerminated,
    CommitDataDiffers,
    InvalidMessage,
    Malformed,
    MimiError,
    PartitionExists,
    QuotaExceeded,
    Recovering,
    TooLarge,
    UnknownGroup,
    WelcomeMismatch,
    WrongEpoch,
)
from mimids.mls.code_points import ContentType, SenderType
from mimids.mls.framing import MLSMessage, PrivateMessage, PublicMessage
from mimids.mls.knowledge import Knowledge
from mimids.mls.proposals import Proposal, ProposalRef, SelfRemove
from mimids.mls.rules.checks import check_framing
from mimids.mls.rules.verdict import RuleError
from mimids.store import follows, groups, messages, partitions, proposals, providers
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.messages import AcceptedMessage, NewMessage
from mimids.store.partitions import Partition
from mimids.store.welcomes import drop_held, release_held
from mimids.values import Device, Follower, Milliseconds, Sender
from mimids.wire.ids import Counter, GroupId, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    ExternalJoinRequest,
    ExternalProposalRequest,
    SendRequest,
    SendResponse,
)

REFUSED_PROPOSALS_KEPT: Final = 1000  # for each partition

Outcome = SendResponse | MimiError


@attrs.frozen
class Changes:
    """What a run leaves to do once it is committed."""

    partitions: frozenset[MaskedPartitionKey]  # that have new messages
    welcomes: bool  # some are due


@attrs.define
class PartitionWriter:
    """A partition while a run adds to it."""

    partition: Partition
    counter: int
    commits: list[tuple[Counter, MaskedPartitionKey]]
    opened_here: bool
    last_seq: int = 0
    before: dict[bytes, AcceptedMessage | None] = attrs.field(factory=dict)  # what was looked up of earlier messages
    added: dict[bytes, tuple[SendResponse, MaskedPartitionKey | None]] = attrs.field(factory=dict)
    followed: bool = False  # the sender is known to follow it
    cleared: GroupId | None = None  # its group's, once an application message of the sender has passed here


class SequencingTransaction:
    """Sequencing what one sender offers, within one transaction."""

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
    ) -> None:
        self.tx = tx
        self._sender = sender
        self._now = now
        self._mls = mls
        self._states = mls.states
        self._recent = recent
        self._limits = limits
        self._rules = GroupPolicy(tx, mls.states, now, ours=True)
        self._hub = self._sender_provider = providers.ensure_provider(tx, provider)
        self._sender_device: int | None = None
        if isinstance(sender, Device):
            self._sender_device = sender.row
        else:
            self._sender_provider = providers.ensure_provider(tx, sender.provider)
        self._seq = messages.last_seq(tx)
        self._pending: list[NewMessage] = []
        self._proposals: list[tuple[int, ProposalRef, int, int]] = []  # of pending messages
        self._changed: set[MaskedPartitionKey] = set()
        self._welcomes = False
        self._lanes: dict[int, PartitionWriter] = {}
        self._lane_of_key: dict[bytes, PartitionWriter] = {}  # by raw key: it lives as long as the run
        self._groups: dict[bytes, Group] = {}

    # --- the three ways in --------------------------------------------------------------------------------------

    def send(self, requests: Sequence[SendRequest]) -> list[Outcome]:
        """Sequence messages to the partitions of their keys; an unknown key opens a detached one.

        (semantics: partitions-and-forks)
        """
        digests = [messages.digest_of(request.message.encoded) for request in requests]
        self._look_up(requests, digests)
        return [
            self._take_alike(request, digest) or self._send(request, digest)
            for request, digest in zip(requests, digests, strict=True)
        ]

    def _send(self, request: SendRequest, digest: bytes) -> Outcome:
        lane = None
        try:
            group = self._group(request.message)
            lane = self._lane_of(request.partition_key, group)
            return self._take(group, lane, request.message, digest, request.commit_data)
        except MimiError as error:
            if lane is not None:
                self._refused(lane, request.message, error)
                if lane.opened_here and not lane.counter and lane.partition.parent is None:
                    partitions.remove_empty(self.tx, lane.partition.id)
                    del self._lanes[lane.partition.id], self._lane_of_key[request.partition_key.reveal()]
            return error

    def join(self, request: ExternalJoinRequest) -> Outcome:
        """Sequence an external commit to the open partition it was made for (semantics: joining-from-outside)."""
        message = request.message.message
        try:
            if not isinstance(message, PublicMessage):
                raise Malformed("an external commit is a PublicMessage")  # RFC 9420 section 12.4.3.2: MUST
            if message.content.sender.sender_type is not SenderType.NEW_MEMBER_COMMIT:
                raise Malformed("the sender of an external commit is new_member_commit")
            if request.commit_data.welcome_data is not None:
                raise WelcomeMismatch("an external commit adds nobody, so it has no Welcome")
            group = self._group(request.message)
            digest = messages.digest_of(request.message.encoded)
            lane = self._lane(self._meant_by_join(group, request.message, digest))
            return self._take(group, lane, request.message, digest, request.commit_data)
        except MimiError as error:
            return error

    def propose(self, request: ExternalProposalRequest, default: Partition | None) -> Outcome:
        """Sequence a proposal from outside to the partition it names, or to `default`, that group-info answers for."""
        message = request.message.message
        outside = (SenderType.EXTERNAL, SenderType.NEW_MEMBER_PROPOSAL)
        try:
            if not isinstance(message, PublicMessage):
                raise Malformed("an external proposal is a PublicMessage")
            if message.content_type is not ContentType.PROPOSAL or message.content.sender.sender_type not in outside:
                raise Malformed("proposals of senders external and new_member_proposal only")
            group = self._group(request.message)
            if request.partition is not None:
                default = partitions.find_partition(self.tx, self._hub, [request.partition])
            if default is None or default.group != group.id:
                raise UnknownGroup
            lane = self._lane(default)
        except MimiError as error:
            return error
        try:
            digest = messages.digest_of(request.message.encoded)
            return self._take(group, lane, request.message, digest, None, has_key=False)
        except MimiError as error:
            self._refused(lane, request.message, error)
            return error

    def finish(self) -> Changes:
        """Write what was accepted, and say what is to do once it is committed."""
        self._flush()
        return Changes(frozenset(self._changed), self._welcomes)

    # --- partitions ---------------------------------------------------------------------------------------------

    def _group(self, message: MLSMessage) -> Group:
        """Return the group a message is for (later revision, "Sending Messages": unknown ones are rejected)."""
        group_id = message.group_id
        if group_id is None:
            raise Malformed("not a group message")
        group = self._groups.get(group_id) or groups.find_group(self.tx, self._hub, group_id)
        if group is None:
            raise UnknownGroup
        if group.held:  # its counters may have been given already
            raise Recovering
        self._groups[group_id] = group
        return group

    def _look_up(self, requests: Sequence[SendRequest], digests: Sequence[bytes]) -> None:
        """Look up at once which messages of a batch are repeats."""
        if len(requests) == 1:
            return  # where it is taken
        by_key: dict[bytes, list[bytes]] = {}
        for request, digest in zip(requests, digests, strict=True):
            by_key.setdefault(request.partition_key.reveal(), []).append(digest)
        for raw, wanted in by_key.items():
            found = partitions.find_partition(self.tx, self._hub, PartitionKey(raw).masks())
            if found is not None:
                lane = self._lane_of_key[raw] = self._lane(found)
                lane.before = messages.find_repeats(self.tx, found.id, wanted)

    def _lane(self, partition: Partition, *, opened_here: bool = False) -> PartitionWriter:
        lane = self._lanes.get(partition.id)
        if lane is None:
            commits = messages.commits_of(self.tx, partition.id)
            lane = PartitionWriter(partition, partition.next_counter, commits, opened_here, partition.last_seq)
            self._lanes[partition.id] = lane
        return lane

    def _lane_of(self, key: PartitionKey, group: Group) -> PartitionWriter:
        lane = self._lane_of_key.get(key.reveal())
        if lane is None:
            masks = key.masks()
            found = partitions.find_partition(self.tx, self._hub, masks)
            lane = self._open_detached(group, masks) if found is None else self._lane(found)
            self._lane_of_key[key.reveal()] = lane
        if lane.partition.group != group.id:
            raise PartitionExists("this key belongs to another group")
        return lane

    def _open_detached(self, group: Group, masks: Sequence[MaskedPartitionKey]) -> PartitionWriter:
        self._within_detached()
        row = partitions.add_partition(
            self.tx,
            group=group.id,
            hub=self._hub,
            masked_key=mask_of(group, masks),
            epoch=None,
            now=self._now,
            detached=True,
            opener_provider=self._sender_provider,
            opener_device=self._sender_device,
        )
        return self._lane(partitions.partition_by_row(self.tx, row), opened_here=True)

    def _refused(self, lane: PartitionWriter, message: MLSMessage, error: MimiError) -> None:
        """Remember the reference of a proposal that was refused for what it says: a commit that covers it goes too."""
        public = message.message
        if not isinstance(public, PublicMessage) or public.content_type is not ContentType.PROPOSAL:
            return
        if not isinstance(error, InvalidMessage):
            here = self._states.knowledge(self.tx, groups.group_by_row(self.tx, lane.partition.group), lane.partition)
            if not is_lasting(error, here, public, self._sender):
                return  # of the moment, or of who brought it
        if proposals.count_refused(self.tx, lane.partition.id) < REFUSED_PROPOSALS_KEPT:
            store_refused(self.tx, lane.partition, public, error)

    def _meant_by_join(self, group: Group, message: MLSMessage, digest: bytes) -> Partition:
        """Find the partition of an external commit: where it verifies, else the newest of unknown context.

        (semantics: joining-from-outside)
        """
        found = [
            partition
            for partition in partitions.partitions_of_epoch(self.tx, group.id, message.epoch or 0)
            if not partition.detached
        ]
        for partition in found:  # a repeat is answered before termination is looked at (semantics: sequencing)
            if messages.find_repeat(self.tx, partition.id, digest) is not None:
                return partition
        usable = [partition for partition in found if not partition.terminated]
        unknown = [partition for partition in usable if partition.state is None]
        for partition in usable:
            if partition.state is not None and self._mls.signature_fits(self.tx, group, partition, message):
                return partition
        if unknown:
            return unknown[0]
        if usable:
            return usable[0]  # all known and none fits: judged there, it is refused for its signature
        if found:
            raise BranchTerminated
        raise WrongEpoch("no open partition stands for that epoch")

    # --- one message --------------------------------------------------------------------------------------------

    def _take(
        self,
        group: Group,
        lane: PartitionWriter,
        message: MLSMessage,
        digest: bytes,
        data: CommitData | None,
        *,
        has_key: bool = True,
    ) -> SendResponse:
        repeated = lane.added.get(digest) or self._repeated(lane, digest)
        if repeated is not None:  # checked before policy and termination (semantics: sequencing)
            response, next_masked_key = repeated
            if data is not None and next_masked_key not in data.next_partition_key.masks():
                raise CommitDataDiffers
            return response
        partition, framed = lane.partition, message.message
        if partition.terminated:
            raise BranchTerminated
        if not isinstance(framed, PrivateMessage | PublicMessage):
            raise Malformed("not a group message")
        if partition.epoch is not None and framed.epoch != partition.epoch:
            raise WrongEpoch(epoch=partition.epoch)
        self._check_sizes(message, data)
        judged, opening = self._judge(group, lane, message, data)

        # Nothing below refuses.
        response = self._append(
            lane,
            message.encoded,
            digest,
            kind=framed.content_type,
            next_masked_key=None if opening is None else opening.masked_key,
            group_info=None if data is None or data.group_info is None else data.group_info.encoded,
        )
        if (
            has_key and not lane.followed and isinstance(self._sender, Follower)
        ):  # it presented the key (semantics: following-and-delivery)
            follows.follow_with_key(self.tx, self._sender_provider, partition.id, partition.parent)
        lane.followed = True
        if framed.content_type is ContentType.APPLICATION:
            lane.cleared = group.group_id
        self._note_handshake(group, lane, message, judged)
        if opening is not None and data is not None:
            self._open(group, lane, opening, data)
        elif partition.held_welcomes and not lane.opened_here:
            release_held(self.tx, partition.id)  # the branch is in use (semantics: welcomes-and-leaving)
            self._welcomes = True
            lane.partition = attrs.evolve(lane.partition, held_welcomes=0)
        return response

    def _take_alike(self, request: SendRequest, digest: bytes) -> SendResponse | None:
        """Take an application message that hangs on what one before it did, as nearly all of a batch do.

        Returns None for any other, and where one would be refused or is a repeat: `_send` knows what to answer.
        """
        lane = self._lane_of_key.get(request.partition_key.reveal())
        message, framed = request.message, request.message.message
        if (
            lane is None
            or not isinstance(framed, PrivateMessage)
            or framed.content_type is not ContentType.APPLICATION
            or framed.group_id != lane.cleared
            or lane.partition.epoch not in (framed.epoch, None)
            or digest in lane.added
            or self._repeated(lane, digest) is not None
        ):
            return None
        try:
            check_framing(message)
            self._check_sizes(message, None)
        except (RuleError, TooLarge):
            return None
        return self._append(lane, message.encoded, digest)

    def _append(
        self,
        lane: PartitionWriter,
        body: bytes,
        digest: bytes,
        *,
        kind: ContentType = ContentType.APPLICATION,
        next_masked_key: MaskedPartitionKey | None = None,
        group_info: bytes | None = None,
    ) -> SendResponse:
        """Give a message its place; it is written with those beside it."""
        self._seq = lane.last_seq = seq = self._seq + 1
        counter = Counter(lane.counter)
        lane.counter += 1
        self._pending.append(
            NewMessage(
                seq,
                lane.partition.id,
                counter,
                self._now,
                kind,
                digest,
                messages.digest_key(digest),
                next_masked_key,
                self._sender_provider,
                self._sender_device,
                body,
                group_info,
            )
        )
        response = self._response(lane, counter, self._now)
        lane.added[digest] = response, next_masked_key
        return response

    def _repeated(self, lane: PartitionWriter, digest: bytes) -> tuple[SendResponse, MaskedPartitionKey | None] | None:
        """Return how a message was answered in a transaction before this one, and the partition it opened."""
        if digest in lane.before:
            before = lane.before[digest]
        else:
            before = messages.find_repeat(self.tx, lane.partition.id, digest)
        if before is None:
            return None
        return self._response(lane, before.counter, before.accepted_at), before.next_masked_key

    def _judge(
        self, group: Group, lane: PartitionWriter, message: MLSMessage, data: CommitData | None
    ) -> tuple[Judged, _Opening | None]:
        """Judge a message by its fork's state and by policy; a commit also by where it leads."""
        if self._proposals and _reads_proposals(message):
            self._flush()
        judged = self._mls.judge(self.tx, group, lane.partition, message)
        opening = None if data is None else self._check_commit(group, lane, judged, data)
        self._rules.check(group, lane.partition, judged, None if opening is None else opening.knowledge, self._sender)
        return judged, opening

    def _response(self, lane: PartitionWriter, counter: Counter, accepted_at: Milliseconds) -> SendResponse:
        return SendResponse(
            counter,
            accepted_at,
            lane.partition.masked_key,
            int(lane.partition.detached),
            tuple([key for at, key in lane.commits if at < counter]) if lane.commits else (),
        )

    def _check_sizes(self, message: MLSMessage, data: CommitData | None) -> None:
        self._within_size("message_bytes", message)
        if data is not None and data.group_info is not None:
            self._within_size("group_info_bytes", data.group_info)
        if data is not None and data.welcome_data is not None:
            self._within_size("welcome_bytes", data.welcome_data.welcome)

    def _within_size(self, limit: str, message: MLSMessage) -> None:
        octets = len(message.encoded)
        if octets > getattr(self._limits, limit):
            raise TooLarge(limit, octets)

    def _within_detached(self) -> None:
        limit = "provider_detached_partitions" if self._sender_device is None else "device_detached_partitions"
        self._within_quota(limit, partitions.count_detached(self.tx, self._sender_provider, self._sender_device))

    def _within_quota(self, limit: str, used: int) -> None:
        allowed = getattr(self._limits, limit)
        if allowed and used >= allowed:
            raise QuotaExceeded(limit)

    def _note_handshake(self, group: Group, lane: PartitionWriter, message: MLSMessage, judged: Judged) -> None:
        if isinstance(message.message, PrivateMessage):
            if message.content_type is not ContentType.APPLICATION and not group.encrypted_handshakes:
                groups.note_encrypted_handshakes(self.tx, group.id)
                self._groups[group.group_id] = attrs.evolve(group, encrypted_handshakes=True)
        elif (proposal := judged.proposal) is not None:
            self._proposals.append((lane.partition.id, *proposal, self._seq))
        if (
            judged.contradicts_claim
        ):  # one that contradicts claimed state refuses nothing (semantics: public-group-state)
            partitions.set_state(self.tx, lane.partition.id, None)
            lane.partition = attrs.evolve(lane.partition, state=None)
            lane.cleared = None

    # --- commits ------------------------------------------------------------------------------------------------

    def _check_commit(self, group: Group, lane: PartitionWriter, judged: Judged, data: CommitData) -> _Opening:
        masks = data.next_partition_key.masks()
        self._flush()
        existing = partitions.find_partition(self.tx, self._hub, masks)
        if existing is None:
            if lane.partition.detached:  # what it leads to is detached as well
                self._within_detached()
            else:
                provider, device = self._sender_provider, self._sender_device
                limit = "provider_branches" if device is None else "device_branches"
                self._within_quota(limit, partitions.count_idle_branches(self.tx, group.id, provider, device))
        elif (
            existing.group != group.id
            or not existing.detached
            or existing.parent is not None
            or any(above.id == existing.id for above in partitions.ancestors(self.tx, lane.partition))
        ):
            raise PartitionExists  # or a member could graft one branch onto another (semantics: partitions-and-forks)
        knowledge = self._mls.after_commit(judged, data.group_info)
        if data.welcome_data is not None:
            check_welcome(data.welcome_data, group)
        key = existing.masked_key if existing else mask_of(group, masks)
        return _Opening(key, existing, knowledge, judged)

    def _open(self, group: Group, lane: PartitionWriter, opening: _Opening, data: CommitData) -> None:
        """Make the partition that a commit leads to, with what is known of its state."""
        parent = lane.partition
        epoch = None if parent.epoch is None else parent.epoch + 1  # every commit adds one (semantics: sequencing)
        if opening.existing is None:
            row = partitions.add_partition(
                self.tx,
                group=group.id,
                hub=self._hub,
                masked_key=opening.masked_key,
                epoch=epoch,
                now=self._now,
                parent=parent.id,
                opened_by=self._seq,
                detached=parent.detached,
                opener_provider=self._sender_provider,
                opener_device=self._sender_device,
            )
        else:
            row = opening.existing.id
            partitions.attach(
                self.tx, row, parent=parent.id, opened_by=self._seq, epoch=epoch, detached=parent.detached
            )
            for other in self._lanes.values():  # one may be below it
                other.partition = partitions.partition_by_row(self.tx, other.partition.id)
        self._states.save(self.tx, row, opening.knowledge, opening.judged.before)
        if data.group_info is not None:
            partitions.set_group_info(self.tx, row, data.group_info.encoded)
            self._drop_beyond_room(group)
        first = not self._open_siblings(lane)
        lane.commits.append((Counter(lane.counter - 1), opening.masked_key))
        self._lanes.pop(row, None)
        opened = self._lane(partitions.partition_by_row(self.tx, row), opened_here=True)
        self._lane_of_key[data.next_partition_key.reveal()] = opened
        if isinstance(
            self._sender, Follower
        ):  # CommitData's next key counts as presented (semantics: following-and-delivery)
            follows.follow_with_key(self.tx, self._sender_provider, row, parent.id)
        if data.welcome_data is not None:
            # RFC 9420 section 14: a Welcome goes out only once its commit is accepted.
            queue_welcome(self.tx, data.welcome_data, row, held=not first, now=self._now)
            self._welcomes |= first

    def _drop_beyond_room(self, group: Group) -> None:
        """Drop the oldest GroupInfos and held Welcomes of a sender's branches that carry nothing, if they are many.

        These go first (semantics: limits-and-retention): a commit that others took up has something in its branch, or
        is the sender's newest.
        """
        provider, device = self._sender_provider, self._sender_device
        room = self._limits.provider_branch_bytes if device is None else self._limits.device_branch_bytes
        self._flush()  # or what carries messages of this run would seem to carry none
        for row, opened_by, octets in partitions.idle_group_infos(self.tx, group.id, provider, device):
            room -= octets
            if room < 0 and opened_by != self._seq:
                partitions.set_group_info(self.tx, row, None)
                messages.drop_group_info(self.tx, opened_by)
                drop_held(self.tx, row)

    def _open_siblings(self, lane: PartitionWriter) -> bool:
        """Tell whether an earlier commit of this partition counts: one whose branch is not terminated.

        (semantics: welcomes-and-leaving)
        """
        return any(not child.terminated for child in partitions.children(self.tx, lane.partition.id)[:-1])

    # --- writing ------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        if not self._pending:
            return
        messages.append(self.tx, self._pending)
        self._recent.add(self._pending)
        proposals.add_sequenced(self.tx, self._proposals)
        self._proposals = []
        touched = {message.partition for message in self._pending}
        self._pending = []
        for row in touched:
            lane = self._lanes[row]
            self._changed.add(lane.partition.masked_key)
            partitions.advance(self.tx, row, next_counter=Counter(lane.counter), last_seq=lane.last_seq)


def _reads_proposals(message: MLSMessage) -> bool:
    """Tell whether judging a message looks at proposals that were sequenced before it."""
    public = message.message
    return isinstance(public, PublicMessage) and (
        not isinstance(public.content.content, Proposal) or isinstance(public.content.content.body, SelfRemove)
    )


@attrs.frozen
class _Opening:
    """Where a commit leads, found before anything is written."""

    masked_key: MaskedPartitionKey
    existing: Partition | None  # a detached partition that the commit attaches
    knowledge: Knowledge
    judged: Judged
