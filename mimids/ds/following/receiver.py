"""Receiving epochs of groups that other providers host: pushes, answers to our requests, and copies after a restore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs
import trio

from mimids.config import Config
from mimids.ds.following.followed_groups import WantedGroups
from mimids.ds.following.intake import Intake, Received
from mimids.ds.following.look_ahead import PushLookAhead
from mimids.ds.following.pending_requests import ANSWER_SECONDS, PendingRequests
from mimids.ds.following.slices import Numbered, parts_of
from mimids.ds.groups.contradiction import Contradiction
from mimids.ds.groups.judging import MlsJudge
from mimids.ds.limits.budgets import Budgets
from mimids.ds.notifier import WAKE_UPS, Notifier, partition_topic
from mimids.ds.ports import Clock
from mimids.store import groups, participations, partitions, providers, requested_partitions
from mimids.store.engine.locks import hub_lock
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import Follower
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, MaskedPartitionKey, ProviderId
from mimids.wire.messages import PushedEpoch, PushRequest, PushResponse

OCTETS_OF_AN_EPOCH: Final = 512  # charged for the rows of an epoch, in addition to its messages

# Returns the group of an epoch that is wanted, or the answer to an epoch of which nothing is stored.
GroupOf = Callable[[PushedEpoch], Group | Counter]


@attrs.frozen
class FollowerStatistics:
    """Counts since the start."""

    messages: int
    duplicates: int
    gaps: int
    contradictions: int
    refused_pushes: int = 0  # refused because their hub had used up its budget of octets


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
        shared: bool = False,
    ) -> None:
        """With `shared`, other processes request partitions from hubs too."""
        self._shared = shared
        self._provider = config.provider
        self._limits = config.limits
        self._store = store
        self._clock = clock
        self._mls = mls
        self._notifier = notifier
        self._budgets = budgets
        self._contradicted = contradicted
        self._bound_hit = bound_hit
        self.pending = PendingRequests()
        self._look_ahead = PushLookAhead()
        self._looking: set[ProviderId] = set()  # hubs of which a push waits for another process
        self._messages = self._duplicates = self._gaps = self._contradictions = self._refused_pushes = 0

    def statistics(self) -> FollowerStatistics:
        """Return the counts so far."""
        return FollowerStatistics(
            self._messages, self._duplicates, self._gaps, self._contradictions, self._refused_pushes
        )

    async def receive_push(self, hub: ProviderId, request: PushRequest) -> PushResponse:
        """Store new messages; answer each epoch with the counter wanted next, or with `NO_LONGER_FOLLOWED`.

        Raises `RateLimited` if the hub has used up its budget of octets.
        """
        waiting = self.pending.among(hub, {epoch.masked_partition_key for epoch in request.epochs})
        if waiting:
            accepted = await self._store.read(partial(_accepted, hub, list(waiting)))
            await self.pending.wait_for_answers(hub, waiting - accepted)
        self._spend_octets(hub, request.epochs)
        counters = await self._receive(hub, request.epochs, self._wanted_groups)
        if self._shared and NO_LONGER_FOLLOWED in counters and hub not in self._looking:
            self._looking.add(hub)  # only one push of a hub waits: a hub sends its pushes one after the other
            try:
                await self._receive_requested_elsewhere(hub, request.epochs, counters)
            finally:
                self._looking.discard(hub)
        return PushResponse(tuple(counters))

    async def _receive_requested_elsewhere(
        self, hub: ProviderId, epochs: Sequence[PushedEpoch], counters: list[Counter]
    ) -> None:
        """Receive refused epochs again if another process has requested their partitions from the hub meanwhile.

        Looks up to three times within ANSWER_SECONDS whether that process has stored the hub's answer, and writes the
        new counters into `counters`.
        """
        refused = {number: epochs[number] for number, each in enumerate(counters) if each == NO_LONGER_FOLLOWED}
        masks = [epoch.masked_partition_key for epoch in refused.values()]
        accepted: set[MaskedPartitionKey] = set()
        for part in (8, 4, 2):
            await trio.sleep(ANSWER_SECONDS / part)
            accepted = await self._store.read(partial(_accepted, hub, masks))
            if len(accepted) == len(set(masks)):
                break
        again = [number for number, epoch in refused.items() if epoch.masked_partition_key in accepted]
        if again:
            found = await self._receive(hub, [epochs[number] for number in again], self._wanted_groups)
            for number, counter in zip(again, found, strict=True):
                counters[number] = counter

    async def receive_answer(self, hub: ProviderId, epochs: Sequence[PushedEpoch]) -> list[Counter]:
        """Store the new messages of epochs that we asked a hub for; return the counter wanted next for each."""
        self._spend_octets(hub, epochs)
        return await self._receive(hub, epochs, self._wanted_groups)

    async def restore_from_peer(self, peer: ProviderId, epochs: Sequence[PushedEpoch]) -> list[Counter]:
        """Store a peer's messages of groups that we host ourselves, after a restore; return the counters reached.

        Raises `RateLimited` if the peer has used up its budget of octets.
        """

        def known(tx: Tx, hub: int) -> GroupOf:
            return lambda epoch: groups.find_group(tx, hub, epoch.group_id) or NO_LONGER_FOLLOWED

        self._spend_octets(peer, epochs)
        return await self._receive(self._provider, epochs, known)

    def _wanted_groups(self, tx: Tx, number: int) -> GroupOf:
        limit = self._limits.provider_unmatched_bytes
        return WantedGroups(tx, number, self.pending.left, self._clock.now(), unmatched_octets=limit).group_of

    async def _receive(
        self,
        hub: ProviderId,
        epochs: Sequence[PushedEpoch],
        group_of_in: Callable[[Tx, int], GroupOf],
    ) -> list[Counter]:
        """Store the new messages of each epoch whose group is wanted; return the counters wanted next.

        Each part of the epochs is stored in one transaction. For each transaction, `group_of_in` makes a `GroupOf` from
        the hub's row.
        """
        counters = [NO_LONGER_FOLLOWED] * len(epochs)
        refused: set[int] = set()  # epochs whose next part would not continue the stored messages
        for part in parts_of(epochs):
            wanted = [each for each in part if each[0] not in refused]
            for (number, epoch), counter in zip(
                wanted, await self._receive_part(hub, wanted, group_of_in), strict=True
            ):
                counters[number] = counter
                if not epoch.counter + len(epoch.epoch.messages) <= counter != NO_LONGER_FOLLOWED:
                    refused.add(number)
        return counters

    async def _receive_part(
        self, hub: ProviderId, part: Sequence[Numbered], group_of_in: Callable[[Tx, int], GroupOf]
    ) -> list[Counter]:
        """Store a part in one transaction, and notify of the changes."""
        await self._prepare_openings(hub, [epoch for _, epoch in part])

        def work(tx: Tx) -> Received:
            number = providers.ensure_provider(tx, hub)
            group_of = group_of_in(tx, number)
            intake = Intake(tx, hub, self._mls, self.pending.left, self._clock.now(), restoring=hub == self._provider)
            for _, epoch in part:
                group = group_of(epoch)
                if isinstance(group, Group):
                    self._look_ahead.note(hub, group)
                    intake.append(group, epoch)
                else:
                    intake.answer(group)
            return intake.finish()

        locks = None if hub == self._provider else frozenset((hub_lock(hub),))  # after a restore, `work` runs alone
        ahead = partial(self._look_ahead.read, hub, [epoch for _, epoch in part])
        received = await self._store.write_shielded(work, locks=locks, ahead=ahead)
        self._messages += received.messages
        self._duplicates += received.duplicates
        self._gaps += received.gaps
        self._contradictions += len(received.contradictions)
        for _ in range(received.too_many_empty):
            self._bound_hit("empty-partitions")
        if hub != self._provider:  # after a restore the hub is this provider
            for contradiction in received.contradictions:
                self._contradicted(contradiction)
        self._notifier.notify(*map(partition_topic, received.changed), WAKE_UPS)
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


def _accepted(hub: ProviderId, masks: Sequence[MaskedPartitionKey], tx: Tx) -> set[MaskedPartitionKey]:
    """Return the partitions whose pushes are accepted without the answer to a request."""
    number, found = providers.provider_row(tx, hub) or 0, set()
    for mask in masks:
        known = partitions.find_partition(tx, number, [mask])
        if requested_partitions.find(tx, number, mask) or (
            known is not None and participations.participants(tx, known.group).present
        ):
            found.add(mask)
    return found
