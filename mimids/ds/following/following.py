"""Following: what this provider gets of groups that other providers host (semantics: following-and-delivery).

Messages come by push, and by receive when a device presents a key of a partition that nothing is known of here. Both
end in `_take_epoch`: what is new is appended under the hub's counters, what is known is passed over, and the answer
is the counter wanted next, so that a gap mends itself by the hub's next push. State is followed as the hub does it. A
message that contradicts it is delivered all the same (the hub has sequenced it, devices judge for themselves), its
branch is not known any more, and the contradiction is reported. Groups are keyed by (hub, group_id). Raw keys are in
memory for the length of a call, and never on disk.

After an absence the sync job asks each hub to push again from where we are: the hub may have put us off for minutes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs
import trio

from mimids.config import Config
from mimids.ds.groups import pages
from mimids.ds.groups.contradiction import Contradiction
from mimids.ds.groups.judging import Judged, MlsJudge
from mimids.ds.groups.policy import GroupPolicy
from mimids.ds.notifier import Notifier, partition_topic
from mimids.ds.ports import Clock, Peers
from mimids.errors import InvalidMessage, MimiError, PeerFailed, UnknownGroup, WrongBranch
from mimids.mls.code_points import ContentType
from mimids.mls.framing import PrivateMessage
from mimids.mls.group_info import GroupInfo
from mimids.store import groups, messages, participations, partitions, proposals, providers, welcomes
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.messages import NewMessage
from mimids.store.partitions import Partition
from mimids.values import Device, DeviceRow
from mimids.wire.declare import decode, encode
from mimids.wire.ids import (
    MLS10,
    NO_LONGER_FOLLOWED,
    CipherSuite,
    Counter,
    GroupId,
    MaskedPartitionKey,
    PartitionKey,
    ProviderId,
)
from mimids.wire.messages import (
    CommitData,
    CommitHint,
    GroupInfoResponse,
    Message,
    PushedEpoch,
    PushRequest,
    PushResponse,
    ReceiveRequest,
    ReceiveResponse,
    ResumeRequest,
    SendResponse,
    encode_receive_response,
)

RESUMED_PARTITIONS: Final = 32  # of each hub, the newest: enough to make it try again
SYNC_SECONDS: Final = 3600.0
ASKED_KEPT: Final = 30_000
LONG_ANSWER_OCTETS: Final = 65_536  # a shorter answer left nothing out


@attrs.frozen
class FollowerStatistics:
    """What was taken since the start."""

    messages: int
    duplicates: int
    gaps: int
    contradictions: int


@attrs.define
class _Intake:
    """What one transaction took, to be told once it is committed."""

    counters: list[Counter] = attrs.field(factory=list)
    changed: set[MaskedPartitionKey] = attrs.field(factory=set)
    contradictions: list[Contradiction] = attrs.field(factory=list)
    messages: int = 0
    duplicates: int = 0
    gaps: int = 0


class Following:
    """The groups of other hubs."""

    def __init__(
        self,
        config: Config,
        store: Store,
        clock: Clock,
        peers: Peers,
        mls: MlsJudge,
        notifier: Notifier,
        *,
        contradicted: Callable[[Contradiction], None],
    ) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._peers = peers
        self._mls = mls
        self._states = mls.states
        self._notifier = notifier
        self._contradicted = contradicted
        # Keys that a device had us present to a hub, the newest last: what is pushed under them is wanted.
        self._asked: dict[MaskedPartitionKey, DeviceRow] = {}
        self._messages = self._duplicates = self._gaps = self._contradictions = 0

    def statistics(self) -> FollowerStatistics:
        """Return the counts so far."""
        return FollowerStatistics(self._messages, self._duplicates, self._gaps, self._contradictions)

    # --- what hubs send -----------------------------------------------------------------------------------------

    async def take_push(self, hub: ProviderId, request: PushRequest) -> PushResponse:
        """Store what is new; for each epoch answer the counter wanted next, or that it is no longer followed."""
        taken = await self.take(hub, request.epochs, unasked=True)
        return PushResponse(tuple(taken))

    async def take(self, hub: ProviderId, epochs: Sequence[PushedEpoch], *, unasked: bool) -> list[Counter]:
        """Store what is new of these epochs; `unasked` ones of unknown groups need an accepted Welcome."""

        def followed(tx: Tx, number: int, epoch: PushedEpoch) -> Group | None:
            device = self._asked.get(epoch.masked_partition_key)
            if device is not None:
                self._take_part(tx, number, epoch.group_id, device)
            group = self._followed_group(tx, number, epoch.group_id, expected=not unasked)
            return None if group is None or self._is_beyond_room(tx, group, epoch) else group

        return await self._take(hub, epochs, followed)

    async def _take(
        self,
        hub: ProviderId,
        epochs: Sequence[PushedEpoch],
        group_of: Callable[[Tx, int, PushedEpoch], Group | None],
    ) -> list[Counter]:
        """Store what is new in the group that `group_of` says; where it says none, nothing is wanted."""
        await self._prepare(hub, epochs)

        def work(tx: Tx) -> _Intake:
            taken = _Intake()
            number = providers.ensure_provider(tx, hub)
            for epoch in epochs:
                group = group_of(tx, number, epoch)
                wanted = NO_LONGER_FOLLOWED if group is None else self._take_epoch(tx, hub, group, epoch, taken)
                taken.counters.append(wanted)
            return taken

        taken = await self._store.write_shielded(work)
        self._messages += taken.messages
        self._duplicates += taken.duplicates
        self._gaps += taken.gaps
        self._contradictions += len(taken.contradictions)
        for each in taken.contradictions:
            if each.hub != self._config.provider:  # else it is ourselves, after a restore
                self._contradicted(each)
        self._notifier.notify(*map(partition_topic, taken.changed))
        return taken.counters

    async def take_back(self, hub: ProviderId, epochs: Sequence[PushedEpoch]) -> list[Counter]:
        """Store what others have of a group that we host ourselves, after a restore; return the counters reached."""
        return await self._take(hub, epochs, lambda tx, number, epoch: groups.find_group(tx, number, epoch.group_id))

    async def _prepare(self, hub: ProviderId, epochs: Sequence[PushedEpoch]) -> None:
        """Verify openings off the event loop, where they will be looked at."""
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

    def _followed_group(self, tx: Tx, hub: int, group_id: GroupId, *, expected: bool) -> Group | None:
        """Return the group, beginning it if it may; None if none of our devices is in it, or nobody expects it."""
        group = groups.find_group(tx, hub, group_id)
        if group is None:
            if expected:
                return self.begin_group(tx, hub, group_id)
            row = welcomes.match_group(tx, hub, lambda: self.begin_group(tx, hub, group_id).id)
            return None if row is None else groups.group_by_row(tx, row)
        ours = participations.participants(tx, group.id)
        return None if ours.left and not ours.present else group

    def _is_beyond_room(self, tx: Tx, group: Group, epoch: PushedEpoch) -> bool:
        """Tell whether a hub has pushed enough of groups that no device of ours takes up; count this if it has not.

        Then a partition is not followed until a device comes and presents its key: while the hub had to ask again
        and again whether there is room, everything else that it has for us would wait.
        """
        if participations.participants(tx, group.id).present:
            return False
        known = partitions.find_partition(tx, group.hub, [epoch.masked_partition_key])
        counter = Counter(0) if known is None else known.next_counter
        octets = sum(
            len(each.message.encoded)
            + (0 if each.commit is None or each.commit.group_info is None else len(each.commit.group_info.encoded))
            for each in epoch.epoch.messages[max(0, counter - epoch.counter) :]
        )
        if epoch.opening is not None and (known is None or known.state is None):
            octets += len(epoch.opening.group_info.encoded)
        if groups.unmatched_bytes(tx, group.hub) + octets > self._config.limits.provider_unmatched_bytes:
            return True
        groups.add_unmatched(tx, group.id, octets)
        return False

    def begin_group(self, tx: Tx, hub: int, group_id: GroupId) -> Group:
        """Add a group of which nothing is known yet but its id."""
        return groups.add_group(
            tx,
            hub=hub,
            group_id=group_id,
            version=MLS10,
            cipher_suite=CipherSuite(0),
            creation_digest=None,
            creator=None,
            now=self._clock.now(),
        )

    def _take_epoch(self, tx: Tx, hub: ProviderId, group: Group, epoch: PushedEpoch, taken: _Intake) -> Counter:
        partition = self._partition(tx, group, epoch.masked_partition_key)
        if epoch.opening is not None and partition.state is None:
            group, partition = self._open(tx, hub, group, partition, epoch.opening, taken)
        if epoch.counter > partition.next_counter:
            taken.gaps += 1
            if epoch.epoch.messages:
                return partition.next_counter
            # The hub keeps nothing that is earlier: an epoch without messages says where it goes on.
            partitions.advance(tx, partition.id, next_counter=epoch.counter, last_seq=partition.last_seq)
            taken.changed.add(partition.masked_key)
            return epoch.counter
        known = partition.next_counter - epoch.counter
        if known and epoch.epoch.messages:
            taken.duplicates += min(known, len(epoch.epoch.messages))
            first = epoch.epoch.messages[0].message.encoded
            digest = messages.digest_at(tx, partition.id, epoch.counter)
            if digest is not None and digest != messages.digest_of(first):
                taken.contradictions.append(Contradiction(hub, group.group_id, first, "sequenced-differently"))
                return partition.next_counter
        new = epoch.epoch.messages[known:]
        for message in new:
            partition = self._append(tx, hub, group, partition, message, taken)
        if new:
            taken.changed.add(partition.masked_key)
            taken.messages += len(new)
        return partition.next_counter

    def _partition(self, tx: Tx, group: Group, key: MaskedPartitionKey) -> Partition:
        found = partitions.find_partition(tx, group.hub, [key])
        if found is not None:
            return found
        row = partitions.add_partition(
            tx, group=group.id, hub=group.hub, masked_key=key, epoch=None, now=self._clock.now()
        )
        return partitions.partition_by_row(tx, row)

    def _open(
        self,
        tx: Tx,
        hub: ProviderId,
        group: Group,
        partition: Partition,
        opening: GroupInfoResponse,
        taken: _Intake,
    ) -> tuple[Group, Partition]:
        """Take the state that the hub says a partition opened with, verified as the hub verifies it."""
        try:
            knowledge = self._mls.claimed(group, partition.epoch, opening)
        except MimiError as error:
            rule = str(error.members.get("rule", error.code))
            taken.contradictions.append(Contradiction(hub, group.group_id, opening.group_info.encoded, rule))
            return group, partition
        info = opening.group_info.message
        if isinstance(info, GroupInfo):
            context = info.group_context
            groups.learn_suite(tx, group.id, context.version, context.cipher_suite)
            partitions.learn_epoch(tx, partition.id, context.epoch)
        self._states.save(tx, partition.id, knowledge)
        partitions.set_group_info(tx, partition.id, opening.group_info.encoded)
        return groups.group_by_row(tx, group.id), partitions.partition_by_row(tx, partition.id)

    def _append(
        self, tx: Tx, hub: ProviderId, group: Group, partition: Partition, message: Message, taken: _Intake
    ) -> Partition:
        """Add one message as the hub sequenced it, and follow the state."""
        mls = message.message
        seq = messages.last_seq(tx) + 1
        hint = message.commit
        judged: Judged | None = None
        try:
            judged = self._mls.judge(tx, group, partition, mls)
        except (InvalidMessage, WrongBranch) as error:
            rule = str(error.members.get("rule", error.code))
            taken.contradictions.append(Contradiction(hub, group.group_id, mls.encoded, rule))
        now = self._clock.now()
        digest = messages.digest_of(mls.encoded)
        messages.append(
            tx,
            [
                NewMessage(
                    seq=seq,
                    partition=partition.id,
                    counter=partition.next_counter,
                    accepted_at=now,
                    kind=mls.content_type or 0,
                    digest=digest,
                    digest_key=messages.digest_key(digest),
                    next_masked_key=None if hint is None else hint.next_partition_key,
                    sender_provider=None,
                    sender_device=None,
                    body=mls.encoded,
                    group_info=None if hint is None or hint.group_info is None else hint.group_info.encoded,
                )
            ],
        )
        following = Counter(partition.next_counter + 1)
        partitions.advance(tx, partition.id, next_counter=following, last_seq=seq)
        partition = attrs.evolve(partition, next_counter=following, last_seq=seq)
        if isinstance(mls.message, PrivateMessage) and mls.content_type is not ContentType.APPLICATION:
            groups.note_encrypted_handshakes(tx, group.id)
        if judged is not None:
            if (proposal := judged.proposal) is not None:
                proposals.add_proposal(tx, partition.id, proposal[0], proposal_type=proposal[1], seq=seq)
            if judged.contradicts_claim:
                partitions.set_state(tx, partition.id, None)
                partition = attrs.evolve(partition, state=None)
        if hint is not None:
            self._lead(tx, hub, group, partition, seq, hint, judged, taken)
        return partition

    def _lead(
        self,
        tx: Tx,
        hub: ProviderId,
        group: Group,
        parent: Partition,
        seq: int,
        hint: CommitHint,
        judged: Judged | None,
        taken: _Intake,
    ) -> None:
        """Know the partition that a commit leads to, and its state as far as that follows."""
        child = partitions.find_partition(tx, group.hub, [hint.next_partition_key])
        epoch = None if parent.epoch is None else parent.epoch + 1
        if child is None:
            row = partitions.add_partition(
                tx,
                group=group.id,
                hub=group.hub,
                masked_key=hint.next_partition_key,
                epoch=epoch,
                now=self._clock.now(),
                parent=parent.id,
                opened_by=seq,
            )
        elif child.parent is None and child.id != parent.id:
            row = child.id
            partitions.attach(tx, row, parent=parent.id, opened_by=seq, epoch=epoch, detached=False)
        else:
            taken.contradictions.append(
                Contradiction(hub, group.group_id, messages.body_of(tx, seq) or b"", "partition-exists")
            )
            return
        if judged is None or (child is not None and child.state is not None):
            return
        try:
            knowledge = self._mls.after_commit(judged, hint.group_info)
        except MimiError as error:
            rule = str(error.members.get("rule", error.code))
            body = hint.group_info.encoded if hint.group_info is not None else b""
            taken.contradictions.append(Contradiction(hub, group.group_id, body, rule))
            return
        self._states.save(tx, row, knowledge, judged.before)
        if hint.group_info is not None:
            partitions.set_group_info(tx, row, hint.group_info.encoded)

    # --- what our devices show ----------------------------------------------------------------------------------

    async def note_sent(
        self,
        device: Device,
        hub: ProviderId,
        group_id: GroupId,
        sent: Sequence[tuple[SendResponse, CommitData | None]],
    ) -> None:
        """Record that a device takes part in a group, and the partitions it holds keys of."""

        def work(tx: Tx) -> None:
            number = providers.ensure_provider(tx, hub)
            group = self._take_part(tx, number, group_id, device.row)
            for response, data in sent:
                self._partition(tx, group, response.partition)
                if data is not None:
                    self._partition(tx, group, data.next_partition_key.mask(len(response.partition)))

        await self._store.write(work)

    async def receive(
        self, device: Device, hub: ProviderId, request: ReceiveRequest, *, wait_seconds: int | None = None
    ) -> bytes:
        """Return a ReceiveResponse without hints: from here if there is something, else from the hub.

        A device gets the epochs whose key it presents, and nothing else (http: devices).
        """
        limit = self._config.limits.receive_bytes
        found = await self.page(device, hub, request, limit_octets=limit)
        if found is None or not found[1].messages:
            passed_on = await self.ask(device, hub, request.partition_key, wait_seconds=wait_seconds)
            found = await self.page(device, hub, request, limit_octets=limit)
            if found is None:
                return passed_on
        await self._note_reader(device, found[1].partition)
        return encode_receive_response(found[1].epoch, ())

    async def page(
        self, device: Device, hub: ProviderId, request: ReceiveRequest, *, limit_octets: int
    ) -> tuple[GroupId, pages.Page] | None:
        """Return what is here of a partition from a counter on, and its group; None if it is not known here."""

        def read(tx: Tx) -> tuple[GroupId, pages.Page] | None:
            number = providers.provider_row(tx, hub) or 0
            partition = partitions.find_partition(tx, number, request.partition_key.masks())
            if partition is None:
                return None
            group = groups.group_by_row(tx, partition.group)
            rules = GroupPolicy(tx, self._states, self._clock.now(), ours=False)
            rules.check_reader(number, device)
            withheld = rules.withheld(group, partition, device)
            found = pages.page(
                tx, partition, request.counter, limit_octets=limit_octets, handshakes_only=withheld is not None
            )
            return group.group_id, found

        return await self._store.read(read)

    async def _note_reader(self, device: Device, partition: Partition) -> None:
        """Record that a device presented the key of a partition: it takes part in the group, again if it had left."""
        group, now = partition.group, self._clock.now()
        if not await self._store.read(lambda tx: participations.takes_part(tx, group, device.row)):
            await self._store.write(lambda tx: participations.take_part(tx, group, device.row, now))

    async def ask(
        self, device: Device, hub: ProviderId, key: PartitionKey, *, wait_seconds: int | None = None
    ) -> bytes:
        """Present a key to a hub, so that we follow its partition, and store what it answers with.

        Returns the answer without its hints: where not even the group is known here, its suite and so the partition's
        masked key are not, and nothing is stored; the hub's first push then begins the group.
        """
        masks = key.masks()

        def find(tx: Tx) -> Partition | None:
            return partitions.find_partition(tx, providers.provider_row(tx, hub) or 0, masks)

        for mask in masks:
            self._asked[mask] = device.row
        while len(self._asked) > ASKED_KEPT:
            del self._asked[next(iter(self._asked))]
        while True:
            known = await self._store.read(find)
            counter = Counter(0) if known is None else known.next_counter
            request = encode(ReceiveRequest(key, counter))
            answer = await self._peers.call(hub, "POST", "/ds/v1/receive", request, wait_seconds=wait_seconds)
            try:
                received = decode(ReceiveResponse, answer.body)
            except ValueError as error:
                raise PeerFailed("not a ReceiveResponse") from error
            if known is None:
                return encode(ReceiveResponse(received.epoch, ()))
            group = await self._store.read(partial(_group_of, known))
            epochs = [PushedEpoch(group.group_id, known.masked_key, counter, None, received.epoch)]
            epochs += [
                PushedEpoch(group.group_id, hint.masked_partition_key, Counter(0), None, hint.epoch)
                for hint in received.hints
            ]
            wanted = (await self.take(hub, epochs, unasked=False))[0]
            if len(answer.body) < LONG_ANSWER_OCTETS or wanted in (counter, NO_LONGER_FOLLOWED):
                return encode(ReceiveResponse(received.epoch, ()))
            wait_seconds = None  # there may be more than one answer could hold

    async def leave(self, device: Device, hub: ProviderId, group_id: GroupId) -> None:
        """Let a device leave a group; when our last one has, pushes are answered "no longer followed".

        (semantics: welcomes-and-leaving)
        """

        def work(tx: Tx) -> bool:
            number = providers.provider_row(tx, hub)
            group = None if number is None else groups.find_group(tx, number, group_id)
            if group is not None:
                participations.leave(tx, group.id, device.row, self._clock.now())
            return group is not None

        # What it had us ask for is wanted no more; where it is in other groups, that is known by now.
        self._asked = {mask: row for mask, row in self._asked.items() if row != device.row}
        if not await self._store.write(work):
            raise UnknownGroup

    def _take_part(self, tx: Tx, hub: int, group_id: GroupId, device: DeviceRow) -> Group:
        group = groups.find_group(tx, hub, group_id)
        if group is None:
            group = self.begin_group(tx, hub, group_id)
        participations.take_part(tx, group.id, device, self._clock.now())
        return group

    # --- the job ------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask each hub that is followed to push again from where we are: at the start, and now and then."""
        task_status.started()
        while True:
            for domain, request in await self._store.read(self._resumable):
                with contextlib.suppress(MimiError):  # not there, or not willing: its own pushes will come
                    await self._peers.call(domain, "POST", "/ds/v1/resume", encode(request))
            await self._clock.sleep(SYNC_SECONDS)

    def _resumable(self, tx: Tx) -> list[tuple[ProviderId, ResumeRequest]]:
        found = []
        for domain in providers.every_domain(tx):
            if domain == self._config.provider:
                continue
            number = providers.provider_row(tx, domain) or 0
            for group_id, key, counter in partitions.newest_of_hub(tx, number, limit=RESUMED_PARTITIONS):
                found.append((domain, ResumeRequest(group_id, key, counter)))
        return found


def _group_of(partition: Partition, tx: Tx) -> Group:
    return groups.group_by_row(tx, partition.group)
