"""After a restore: a backup is a past, and what was sequenced since is asked back from whoever has it.

(semantics: limits-and-retention)

As hub: each group that others follow is *held*. Nothing is sequenced in it, or counters would be given twice, until
every provider that followed it at the time of the backup has said what it has beyond what is here; so has every one
that what came back shows to have members by now. What they have is taken back as it was sequenced, state included;
what nobody had, acknowledged to our own devices only, is lost. Providers that we knew are also asked which groups of
ours they have: one that was created since comes back in the same way. Reading goes on all the while.

Who is to be asked is rows, so a restart goes on with it; one that does not answer is asked again, for ever: only the
operator can know that it never will (`mimids group release`). A provider that does not serve /ds/v1/recover is asked
for its counters by pushes without messages, which is in the wire of old: what is missing then leaves a gap.

As follower: hubs believe that we have what they pushed since. They are asked to push again, partition by partition,
until a round changes nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, TypeVar, cast

import attrs
import trio

from mimids.config import Config
from mimids.ds.backoff import Backoff
from mimids.ds.following.followed_groups import add_followed_group
from mimids.ds.following.receiver import EpochReceiver
from mimids.ds.groups import pages
from mimids.ds.groups.states import States
from mimids.ds.notifier import DELIVERY, Notifier
from mimids.ds.peer_answers import expect_nothing
from mimids.ds.ports import Clock, Peers
from mimids.errors import (
    MethodNotAllowed,
    MimiError,
    NotFollowed,
    NotFound,
    PeerFailed,
    PeerUnavailable,
    UnknownGroup,
    UnknownPartition,
)
from mimids.mls.framing import MLSMessage
from mimids.mls.identity import provider_of
from mimids.mls.knowledge import state_of
from mimids.store import follows, groups, partitions, providers, recoveries
from mimids.store.engine.store import Store, Tx
from mimids.store.groups import Group
from mimids.store.ohttp import drop_setting, setting
from mimids.values import Follower
from mimids.wire.declare import decode, encode
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, GroupId, ProviderId
from mimids.wire.messages import (
    Epoch,
    GroupInfoResponse,
    HeldGroupsRequest,
    HeldGroupsResponse,
    KnownPartition,
    PushedEpoch,
    PushRequest,
    PushResponse,
    RecoverRequest,
    RecoverResponse,
    ResumeRequest,
)

T = TypeVar("T")

TOPIC: Final = "recovery"  # wakes the job
IDLE_SECONDS: Final = 600.0
EPOCHS_IN_AN_ANSWER: Final = 64
GROUPS_IN_AN_ANSWER: Final = 10_000
RESUMED_PARTITIONS: Final = 10_000  # of each hub, the newest
ROUND_SECONDS: Final = 5.0  # for hubs to push what they were asked for


@attrs.frozen
class RecoveryStatistics:
    """What is yet to be asked, and what came back since the start."""

    waiting: int  # questions
    messages: int


class Recovery:
    """Both sides of it; `run` is the job of a provider that was restored."""

    def __init__(
        self,
        config: Config,
        store: Store,
        clock: Clock,
        peers: Peers,
        states: States,
        notifier: Notifier,
        receiver: EpochReceiver,
        *,
        backoff: Backoff,
    ) -> None:
        self._config = config
        self._provider = config.provider
        self._store = store
        self._clock = clock
        self._peers = peers
        self._states = states
        self._notifier = notifier
        self._receiver = receiver
        self._backoff = backoff
        self._busy: set[int] = set()
        self._waiting = self._messages = 0

    def statistics(self) -> RecoveryStatistics:
        """Return the counts so far."""
        return RecoveryStatistics(self._waiting, self._messages)

    # --- the provider that has it -------------------------------------------------------------------------------

    async def groups_of(self, hub: Follower, request: HeldGroupsRequest) -> HeldGroupsResponse:
        """Return the groups of a hub that are known here, after one that it named, in the order of their octets."""

        def read(tx: Tx) -> tuple[GroupId, ...]:
            row = providers.provider_row(tx, hub.provider) or 0
            return tuple(groups.group_ids_of_hub(tx, row, after=request.after, limit=GROUPS_IN_AN_ANSWER))

        return HeldGroupsResponse(await self._store.read(read))

    async def beyond(self, hub: Follower, request: RecoverRequest) -> RecoverResponse:
        """Return what is here of a hub's own group beyond what it knows; no epochs: nothing. Raise `UnknownGroup`.

        What retention emptied here is passed over by an epoch without messages, as in a push.
        """
        known = {each.masked_partition_key: each.counter for each in request.known}

        def read(tx: Tx) -> RecoverResponse:
            group = groups.find_group(tx, providers.provider_row(tx, hub.provider) or 0, request.group_id)
            if group is None:
                raise UnknownGroup
            epochs: list[PushedEpoch] = []
            room = self._config.limits.receive_bytes
            # Epoch after epoch, in whatever order they came here: a state is known from the one before.
            held = partitions.partitions_of_group(tx, group.id)
            for partition in sorted(held, key=lambda each: (each.epoch is None, each.epoch or 0, each.id)):
                counter = known.get(partition.masked_key, Counter(0))
                if partition.next_counter <= counter or room <= 0 or len(epochs) == EPOCHS_IN_AN_ANSWER:
                    continue
                page = pages.kept_page(tx, partition, counter, limit_octets=room)
                if page.counter > counter:
                    page = page.without_messages()
                opening = None
                stored = partitions.group_info_of(tx, partition.id)
                if partition.masked_key not in known and stored is not None:
                    info = decode(MLSMessage, stored)
                    opening = GroupInfoResponse(info, self._states.inferred_tree(tx, group, partition, info))
                    room -= len(encode(opening))
                epoch = decode(Epoch, page.epoch)
                epochs.append(PushedEpoch(group.group_id, partition.masked_key, page.counter, opening, epoch))
                room -= page.octets
            return RecoverResponse(group.version, group.cipher_suite, tuple(epochs))

        return await self._store.read(read)

    # --- the provider that was restored -------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask until nothing is held any more, then wait for nothing."""
        task_status.started()
        async with trio.open_nursery() as asking:
            asking.start_soon(self._resume_everything)
            with self._notifier.listen(TOPIC) as waiter:
                while True:
                    pending = await self._store.read(recoveries.pending)
                    self._waiting = len(pending)
                    for provider in {provider for provider, _ in pending} - self._busy:
                        self._busy.add(provider)
                        asking.start_soon(self._ask, provider)
                    await waiter.wait_at_most(self._clock, IDLE_SECONDS)

    async def _ask(self, provider: int) -> None:
        """Put all questions for one provider, again after a while where it does not answer."""
        failures = 0
        try:
            while True:
                domain = await self._store.read(lambda tx: providers.domain_of(tx, provider))
                pending = await self._store.read(recoveries.pending)
                mine = [group for whom, group in pending if whom == provider]
                if not mine:
                    return
                error: MimiError | None = None
                for group in mine:
                    try:
                        await self._ask_about(domain, provider, group)
                    except MimiError as refusal:  # about this group; about others it may do better
                        error = refusal
                        if isinstance(refusal, PeerUnavailable):
                            break
                if error is None:
                    failures = 0
                    continue
                failures += 1
                asked = error.members.get("retry_after")
                seconds = self._backoff.seconds(failures, asked if isinstance(asked, int | float) else None)
                await self._clock.sleep(seconds)
        finally:
            self._busy.discard(provider)
            self._notifier.notify(TOPIC)

    async def _ask_about(self, domain: ProviderId, provider: int, group: int) -> None:
        if group == recoveries.ALL_GROUPS:
            await self._ask_for_groups(domain, provider)
        else:
            found = await self._store.read(lambda tx: groups.group_by_row(tx, group))
            try:
                await self._take_back(domain, provider, found)
            except UnknownGroup:
                pass  # it has left it behind
            except (NotFound, MethodNotAllowed):
                await self._ask_for_counters(domain, found)
        members = set() if group == recoveries.ALL_GROUPS else await self._store.read(partial(self._members, group))
        await self._store.write(partial(self._note_answer, group, provider, members))

    async def _ask_for_groups(self, domain: ProviderId, provider: int) -> None:
        """Learn which groups of ours a provider has, and what it has of each."""
        after: GroupId | None = GroupId(b"")
        while after is not None:
            request = encode(HeldGroupsRequest(after))
            try:
                answer = await self._peers.call(domain, "POST", "/ds/v1/recover/groups", request)
            except (NotFound, MethodNotAllowed):
                return
            found = _decoded(HeldGroupsResponse, answer.body).group_ids
            await self._store.write(partial(self._note_groups, provider, found))
            after = found[-1] if len(found) >= GROUPS_IN_AN_ANSWER else None

    def _note_groups(self, provider: int, found: tuple[GroupId, ...], tx: Tx) -> None:
        ours = providers.ensure_provider(tx, self._provider)
        for group_id in found:
            group = groups.find_group(tx, ours, group_id)
            if group is None:
                group = add_followed_group(tx, ours, group_id, self._clock.now())
            recoveries.ask(tx, group.id, provider)

    async def _take_back(self, domain: ProviderId, provider: int, group: Group) -> None:
        while True:
            request = await self._store.read(partial(self._what_is_known, group))
            answer = await self._peers.call(domain, "POST", "/ds/v1/recover", encode(request))
            found = _decoded(RecoverResponse, answer.body)
            if not found.epochs:
                return
            if any(epoch.group_id != group.group_id for epoch in found.epochs):
                raise PeerFailed("an answer about another group")
            if group.cipher_suite == 0:
                learn = partial(
                    groups.learn_suite, group=group.id, version=found.version, cipher_suite=found.cipher_suite
                )
                await self._store.write(learn)
            before = {each.masked_partition_key: each.counter for each in request.known}
            counters = await self._receiver.restore_from_peer(found.epochs)
            ends = zip(found.epochs, counters, strict=True)
            moved = [counter > before.get(epoch.masked_partition_key, -1) for epoch, counter in ends]
            await self._store.write(partial(self._follow, provider, group, found.epochs, counters))
            self._messages += sum(len(epoch.epoch.messages) for epoch in found.epochs)
            self._notifier.notify(DELIVERY)
            if not any(moved):
                raise PeerFailed("what it has does not follow what is here")

    def _what_is_known(self, group: Group, tx: Tx) -> RecoverRequest:
        known = partitions.partitions_of_group(tx, group.id)
        return RecoverRequest(
            group.group_id, tuple(KnownPartition(each.masked_key, each.next_counter) for each in known)
        )

    def _follow(
        self, provider: int, group: Group, epochs: tuple[PushedEpoch, ...], counters: list[Counter], tx: Tx
    ) -> None:
        """Let a provider follow what it had: it would not have it otherwise."""
        for epoch, counter in zip(epochs, counters, strict=True):
            partition = partitions.find_partition(tx, group.hub, [epoch.masked_partition_key])
            if partition is not None and not follows.follow(tx, provider, partition.id, next_counter=counter):
                follows.settle(tx, provider, partition.id, counter)

    def _members(self, group: int, tx: Tx) -> set[ProviderId]:
        """Return the other providers that have users in the newest epochs of a group, as far as that is known."""
        found, every = groups.group_by_row(tx, group), partitions.partitions_of_group(tx, group)
        inner = {each.parent for each in every}
        states = [state_of(self._states.knowledge(tx, found, each)) for each in every if each.id not in inner]
        domains = {provider_of(user) for state in states if state is not None for user in state.users()}
        return {domain for domain in domains if domain is not None and domain != self._provider}

    def _note_answer(self, group: int, provider: int, members: set[ProviderId], tx: Tx) -> None:
        """Free a group that all have answered for; who turned out to have members in it is asked as well."""
        for domain in members:
            recoveries.ask(tx, group, providers.ensure_provider(tx, domain))
        recoveries.note_answer(tx, group, provider)

    async def _ask_for_counters(self, domain: ProviderId, group: Group) -> None:
        """Learn the counters of a provider that knows only pushes: below them nothing may be given again."""
        known = await self._store.read(lambda tx: partitions.partitions_of_group(tx, group.id))
        for start in range(0, len(known), EPOCHS_IN_AN_ANSWER):
            asked = known[start : start + EPOCHS_IN_AN_ANSWER]
            epochs = [PushedEpoch(group.group_id, each.masked_key, Counter(0), None, Epoch(())) for each in asked]
            answer = await self._peers.call(domain, "POST", "/ds/v1/push", encode(PushRequest(tuple(epochs))))
            counters = _decoded(PushResponse, answer.body).next_counters
            if len(counters) != len(asked):
                raise PeerFailed("not one counter for each epoch")
            jumps = [
                cast("PushedEpoch", attrs.evolve(cast("Any", epoch), counter=counter))
                for epoch, counter in zip(epochs, counters, strict=True)
                if counter != NO_LONGER_FOLLOWED
            ]
            await self._receiver.restore_from_peer(jumps)

    # --- as follower --------------------------------------------------------------------------------------------

    async def _resume_everything(self) -> None:
        """Ask all hubs to push again from where we are, after a restore, until that brings nothing more."""
        if await self._store.read(lambda tx: setting(tx, recoveries.RESUME_EVERYTHING)) is None:
            return
        before = None
        failures = 0
        while (here := await self._store.read(self._positions)) != before or failures:
            before, failed = here, set[ProviderId]()
            for domain, request in here:
                if domain in failed:
                    continue
                try:
                    expect_nothing(await self._peers.call(domain, "POST", "/ds/v1/resume", encode(request)))
                except (UnknownGroup, UnknownPartition, NotFollowed):
                    pass  # not ours to have any more
                except MimiError:
                    failed.add(domain)
            failures = failures + 1 if failed else 0
            await self._clock.sleep(ROUND_SECONDS if not failures else self._backoff.seconds(failures))
        await self._store.write(lambda tx: drop_setting(tx, recoveries.RESUME_EVERYTHING))

    def _positions(self, tx: Tx) -> list[tuple[ProviderId, ResumeRequest]]:
        found = []
        for domain in providers.every_domain(tx):
            number = providers.provider_row(tx, domain) or 0
            newest = [] if domain == self._provider else partitions.newest_of_hub(tx, number, limit=RESUMED_PARTITIONS)
            found += [(domain, ResumeRequest(group_id, key, counter)) for group_id, key, counter in newest]
        return found


def _decoded(cls: type[T], body: bytes) -> T:
    try:
        return decode(cls, body)
    except ValueError as error:
        raise PeerFailed(f"not a {cls.__name__}") from error
