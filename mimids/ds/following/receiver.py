"""Receiving epochs of groups that other providers host: pushes, answers to our requests, and copies after a restore."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import attrs

from mimids.config import Config
from mimids.ds.following.followed_groups import exceeds_unmatched_bytes, find_followed_group, take_part
from mimids.ds.following.intake import Intake, Received
from mimids.ds.groups.contradiction import Contradiction
from mimids.ds.groups.judging import MlsJudge
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.notifier import Notifier, partition_topic
from mimids.ds.ports import Clock
from mimids.store import groups, partitions, providers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import DeviceRow
from mimids.wire.ids import Counter, MaskedPartitionKey, ProviderId
from mimids.wire.messages import PushedEpoch, PushRequest, PushResponse

REQUESTED_KEYS_KEPT: Final = 30_000


@attrs.frozen
class FollowerStatistics:
    """Counts since the start."""

    messages: int
    duplicates: int
    gaps: int
    contradictions: int


class RequestedKeys:
    """Partitions that our devices had us request from a hub: what is pushed of them is wanted.

    The least recently requested ones are evicted.
    """

    def __init__(self, limit: int = REQUESTED_KEYS_KEPT) -> None:
        self._devices = LeastRecentlyUsed[MaskedPartitionKey, DeviceRow](limit)

    def add(self, masks: Iterable[MaskedPartitionKey], device: DeviceRow) -> None:
        """Record that a device requested the partition that is stored under one of these masks."""
        for mask in masks:
            self._devices.put(mask, device)

    def device_of(self, mask: MaskedPartitionKey) -> DeviceRow | None:
        """Return the device that requested a partition last; the store's writer thread may call this."""
        return self._devices.peek(mask)

    def forget_device(self, device: DeviceRow) -> None:
        """Forget what a device requested."""
        for mask in [mask for mask in self._devices if self._devices.peek(mask) == device]:
            self._devices.pop(mask)

    def clear(self) -> None:
        """Forget everything."""
        self._devices.clear()


class EpochReceiver:
    """Stores what hubs send, notifies of new messages, and passes contradictions to `contradicted`."""

    def __init__(
        self,
        config: Config,
        store: Store,
        clock: Clock,
        mls: MlsJudge,
        notifier: Notifier,
        *,
        contradicted: Callable[[Contradiction], None],
    ) -> None:
        self._provider = config.provider
        self._unmatched_bytes = config.limits.provider_unmatched_bytes
        self._store = store
        self._clock = clock
        self._mls = mls
        self._notifier = notifier
        self._contradicted = contradicted
        self.requested = RequestedKeys()
        self._messages = self._duplicates = self._gaps = self._contradictions = 0

    def statistics(self) -> FollowerStatistics:
        """Return the counts so far."""
        return FollowerStatistics(self._messages, self._duplicates, self._gaps, self._contradictions)

    async def receive_push(self, hub: ProviderId, request: PushRequest) -> PushResponse:
        """Store the new messages; answer each epoch with the counter wanted next, or that it is no longer followed."""
        return PushResponse(tuple(await self._receive_followed(hub, request.epochs, asked=False)))

    async def receive_answer(self, hub: ProviderId, epochs: Sequence[PushedEpoch]) -> list[Counter]:
        """Store the new messages of epochs that we asked a hub for; return the counter wanted next for each."""
        return await self._receive_followed(hub, epochs, asked=True)

    async def restore_from_peer(self, epochs: Sequence[PushedEpoch]) -> list[Counter]:
        """Store what a peer has of groups that we host ourselves, after a restore; return the counters reached."""

        def known(tx: Tx, hub: int, epoch: PushedEpoch) -> Group | None:
            return groups.find_group(tx, hub, epoch.group_id)

        return await self._receive(self._provider, epochs, known)

    async def _receive_followed(self, hub: ProviderId, epochs: Sequence[PushedEpoch], *, asked: bool) -> list[Counter]:
        def followed(tx: Tx, number: int, epoch: PushedEpoch) -> Group | None:
            now = self._clock.now()
            device = self.requested.device_of(epoch.masked_partition_key)
            if device is not None:
                take_part(tx, number, epoch.group_id, device, now)
            group = find_followed_group(tx, number, epoch.group_id, now, asked=asked)
            if group is None or exceeds_unmatched_bytes(tx, group, epoch, self._unmatched_bytes):
                return None
            return group

        return await self._receive(hub, epochs, followed)

    async def _receive(
        self,
        hub: ProviderId,
        epochs: Sequence[PushedEpoch],
        group_of: Callable[[Tx, int, PushedEpoch], Group | None],
    ) -> list[Counter]:
        """Store the new messages of each epoch whose group `group_of` returns, in one transaction."""
        await self._prepare_openings(hub, epochs)

        def work(tx: Tx) -> Received:
            number = providers.ensure_provider(tx, hub)
            intake = Intake(tx, hub, self._mls, self._clock.now())
            for epoch in epochs:
                intake.append(group_of(tx, number, epoch), epoch)
            return intake.finish()

        received = await self._store.write_shielded(work)
        self._messages += received.messages
        self._duplicates += received.duplicates
        self._gaps += received.gaps
        self._contradictions += len(received.contradictions)
        if hub != self._provider:  # after a restore the hub is this provider
            for contradiction in received.contradictions:
                self._contradicted(contradiction)
        self._notifier.notify(*map(partition_topic, received.changed))
        return received.counters

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
