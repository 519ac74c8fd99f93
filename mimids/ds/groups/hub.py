"""The hub: the groups that this provider created (semantics: sequencing, joining-from-outside).

Every call takes values, decides within one transaction, and wakes whoever waits once it is committed. MLS work that
may take long is done before, on a snapshot, in a worker thread (`ds.groups.states`); the transaction finds it done, or
decides again if the partition's state moved meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import attrs

from mimids.config import Config
from mimids.ds.groups import pages
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.rules import GroupPolicy
from mimids.ds.groups.sequencing import Changes, Outcome, SequencingTransaction
from mimids.ds.groups.states import States
from mimids.ds.groups.submission import Submission, submissions_in
from mimids.ds.groups.welcome_rows import check_welcome, queue_welcome
from mimids.ds.limits.budgets import Budgets, octets_of
from mimids.ds.limits.rates import ProviderRates
from mimids.ds.notifier import DELIVERY, OUTGOING, Notifier, partition_topic, presented_topic
from mimids.ds.ports import Clock
from mimids.errors import (
    BranchTerminated,
    GroupExists,
    MimiError,
    PartitionExists,
    QuotaExceeded,
    TooMany,
    UnknownGroup,
    UnknownPartition,
)
from mimids.mls.framing import MLSMessage
from mimids.store import follows, groups, messages, partitions, proposals, providers
from mimids.store.engine.store import Store, Tx
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
    """Sequencing and reading of this provider's own groups."""

    def __init__(
        self,
        config: Config,
        store: Store,
        clock: Clock,
        states: States,
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
        self._states = states
        self._notifier = notifier
        self._recent = Recent() if recent is None else recent
        self._rates = ProviderRates(config.limits, clock) if rates is None else rates
        self._budgets = Budgets(config.limits, clock) if budgets is None else budgets

    # --- writing ------------------------------------------------------------------------------------------------

    async def create_group(self, request: CreateGroupRequest, creator: Device) -> None:
        """Make a group with its first partition; asked for again with the same contents, it is there already."""
        digest = hashlib.sha256(encode(request)).digest()
        opened = await self._states.open_creation(request)

        def create(tx: Tx) -> MimiError | None:
            hub = providers.ensure_provider(tx, self._provider)
            now = self._clock.now()
            existing = groups.find_group(tx, hub, request.group_id)
            if existing is not None:
                return None if existing.creation_digest == digest else GroupExists()
            masks = request.partition_key.masks()
            if partitions.find_partition(tx, hub, masks) is not None:
                return PartitionExists()
            quota = self._limits.device_groups
            if quota and groups.count_created(tx, creator.row, at_most=quota) >= quota:
                return QuotaExceeded("device_groups")
            group = groups.add_group(
                tx,
                hub=hub,
                group_id=request.group_id,
                version=request.version,
                cipher_suite=request.cipher_suite,
                creation_digest=digest,
                creator=creator.row,
                now=now,
            )
            row = partitions.add_partition(
                tx,
                group=group.id,
                hub=hub,
                masked_key=self._states.mask(group, masks),
                epoch=opened.epoch,
                now=now,
                opener_provider=hub,
                opener_device=creator.row,
            )
            self._states.save(tx, row, opened.knowledge)
            if request.group_info is not None:
                partitions.set_group_info(tx, row, request.group_info.encoded)
            if request.welcome_data is not None:
                check_welcome(request.welcome_data, group)
                queue_welcome(tx, request.welcome_data, row, held=False, now=now)
            return None

        refusal = await self._store.write_shielded(create)
        if refusal is not None:
            raise refusal
        self._notifier.notify(OUTGOING)

    async def send(self, request: SendRequest, sender: Sender) -> SendResponse:
        """Sequence one message to the partition of its key."""
        (answer,) = await self.send_batch([request], sender)
        if isinstance(answer, MimiError):
            raise answer
        return answer

    async def send_batch(self, requests: Sequence[SendRequest], sender: Sender) -> list[Outcome]:
        """Sequence messages in order, one commit to disk; each has a result of its own."""
        if len(requests) > self._limits.send_batch_messages:
            raise TooMany("send_batch_messages", len(requests))

        let, refusal = len(requests), None
        if isinstance(sender, Follower):
            for key in {each.partition_key for each in requests}:
                self._note_presented(sender, key.masks())
            let, refusal = self._rates.take_sends(sender, len(requests))
            sizes = [octets_of(each.message, each.commit_data) for each in requests[:let]]
            let, full = self._budgets.take(sender, sizes)
            refusal = full or refusal
        allowed = requests[:let]
        answers = await self._sequence(sender, lambda run: run.send(allowed), submissions_in(allowed))
        return answers if refusal is None else [*answers, *[refusal] * (len(requests) - let)]

    async def join(self, request: ExternalJoinRequest, sender: Sender) -> SendResponse:
        """Sequence an external commit to the fork it was made for (semantics: joining-from-outside)."""
        if isinstance(sender, Follower):
            self._rates.take_join(sender)
            self._take_room(sender, octets_of(request.message, request.commit_data))
        return await self._from_outside(request.message, sender, lambda run, _group: run.join(request))

    async def propose(self, request: ExternalProposalRequest, sender: Sender) -> SendResponse:
        """Sequence a proposal from outside the group (semantics: joining-from-outside)."""
        if isinstance(sender, Follower):
            _, refusal = self._rates.take_sends(sender, 1)
            if refusal is not None:
                raise refusal
            self._take_room(sender, octets_of(request.message, None))

        def offer(run: SequencingTransaction, group: Group) -> Outcome:
            tip = partitions.live_tip(run.tx, group.id) if request.partition is None else None
            return run.propose(request, tip)

        return await self._from_outside(request.message, sender, offer)

    def _take_room(self, sender: Sender, octets: int) -> None:
        _, refusal = self._budgets.take(sender, [octets])
        if refusal is not None:
            raise refusal

    async def _from_outside(
        self, message: MLSMessage, sender: Sender, offer: Callable[[SequencingTransaction, Group], Outcome]
    ) -> SendResponse:
        def allowed(run: SequencingTransaction) -> list[Outcome]:
            group = self._joinable_group(run.tx, message.group_id, sender)
            return [UnknownGroup() if group is None else offer(run, group)]

        (answer,) = await self._sequence(sender, allowed, [Submission(message, None, None)])
        if isinstance(answer, MimiError):
            raise answer
        return answer

    async def _sequence(
        self, sender: Sender, offer: Callable[[SequencingTransaction], list[Outcome]], offered: Sequence[Submission]
    ) -> list[Outcome]:
        """Run one transaction's worth of sequencing, and wake whoever it concerns."""
        await self._states.prepare(self._store, self._provider, offered)

        def work(tx: Tx) -> tuple[list[Outcome], Changes]:
            now = self._clock.now()
            run = SequencingTransaction(
                tx,
                sender,
                provider=self._provider,
                now=now,
                states=self._states,
                recent=self._recent,
                limits=self._limits,
            )
            return offer(run), run.finish()

        answers, changes = await self._store.write_shielded(work)
        self._notifier.notify(*map(partition_topic, changes.partitions))
        if changes.partitions:
            self._notifier.notify(DELIVERY)
        if changes.welcomes:
            self._notifier.notify(OUTGOING)
        return answers

    def _joinable_group(self, tx: Tx, group_id: GroupId | None, caller: Sender) -> Group | None:
        """Return a group that the caller may join from outside; for an unknown one the same statements run."""
        group = groups.find_group(tx, providers.provider_row(tx, self._provider) or 0, group_id or GroupId(b""))
        follower = providers.provider_row(tx, caller.provider)
        follows_it = follows.follows_group(tx, follower or 0, group.id if group else 0)
        mode = self._config.group.external_joins
        may_join = mode == "open" or (mode == "followers" and (isinstance(caller, Device) or follows_it))
        return group if may_join else None

    # --- reading ------------------------------------------------------------------------------------------------

    async def receive(self, request: ReceiveRequest, caller: Sender, *, wait_seconds: float = 0) -> bytes:
        """Return a `ReceiveResponse`: the partition's messages from the counter on, and for followers hints.

        With nothing there it waits for something new, at most `wait_seconds`. A follower that presents a key follows
        its partition from then on (semantics: following-and-delivery), and one that asks for what it was pushed
        before has lost it: it is pushed
        again.
        """
        masks = request.partition_key.masks()
        self._note_presented(caller, masks)
        with self._notifier.listen(*map(partition_topic, masks)) as waiter:
            answer, found = await self._store.read(lambda tx: self._receive(tx, request, caller))
            if isinstance(caller, Follower) and not found.followed:
                await self._store.write_shielded(lambda tx: self._follow(tx, caller, found.partition, request.counter))
                self._notifier.notify(DELIVERY)
            if found.empty and wait_seconds > 0:
                await waiter.wait_at_most(self._clock, wait_seconds)
                answer, _ = await self._store.read(lambda tx: self._receive(tx, request, caller))
        return answer

    def _note_presented(self, caller: Sender, masks: Sequence[MaskedPartitionKey]) -> None:
        """Let a push that is under way know that its follower wants this partition, whatever it answered before."""
        if isinstance(caller, Follower):
            self._notifier.notify(*(presented_topic(caller.provider, mask) for mask in masks))

    def _receive(self, tx: Tx, request: ReceiveRequest, caller: Sender) -> tuple[bytes, _Found]:
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
            group = groups.group_by_row(tx, partition.group)
            if asked.complete and (self._config.group.hints_encrypted or not group.encrypted_handshakes):
                hints = pages.hinted(
                    tx,
                    partition,
                    may_have=lambda child: self._states.has_leaf_of(tx, group, child, caller.provider),
                    limit_octets=limit - asked.octets,
                )
        answer = encode_receive_response(asked.epoch, [(h.partition.masked_key, h.epoch) for h in hints])
        return answer, _Found(partition, followed, empty=not asked.messages)

    async def page(
        self, device: Device, request: ReceiveRequest, *, limit_octets: int
    ) -> tuple[GroupId, pages.Page] | None:
        """Return messages of a partition that one of our devices holds the key of, and its group."""

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
        """Tell whether a device of a banned user gets no application messages of a partition (semantics: policy)."""
        rules = GroupPolicy(tx, self._states, self._clock.now(), ours=True)
        return rules.withheld(groups.group_by_row(tx, partition.group), partition, device) is not None

    def _follow(self, tx: Tx, caller: Follower, partition: Partition, counter: Counter) -> None:
        number = providers.ensure_provider(tx, caller.provider)
        if not counter:
            follows.end(tx, number, partition.id)  # it has nothing of it: it begins anew, with an opening if need be
        follows.follow_with_key(tx, number, partition.id, partition.parent)
        follows.resume(tx, number, partition.id, counter)

    async def group_info(
        self, group_id: GroupId, caller: Sender, *, partition: MaskedPartitionKey | None = None
    ) -> GroupInfoBundle:
        """Return the GroupInfo of the partition named, or of the live branch with most messages.

        (semantics: joining-from-outside)

        Raises `UnknownGroup`, the same for an unknown group and for one that cannot be joined by this caller.
        """

        def read(tx: Tx) -> GroupInfoBundle:
            if isinstance(caller, Device):
                rules = GroupPolicy(tx, self._states, self._clock.now(), ours=True)
                rules.check_reader(providers.provider_row(tx, self._provider) or 0, caller)
            group = self._joinable_group(tx, group_id, caller)
            row = group.id if group else 0  # for an unknown group the same statements run
            if partition is None:
                found = partitions.live_tip(tx, row)
            else:
                found = partitions.find_partition(tx, group.hub if group else 0, [partition])
            stored = partitions.group_info_of(tx, found.id if found else 0)
            if group is None or found is None or found.group != row or stored is None:
                raise UnknownGroup
            message = decode(MLSMessage, stored)
            if not self._states.is_joinable(message):
                raise UnknownGroup
            if found.terminated:
                raise BranchTerminated
            tree = self._states.inferred_tree(tx, group, found, message)
            return GroupInfoBundle(GroupInfoResponse(message, tree), self._self_removes(tx, found))

        return await self._store.read(read)

    def _self_removes(self, tx: Tx, partition: Partition) -> tuple[MLSMessage, ...]:
        """Return the pending SelfRemoves, which an external commit has to cover."""
        bodies = (messages.body_of(tx, row.seq or 0) for row in proposals.self_removes_of(tx, partition.id))
        return tuple(decode(MLSMessage, body) for body in bodies if body is not None)


@attrs.frozen
class _Found:
    partition: Partition
    followed: bool  # from where it asks, or from an earlier message on
    empty: bool
