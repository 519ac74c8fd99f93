"""Receiving epochs of groups that other providers host: pushes, answers to our requests, and copies after a restore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs

from mimids.config import Config
from mimids.ds.following.followed_groups import exceeds_unmatched_bytes, find_followed_group, take_part
from mimids.ds.following.intake import Intake, Received
from mimids.ds.following.requested_keys import RequestedKeys
from mimids.ds.following.slices import Numbered, parts_of
from mimids.ds.groups.contradiction import Contradiction
from mimids.ds.groups.judging import MlsJudge
from mimids.ds.limits.budgets import Budgets
from mimids.ds.notifier import Notifier, partition_topic
from mimids.ds.ports import Clock
from mimids.store import groups, partitions, providers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import Follower
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, ProviderId
from mimids.wire.messages import PushedEpoch, PushRequest, PushResponse

OCTETS_OF_AN_EPOCH: Final = 512  # charged for the rows of an epoch, in addition to its messages

# Returns the group of an epoch that is wanted, or the answer to an epoch of which nothing is stored.
GroupOf = Callable[[Tx, int, PushedEpoch], Group | Counter]


@attrs.frozen
class FollowerStatistics:
    """Counts since the start."""

    messages: int
    duplicates: int
    gaps: int
    contradictions: int
    refused_pushes: int = 0  # their hub had used up its budget of octets


class EpochReceiver:
    """Stores what hubs send, notifies of new messages, and passes contradictions to `contradicted`."""

    def __init__(
        self,
        config: Config,
        store: Store,
        clock: Clock,
        mls: MlsJudge,
        notifier: Notifier,
        budgets: Budgets,
        *,
        contradicted: Callable[[Contradiction], None],
        bound_hit: Callable[[str], None],
    ) -> None:
        self._provider = config.provider
        self._unmatched_bytes = config.limits.provider_unmatched_bytes
        self._store = store
        self._clock = clock
        self._mls = mls
        self._notifier = notifier
        self._budgets = budgets
        self._contradicted = contradicted
        self._bound_hit = bound_hit
        self.requested = RequestedKeys()
        self._messages = self._duplicates = self._gaps = self._contradictions = self._refused_pushes = 0

    def statistics(self) -> FollowerStatistics:
        """Return the counts so far."""
        return FollowerStatistics(
            self._messages, self._duplicates, self._gaps, self._contradictions, self._refused_pushes
        )

    async def receive_push(self, hub: ProviderId, request: PushRequest) -> PushResponse:
        """Store what is new; answer each epoch with the counter wanted next, or that it is no longer followed.

        Raises `RateLimited` if the hub has used up its budget of octets.
        """
        await self.requested.wait_for_answers(hub, {epoch.masked_partition_key for epoch in request.epochs})
        return PushResponse(tuple(await self._receive_followed(hub, request.epochs, asked=False)))

    async def receive_answer(self, hub: ProviderId, epochs: Sequence[PushedEpoch]) -> list[Counter]:
        """Store the new messages of epochs that we asked a hub for; return the counter wanted next for each."""
        return await self._receive_followed(hub, epochs, asked=True)

    async def restore_from_peer(self, peer: ProviderId, epochs: Sequence[PushedEpoch]) -> list[Counter]:
        """Store what a peer has of groups that we host ourselves, after a restore; return the counters reached.

        Raises `RateLimited` if the peer has used up its budget of octets.
        """

        def known(tx: Tx, hub: int, epoch: PushedEpoch) -> Group | Counter:
            return groups.find_group(tx, hub, epoch.group_id) or NO_LONGER_FOLLOWED

        return await self._receive(self._provider, peer, epochs, known)

    async def _receive_followed(self, hub: ProviderId, epochs: Sequence[PushedEpoch], *, asked: bool) -> list[Counter]:
        return await self._receive(hub, hub, epochs, partial(self._followed_group, hub, asked))

    def _followed_group(self, hub: ProviderId, asked: bool, tx: Tx, number: int, epoch: PushedEpoch) -> Group | Counter:
        """Return the group of an epoch if we want its messages, or else the answer to the epoch."""
        now = self._clock.now()
        device = self.requested.device_of(hub, epoch.masked_partition_key)
        if device is not None and not _belongs_elsewhere(tx, number, epoch):
            if _is_empty(epoch) and groups.find_group(tx, number, epoch.group_id) is None:
                return Counter(0)  # the group is added when there is something to store
            take_part(tx, number, epoch.group_id, device, now)
        group = find_followed_group(tx, number, epoch.group_id, now, asked=asked)
        if group is None or exceeds_unmatched_bytes(tx, group, epoch, self._unmatched_bytes):
            return NO_LONGER_FOLLOWED
        return group

    async def _receive(
        self, hub: ProviderId, sender: ProviderId, epochs: Sequence[PushedEpoch], group_of: GroupOf
    ) -> list[Counter]:
        """Store what is new of each epoch that `group_of` wants, part by part; return the counters wanted next.

        The octets count against `sender`.
        """
        self._spend_octets(sender, epochs)
        counters = [NO_LONGER_FOLLOWED] * len(epochs)
        refused: set[int] = set()  # epochs whose next part would not continue the stored messages
        for part in parts_of(epochs):
            wanted = [each for each in part if each[0] not in refused]
            for (number, epoch), counter in zip(wanted, await self._receive_part(hub, wanted, group_of), strict=True):
                counters[number] = counter
                if not epoch.counter + len(epoch.epoch.messages) <= counter != NO_LONGER_FOLLOWED:
                    refused.add(number)
        return counters

    async def _receive_part(self, hub: ProviderId, part: Sequence[Numbered], group_of: GroupOf) -> list[Counter]:
        """Store a part in one transaction, and notify of what it changed."""
        await self._prepare_openings(hub, [epoch for _, epoch in part])

        def work(tx: Tx) -> Received:
            number = providers.ensure_provider(tx, hub)
            intake = Intake(tx, hub, self._mls, self._clock.now(), restoring=hub == self._provider)
            for _, epoch in part:
                group = group_of(tx, number, epoch)
                if isinstance(group, Group):
                    intake.append(group, epoch)
                else:
                    intake.answer(group)
            return intake.finish()

        received = await self._store.write_shielded(work)
        self._messages += received.messages
        self._duplicates += received.duplicates
        self._gaps += received.gaps
        self._contradictions += len(received.contradictions)
        for _ in range(received.too_many_empty):
            self._bound_hit("empty-partitions")
        if hub != self._provider:  # after a restore the hub is this provider
            for contradiction in received.contradictions:
                self._contradicted(contradiction)
        self._notifier.notify(*map(partition_topic, received.changed))
        return received.counters

    def _spend_octets(self, sender: ProviderId, epochs: Sequence[PushedEpoch]) -> None:
        octets = sum(map(octets_of_epoch, epochs))
        _, refusal = self._budgets.take(Follower(sender), [octets])
        if refusal is not None:
            self._refused_pushes += 1
            self._bound_hit("pushed-octets")
            raise refusal

    async def _prepare_openings(self, hub: ProviderId, epochs: Sequence[PushedEpoch]) -> None:
        """Verify openings off the event loop, before the transaction that reads them."""
        for epoch in epochs:
            if epoch.opening is None:
                continue

            def find(tx: Tx, epoch: PushedEpoch = epoch) -> tuple[Group | None, Partition | None]:
                number = providers.provider_row(tx, hub) or 0
                group = groups.find_group(tx, number, epoch.group_id)
                return group, partitions.find_partition(tx, number, [epoch.masked_partition_key])

            group, partition = await self._store.read(find)
            if group is not None and (partition is None or partition.state is None):
                await self._mls.prepare_claim(group, partition.epoch if partition else None, epoch.opening)


def octets_of_epoch(epoch: PushedEpoch) -> int:
    """Return how many octets an epoch may take in the store."""
    octets = OCTETS_OF_AN_EPOCH
    if epoch.opening is not None:
        octets += len(epoch.opening.group_info.encoded) + len(epoch.opening.ratchet_tree or b"")
    for each in epoch.epoch.messages:
        octets += len(each.message.encoded)
        if each.commit is not None and each.commit.group_info is not None:
            octets += len(each.commit.group_info.encoded)
    return octets


def _is_empty(epoch: PushedEpoch) -> bool:
    """Tell whether an epoch names a partition and contains nothing else."""
    return not epoch.epoch.messages and not epoch.counter and epoch.opening is None


def _belongs_elsewhere(tx: Tx, hub: int, epoch: PushedEpoch) -> bool:
    """Tell whether an epoch names a partition of another group of its hub."""
    known = partitions.find_partition(tx, hub, [epoch.masked_partition_key])
    return known is not None and groups.group_by_row(tx, known.group).group_id != epoch.group_id
