"""Delivery: the hub pushes to its followers (semantics: following-and-delivery).

What is due to a follower is no queue but a question: of the partitions it follows, which have messages beyond the
counter it last answered. The job asks when a commit rings, when a back-off ends, and after a restart; a lost ring
costs a minute. One worker at most is busy with a follower, so its pushes are in order; a bounded number of them work
at a time. A follower answers each epoch with the counter it wants next, and that answer is what is written: a crash
between push and settling pushes again what the follower then ignores. A follower that does not answer is asked again
after a back-off with jitter and a cap, its Retry-After honoured; nothing of what is due is ever given up.

What retention emptied before a follower came for it is passed over: an epoch without messages says from which counter
on there are any. A partition whose push no repetition mends (a message larger than the follower takes, a jump that it
does not follow) is left to the operator, and the others go on; a resume takes it up again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Final

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.groups import pages
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.states import States
from mimids.ds.notifier import DELIVERY, Notifier, presented_topic
from mimids.ds.ports import Clock, Peers
from mimids.errors import (
    MimiError,
    NotFollowed,
    PeerFailed,
    PeerUnavailable,
    StorageUnavailable,
    TooLarge,
    UnknownGroup,
    UnknownPartition,
)
from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLSMessage
from mimids.store import follows, groups, messages, partitions, peers, providers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.follows import Due
from mimids.store.peers import PeerState
from mimids.values import Follower, Milliseconds
from mimids.wire.declare import decode
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, ProviderId
from mimids.wire.messages import (
    GroupInfoResponse,
    PushResponse,
    ResumeRequest,
    encode_push_request,
    pushed_epoch_parts,
)

EPOCHS_IN_A_PUSH: Final = 64
IDLE_SECONDS: Final = 60.0
SPACING_SECONDS: Final = 0.02  # between the end of one run of pushes to a follower and the next, at least
SPACING_FOR_A_MESSAGE: Final = 0.0002  # more for each message of the run: requests cost more than what is in them
MOST_SPACING_SECONDS: Final = 0.1
LOOKING_SECONDS: Final = 0.005  # between two looks at who is due
LOOKING_FOR_NEWCOMERS_SECONDS: Final = 0.05  # the same while all known followers are being served
OPEN_CIRCUIT_FAILURES: Final = 5  # in a row; what metrics call an open circuit
ONE_MESSAGE: Final = 1  # octets of a push: it holds one message at least


@attrs.frozen
class Push:
    """One request to a follower, and what it is made of; a page without messages is a jump to its counter."""

    epochs: tuple[pages.Page, ...]
    body: bytes
    settles_up_to: int | None  # the global sequence number that is reached if all of it is accepted

    @property
    def messages(self) -> int:
        """Return how many messages it holds."""
        return sum(len(epoch.messages) for epoch in self.epochs)


@attrs.frozen
class DeliveryStatistics:
    """Followers at work and what was sent since the start."""

    busy: int
    requests: int
    messages: int
    failures: int


class Delivery:
    """Pushes what is due; `run` is the job."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        peers_: Peers,
        states: States,
        notifier: Notifier,
        recent: Recent,
        *,
        provider: ProviderId,
        backoff: Backoff,
        workers: int,
        batch_octets: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._peers = peers_
        self._states = states
        self._notifier = notifier
        self._recent = recent
        self._provider = provider
        self._backoff = backoff
        self._workers = trio.CapacityLimiter(workers)
        self._batch_octets = batch_octets
        self._busy: set[int] = set()
        self._freed = trio.Event()  # one of them is not any more
        self._next_run_at: dict[int, float] = {}  # in trio's time, by provider
        self._requests = self._messages = self._failures = 0

    def statistics(self) -> DeliveryStatistics:
        """Return the counts so far."""
        return DeliveryStatistics(len(self._busy), self._requests, self._messages, self._failures)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Push what is due, for ever."""
        with self._notifier.listen(DELIVERY) as waiter:
            async with trio.open_nursery() as pushing:
                task_status.started()
                while True:
                    now = self._clock.now()
                    looked_at = trio.current_time()
                    known, waiting = await self._store.read(partial(_peers_with_due, frozenset(self._busy)))
                    for peer in waiting:
                        if peer.next_attempt_at <= now:
                            self._busy.add(peer.provider)
                            pushing.start_soon(self._serve, peer)
                    later = [peer.next_attempt_at - now for peer in waiting if peer.next_attempt_at > now]
                    await waiter.wait_at_most(self._clock, min([IDLE_SECONDS, *(ms / 1000 for ms in later)]))
                    await trio.sleep_until(looked_at + LOOKING_SECONDS)
                    self._freed = trio.Event()
                    if known <= self._busy:
                        with trio.move_on_at(looked_at + LOOKING_FOR_NEWCOMERS_SECONDS):
                            await self._freed.wait()

    async def resume(self, request: ResumeRequest, caller: Follower) -> None:
        """Push again from a counter on: for what the caller follows, or may have by its known state.

        (semantics: following-and-delivery)
        """

        def rewind(tx: Tx) -> MimiError | None:
            hub = providers.ensure_provider(tx, self._provider)
            group = groups.find_group(tx, hub, request.group_id)
            if group is None:
                return UnknownGroup()
            partition = partitions.find_partition(tx, hub, [request.masked_partition_key])
            if partition is None or partition.group != group.id:
                return UnknownPartition()
            number = providers.ensure_provider(tx, caller.provider)
            counter = min(request.counter, partition.next_counter)
            if not follows.resume(tx, number, partition.id, Counter(counter)):
                if partition.detached or not self._states.has_leaf_of(tx, group, partition, caller.provider):
                    return NotFollowed()
                follows.follow(tx, number, partition.id, next_counter=counter, needs_opening=True)
            peers.try_soon(tx, number)
            return None

        refusal = await self._store.write_shielded(rewind)
        if refusal is not None:
            raise refusal
        self._notifier.notify(DELIVERY)

    # --- one follower -------------------------------------------------------------------------------------------

    async def _serve(self, peer: PeerState) -> None:
        """Push until nothing is due to it or it does not answer."""
        octets, pushed = self._batch_octets, 0
        try:
            # Whoever was pushed to a moment ago gets what comes within the next moment in one request.
            await trio.sleep_until(self._next_run_at.get(peer.provider, -math.inf))
            async with self._workers:
                while (push := await self._store.read(partial(self._next_push, peer, octets))) is not None:
                    try:
                        peer = await self._push(peer, push)
                        octets = self._batch_octets
                        pushed += push.messages
                        if push.settles_up_to is not None:
                            return  # all that was due; what came meanwhile goes in the next run
                    except TooLarge as error:
                        if octets == ONE_MESSAGE:
                            why = f"{error.code}: {error}"
                            await self._store.write(partial(_suspend, peer.provider, push.epochs[0].partition.id, why))
                        octets = ONE_MESSAGE
                    except StorageUnavailable:
                        raise
                    except MimiError as error:
                        await self._put_off(peer, error)
                        return
        except StorageUnavailable:  # of our own disk: nothing of this was noted, and it stays due
            await self._clock.sleep(self._backoff.seconds(1))
        finally:
            spacing = min(SPACING_SECONDS + SPACING_FOR_A_MESSAGE * pushed, MOST_SPACING_SECONDS)
            self._next_run_at[peer.provider] = trio.current_time() + spacing
            self._busy.discard(peer.provider)
            self._freed.set()
            self._notifier.notify(DELIVERY)

    async def _push(self, peer: PeerState, push: Push) -> PeerState:
        """Make one request and settle it.

        A follower that wants a partition no longer may have answered before it presented its key again, in a request
        of its own that has been served by now: then it follows the partition anew.
        """
        topics = [presented_topic(peer.domain, epoch.partition.masked_key) for epoch in push.epochs]
        with self._notifier.listen(*topics) as waiter:
            answer = await self._call(peer.domain, push)
            peer = await self._store.write(partial(self._settle, peer, push, answer))
            for topic, epoch, wanted in zip(topics, push.epochs, answer, strict=True):
                if wanted == NO_LONGER_FOLLOWED and topic in waiter.heard:
                    await self._store.write(partial(_follow_anew, peer.provider, epoch))
        return peer

    async def _call(self, domain: ProviderId, push: Push) -> tuple[Counter, ...]:
        self._requests += 1
        answer = await self._peers.call(domain, "POST", "/ds/v1/push", push.body)
        try:
            counters = decode(PushResponse, answer.body).next_counters
        except ValueError as error:
            raise PeerFailed from error
        if len(counters) != len(push.epochs):
            raise PeerFailed("not one counter for each epoch")
        return counters

    def _next_push(self, peer: PeerState, octets: int, tx: Tx) -> Push | None:
        """Make the next request: messages of as many partitions as are due and fit."""
        reached = messages.last_seq(tx)
        due = follows.due_partitions(tx, peer.provider, peer.cursor_seq, limit=EPOCHS_IN_A_PUSH)
        epochs: list[pages.Page] = []
        parts: list[list[bytes]] = []
        room = octets
        for each in due:
            if room <= 0:
                break
            partition = partitions.partition_by_row(tx, each.partition)
            epoch = pages.kept_page(tx, partition, each.next_counter, limit_octets=room, recent=self._recent)
            if epoch.counter > each.next_counter:
                epoch = epoch.without_messages()
            epochs.append(epoch)
            parts.append(self._parts(tx, each, epoch))
            room -= sum(map(len, parts[-1]))
        if not epochs:
            return None
        whole = len(due) < EPOCHS_IN_A_PUSH and len(epochs) == len(due) and all(epoch.complete for epoch in epochs)
        return Push(tuple(epochs), encode_push_request(parts), reached if whole else None)

    def _parts(self, tx: Tx, due: Due, epoch: pages.Page) -> list[bytes]:
        group = groups.group_by_row(tx, due.group)
        opening = None
        if due.needs_opening and (stored := partitions.group_info_of(tx, due.partition)) is not None:
            info = decode(MLSMessage, stored)
            opening = GroupInfoResponse(info, self._states.inferred_tree(tx, group, epoch.partition, info))
        return pushed_epoch_parts(group.group_id, due.masked_key, epoch.counter, opening, epoch.messages)

    def _settle(self, peer: PeerState, push: Push, answer: Sequence[Counter], tx: Tx) -> PeerState:
        """Write what the follower answered; raise `PeerFailed` if it did not come forward at all."""
        moved = False
        whole = push.settles_up_to is not None
        for epoch, wanted in zip(push.epochs, answer, strict=True):
            end = epoch.counter + len(epoch.messages)
            if wanted == NO_LONGER_FOLLOWED:
                # Of this partition, and no other: it may have presented another's key while it answered.
                follows.end(tx, peer.provider, epoch.partition.id)
                moved = True
                continue
            wanted = Counter(min(wanted, end))
            if not epoch.messages and wanted < end:
                _suspend(peer.provider, epoch.partition.id, "what it wants next is no longer kept", tx)
                moved = True
                continue
            moved |= wanted != epoch.counter or not epoch.messages
            whole &= wanted == end
            follows.settle(tx, peer.provider, epoch.partition.id, wanted)
            self._follow_leads(tx, peer, epoch)
        if not moved:
            raise PeerFailed("the follower took nothing of a push")
        cursor = push.settles_up_to if whole else None
        peers.note_success(tx, peer.provider, cursor)
        self._messages += push.messages
        return attrs.evolve(peer, failures=0, cursor_seq=max(peer.cursor_seq, cursor or 0))

    def _follow_leads(self, tx: Tx, peer: PeerState, epoch: pages.Page) -> None:
        """Let a follower follow where the public commits it was given lead, while its users are there.

        (semantics: following-and-delivery)
        """
        if ContentType.COMMIT not in epoch.kinds:
            return
        group = groups.group_by_row(tx, epoch.partition.group)
        for child in partitions.children(tx, epoch.partition.id):
            public = messages.is_public(tx, child.opened_by or 0)
            if public and self._states.has_leaf_of(tx, group, child, peer.domain):
                follows.follow(tx, peer.provider, child.id)

    async def _put_off(self, peer: PeerState, error: MimiError) -> None:
        self._failures += 1
        failures = peer.failures + 1
        asked = error.members.get("retry_after") if isinstance(error, PeerUnavailable) else None
        seconds = self._backoff.seconds(failures, asked if isinstance(asked, int | float) else None)
        at = Milliseconds(self._clock.now() + int(seconds * 1000))
        now = self._clock.now()
        await self._store.write(lambda tx: peers.note_failure(tx, peer.provider, failures, at, now))


def _follow_anew(provider: int, epoch: pages.Page, tx: Tx) -> None:
    follows.follow(tx, provider, epoch.partition.id, next_counter=epoch.counter, needs_opening=True)


def _suspend(provider: int, partition: int, why: str, tx: Tx) -> None:
    follows.suspend(tx, provider, partition, why)


def _peers_with_due(busy: frozenset[int], tx: Tx) -> tuple[set[int], list[PeerState]]:
    """Return all followers, and those that are not busy and have something due."""
    known = peers.every_peer(tx)
    idle = [peer for peer in known if peer.provider not in busy]
    due = [peer for peer in idle if follows.due_partitions(tx, peer.provider, peer.cursor_seq, limit=1)]
    return {peer.provider for peer in known}, due
