"""The job that pushes messages to followers (semantics: following-and-delivery).

Due pushes
    There is no queue: pending pushes are found by a query (`pushes`). The job runs the query when a commit notifies
    it, when a back-off ends, and at least once a minute, so a lost notification delays a push by a minute at most.

Order
    At most one task serves a follower, so its pushes are in order. At most `workers` followers are served at a time. A
    task pushes until nothing is due or the follower fails. The next task for the same follower starts a little later,
    so that messages that come together are pushed together.

Retry
    A follower that fails is tried again after a back-off with jitter and a cap; its Retry-After is obeyed. What is due
    stays due for as long as the follower follows the partition. A push that is too large is repeated with one message;
    if that is too large as well, the partition is suspended for this follower.

Catch-up
    A follower that was away is pushed everything that it missed, from the counters that it answered last. The same
    happens after a restart, because these counters are rows.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Final

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.following.pushes import Push, Pushes, follow_again, suspend
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.states import States
from mimids.ds.notifier import DELIVERY, Notifier, presented_topic
from mimids.ds.peer_answers import decode_answer
from mimids.ds.ports import Clock, Peers
from mimids.errors import MimiError, PeerFailed, StorageUnavailable, TooLarge
from mimids.store import follows, peers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.peers import PeerState
from mimids.values import Follower, Milliseconds
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, ProviderId
from mimids.wire.messages import PushResponse, ResumeRequest

IDLE_SECONDS: Final = 60.0
SPACING_SECONDS: Final = 0.02  # at least, between two tasks for the same follower
SPACING_FOR_A_MESSAGE: Final = 0.0002  # more for each message pushed: requests cost more than their messages
MOST_SPACING_SECONDS: Final = 0.1
QUERY_SECONDS: Final = 0.005  # at least, between two queries for due followers
QUERY_SECONDS_WHILE_ALL_BUSY: Final = 0.05  # the same while all known followers are being served
OPEN_CIRCUIT_FAILURES: Final = 5  # in a row; metrics call that an open circuit
ONE_MESSAGE: Final = 1  # octets of a push; every push has at least one message


@attrs.frozen
class DeliveryStatistics:
    """Followers that are being served, and what was pushed since the start."""

    busy: int
    requests: int
    messages: int
    failures: int


class Delivery:
    """Pushes to followers; `run` is the job."""

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
        self._pushes = Pushes(states, recent)
        self._notifier = notifier
        self._provider = provider
        self._backoff = backoff
        self._workers = trio.CapacityLimiter(workers)
        self._batch_octets = batch_octets
        self._busy: set[int] = set()
        self._freed = trio.Event()  # set when a follower is no longer busy
        self._next_task_at: dict[int, float] = {}  # in trio's time, by provider
        self._requests = self._messages = self._failures = 0

    def statistics(self) -> DeliveryStatistics:
        """Return the counts so far."""
        return DeliveryStatistics(len(self._busy), self._requests, self._messages, self._failures)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Push what is due, until cancelled."""
        with self._notifier.listen(DELIVERY) as waiter:
            async with trio.open_nursery() as pushing:
                task_status.started()
                while True:
                    now = self._clock.now()
                    queried_at = trio.current_time()
                    known, waiting = await self._store.read(partial(_peers_with_due, frozenset(self._busy)))
                    for peer in waiting:
                        if peer.next_attempt_at <= now:
                            self._busy.add(peer.provider)
                            pushing.start_soon(self._serve, peer)
                    later = [peer.next_attempt_at - now for peer in waiting if peer.next_attempt_at > now]
                    await waiter.wait_at_most(self._clock, min([IDLE_SECONDS, *(ms / 1000 for ms in later)]))
                    await trio.sleep_until(queried_at + QUERY_SECONDS)
                    self._freed = trio.Event()
                    if known <= self._busy:
                        with trio.move_on_at(queried_at + QUERY_SECONDS_WHILE_ALL_BUSY):
                            await self._freed.wait()

    async def resume(self, request: ResumeRequest, caller: Follower) -> None:
        """Push again from a counter on; raise `UnknownGroup`, `UnknownPartition` or `NotFollowed`."""
        await self._store.write_or_refuse(partial(self._pushes.rewind, self._provider, caller.provider, request))
        self._notifier.notify(DELIVERY)

    # --- one follower -------------------------------------------------------------------------------------------

    async def _serve(self, peer: PeerState) -> None:
        """Push to one follower, then let the next task start a little later."""
        pushed = 0
        try:
            await trio.sleep_until(self._next_task_at.get(peer.provider, -math.inf))
            async with self._workers:
                pushed = await self._push_what_is_due(peer)
        except StorageUnavailable:  # our own disk: nothing was written about this push, so it stays due
            await self._clock.sleep(self._backoff.seconds(1))
        finally:
            spacing = min(SPACING_SECONDS + SPACING_FOR_A_MESSAGE * pushed, MOST_SPACING_SECONDS)
            self._next_task_at[peer.provider] = trio.current_time() + spacing
            self._busy.discard(peer.provider)
            self._freed.set()
            self._notifier.notify(DELIVERY)

    async def _push_what_is_due(self, peer: PeerState) -> int:
        """Push until nothing is due or the follower fails; return the number of messages it accepted."""
        octets, pushed = self._batch_octets, 0
        while (push := await self._store.read(partial(self._pushes.next_push, peer, octets))) is not None:
            try:
                peer = await self._push(peer, push)
            except TooLarge as error:
                if octets == ONE_MESSAGE:
                    await self._store.write(partial(suspend, peer.provider, push.epochs[0], error))
                octets = ONE_MESSAGE
                continue
            except StorageUnavailable:
                raise
            except MimiError as error:
                await self._retry_later(peer, error)
                break
            octets = self._batch_octets
            pushed += push.messages
            if push.settles_up_to is not None:
                break  # that was everything; later messages wait for the next task
        return pushed

    async def _push(self, peer: PeerState, push: Push) -> PeerState:
        """Make one request and write its answer.

        A follower that answers "no longer followed" may have presented the key again after that, in a request of its
        own that was served in the meantime: then it follows the partition again.
        """
        topics = [presented_topic(peer.domain, epoch.partition.masked_key) for epoch in push.epochs]
        with self._notifier.listen(*topics) as waiter:
            answer = await self._call(peer.domain, push)
            peer = await self._store.write_or_refuse(partial(self._pushes.settle, peer, push, answer))
            self._messages += push.messages
            for topic, epoch, wanted in zip(topics, push.epochs, answer, strict=True):
                if wanted == NO_LONGER_FOLLOWED and topic in waiter.heard:
                    await self._store.write(partial(follow_again, peer.provider, epoch))
        return peer

    async def _call(self, domain: ProviderId, push: Push) -> tuple[Counter, ...]:
        self._requests += 1
        answer = await self._peers.call(domain, "POST", "/ds/v1/push", push.body)
        counters = decode_answer(PushResponse, answer).next_counters
        if len(counters) != len(push.epochs):
            raise PeerFailed("its answer does not have one counter for each epoch")
        return counters

    async def _retry_later(self, peer: PeerState, error: MimiError) -> None:
        self._failures += 1
        failures = peer.failures + 1
        now = self._clock.now()
        at = Milliseconds(now + int(self._backoff.seconds_after(error, failures) * 1000))
        await self._store.write(lambda tx: peers.note_failure(tx, peer.provider, failures, at, now))


def _peers_with_due(busy: frozenset[int], tx: Tx) -> tuple[set[int], list[PeerState]]:
    """Return all followers, and those that are not busy and have something due."""
    known = peers.every_peer(tx)
    idle = [peer for peer in known if peer.provider not in busy]
    due = [peer for peer in idle if follows.due_partitions(tx, peer.provider, peer.cursor_seq, limit=1)]
    return {peer.provider for peer in known}, due
