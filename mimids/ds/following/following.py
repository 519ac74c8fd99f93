"""What our devices do in groups that other providers host (semantics: following-and-delivery).

A device reads what is stored here. If nothing is, its key is presented to the hub, so that the hub pushes the partition
to us from then on. Raw keys are in memory for the length of a call, and never on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mimids.config import Config
from mimids.ds.following.followed_groups import take_part
from mimids.ds.following.intake import find_or_add_partition
from mimids.ds.following.receiver import EpochReceiver
from mimids.ds.groups import pages
from mimids.ds.groups.policy import GroupPolicy
from mimids.ds.groups.restrictions import ACCEPTED
from mimids.ds.groups.states import States
from mimids.ds.ports import Clock, Peers
from mimids.errors import PeerFailed, UnknownGroup
from mimids.store import groups, participations, partitions, providers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.partitions import Partition
from mimids.values import Device
from mimids.wire.declare import decode, encode
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    PushedEpoch,
    ReceiveRequest,
    ReceiveResponse,
    SendResponse,
    encode_receive_response,
)

LONG_ANSWER_OCTETS: Final = 65_536  # a shorter answer left no messages out


class Following:
    """Our devices' side of the groups of other hubs."""

    def __init__(
        self, config: Config, store: Store, clock: Clock, peers: Peers, states: States, receiver: EpochReceiver
    ) -> None:
        self._receive_octets = config.limits.receive_bytes
        self._store = store
        self._clock = clock
        self._peers = peers
        self._states = states
        self._receiver = receiver

    async def note_sent(
        self,
        device: Device,
        hub: ProviderId,
        group_id: GroupId,
        sent: Sequence[tuple[SendResponse, CommitData | None]],
    ) -> None:
        """Record that a device takes part in a group, and the partitions whose keys it used."""

        def work(tx: Tx) -> None:
            number, now = providers.ensure_provider(tx, hub), self._clock.now()
            group = take_part(tx, number, group_id, device.row, now)
            for response, data in sent:
                find_or_add_partition(tx, group, response.partition, now)
                if data is not None:
                    opened = data.next_partition_key.mask(len(response.partition))
                    find_or_add_partition(tx, group, opened, now)

        await self._store.write(work)

    async def receive(
        self, device: Device, hub: ProviderId, request: ReceiveRequest, *, wait_seconds: int | None = None
    ) -> bytes:
        """Return a ReceiveResponse without hints: what is stored here if there is something, else the hub's answer.

        A device gets the epochs whose key it presents, and nothing else (http: devices).
        """
        found = await self.page(device, hub, request, limit_octets=self._receive_octets)
        if found is None or not found[1].messages:
            answer = await self.ask(device, hub, request.partition_key, wait_seconds=wait_seconds)
            found = await self.page(device, hub, request, limit_octets=self._receive_octets)
            if found is None:
                return answer
        await self._note_reader(device, found[1].partition)
        return encode_receive_response(found[1].epoch, ())

    async def page(
        self, device: Device, hub: ProviderId, request: ReceiveRequest, *, limit_octets: int
    ) -> tuple[GroupId, pages.Page] | None:
        """Return the stored messages of a partition from a counter on, and its group; None for an unknown partition.

        Raises `PolicyRefused` if the hub banned the device's user from all its groups.
        """

        def read(tx: Tx) -> tuple[GroupId, pages.Page] | None:
            number = providers.provider_row(tx, hub) or 0
            partition = partitions.find_partition(tx, number, request.partition_key.masks())
            if partition is None:
                return None
            group = groups.group_by_row(tx, partition.group)
            rules = GroupPolicy(tx, self._states, self._clock.now(), ACCEPTED)
            rules.check_reader(number, device)
            withheld = rules.withheld(group, partition, device)
            found = pages.page(
                tx, partition, request.counter, limit_octets=limit_octets, handshakes_only=withheld is not None
            )
            return group.group_id, found

        return await self._store.read(read)

    async def _note_reader(self, device: Device, partition: Partition) -> None:
        """Record that a device which presented a key takes part in the group, also if it had left it."""
        group, now = partition.group, self._clock.now()
        if not await self._store.read(lambda tx: participations.takes_part(tx, group, device.row)):
            await self._store.write(lambda tx: participations.take_part(tx, group, device.row, now))

    async def ask(
        self, device: Device, hub: ProviderId, key: PartitionKey, *, wait_seconds: int | None = None
    ) -> bytes:
        """Present a key to a hub, so that it pushes the partition to us, and store its answer.

        Returns the answer without its hints. Nothing is stored for a partition that is unknown here: its masked key
        depends on the group's suite, and the answer does not name the group. The hub's first push adds the group.
        """
        masks = key.masks()

        def find(tx: Tx) -> tuple[Partition, GroupId] | None:
            known = partitions.find_partition(tx, providers.provider_row(tx, hub) or 0, masks)
            return None if known is None else (known, groups.group_by_row(tx, known.group).group_id)

        self._receiver.requested.add(masks, device.row)
        while True:
            known = await self._store.read(find)
            counter = Counter(0) if known is None else known[0].next_counter
            request = encode(ReceiveRequest(key, counter))
            answer = await self._peers.call(hub, "POST", "/ds/v1/receive", request, wait_seconds=wait_seconds)
            received = _decode_answer(answer.body)
            if known is None:
                return encode(ReceiveResponse(received.epoch, ()))
            wanted = (await self._receiver.receive_answer(hub, _epochs_of(received, *known)))[0]
            if len(answer.body) < LONG_ANSWER_OCTETS or wanted in (counter, NO_LONGER_FOLLOWED):
                return encode(ReceiveResponse(received.epoch, ()))
            wait_seconds = None  # the hub may have more than fits in one answer

    async def leave(self, device: Device, hub: ProviderId, group_id: GroupId) -> None:
        """Record that a device leaves a group; once the last one has left, pushes get `NO_LONGER_FOLLOWED`.

        (semantics: welcomes-and-leaving)

        Raises `UnknownGroup`.
        """

        def work(tx: Tx) -> bool:
            number = providers.provider_row(tx, hub)
            group = None if number is None else groups.find_group(tx, number, group_id)
            if group is not None:
                participations.leave(tx, group.id, device.row, self._clock.now())
            return group is not None

        # This covers all its groups, but in those that it stays in its participation is stored by now.
        self._receiver.requested.forget_device(device.row)
        if not await self._store.write(work):
            raise UnknownGroup


def _decode_answer(body: bytes) -> ReceiveResponse:
    try:
        return decode(ReceiveResponse, body)
    except ValueError as error:
        raise PeerFailed("not a ReceiveResponse") from error


def _epochs_of(received: ReceiveResponse, partition: Partition, group_id: GroupId) -> list[PushedEpoch]:
    """Return the epochs of an answer about a partition, that partition's first, as if they were pushed."""
    return [
        PushedEpoch(group_id, partition.masked_key, partition.next_counter, None, received.epoch),
        *(PushedEpoch(group_id, hint.masked_partition_key, Counter(0), None, hint.epoch) for hint in received.hints),
    ]
