"""After a restore, as hub: fetch messages sequenced after the backup from other providers (semantics: restore).

The file is a little long because questions, answers and groups that are no longer held share one state.

Held groups
    A group is *held* if other providers followed it at the time of the backup, or had got one of its Welcomes. No
    messages are sequenced in a held group, because its next counters may have been given out already. Messages can
    still be read.

Questions
    Each provider that followed a held group is asked for the messages that are missing here. They are stored with the
    counters, partitions and state with which they were sequenced. If the newest state then shows members of a further
    provider, this provider is asked too, but only once, because it may have no messages of the group. Further providers
    that are new count against the provider that returned the state (`ds.limits.new_providers`). Each known
    provider is also asked which of our groups it has, and then for the messages of these groups. So groups that were
    created after the backup are restored too. A group is free once all providers that must answer have answered about
    it. Messages that reached no other provider are lost. Readers that had such messages are told the counter at which
    to start again (`store.restored_positions`).

Who is believed
    About a group that the backup contains, a provider is believed if it followed the group or has a user in the group's
    known state. About a group that the backup does not contain, a provider is believed if it names the group before any
    provider has returned messages of the group. A provider can name at most MOST_NAMED_GROUPS groups that the backup
    does not contain. Everything returned is checked in the known state and counts against the provider's budget of
    octets.

Older providers
    A provider that does not serve /ds/v1/recover gets pushes of epochs without messages, and answers with the counters
    that it wants next. Messages missing here then leave a gap, and no counter is given twice.

Retry
    A provider that must answer is asked again after a back-off until it does. Only the operator can know that the
    provider will never answer; `mimids group release` then ends the wait. A group does not wait for a provider that we
    may not call, or that does not allow us. Each question and its outcome are logged. Open questions are rows, so a
    restart continues with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any, Final, cast

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.early_retries import wait_for_call
from mimids.ds.following.followed_groups import add_followed_group
from mimids.ds.following.receiver import EpochReceiver
from mimids.ds.following.recovered_rows import (
    follow,
    has_progress,
    is_believed,
    learn,
    remove_if_free,
    tips,
    what_is_known,
)
from mimids.ds.following.recovery_answers import EPOCHS_IN_AN_ANSWER, GROUPS_IN_AN_ANSWER
from mimids.ds.groups.states import States
from mimids.ds.limits.new_providers import NewProviders
from mimids.ds.notifier import DELIVERY, Notifier, heard_topic
from mimids.ds.peer_answers import AnswerDecoder, decode_answer
from mimids.ds.ports import Clock, Peers
from mimids.errors import (
    MethodNotAllowed,
    MimiError,
    NotFound,
    PeerFailed,
    PeerUnavailable,
    ProviderNotAllowed,
    StorageUnavailable,
    UnknownGroup,
)
from mimids.mls.identity import provider_of
from mimids.mls.knowledge import state_of
from mimids.store import group_deletion, groups, partitions, providers, recoveries
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.telemetry import Log
from mimids.values import Follower
from mimids.wire.base64url import base64url
from mimids.wire.declare import encode
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, GroupId, ProviderId
from mimids.wire.messages import (
    Epoch,
    HeldGroupsRequest,
    HeldGroupsResponse,
    PushedEpoch,
    PushRequest,
    PushResponse,
    RecoverRequest,
    RecoverResponse,
)

TOPIC: Final = "recovery"  # notifies the job
IDLE_SECONDS: Final = 600.0
NOTED_AT_ONCE: Final = 500  # groups, in one transaction
QUESTIONS_AT_ONCE: Final = 8  # questions to one provider that has answered a first question
QUESTIONS: Final = 128  # questions to all providers together, without the first question to each
MOST_NAMED_GROUPS: Final = 10_000  # groups that one provider may name and that are not in the backup


@attrs.frozen
class RecoveryStatistics:
    """Questions that are open, and messages that were restored since the start."""

    waiting: int
    messages: int


@attrs.frozen
class _Question:
    """What a provider is asked about a group."""

    group: Group
    may_be_asked: bool
    request: RecoverRequest


class _Released(Exception):
    """The operator released a group before its question was asked; the group may be gone."""


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
        decoder: AnswerDecoder,
        new_providers: NewProviders,
        *,
        provider: ProviderId,
        backoff: Backoff,
        log: Log,
        bound_hit: Callable[[str], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._peers = peers
        self._states = states
        self._notifier = notifier
        self._receiver = receiver
        self._decoder = decoder
        self._new_providers = new_providers
        self._provider = provider
        self._backoff = backoff
        self._log = log
        self._bound_hit = bound_hit
        self._busy: set[int] = set()
        self._asking = trio.CapacityLimiter(QUESTIONS)
        self._unreachable: set[int] = set()  # providers that did not answer when they were asked last
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
                    pending = await self._store.read(recoveries.open_questions)
                    self._waiting = sum(pending.values())
                    for provider in pending.keys() - self._busy:
                        self._busy.add(provider)
                        asking.start_soon(self._ask, provider)
                    await waiter.wait_at_most(self._clock, IDLE_SECONDS)

    async def _ask(self, provider: int) -> None:
        """Ask one provider all questions; ask unanswered ones again after a back-off, or when the provider calls."""
        failures = early = 0
        try:
            domain = await self._store.read(lambda tx: providers.domain_of(tx, provider))
            with self._notifier.listen(heard_topic(domain)) as waiter:
                while await self._store.read(partial(recoveries.questions_to, provider=provider, after=-1, limit=1)):
                    error = await self._ask_about_each(domain, provider)
                    if error is None:
                        failures = early = 0
                    else:
                        failures += 1
                        seconds = self._backoff.seconds_after(error, failures)
                        early = await wait_for_call(waiter, self._clock, seconds, early=early)
        finally:
            self._busy.discard(provider)
            self._notifier.notify(TOPIC)

    async def _ask_about_each(self, domain: ProviderId, provider: int) -> MimiError | None:
        """Ask about each group, page by page; return the last error.

        An error about one group does not stop the questions about other groups, unless the provider cannot be reached.
        The first question is asked alone and does not count against QUESTIONS, so that a provider that is down does not
        delay questions to other providers.
        """
        errors: list[MimiError] = []
        page, after = partial(recoveries.questions_to, provider=provider, limit=NOTED_AT_ONCE), -1
        while questions := await self._store.read(partial(page, after=after)):
            if after < 0 and (error := await self._ask_and_log(domain, provider, questions[0])) is not None:
                errors.append(error)
            waiting = iter(questions[after < 0 :])
            after = questions[-1]
            async with trio.open_nursery() as asking:
                for _ in range(QUESTIONS_AT_ONCE):
                    asking.start_soon(self._ask_next, domain, provider, waiting, errors)
            if _is_unreachable(errors):
                break
        if not errors:
            self._unreachable.discard(provider)
            return None
        self._unreachable.add(provider)
        with suppress(StorageUnavailable):  # the provider is asked again anyway
            while await self._store.write(lambda tx: recoveries.give_up(tx, provider, limit=NOTED_AT_ONCE)):
                pass
        return errors[-1]

    async def _ask_next(
        self, domain: ProviderId, provider: int, waiting: Iterator[int], errors: list[MimiError]
    ) -> None:
        """Ask about one group after the other, until none is left or the provider cannot be reached."""
        for group in waiting:
            if _is_unreachable(errors):
                return
            async with self._asking:
                error = await self._ask_and_log(domain, provider, group)
            if error is not None:
                errors.append(error)

    async def _ask_and_log(self, domain: ProviderId, provider: int, group: int) -> MimiError | None:
        """Ask about one group; return the error."""
        question: _Question | None = None
        error: MimiError | None = None
        try:
            question = await self._store.read(partial(self._question, group, provider, domain))
            came = await self._ask_or_stop_waiting(domain, provider, group, question)
        except _Released:
            came = "nothing: the group was released"
        except MimiError as failure:
            came, error = failure.code, failure
        name = None if question is None else base64url(question.group.group_id)
        self._log.info("asked another provider after a restore", peer=domain, group=name, result=came)
        return error

    async def _ask_or_stop_waiting(
        self, domain: ProviderId, provider: int, group: int, question: _Question | None
    ) -> str:
        """Ask one question; don't wait for a provider that we may not call, or that does not allow us."""
        try:
            return await self._ask_about(domain, provider, group, question)
        except ProviderNotAllowed:
            await self._store.write(partial(self._stop_waiting, group, provider))
            self._notifier.notify(DELIVERY)
            return "not waited for: one of the two providers does not allow the other"

    async def _ask_about(self, domain: ProviderId, provider: int, group: int, question: _Question | None) -> str:
        """Ask one question, store the answer, and mark the question as answered; return a summary for the log."""
        members: set[ProviderId] = set()
        came = "nothing to ask"
        if question is None:
            came = f"{await self._ask_for_groups(domain, provider)} groups"
        elif question.may_be_asked:
            try:
                came = f"{await self._restore_from_peer(domain, provider, question)} messages"
            except UnknownGroup:
                came = UnknownGroup.code  # the provider does not have the group any more
            except (NotFound, MethodNotAllowed):
                await self._ask_for_counters(domain, question.group)
                came = "its counters"
            found = await self._store.read(partial(self._members, group, provider))
            members = self._new_providers.affordable(Follower(domain), sorted(found - {domain}))
        await self._store.write(partial(self._note_answer, group, provider, members))
        return came

    # --- which groups a provider has ----------------------------------------------------------------------------

    async def _ask_for_groups(self, domain: ProviderId, provider: int) -> int:
        """Ask a provider which of our groups it has, store a question about each, and return how many it named."""
        named = 0
        after: GroupId | None = GroupId(b"")
        while after is not None:
            request = encode(HeldGroupsRequest(after))
            try:
                answer = await self._peers.call(domain, "POST", "/ds/v1/recover/groups", request)
            except (NotFound, MethodNotAllowed):
                break
            found = (await self._decoder.decode(HeldGroupsResponse, answer.body, of=domain)).group_ids
            if any(earlier >= later for earlier, later in pairwise((after, *found))):
                raise PeerFailed("the groups in the answer are not in order")
            for start in range(0, len(found), NOTED_AT_ONCE):
                page = found[start : start + NOTED_AT_ONCE]
                if not await self._store.write(partial(self._note_groups, domain, provider, page)):
                    self._bound_hit("recovered-groups")
                    return named
            named += len(found)
            after = found[-1] if len(found) >= GROUPS_IN_AN_ANSWER else None
        return named

    def _note_groups(self, domain: ProviderId, provider: int, found: tuple[GroupId, ...], tx: Tx) -> bool:
        """Store questions to a provider about groups that it named; return False if it named too many unknown ones."""
        ours = providers.ensure_provider(tx, self._provider)
        named = recoveries.count_named(tx, provider)
        for group_id in found:
            group = groups.find_group(tx, ours, group_id)
            if group is None and group_deletion.is_reserved(tx, group_id):
                continue
            if group is None:
                if named >= MOST_NAMED_GROUPS:
                    return False
                named += 1
                group = add_followed_group(tx, ours, group_id, self._clock.now())
            elif not is_believed(tx, self._states, group, provider, domain):
                continue
            recoveries.ask(tx, group.id, provider)
        return True

    def _question(self, group: int, provider: int, domain: ProviderId, tx: Tx) -> _Question | None:
        """Return a stored question; None if it is the question which groups a provider has.

        Raises `_Released` if the operator released the group meanwhile. Earlier versions also stored questions to
        providers that are not believed; these providers must not be asked.
        """
        if not recoveries.is_open(tx, group, provider):
            raise _Released
        if group == recoveries.ALL_GROUPS:
            return None
        found = groups.group_by_row(tx, group)
        allowed = found.creation_digest is None or is_believed(tx, self._states, found, provider, domain)
        return _Question(found, allowed, what_is_known(found, tx))

    # --- what a provider has of a group -------------------------------------------------------------------------

    async def _restore_from_peer(self, domain: ProviderId, provider: int, question: _Question) -> int:
        """Store a provider's messages of a group, request by request; return how many messages it returned."""
        group, request = question.group, question.request
        messages = 0
        while True:
            answer = await self._peers.call(domain, "POST", "/ds/v1/recover", encode(request))
            found = await self._decoder.decode(RecoverResponse, answer.body, of=domain)
            if not found.epochs:
                return messages
            if any(epoch.group_id != group.group_id for epoch in found.epochs):
                raise PeerFailed("the answer is about another group")
            if group.cipher_suite == 0 or (answer.linear and not group.linear):
                await self._store.write(partial(learn, group, found, answer.linear))
            counters = await self._receiver.restore_from_peer(domain, found.epochs)
            await self._store.write(partial(follow, provider, group, found.epochs, counters))
            came = sum(len(epoch.epoch.messages) for epoch in found.epochs)
            messages += came
            self._messages += came
            self._notifier.notify(DELIVERY)
            if not has_progress(request, found.epochs, counters):
                raise PeerFailed("the messages in the answer do not continue the stored ones")
            request = await self._store.read(partial(what_is_known, group))

    async def _ask_for_counters(self, domain: ProviderId, group: Group) -> None:
        """Ask a provider that does not serve /ds/v1/recover for its counters, and skip all counters below them here."""
        known = await self._store.read(lambda tx: partitions.partitions_of_group(tx, group.id))
        for start in range(0, len(known), EPOCHS_IN_AN_ANSWER):
            asked = known[start : start + EPOCHS_IN_AN_ANSWER]
            epochs = [PushedEpoch(group.group_id, each.masked_key, Counter(0), None, Epoch(())) for each in asked]
            answer = await self._peers.call(domain, "POST", "/ds/v1/push", encode(PushRequest(tuple(epochs))))
            counters = decode_answer(PushResponse, answer).next_counters
            if len(counters) != len(asked):
                raise PeerFailed("the answer does not have one counter for each epoch")
            jumps = [
                cast("PushedEpoch", attrs.evolve(cast("Any", epoch), counter=counter))
                for epoch, counter in zip(epochs, counters, strict=True)
                if counter != NO_LONGER_FOLLOWED
            ]
            await self._receiver.restore_from_peer(domain, jumps)
            self._notifier.notify(DELIVERY)

    # --- when a group is free -----------------------------------------------------------------------------------

    def _members(self, group: int, provider: int, tx: Tx) -> set[ProviderId]:
        """Return the other providers with users in a group's newest epochs; none once the group was released."""
        if not recoveries.is_open(tx, group, provider):
            return set()
        found, every = groups.group_by_row(tx, group), partitions.partitions_of_group(tx, group)
        states = [state_of(self._states.knowledge(tx, found, each)) for each in tips(every)]
        domains = {provider_of(user) for state in states if state is not None for user in state.users()}
        return {domain for domain in domains if domain is not None and domain != self._provider}

    def _stop_waiting(self, group: int, provider: int, tx: Tx) -> None:
        """Make a group no longer wait for a provider that cannot be asked."""
        recoveries.release(tx, group, provider)
        remove_if_free(tx, group)

    def _note_answer(self, group: int, provider: int, members: set[ProviderId], tx: Tx) -> None:
        """Record a provider's answer, and store questions to `members`; the group's last answer frees the group."""
        if recoveries.is_open(tx, group, provider):
            for domain in members:
                member = providers.ensure_provider(tx, domain)
                if member not in self._unreachable:
                    recoveries.ask(tx, group, member, must_answer=False)
            recoveries.note_answer(tx, group, provider)
        remove_if_free(tx, group)


def _is_unreachable(errors: list[MimiError]) -> bool:
    return any(isinstance(error, PeerUnavailable) for error in errors)
