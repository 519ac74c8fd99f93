"""After a restore, as hub: fetch from other providers what was sequenced after the backup (semantics: restore).

Held groups
    Each group that other providers followed at the time of the backup is *held*: nothing is sequenced in it, because
    its next counters may have been given out already. Reading goes on.

Questions
    Each provider that followed a held group is asked for the messages that are missing here. They are stored as they
    were sequenced: counters, partitions and state. If the newest state then shows members of another provider, that
    provider is asked too. Each known provider is also asked which of our groups it has, and then about these, so that
    groups created after the backup come back. A group is free once all providers have answered about it. Messages
    that reached no other provider are lost.

Older providers
    A provider that does not serve /ds/v1/recover is asked for its counters, by pushes of empty epochs. What is missing
    then leaves a gap, and no counter is given twice.

Retry
    A provider that does not answer is asked again after a back-off, forever: only the operator can know that it will
    never answer (`mimids group release`).

Catch-up
    Open questions are rows, so a restart continues with them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, cast

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.following.followed_groups import add_followed_group
from mimids.ds.following.receiver import EpochReceiver
from mimids.ds.following.recovery_answers import EPOCHS_IN_AN_ANSWER, GROUPS_IN_AN_ANSWER
from mimids.ds.groups.states import States
from mimids.ds.notifier import DELIVERY, Notifier
from mimids.ds.peer_answers import decode_answer
from mimids.ds.ports import Clock, Peers
from mimids.errors import (
    MethodNotAllowed,
    MimiError,
    NotFound,
    PeerFailed,
    PeerUnavailable,
    UnknownGroup,
)
from mimids.mls.identity import provider_of
from mimids.mls.knowledge import state_of
from mimids.store import follows, groups, partitions, providers, recoveries
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.wire.declare import encode
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, GroupId, ProviderId
from mimids.wire.messages import (
    Epoch,
    HeldGroupsRequest,
    HeldGroupsResponse,
    KnownPartition,
    PushedEpoch,
    PushRequest,
    PushResponse,
    RecoverRequest,
    RecoverResponse,
)

TOPIC: Final = "recovery"  # notifies the job
IDLE_SECONDS: Final = 600.0


@attrs.frozen
class RecoveryStatistics:
    """Questions that are open, and messages that were restored since the start."""

    waiting: int
    messages: int


class RecoveryAsHub:
    """Restores our own groups from other providers; `run` is the job."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        peers: Peers,
        states: States,
        notifier: Notifier,
        receiver: EpochReceiver,
        *,
        provider: ProviderId,
        backoff: Backoff,
    ) -> None:
        self._store = store
        self._clock = clock
        self._peers = peers
        self._states = states
        self._notifier = notifier
        self._receiver = receiver
        self._provider = provider
        self._backoff = backoff
        self._busy: set[int] = set()
        self._waiting = self._messages = 0

    def statistics(self) -> RecoveryStatistics:
        """Return the counts so far."""
        return RecoveryStatistics(self._waiting, self._messages)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask other providers for messages of the held groups, with one task for each provider, until cancelled."""
        task_status.started()
        async with trio.open_nursery() as asking:
            with self._notifier.listen(TOPIC) as waiter:
                while True:
                    pending = await self._store.read(recoveries.pending)
                    self._waiting = len(pending)
                    for provider in {provider for provider, _ in pending} - self._busy:
                        self._busy.add(provider)
                        asking.start_soon(self._ask, provider)
                    await waiter.wait_at_most(self._clock, IDLE_SECONDS)

    async def _ask(self, provider: int) -> None:
        """Ask one provider all questions, and again after a back-off those that it did not answer."""
        failures = 0
        try:
            while True:
                domain = await self._store.read(lambda tx: providers.domain_of(tx, provider))
                pending = await self._store.read(recoveries.pending)
                questions = [group for asked, group in pending if asked == provider]
                if not questions:
                    return
                error = await self._ask_about_each(domain, provider, questions)
                if error is None:
                    failures = 0
                else:
                    failures += 1
                    await self._clock.sleep(self._backoff.seconds_after(error, failures))
        finally:
            self._busy.discard(provider)
            self._notifier.notify(TOPIC)

    async def _ask_about_each(self, domain: ProviderId, provider: int, questions: list[int]) -> MimiError | None:
        """Ask about each group; return the last error. One about a single group does not stop the others."""
        error: MimiError | None = None
        for group in questions:
            try:
                await self._ask_about(domain, provider, group)
            except PeerUnavailable as unavailable:
                return unavailable
            except MimiError as failure:
                error = failure
        return error

    async def _ask_about(self, domain: ProviderId, provider: int, group: int) -> None:
        members: set[ProviderId] = set()
        if group == recoveries.ALL_GROUPS:
            await self._ask_for_groups(domain, provider)
        else:
            found = await self._store.read(lambda tx: groups.group_by_row(tx, group))
            try:
                await self._restore_from_peer(domain, provider, found)
            except UnknownGroup:
                pass  # the provider does not have the group any more
            except (NotFound, MethodNotAllowed):
                await self._ask_for_counters(domain, found)
            members = await self._store.read(partial(self._members, group))
        await self._store.write(partial(self._note_answer, group, provider, members))

    # --- which groups a provider has ----------------------------------------------------------------------------

    async def _ask_for_groups(self, domain: ProviderId, provider: int) -> None:
        """Ask a provider which of our groups it has, and note to ask it about each of them."""
        after: GroupId | None = GroupId(b"")
        while after is not None:
            request = encode(HeldGroupsRequest(after))
            try:
                answer = await self._peers.call(domain, "POST", "/ds/v1/recover/groups", request)
            except (NotFound, MethodNotAllowed):
                return
            found = decode_answer(HeldGroupsResponse, answer).group_ids
            await self._store.write(partial(self._note_groups, provider, found))
            after = found[-1] if len(found) >= GROUPS_IN_AN_ANSWER else None

    def _note_groups(self, provider: int, found: tuple[GroupId, ...], tx: Tx) -> None:
        ours = providers.ensure_provider(tx, self._provider)
        for group_id in found:
            group = groups.find_group(tx, ours, group_id)
            if group is None:
                group = add_followed_group(tx, ours, group_id, self._clock.now())
            recoveries.ask(tx, group.id, provider)

    # --- what a provider has of a group -------------------------------------------------------------------------

    async def _restore_from_peer(self, domain: ProviderId, provider: int, group: Group) -> None:
        """Store what a provider has of a group, request by request, until it has nothing more."""
        while True:
            request = await self._store.read(partial(_what_is_known, group))
            answer = await self._peers.call(domain, "POST", "/ds/v1/recover", encode(request))
            found = decode_answer(RecoverResponse, answer)
            if not found.epochs:
                return
            if any(epoch.group_id != group.group_id for epoch in found.epochs):
                raise PeerFailed("its answer is about another group")
            if group.cipher_suite == 0:
                await self._learn_suite(group, found)
            counters = await self._receiver.restore_from_peer(found.epochs)
            await self._store.write(partial(_follow, provider, group, found.epochs, counters))
            self._messages += sum(len(epoch.epoch.messages) for epoch in found.epochs)
            self._notifier.notify(DELIVERY)
            if not _has_progress(request, found.epochs, counters):
                raise PeerFailed("the messages in its answer do not continue the stored ones")

    async def _learn_suite(self, group: Group, found: RecoverResponse) -> None:
        learn = partial(groups.learn_suite, group=group.id, version=found.version, cipher_suite=found.cipher_suite)
        await self._store.write(learn)

    async def _ask_for_counters(self, domain: ProviderId, group: Group) -> None:
        """Ask a provider that does not serve /ds/v1/recover for its counters: those below must not be given again."""
        known = await self._store.read(lambda tx: partitions.partitions_of_group(tx, group.id))
        for start in range(0, len(known), EPOCHS_IN_AN_ANSWER):
            asked = known[start : start + EPOCHS_IN_AN_ANSWER]
            epochs = [PushedEpoch(group.group_id, each.masked_key, Counter(0), None, Epoch(())) for each in asked]
            answer = await self._peers.call(domain, "POST", "/ds/v1/push", encode(PushRequest(tuple(epochs))))
            counters = decode_answer(PushResponse, answer).next_counters
            if len(counters) != len(asked):
                raise PeerFailed("its answer does not have one counter for each epoch")
            jumps = [
                cast("PushedEpoch", attrs.evolve(cast("Any", epoch), counter=counter))
                for epoch, counter in zip(epochs, counters, strict=True)
                if counter != NO_LONGER_FOLLOWED
            ]
            await self._receiver.restore_from_peer(jumps)

    # --- when a group is free -----------------------------------------------------------------------------------

    def _members(self, group: int, tx: Tx) -> set[ProviderId]:
        """Return the other providers that have users in the newest epochs of a group, as far as that is known."""
        found, every = groups.group_by_row(tx, group), partitions.partitions_of_group(tx, group)
        parents = {each.parent for each in every}
        states = [state_of(self._states.knowledge(tx, found, each)) for each in every if each.id not in parents]
        domains = {provider_of(user) for state in states if state is not None for user in state.users()}
        return {domain for domain in domains if domain is not None and domain != self._provider}

    def _note_answer(self, group: int, provider: int, members: set[ProviderId], tx: Tx) -> None:
        """Note that a provider has answered, which frees the group if it was the last; ask its members as well."""
        for domain in members:
            recoveries.ask(tx, group, providers.ensure_provider(tx, domain))
        recoveries.note_answer(tx, group, provider)


def _what_is_known(group: Group, tx: Tx) -> RecoverRequest:
    known = partitions.partitions_of_group(tx, group.id)
    return RecoverRequest(group.group_id, tuple(KnownPartition(each.masked_key, each.next_counter) for each in known))


def _has_progress(request: RecoverRequest, epochs: tuple[PushedEpoch, ...], counters: list[Counter]) -> bool:
    """Tell whether any partition has more messages than it had when the request was made."""
    before = {each.masked_partition_key: each.counter for each in request.known}
    return any(
        counter > before.get(epoch.masked_partition_key, -1) for epoch, counter in zip(epochs, counters, strict=True)
    )


def _follow(provider: int, group: Group, epochs: tuple[PushedEpoch, ...], counters: list[Counter], tx: Tx) -> None:
    """Make a provider follow the partitions that it has: it has them because it followed them."""
    for epoch, counter in zip(epochs, counters, strict=True):
        partition = partitions.find_partition(tx, group.hub, [epoch.masked_partition_key])
        if partition is not None and not follows.follow(tx, provider, partition.id, next_counter=counter):
            follows.settle(tx, provider, partition.id, counter)
