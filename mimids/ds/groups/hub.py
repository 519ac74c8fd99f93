"""The hub: the groups that this provider created (semantics: sequencing, joining-from-outside).

Each call decides within one transaction, and notifies waiting readers after the commit. MLS work that may take long is
done before the transaction, on a snapshot and in a worker thread (`ds.groups.judging`). The transaction uses that
result, or judges again if the partition's state changed in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from mimids.config import Config
from mimids.ds.groups import pages
from mimids.ds.groups.creation import Creation, create_group
from mimids.ds.groups.judging import MlsJudge
from mimids.ds.groups.outsiders import Outsiders
from mimids.ds.groups.reading import Found, GroupReader, JoinerInfo
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.sequencing import Changes, LookAhead, Outcome, SequencingTransaction
from mimids.ds.groups.submission import Submission, locks_of, submissions_in
from mimids.ds.groups.successors import replace_group
from mimids.ds.groups.welcome_rows import WelcomeQueue
from mimids.ds.groups.welcome_status import welcome_status
from mimids.ds.limits.budgets import Budgets, octets_of
from mimids.ds.limits.new_providers import NewProviders
from mimids.ds.limits.rates import ProviderRates
from mimids.ds.limits.welcomes import WelcomeLimits
from mimids.ds.notifier import DELIVERY, OUTGOING, WAKE_UPS, Notifier, partition_topic
from mimids.ds.ports import Clock
from mimids.errors import (
    Malformed,
    MimiError,
    TooMany,
    UnknownGroup,
)
from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.store import accounts, follows, groups, providers, restored_positions, tips
from mimids.store.engine.locks import Locks
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Ahead, Tx, refusable
from mimids.store.groups import Group, Successor
from mimids.store.partitions import Partition
from mimids.values import Device, Follower, Sender
from mimids.wire.declare import encode
from mimids.wire.ids import Counter, GroupId, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    CreateGroupRequest,
    ExternalJoinRequest,
    ExternalProposalRequest,
    Position,
    ReceiveRequest,
    SendRequest,
    SendResponse,
    WelcomeStatusRequest,
    WelcomeStatusResponse,
)

PARTITIONS_BETWEEN_LOOKS: Final = 512  # so that the next look for due pushes stays short
PUBLIC_OCTETS_AT_ONCE: Final = 128 * 1024  # in one transaction: thousands of small proposals take a millisecond a KiB


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
        welcome_limits: WelcomeLimits | None = None,
    ) -> None:
        self._config = config
        self._provider: ProviderId = config.provider
        self._limits = config.limits
        self._store = store
        self._clock = clock
        self._mls = mls
        self._notifier = notifier
        self._outsiders = Outsiders(config.group.external_joins, mls.states)
        self._recent = Recent() if recent is None else recent
        self._reader = GroupReader(config, clock, mls.states, self._outsiders, self._recent)
        self._rates = ProviderRates(config.limits, clock) if rates is None else rates
        self._budgets = Budgets(config.limits, clock) if budgets is None else budgets
        may_contact = partial(config.federation.allows, us=config.provider)
        if welcome_limits is None:
            new_providers = NewProviders.of(config.limits, clock, may_contact)
            welcome_limits = WelcomeLimits(config.limits, clock, new_providers)
        self._welcome_limits = welcome_limits
        self._look_ahead = LookAhead(config.provider)
        self._moved = 0  # partitions with new messages since delivery was notified
        self._welcome_queue = WelcomeQueue(lambda provider: provider == config.provider or may_contact(provider))

    # --- writing ------------------------------------------------------------------------------------------------

    async def create_group(self, request: CreateGroupRequest, creator: Device, *, linear: bool = False) -> None:
        """Create a group with its first partition; a repeat with the same contents changes nothing.

        In a `linear` group an epoch has one commit (semantics: linear-groups). Raises `Malformed` for an empty group
        id, because terms use an empty group id for "all groups".
        """
        if not request.group_id:
            raise Malformed("group_id: a group id has at least one octet")
        refusal = self._welcome_limits.count(creator, request.welcome_data)
        if refusal is not None:
            raise refusal
        digest = hashlib.sha256(encode(request)).digest()
        creation = Creation(request, digest, await self._mls.open_creation(request), creator, linear)

        def create(tx: Tx) -> None:
            create_group(
                tx,
                self._mls.states,
                creation,
                self._provider,
                self._clock.now(),
                quota=self._limits.device_groups,
                welcomes=self._welcome_queue,
            )

        await self._store.write_or_refuse(refusable(create))
        self._notifier.notify(OUTGOING)

    async def replace_group(self, group_id: GroupId, successor: Successor, device: Device) -> None:
        """Record which group replaces a group; a repeat changes nothing.

        Raises `UnknownGroup` unless the device's user created the group, and what `successors.replace_group` raises.
        """

        def replace(tx: Tx) -> list[MaskedPartitionKey]:
            group = groups.find_group(tx, providers.provider_row(tx, self._provider) or 0, group_id)
            creator = None if group is None else groups.creator_of(tx, group.id)
            if group is None or creator is None or accounts.user_of_device(tx, creator) != device.user_id:
                raise UnknownGroup
            return replace_group(tx, group, successor)

        self._notifier.notify(*map(partition_topic, await self._store.write_or_refuse(refusable(replace))))

    async def send(self, request: SendRequest, sender: Sender) -> SendResponse:
        """Sequence one message in the partition of its key."""
        (answer,) = await self.send_batch([request], sender)
        if isinstance(answer, MimiError):
            raise answer
        return answer

    async def send_batch(self, requests: Sequence[SendRequest], sender: Sender) -> list[Outcome]:
        """Sequence messages in order; accept or refuse each one independently.

        The batch is one transaction, unless it has many octets of public messages.
        """
        if len(requests) > self._limits.send_batch_messages:
            raise TooMany("send_batch_messages", len(requests))

        allowed, refusal = len(requests), None
        if isinstance(sender, Follower):
            allowed, refusal = self._rates.take_sends(sender, len(requests))
            sizes = [octets_of(each.message, each.commit_data) for each in requests[:allowed]]
            allowed, over_budget = self._budgets.take(sender, sizes)
            refusal = over_budget or refusal
        sent = requests[:allowed]
        refused = self._count_welcomes(sender, sent)
        sent = [request for at, request in enumerate(sent) if at not in refused] if refused else sent
        answers: list[Outcome] = []
        opened: set[int] = set()
        for some in _slices(sent):
            send = partial(_send, some)
            locks = locks_of([(each.message, each.commit_data) for each in some])
            ahead = partial(self._look_ahead.read, some, sender) if self._store.reads_ahead else None
            answers += await self._sequence(sender, send, submissions_in(some), locks, ahead=ahead, opened=opened)
        for at, error in refused.items():  # in ascending order
            answers.insert(at, error)
        return answers if refusal is None else [*answers, *[refusal] * (len(requests) - allowed)]

    def _count_welcomes(self, sender: Sender, requests: Sequence[SendRequest]) -> dict[int, MimiError]:
        """Count the Welcomes of a batch; return the refusals of messages whose Welcome exceeds a limit."""
        refused = {}
        for at, request in enumerate(requests):
            if request.commit_data is not None:
                refusal = self._welcome_limits.count(sender, request.commit_data.welcome_data)
                if refusal is not None:
                    refused[at] = refusal
        return refused

    async def join(self, request: ExternalJoinRequest, sender: Sender) -> SendResponse:
        """Sequence an external commit in the branch for which it was made (semantics: joining-from-outside)."""
        if isinstance(sender, Follower):
            self._rates.take_join(sender)
            self._spend_octets(sender, octets_of(request.message, request.commit_data))
        return await self._from_outside(request.message, sender, lambda sequencing, _: sequencing.join(request), None)

    async def propose(self, request: ExternalProposalRequest, sender: Sender) -> SendResponse:
        """Sequence a proposal from outside the group (semantics: joining-from-outside)."""
        if isinstance(sender, Follower):
            self._count_call(sender)
            self._spend_octets(sender, octets_of(request.message, None))

        def propose(sequencing: SequencingTransaction, group: Group) -> Outcome:
            tip = tips.live_tip(sequencing.tx, group.id) if request.partition is None else None
            return sequencing.propose(request, tip)

        return await self._from_outside(request.message, sender, propose, locks_of([(request.message, None)]))

    async def propose_as_provider(self, request: ExternalProposalRequest) -> SendResponse:
        """Sequence a proposal of this provider itself, even in a group that cannot be joined from outside.

        Its signature is by a key that the group's external_senders lists (semantics: departures).
        """
        us, submission = Follower(self._provider), Submission(request.message, None, None)
        locks = locks_of([(request.message, None)])
        (answer,) = await self._sequence(
            us, lambda sequencing: [sequencing.propose(request, None)], [submission], locks
        )
        if isinstance(answer, MimiError):
            raise answer
        return answer

    def _count_call(self, caller: Follower) -> None:
        _, refusal = self._rates.take_sends(caller, 1)
        if refusal is not None:
            raise refusal

    def _spend_octets(self, sender: Sender, octets: int) -> None:
        _, refusal = self._budgets.take(sender, [octets])
        if refusal is not None:
            raise refusal

    async def _from_outside(
        self,
        message: MLSMessage,
        sender: Sender,
        sequence: Callable[[SequencingTransaction, Group], Outcome],
        locks: Locks | None,
    ) -> SendResponse:
        """Sequence a message from outside, if its sender may join the group."""
        if message.group_id is None:
            raise Malformed("the message must be a PublicMessage or a PrivateMessage")

        def sequence_if_allowed(sequencing: SequencingTransaction) -> list[Outcome]:
            group = self._reader.joinable_group(sequencing.tx, message.group_id, sender)
            if not self._outsiders.may_send_for(message, sender):
                group = None
            return [UnknownGroup() if group is None else sequence(sequencing, group)]

        (answer,) = await self._sequence(sender, sequence_if_allowed, [Submission(message, None, None)], locks)
        if isinstance(answer, MimiError):
            raise answer
        return answer

    async def _sequence(
        self,
        sender: Sender,
        sequence: Callable[[SequencingTransaction], list[Outcome]],
        submissions: Sequence[Submission],
        locks: Locks | None,
        *,
        ahead: Ahead | None = None,
        opened: set[int] | None = None,
    ) -> list[Outcome]:
        """Run `sequence` in one transaction with its locks, and notify readers and jobs of its changes.

        `opened` is shared by the transactions of a batch.
        """
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
                welcomes=self._welcome_queue,
                opened=opened,
            )
            return sequence(sequencing), sequencing.finish()

        answers, changes = await self._store.write_shielded(work, locks=locks, ahead=ahead)
        if self._store.reads_ahead:
            self._look_ahead.note(changes.hub, changes.partitions)
        self._notify(changes)
        return answers

    def _notify(self, changes: Changes) -> None:
        """Notify readers and jobs. For messages without followers, due pushes are looked for only now and then."""
        if changes.partitions:
            self._moved += len(changes.partitions)
            looks = changes.pushes or self._moved >= PARTITIONS_BETWEEN_LOOKS
            self._moved = 0 if looks else self._moved
            self._notifier.notify(*map(partition_topic, changes.partitions), DELIVERY if looks else WAKE_UPS)
        if changes.welcomes:
            self._notifier.notify(OUTGOING)

    # --- reading ------------------------------------------------------------------------------------------------

    async def receive(self, request: ReceiveRequest, caller: Sender, *, wait_seconds: float = 0) -> bytes:
        """Return an encoded `ReceiveResponse`: messages from the counter on, and hints for followers.

        If there is no message, the call waits for one, at most `wait_seconds`. A follower that presents a key follows
        the partition from then on. If a follower asks for messages that were already pushed to it, it has lost them, so
        they are pushed again (semantics: following-and-delivery). Raises `UnknownPartition`, `GroupReplaced`,
        `MessagesExpired`, `RateLimited` after requests for too many messages, and what `check_position` raises.
        """
        return (await self.receive_with_group(request, caller, wait_seconds=wait_seconds))[0]

    async def receive_with_group(
        self, request: ReceiveRequest, caller: Sender, *, wait_seconds: float = 0
    ) -> tuple[bytes, Found]:
        """Do what `receive` does; also return the partition, and whether its group is linear."""
        masks = request.partition_key.masks()
        with self._notifier.listen(*map(partition_topic, masks)) as waiter:
            answer, found = await self._store.read(partial(self._reader.receive, request, caller))
            if isinstance(caller, Follower) and not found.followed:
                self._rates.take_repeat(caller)
                follow = partial(self._follow, caller, found.partition, request.counter)
                self._rates.owe_repeats(caller, await self._store.write_shielded(follow))
                self._notifier.notify(DELIVERY)
            if isinstance(caller, Device) and found.unnoted:
                await self._note_reader(caller, found.partition)
            if found.empty and wait_seconds > 0:
                await waiter.wait_at_most(self._clock, wait_seconds)
                answer, found = await self._store.read(partial(self._reader.receive, request, caller))
        return answer, found

    async def page(self, device: Device, request: ReceiveRequest, *, limit_octets: int) -> tuple[GroupId, pages.Page]:
        """Return messages and group of a partition whose key one of our devices has; raise `UnknownPartition`."""
        read = partial(self._reader.page, device, request, limit_octets=limit_octets)
        group_id, found, unnoted = await self._store.read(read)
        if unnoted:
            await self._note_reader(device, found.partition)
        return group_id, found

    async def positions(self, device: Device, keys: Sequence[PartitionKey]) -> tuple[Position, ...]:
        """Return for each of these keys up to which counter its partition goes."""
        return await self._store.read(partial(self._reader.positions, keys, device))

    async def _note_reader(self, device: Device, partition: Partition) -> None:
        await self._store.write(lambda tx: restored_positions.note_reader(tx, partition.id, device.row))

    def _follow(self, caller: Follower, partition: Partition, counter: Counter, tx: Tx) -> int:
        """Make a provider follow a partition; return how many messages were pushed before and come again."""
        number = providers.ensure_provider(tx, caller.provider)
        lost = max(0, (follows.reached(tx, number, partition.id) or 0) - counter)
        if lost and not counter:
            follows.end(tx, number, partition.id)  # without messages it starts again, with an opening if needed
        follows.follow_with_key(tx, number, partition.id, partition.parent)
        if lost:
            follows.note_presented(tx, number, partition.id)
            follows.resume(tx, number, partition.id, counter)
        return lost

    async def group_info(
        self, group_id: GroupId, caller: Sender, *, partition: MaskedPartitionKey | None = None
    ) -> JoinerInfo:
        """Return the GroupInfo of a partition or, if no partition is named, of the open branch with the most messages.

        (semantics: joining-from-outside)

        Raises `BranchTerminated`, `GroupReplaced`, and `UnknownGroup` both for an unknown group and for a group that
        the caller cannot join.
        """
        return await self._store.read(partial(self._reader.group_info, group_id, caller, partition))

    async def welcome_status(self, request: WelcomeStatusRequest, caller: Sender) -> WelcomeStatusResponse:
        """Return what became of the Welcomes that lead to a partition; raise `UnknownPartition` and `RateLimited`."""
        if isinstance(caller, Follower):
            self._count_call(caller)

        def read(tx: Tx) -> WelcomeStatusResponse:
            return welcome_status(tx, self._reader.partition_of(tx, request.partition_key))

        return await self._store.read(read)


def _send(requests: Sequence[SendRequest], sequencing: SequencingTransaction) -> list[Outcome]:
    return sequencing.send(requests)


def _slices(requests: Sequence[SendRequest]) -> Iterator[list[SendRequest]]:
    """Yield the messages of a batch for one transaction after the other, so that other writes get their turn."""
    some: list[SendRequest] = []
    octets = 0
    for each in requests:
        if isinstance(each.message.message, PublicMessage):
            size = len(each.message.encoded)
            if some and octets + size > PUBLIC_OCTETS_AT_ONCE:
                yield some
                some, octets = [], 0
            octets += size
        some.append(each)
    yield some
