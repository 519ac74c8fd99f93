"""Requests of our devices about groups that other providers host (semantics: following-and-delivery).

A device reads the messages that are stored here. If no messages are stored, the device's key is presented to the hub,
and the hub pushes the partition to us from then on. Raw keys are in memory for the length of a call, and never on disk.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Final

from mimids.config import Config
from mimids.ds.following.followed_groups import take_part
from mimids.ds.following.intake import find_or_add_partition
from mimids.ds.following.pending_requests import forget_request, record_answer
from mimids.ds.following.receiver import EpochReceiver
from mimids.ds.groups import pages
from mimids.ds.groups.policy import GroupPolicy
from mimids.ds.groups.positions import NOT_SAID, positions_of
from mimids.ds.groups.restrictions import ACCEPTED
from mimids.ds.groups.states import States
from mimids.ds.groups.successors import check_not_replaced, named_successor, note_replaced
from mimids.ds.notifier import Notifier, partition_topic
from mimids.ds.peer_answers import AnswerDecoder
from mimids.ds.ports import Clock, Peers
from mimids.errors import (
    Busy,
    CounterAhead,
    GroupReplaced,
    MessagesExpired,
    MimiError,
    PeerFailed,
    PeerUnavailable,
    PolicyRefused,
    RateLimited,
    UnknownGroup,
    UnknownPartition,
)
from mimids.store import groups, participations, partitions, providers, requested_partitions
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group, Successor
from mimids.store.partitions import Partition
from mimids.values import Device, DeviceRow
from mimids.wire.declare import encode
from mimids.wire.ids import (
    FIRST_COUNTER,
    NO_LONGER_FOLLOWED,
    Counter,
    GroupId,
    MaskedPartitionKey,
    PartitionKey,
    ProviderId,
)
from mimids.wire.messages import (
    CommitData,
    Epoch,
    Position,
    PushedEpoch,
    ReceiveRequest,
    ReceiveResponse,
    SendResponse,
    encode_receive_response,
)

LONG_ANSWER_OCTETS: Final = 65_536  # a shorter answer left no messages out: 1,024 of the smallest messages are longer
WAITS_OF_A_DEVICE: Final = 4  # requests that wait at one hub for news; all devices share `calls.WAITS_AT_ONE`
ANSWERS_AT_ONCE: Final = 64  # messages for one request of a device, which asks again for the rest


class Following:
    """Serves our devices in the groups of other hubs."""

    def __init__(
        self,
        config: Config,
        store: Store,
        clock: Clock,
        peers: Peers,
        states: States,
        receiver: EpochReceiver,
        notifier: Notifier,
        decoder: AnswerDecoder,
        *,
        note_behind: Callable[[ProviderId, GroupId, MaskedPartitionKey, Counter], None],
    ) -> None:
        self._provider = config.provider
        self._limits = config.limits
        self._store = store
        self._clock = clock
        self._peers = peers
        self._states = states
        self._receiver = receiver
        self._waiting: Tally[tuple[DeviceRow, ProviderId]] = Tally()
        self._notifier = notifier
        self._decoder = decoder
        self._note_behind = note_behind

    async def note_sent(
        self,
        device: Device,
        hub: ProviderId,
        group_id: GroupId,
        sent: Sequence[tuple[SendResponse, CommitData | None]],
    ) -> None:
        """Record that a device takes part in a group, and the partitions whose keys it used.

        If the hub gave a message a counter beyond the end of its partition here, we may have lost messages.
        """
        left = self._receiver.pending.left

        def work(tx: Tx) -> dict[MaskedPartitionKey, Counter]:
            """Return the partitions that lack messages here, each with the counter of its first message in `sent`."""
            number, now = providers.ensure_provider(tx, hub), self._clock.now()
            group = take_part(tx, number, group_id, device.row, now)
            ends: dict[MaskedPartitionKey, Counter] = {}
            first: dict[MaskedPartitionKey, Counter] = {}
            for response, data in sent:
                ends[response.partition] = find_or_add_partition(tx, group, response.partition, now, left).next_counter
                first.setdefault(response.partition, response.counter)
                if data is not None:
                    opened = data.next_partition_key.mask(len(response.partition))
                    find_or_add_partition(tx, group, opened, now, left)
            return {key: counter for key, counter in first.items() if counter > ends[key]}

        for key, counter in (await self._store.write(work)).items():
            self._note_behind(hub, group_id, key, counter)

    async def receive(
        self, device: Device, hub: ProviderId, request: ReceiveRequest, *, wait_seconds: int | None = None
    ) -> bytes:
        """Return a ReceiveResponse without hints: stored messages if there are any, otherwise the hub's answer.

        A device gets only the epochs whose keys it presents (http: devices). If the hub cannot be reached, the answer
        has only messages that are stored here, perhaps none. A request that may wait then waits for pushes.
        """
        began = self._clock.running()
        found = await self.page(device, hub, request, limit_octets=self._limits.receive_bytes)
        if found is None or not found[1].messages:
            try:
                with self._wait(device, hub) if wait_seconds else nullcontext():
                    answer = await self.ask(device, hub, request, wait_seconds=wait_seconds)
                if answer is not None:
                    return encode(ReceiveResponse(answer, ()))
            except (PeerUnavailable, PeerFailed):
                left = (wait_seconds or 0) - (self._clock.running() - began) / 1000
                if not await self._is_complete(device, hub, request, wait_seconds=left):
                    raise
            found = await self.page(device, hub, request, limit_octets=self._limits.receive_bytes)
            if found is None:
                raise UnknownPartition  # the partition was dropped here while its hub answered
        await self._note_reader(device, found[1].partition)
        return encode_receive_response(found[1].epoch, ())

    @contextmanager
    def _wait(self, device: Device, hub: ProviderId) -> Iterator[None]:
        """Count a device's request that waits at a hub for new messages; raise `Busy` if the device has too many."""
        key = device.row, hub
        if self._waiting[key] >= WAITS_OF_A_DEVICE:
            raise Busy("this device has too many waiting requests to this hub; use a stream")
        self._waiting[key] += 1
        try:
            yield
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]

    async def _is_complete(
        self, device: Device, hub: ProviderId, request: ReceiveRequest, *, wait_seconds: float
    ) -> bool:
        """Tell whether all messages before a request's counter are stored here, as far as we know.

        If they are, and there is no message at the counter, wait for a push of one, at most `wait_seconds`.
        """
        with self._notifier.listen(*map(partition_topic, request.partition_key.masks())) as waiter:
            found = await self.page(device, hub, request, limit_octets=self._limits.receive_bytes)
            if found is None or not _reaches(found[1].partition, request.counter):
                return False
            if not found[1].messages and wait_seconds > 0:
                await waiter.wait_at_most(self._clock, wait_seconds)
        return True

    async def page(
        self, device: Device, hub: ProviderId, request: ReceiveRequest, *, limit_octets: int
    ) -> tuple[GroupId, pages.Page] | None:
        """Return the stored messages of a partition from a counter on, and its group; None for an unknown partition.

        Raises `PolicyRefused` if the hub banned the device's user from all its groups, and `GroupReplaced` if the hub
        said that another group replaces this one.
        """

        def read(tx: Tx) -> tuple[GroupId, pages.Page] | None:
            number = providers.provider_row(tx, hub) or 0
            partition = partitions.find_partition(tx, number, request.partition_key.masks())
            if partition is None:
                return None
            group = groups.group_by_row(tx, partition.group)
            check_not_replaced(group)
            rules = GroupPolicy(tx, self._states, self._clock.now(), ACCEPTED)
            rules.check_reader(number, device)
            withheld = rules.withheld(group, partition, device)
            found = pages.page(
                tx, partition, request.counter, limit_octets=limit_octets, handshakes_only=withheld is not None
            )
            return group.group_id, found

        return await self._store.read(read)

    async def positions(self, device: Device, hub: ProviderId, keys: Sequence[PartitionKey]) -> tuple[Position, ...]:
        """Return up to which counters partitions of a hub are stored; all are unknown for a user banned by the hub."""

        def read(tx: Tx) -> tuple[Position, ...]:
            number = providers.provider_row(tx, hub) or 0
            try:
                GroupPolicy(tx, self._states, self._clock.now(), ACCEPTED).check_reader(number, device)
            except PolicyRefused:
                return (NOT_SAID,) * len(keys)
            return positions_of(tx, number, keys, device)

        return await self._store.read(read)

    async def _note_reader(self, device: Device, partition: Partition) -> None:
        """Record that a device which presented a key takes part in the group, even if it had left the group."""
        group, now = partition.group, self._clock.now()
        if not await self._store.read(lambda tx: participations.takes_part(tx, group, device.row)):
            await self._store.write(lambda tx: participations.take_part(tx, group, device.row, now))

    async def ask(
        self, device: Device, hub: ProviderId, request: ReceiveRequest, *, wait_seconds: int | None = None
    ) -> Epoch | None:
        """Present a key to a hub, so that it pushes the partition to us, and store its answer.

        Nothing can be stored for a partition that is unknown here: its masked key depends on the group's suite, and the
        answer does not name the group. In this case the messages from the request's counter on are returned, and the
        hub's first push adds the group. Returns None if the messages are stored. Raises `CounterAhead` if the request's
        counter is beyond the end of the hub's partition.
        """
        masks = request.partition_key.masks()

        def find(tx: Tx) -> tuple[Partition, Group] | None:
            known = partitions.find_partition(tx, providers.provider_row(tx, hub) or 0, masks)
            return None if known is None else (known, groups.group_by_row(tx, known.group))

        for left in reversed(range(ANSWERS_AT_ONCE)):
            known = await self._store.read(find)
            if known is None:
                return await self._ask_about_unknown(device, hub, request, wait_seconds)
            partition, group = known
            counter = partition.next_counter
            try:
                body = await self._present(
                    device, hub, ReceiveRequest(request.partition_key, counter), wait_seconds, group
                )
                received = await self._decode(hub, body)
            except CounterAhead:  # the hub lost messages that we have, so it has none that we lack
                body, received = b"", ReceiveResponse(Epoch(()), ())
            wanted = (await self._receiver.receive_answer(hub, _epochs_of(received, partition, group.group_id)))[0]
            if not left or len(body) < LONG_ANSWER_OCTETS or wanted in (counter, NO_LONGER_FOLLOWED):
                if len(body) < LONG_ANSWER_OCTETS and request.counter > wanted:
                    raise CounterAhead(wanted)
                return None
            wait_seconds = None  # the hub may have more than fits in one answer
        raise AssertionError("the loop returns at the last answer, at the latest")

    async def _ask_about_unknown(
        self, device: Device, hub: ProviderId, request: ReceiveRequest, wait_seconds: int | None
    ) -> Epoch:
        """Present the key of a partition that is unknown here; return the messages from the request's counter on.

        The key is first presented at counter 0, because nothing of the partition is stored here. If the hub has already
        pushed the partition to us, it does so again from the start. If the answer ends before the counter of the
        request, the hub is asked from that counter.
        """
        from_start = ReceiveRequest(request.partition_key, FIRST_COUNTER)
        if not request.counter:
            return (await self._decode(hub, await self._present(device, hub, from_start, wait_seconds))).epoch
        try:
            epoch = (await self._decode(hub, await self._present(device, hub, from_start, None))).epoch
        except MessagesExpired:
            epoch = Epoch(())  # what the device asks for may still be there
        if len(epoch.messages) > request.counter:
            return Epoch(epoch.messages[request.counter :])
        return (await self._decode(hub, await self._present(device, hub, request, wait_seconds))).epoch

    async def _present(
        self,
        device: Device,
        hub: ProviderId,
        request: ReceiveRequest,
        wait_seconds: int | None,
        group: Group | None = None,
    ) -> bytes:
        """Send a request to a hub; once the hub has answered, its pushes of the partition are accepted.

        `group` is the partition's group, if it is known here. What the answer says about the group is recorded.
        """
        masks = request.partition_key.masks()
        with self._receiver.pending.waiting_for(hub, masks, device.row) as pending:
            try:
                answer = await self._peers.call(
                    hub, "POST", "/ds/v1/receive", encode(request), wait_seconds=wait_seconds
                )
            except (CounterAhead, PeerUnavailable, RateLimited, MessagesExpired):
                raise  # the hub may still push the partition because of an earlier request
            except MimiError as error:
                await forget_request(self._store, hub, masks)
                if isinstance(error, GroupReplaced) and group is not None:
                    await self.note_replaced(hub, group.group_id, named_successor(error.members))
                raise
            left = self._receiver.pending.left
            await record_answer(self._store, self._clock, left, hub, masks, pending, linear=answer.linear)
        if answer.linear and group is not None:
            await self._note_linear(group)
        return answer.body

    async def _note_linear(self, group: Group) -> None:
        if not group.linear:
            await self._store.write(lambda tx: groups.learn_linear(tx, group.id))

    async def note_linear(self, hub: ProviderId, group_id: GroupId) -> None:
        """Record that a group is linear, as its hub says; do nothing if the group is unknown here."""
        group = await self._store.read(partial(_find_group, hub, group_id))
        if group is not None:
            await self._note_linear(group)

    async def note_replaced(self, hub: ProviderId, group_id: GroupId, successor: Successor | None) -> None:
        """Record which group replaces a group, as its hub says; do nothing if the group is unknown here.

        A `successor` of None stands for a problem that names no group.
        """
        group = await self._store.read(partial(_find_group, hub, group_id))
        if successor is None or group is None or group.successor == successor:
            return
        keys = await self._store.write(lambda tx: note_replaced(tx, group, successor))
        self._notifier.notify(*map(partition_topic, keys))

    async def _decode(self, hub: ProviderId, body: bytes) -> ReceiveResponse:
        return await self._decoder.decode(ReceiveResponse, body, of=hub)

    async def leave(self, device: Device, hub: ProviderId, group_id: GroupId) -> None:
        """Record that a device leaves a group; once the last device has left, pushes get `NO_LONGER_FOLLOWED`.

        (semantics: welcomes-and-leaving)

        Nothing is raised for groups that we host, so that a device cannot find out which groups there are. If another
        provider hosts the group, raises `UnknownGroup` if the group is unknown here, or if the device never took part
        in it: a device must not stop the pushes that other devices of ours need.
        """

        def work(tx: Tx) -> bool:
            number = providers.provider_row(tx, hub)
            # Partitions that the device requested and that are not pushed yet may be of other groups.
            pending.left.note(device.row, number or 0, group_id, requested_partitions.newest(tx))
            group = None if number is None else groups.find_group(tx, number, group_id)
            if group is None:
                return hub == self._provider
            if hub == self._provider:
                participations.leave_hosted(tx, group.id, device.row, self._clock.now())
                return True
            return participations.leave(tx, group.id, device.row, self._clock.now())

        pending = self._receiver.pending
        pending.forget_device(device.row, hub=hub)  # the requested partitions may be of the group
        if not await self._store.write(work):
            raise UnknownGroup


def _find_group(hub: ProviderId, group_id: GroupId, tx: Tx) -> Group | None:
    return groups.find_group(tx, providers.provider_row(tx, hub) or 0, group_id)


def _reaches(partition: Partition, counter: Counter) -> bool:
    """Tell whether all messages before a counter are stored here, as far as we know."""
    opened = partition.next_counter > 0 or partition.opened_by is not None
    return opened and counter <= partition.next_counter


def _epochs_of(received: ReceiveResponse, partition: Partition, group_id: GroupId) -> list[PushedEpoch]:
    """Return the epochs of an answer about a partition as if they were pushed, with that partition's epoch first."""
    return [
        PushedEpoch(group_id, partition.masked_key, partition.next_counter, None, received.epoch),
        *(PushedEpoch(group_id, hint.masked_partition_key, Counter(0), None, hint.epoch) for hint in received.hints),
    ]
