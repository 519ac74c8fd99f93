"""The hub: the groups that this provider created (semantics: sequencing, joining-from-outside).

Each call decides within one transaction, and notifies those who wait once that is committed. MLS work that may take
long is done before the transaction, on a snapshot and in a worker thread (`ds.groups.judging`). The transaction finds
the result, or decides again if the partition's state changed in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import attrs

from mimids.config import Config
from mimids.ds.groups import pages
from mimids.ds.groups.creation import Creation, create_group
from mimids.ds.groups.judging import MlsJudge
from mimids.ds.groups.policy import GroupPolicy
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.restrictions import OWN
from mimids.ds.groups.sequencing import Changes, Outcome, SequencingTransaction
from mimids.ds.groups.states import is_joinable
from mimids.ds.groups.submission import Submission, submissions_in
from mimids.ds.limits.budgets import Budgets, octets_of
from mimids.ds.limits.rates import ProviderRates
from mimids.ds.notifier import DELIVERY, OUTGOING, Notifier, partition_topic, presented_topic
from mimids.ds.ports import Clock
from mimids.errors import (
    BranchTerminated,
    MimiError,
    TooMany,
    UnknownGroup,
    UnknownPartition,
)
from mimids.mls.framing import MLSMessage
from mimids.store import follows, groups, messages, partitions, proposals, providers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx, refusable
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import Device, Follower, Sender
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, GroupId, MaskedPartitionKey, ProviderId
from mimids.wire.messages import (
    CreateGroupRequest,
    ExternalJoinRequest,
    ExternalProposalRequest,
    GroupInfoBundle,
    GroupInfoResponse,
    ReceiveRequest,
    SendRequest,
    SendResponse,
    encode_receive_response,
)


class LocalHub:
    """Sequences messages of this provider's own groups, and reads them."""

    def __init__(
        self,
        config: Config,
        store: Store,
        clock: Clock,
        mls: MlsJudge,
        notifier: Notifier,
        *,
        recent: Recent | None = None,
        rates: ProviderRates | None = None,
        budgets: Budgets | None = None,
    ) -> None:
        self._config = config
        self._provider: ProviderId = config.provider
        self._limits = config.limits
        self._store = store
        self._clock = clock
        self._mls = mls
        self._states = mls.states
        self._notifier = notifier
        self._recent = Recent() if recent is None else recent
        self._rates = ProviderRates(config.limits, clock) if rates is None else rates
        self._budgets = Budgets(config.limits, clock) if budgets is None else budgets

    # --- writing ------------------------------------------------------------------------------------------------

    async def create_group(self, request: CreateGroupRequest, creator: Device) -> None:
        """Create a group with its first partition; a repeat with the same contents changes nothing."""
        digest = hashlib.sha256(encode(request)).digest()
        creation = Creation(request, digest, await self._mls.open_creation(request), creator)

        def create(tx: Tx) -> None:
            quota = self._limits.device_groups
            create_group(tx, self._states, creation, self._provider, self._clock.now(), quota=quota)

        await self._store.write_or_refuse(refusable(create))
        self._notifier.notify(OUTGOING)

    async def send(self, request: SendRequest, sender: Sender) -> SendResponse:
        """Sequence one message in the partition of its key."""
        (answer,) = await self.send_batch([request], sender)
        if isinstance(answer, MimiError):
            raise answer
        return answer

    async def send_batch(self, requests: Sequence[SendRequest], sender: Sender) -> list[Outcome]:
        """Sequence messages in order, in one transaction; each is accepted or refused independently."""
        if len(requests) > self._limits.send_batch_messages:
            raise TooMany("send_batch_messages", len(requests))

        allowed, refusal = len(requests), None
        if isinstance(sender, Follower):
            for key in {each.partition_key for each in requests}:
                self._note_presented(sender, key.masks())
            allowed, refusal = self._rates.take_sends(sender, len(requests))
            sizes = [octets_of(each.message, each.commit_data) for each in requests[:allowed]]
            allowed, over_budget = self._budgets.take(sender, sizes)
            refusal = over_budget or refusal
        sent = requests[:allowed]
        answers = await self._sequence(sender, lambda sequencing: sequencing.send(sent), submissions_in(sent))
        return answers if refusal is None else [*answers, *[refusal] * (len(requests) - allowed)]

    async def join(self, request: ExternalJoinRequest, sender: Sender) -> SendResponse:
        """Sequence an external commit in the branch it was made for (semantics: joining-from-outside)."""
        if isinstance(sender, Follower):
            self._rates.take_join(sender)
            self._spend_octets(sender, octets_of(request.message, request.commit_data))
        return await self._from_outside(request.message, sender, lambda sequencing, _: sequencing.join(request))

    async def propose(self, request: ExternalProposalRequest, sender: Sender) -> SendResponse:
        """Sequence a proposal from outside the group (semantics: joining-from-outside)."""
        if isinstance(sender, Follower):
            _, refusal = self._rates.take_sends(sender, 1)
            if refusal is not None:
                raise refusal
            self._spend_octets(sender, octets_of(request.message, None))

        def propose(sequencing: SequencingTransaction, group: Group) -> Outcome:
            tip = partitions.live_tip(sequencing.tx, group.id) if request.partition is None else None
            return sequencing.propose(request, tip)

        return await self._from_outside(request.message, sender, propose)

    def _spend_octets(self, sender: Sender, octets: int) -> None:
        _, refusal = self._budgets.take(sender, [octets])
        if refusal is not None:
            raise refusal

    async def _from_outside(
        self, message: MLSMessage, sender: Sender, sequence: Callable[[SequencingTransaction, Group], Outcome]
    ) -> SendResponse:
        """Sequence a message from outside, if its sender may join the group."""

        def sequence_if_allowed(sequencing: SequencingTransaction) -> list[Outcome]:
            group = self._joinable_group(sequencing.tx, message.group_id, sender)
            return [UnknownGroup() if group is None else sequence(sequencing, group)]

        (answer,) = await self._sequence(sender, sequence_if_allowed, [Submission(message, None, None)])
        if isinstance(answer, MimiError):
            raise answer
        return answer

    async def _sequence(
        self,
        sender: Sender,
        sequence: Callable[[SequencingTransaction], list[Outcome]],
        submissions: Sequence[Submission],
    ) -> list[Outcome]:
        """Run `sequence` in one transaction, and notify readers and jobs of what it changed."""
        await self._mls.prepare(self._store, self._provider, submissions)

        def work(tx: Tx) -> tuple[list[Outcome], Changes]:
            sequencing = SequencingTransaction(
                tx,
                sender,
                provider=self._provider,
                now=self._clock.now(),
                mls=self._mls,
                recent=self._recent,
                limits=self._limits,
            )
            return sequence(sequencing), sequencing.finish()

        answers, changes = await self._store.write_shielded(work)
        self._notifier.notify(*map(partition_topic, changes.partitions))
        if changes.partitions:
            self._notifier.notify(DELIVERY)
        if changes.welcomes:
            self._notifier.notify(OUTGOING)
        return answers

    def _joinable_group(self, tx: Tx, group_id: GroupId | None, caller: Sender) -> Group | None:
        """Return the group if the caller may join it from outside; None otherwise.

        For an unknown group the same statements run, so that the time they take does not show that it is unknown.
        """
        group = groups.find_group(tx, providers.provider_row(tx, self._provider) or 0, group_id or GroupId(b""))
        follower = providers.provider_row(tx, caller.provider)
        follows_it = follows.follows_group(tx, follower or 0, group.id if group else 0)
        mode = self._config.group.external_joins
        may_join = mode == "open" or (mode == "followers" and (isinstance(caller, Device) or follows_it))
        return group if may_join else None

    # --- reading ------------------------------------------------------------------------------------------------

    async def receive(self, request: ReceiveRequest, caller: Sender, *, wait_seconds: float = 0) -> bytes:
        """Return an encoded `ReceiveResponse`: messages from the counter on, and for followers hints.

        If there is no message, it waits for one, at most `wait_seconds`. A follower that presents a key follows the
        partition from then on. If it asks for messages that were pushed before, it has lost them and they are pushed
        again (semantics: following-and-delivery). Raises `UnknownPartition` and `MessagesExpired`.
        """
        masks = request.partition_key.masks()
        self._note_presented(caller, masks)
        with self._notifier.listen(*map(partition_topic, masks)) as waiter:
            answer, found = await self._store.read(partial(self._receive, request, caller))
            if isinstance(caller, Follower) and not found.followed:
                await self._store.write_shielded(partial(self._follow, caller, found.partition, request.counter))
                self._notifier.notify(DELIVERY)
            if found.empty and wait_seconds > 0:
                await waiter.wait_at_most(self._clock, wait_seconds)
                answer, _ = await self._store.read(partial(self._receive, request, caller))
        return answer

    def _note_presented(self, caller: Sender, masks: Sequence[MaskedPartitionKey]) -> None:
        """Tell a push in flight that its follower wants the partition, even if it answers that it does not."""
        if isinstance(caller, Follower):
            self._notifier.notify(*(presented_topic(caller.provider, mask) for mask in masks))

    def _receive(self, request: ReceiveRequest, caller: Sender, tx: Tx) -> tuple[bytes, _Found]:
        hub = providers.provider_row(tx, self._provider) or 0
        partition = partitions.find_partition(tx, hub, request.partition_key.masks())
        if partition is None:
            raise UnknownPartition
        limit = self._limits.receive_bytes
        withheld = isinstance(caller, Device) and self._withholds(tx, partition, caller)
        asked = pages.page(
            tx, partition, request.counter, limit_octets=limit, handshakes_only=withheld, recent=self._recent
        )
        hints: list[pages.Page] = []
        followed = True
        if isinstance(caller, Follower):
            follower = providers.provider_row(tx, caller.provider)
            reached = follows.reached(tx, follower or 0, partition.id)
            followed = reached is not None and reached <= request.counter
            if asked.complete:
                hints = self._hints(tx, partition, caller.provider, limit_octets=limit - asked.octets)
        answer = encode_receive_response(asked.epoch, [(h.partition.masked_key, h.epoch) for h in hints])
        return answer, _Found(partition, followed, empty=not asked.messages)

    def _hints(self, tx: Tx, partition: Partition, caller: ProviderId, *, limit_octets: int) -> list[pages.Page]:
        """Return the epochs after a partition that the caller may have (semantics: following-and-delivery)."""
        group = groups.group_by_row(tx, partition.group)
        if group.encrypted_handshakes and not self._config.group.hints_encrypted:
            return []

        def may_have(child: Partition) -> bool:
            return self._states.has_leaf_of(tx, group, child, caller)

        return pages.hinted(tx, partition, may_have=may_have, limit_octets=limit_octets)

    async def page(
        self, device: Device, request: ReceiveRequest, *, limit_octets: int
    ) -> tuple[GroupId, pages.Page] | None:
        """Return messages of a partition whose key one of our devices has, and its group; None if it is unknown."""

        def read(tx: Tx) -> tuple[GroupId, pages.Page] | None:
            hub = providers.provider_row(tx, self._provider) or 0
            partition = partitions.find_partition(tx, hub, request.partition_key.masks())
            if partition is None:
                return None
            withheld = self._withholds(tx, partition, device)
            found = pages.page(
                tx,
                partition,
                request.counter,
                limit_octets=limit_octets,
                handshakes_only=withheld,
                recent=self._recent,
            )
            return groups.group_by_row(tx, partition.group).group_id, found

        return await self._store.read(read)

    def _withholds(self, tx: Tx, partition: Partition, device: Device) -> bool:
        """Tell whether application messages of a partition are withheld from a banned device (semantics: policy)."""
        policy = GroupPolicy(tx, self._states, self._clock.now(), OWN)
        return policy.withheld(groups.group_by_row(tx, partition.group), partition, device) is not None

    def _follow(self, caller: Follower, partition: Partition, counter: Counter, tx: Tx) -> None:
        number = providers.ensure_provider(tx, caller.provider)
        if not counter:
            follows.end(tx, number, partition.id)  # it has nothing: it starts again, with an opening if it needs one
        follows.follow_with_key(tx, number, partition.id, partition.parent)
        follows.resume(tx, number, partition.id, counter)

    async def group_info(
        self, group_id: GroupId, caller: Sender, *, partition: MaskedPartitionKey | None = None
    ) -> GroupInfoBundle:
        """Return the GroupInfo of a partition; without one, of the open branch with the most messages.

        (semantics: joining-from-outside)

        Raises `BranchTerminated`, and `UnknownGroup` alike for an unknown group and one that the caller cannot join.
        """

        def read(tx: Tx) -> GroupInfoBundle:
            if isinstance(caller, Device):
                rules = GroupPolicy(tx, self._states, self._clock.now(), OWN)
                rules.check_reader(providers.provider_row(tx, self._provider) or 0, caller)
            group = self._joinable_group(tx, group_id, caller)
            row = group.id if group else 0  # for an unknown group the same statements run below
            if partition is None:
                found = partitions.live_tip(tx, row)
            else:
                found = partitions.find_partition(tx, group.hub if group else 0, [partition])
            stored = partitions.group_info_of(tx, found.id if found else 0)
            if group is None or found is None or found.group != row or stored is None:
                raise UnknownGroup
            message = decode(MLSMessage, stored)
            if not is_joinable(message):
                raise UnknownGroup
            if found.terminated:
                raise BranchTerminated
            tree = self._states.inferred_tree(tx, group, found, message)
            return GroupInfoBundle(GroupInfoResponse(message, tree), self._self_removes(tx, found))

        return await self._store.read(read)

    def _self_removes(self, tx: Tx, partition: Partition) -> tuple[MLSMessage, ...]:
        """Return the pending SelfRemove proposals, which an external commit has to cover."""
        bodies = (messages.body_of(tx, row.seq or 0) for row in proposals.self_removes_of(tx, partition.id))
        return tuple(decode(MLSMessage, body) for body in bodies if body is not None)


@attrs.frozen
class _Found:
    partition: Partition
    followed: bool  # from the counter that was asked for, or from an earlier one
    empty: bool
