"""The job that pushes messages to followers (semantics: following-and-delivery).

Due pushes
    There is no queue: pending pushes are found by a query (`pushes`). The job looks at what moved since its last look
    (`store.moved`), and notes which followers have something due there. It looks when a commit notifies it, when a
    back-off ends, and at least once a minute, so a lost notification delays a push by a minute at most. The cost of a
    look depends on how many partitions moved, not on how many followers there are.

Cursors
    A follower's cursor is a stamp. The follower has all messages of partitions with an earlier stamp. Partitions with
    this stamp or a later one have yet to be checked. Each push moves the cursor in the store. All followers for which
    nothing is due have the same cursor: the end of the last look. This cursor is kept in memory, and written when it
    has moved by `STAMPS_NOT_STORED`. A cursor that is too low only costs time.

Order
    At most one task serves a follower, so its pushes are in order. A task pushes until nothing is due or the follower
    fails. The next task for the same follower starts a little later, so that messages that come together are pushed
    together.

Slow followers
    At most `workers` pushes are prepared or settled at a time. A follower that takes long to answer occupies no worker,
    only a slot for a call. The slots bound the octets in flight. Slow followers share a few separate slots
    (`limits.call_slots`). Slow followers get smaller pushes, and the first push of every task is small, because its
    follower may turn out to be slow. Even a hundred such pushes leave room for other followers.

Retry
    If a push fails, the follower is tried again after a back-off with jitter and a cap, and not before its Retry-After.
    A call from the follower ends the back-off (`ds.early_retries`). Due pushes stay due for as long as the follower
    follows the partition. A push that is too large is repeated with one message. If one message is too large as well,
    the partition is suspended for this follower.

Catch-up
    A follower that was away is sent everything that it missed, from the counters in its last answers on. The same
    happens after a restart, because these counters are rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.early_retries import EarlyRetries
from mimids.ds.following.pushes import Push, Pushes, suspend
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.states import States
from mimids.ds.limits.call_slots import CallSlots, CallTooSlow, Slot
from mimids.ds.limits.rates import ProviderRates
from mimids.ds.notifier import DELIVERY, Notifier
from mimids.ds.peer_answers import decode_answer
from mimids.ds.ports import Clock, Peers
from mimids.errors import MimiError, PeerFailed, StorageUnavailable, TooLarge
from mimids.store import follows, moved, peers, processes, providers
from mimids.store.engine.locks import group_lock, peer_lock
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.moved import Looked, StampPage
from mimids.store.peers import PeerState
from mimids.values import Follower, Milliseconds
from mimids.wire.ids import Counter, ProviderId
from mimids.wire.messages import PushResponse, ResumeRequest

IDLE_SECONDS: Final = 60.0
SPACING_SECONDS: Final = 0.02  # at least, between two tasks for the same follower
SPACING_FOR_A_MESSAGE: Final = 0.0002  # added for each message of a push: fewer, larger requests cost less
MOST_SPACING_SECONDS: Final = 0.1
# after a push of which the follower took only a part: it could make us push the rest again and again, without end
PARTLY_TAKEN_SECONDS: Final = 1.0
QUERY_SECONDS: Final = 0.01  # at least, between two queries for due followers: less than SPACING_SECONDS
QUERY_SECONDS_WHILE_ALL_BUSY: Final = 0.05  # instead, while all known followers are being served
OPEN_CIRCUIT_FAILURES: Final = 5  # in a row; metrics call this state an open circuit
SLOW_PUSH_OCTETS: Final = 262_144  # octets of a push to a follower that is slow, or may be slow
ONE_MESSAGE: Final = 1  # octets of a push; every push has at least one message
PARTITIONS_IN_A_LOOK: Final = 1024
STAMPS_NOT_STORED: Final = 512  # after a restart, at most this many partitions are checked again for each follower


@attrs.frozen
class DeliveryStatistics:
    """How many followers are being served, how many are slow, and pushes and messages since the start."""

    busy: int
    slow: int
    requests: int
    messages: int
    failures: int


@attrs.define
class _Task:
    """What one task has pushed to a follower."""

    peer: PeerState
    pushed: int = 0  # messages
    done: bool = False  # nothing was due at the last look
    is_partly_taken: bool = False  # the follower took only a part of the last push

    @property
    def spacing(self) -> float:
        """The seconds until the next task for the follower."""
        if self.is_partly_taken:
            return PARTLY_TAKEN_SECONDS
        return min(SPACING_SECONDS + SPACING_FOR_A_MESSAGE * self.pushed, MOST_SPACING_SECONDS)


@attrs.frozen
class _Found:
    """What a look at a page of stamps found."""

    page: StampPage
    behind: set[int]  # followers with something due there
    waiting: list[PeerState]  # followers in `behind`, and those that had something due before
    gone: list[int]  # had something due before, and are no longer followers
    followers: int  # the number of all followers


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
        rates: ProviderRates,
        *,
        provider: ProviderId,
        backoff: Backoff,
        workers: int,
        batch_octets: int,
        on_bound: Callable[[str], None] = lambda bound: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._peers = peers_
        self._pushes = Pushes(states, recent)
        self._notifier = notifier
        self._provider = provider
        self._backoff = backoff
        self._workers = trio.CapacityLimiter(workers)
        self._slots = CallSlots()
        self._early = EarlyRetries(clock, partial(notifier.notify, DELIVERY))
        self._rates = rates
        self._on_bound = on_bound
        self._batch_octets = batch_octets
        self._busy: set[int] = set()
        self._due: dict[int, int] = {}  # followers with something due, and the cursor of each
        self._looked = Looked.up_to(0)
        self._looked_stored = 0  # `_looked.settled` when the cursors were stored last
        self._freed = trio.Event()  # set when a follower is no longer busy
        self._next_task_at: dict[int, float] = {}  # times of trio's clock, by provider
        self._requests = self._messages = self._failures = 0

    def statistics(self) -> DeliveryStatistics:
        """Return the counts so far."""
        slow = self._slots.slow_providers
        return DeliveryStatistics(len(self._busy), slow, self._requests, self._messages, self._failures)

    def heard(self, provider: ProviderId) -> None:
        """Retry a provider at once, because it has called us, if it is in back-off."""
        self._early.heard(provider)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make the pushes that are due, until cancelled."""
        with self._notifier.listen(DELIVERY) as waiter:
            async with trio.open_nursery() as pushing:
                if await self._store.read(processes.is_numbered_elsewhere):
                    await self._store.write(processes.begin_again)
                task_status.started()
                self._looked, self._due = await self._store.read(_everything_due)
                self._looked_stored = self._looked.settled
                while True:
                    if heard := self._early.take_due():
                        with suppress(StorageUnavailable):  # the back-offs end by themselves
                            await self._store.write(partial(_end_backoffs, heard))
                    now, longest = self._clock.now(), self._backoff.cap_seconds * 1000
                    queried_at = trio.current_time()
                    idle = [provider for provider in self._due if provider not in self._busy]
                    found = await self._store.read(partial(_look, self._looked, idle))
                    later = [IDLE_SECONDS if found.page.whole else 0.0]
                    for peer in self._note_found(found):
                        if not now < peer.next_attempt_at <= now + longest:  # if it is later, the clock was set back
                            self._busy.add(peer.provider)
                            self._early.begin(peer.domain)
                            pushing.start_soon(self._serve, self._with_cursor(peer))
                        else:
                            self._early.failed(peer.domain)  # the failure may have been before a restart
                            later.append((peer.next_attempt_at - now) / 1000)
                    await self._store_cursors()
                    await waiter.wait_at_most(self._clock, min([*later, *self._early.seconds_left()]))
                    if trio.current_time() < queried_at + QUERY_SECONDS:  # even a sleep that need not wait costs time
                        await trio.sleep_until(queried_at + QUERY_SECONDS)
                    self._freed = trio.Event()
                    if found.followers <= len(self._busy):
                        with trio.move_on_at(queried_at + QUERY_SECONDS_WHILE_ALL_BUSY):
                            await self._freed.wait()

    def _note_found(self, found: _Found) -> list[PeerState]:
        """Record which followers have something due; return those that no task serves yet."""
        for provider in found.behind:
            self._due.setdefault(provider, self._looked.settled)
        self._looked = found.page.looked
        for provider in found.gone:
            self._due.pop(provider, None)
        return [peer for peer in found.waiting if peer.provider not in self._busy]

    def _with_cursor(self, peer: PeerState) -> PeerState:
        """Return the state of a follower that is served from now on, with the newest cursor that is known."""
        return attrs.evolve(peer, next_stamp=max(peer.next_stamp, self._due.pop(peer.provider, 0)))

    async def _store_cursors(self) -> None:
        """Move the stored cursors of all followers that have nothing due, if they are far behind the last look."""
        settled = self._looked.settled
        if settled - self._looked_stored < STAMPS_NOT_STORED:
            return
        self._looked_stored = settled
        with suppress(StorageUnavailable):  # the stored cursors are valid, too
            others = frozenset(self._due.keys() | self._busy)
            await self._store.write(lambda tx: peers.move_cursors(tx, settled, but=others))

    async def resume(self, request: ResumeRequest, caller: Follower) -> None:
        """Push a partition again from a counter on.

        Raises `NotFollowed` where `Pushes.rewind` returns it, and `RateLimited` after requests for too many messages.
        """
        self._rates.take_repeat(caller)
        rewind = partial(self._pushes.rewind, self._provider, caller.provider, request)
        self._rates.owe_repeats(caller, await self._store.write_or_refuse(rewind))
        self._notifier.notify(DELIVERY)

    # --- one follower -------------------------------------------------------------------------------------------

    async def _serve(self, peer: PeerState) -> None:
        """Push to one follower, then let the next task start a little later."""
        task = _Task(peer)
        try:
            await trio.sleep_until(self._next_task_at.get(peer.provider, -math.inf))
            await self._push_what_is_due(task)
        except StorageUnavailable:  # our own disk: nothing was written about this push, so it stays due
            await self._clock.sleep(self._backoff.seconds(1))
        finally:
            if not task.done:
                self._due[peer.provider] = task.peer.next_stamp
            self._next_task_at[peer.provider] = trio.current_time() + task.spacing
            self._busy.discard(peer.provider)
            self._early.end(peer.domain)
            self._freed.set()
            self._notifier.notify(DELIVERY)

    async def _push_what_is_due(self, task: _Task) -> None:
        """Push until nothing is due or the follower fails."""
        one_message = False
        while True:
            peer = task.peer
            is_quick = task.pushed and not self._slots.is_slow(peer.provider)
            octets = self._batch_octets if is_quick else SLOW_PUSH_OCTETS
            async with self._slots.slot(peer.provider, octets) as slot:
                wanted = ONE_MESSAGE if one_message else min(octets, self._batch_octets)
                async with self._workers:
                    push = await self._store.read(partial(self._pushes.next_push, peer, wanted))
                if push is None:
                    task.done = True
                    return
                slot.resize(len(push.body))
                try:
                    task.peer, task.is_partly_taken = await self._push(peer, push, slot)
                except CallTooSlow:
                    self._on_bound("slow-call-cancelled")
                    continue
                except TooLarge as error:
                    if one_message:
                        await self._store.write(partial(suspend, peer.provider, push.epochs[0], error))
                    one_message = True
                    continue
                except StorageUnavailable:
                    raise
                except MimiError as error:
                    task.peer = attrs.evolve(peer, next_stamp=max(peer.next_stamp, push.first_stamp))
                    await self._retry_later(task.peer, error)
                    return
            one_message = False
            task.pushed += push.messages
            if task.is_partly_taken:
                self._on_bound("partly-taken-push")
                return
            if push.settles_up_to is not None:  # everything was pushed; later messages wait for the next task
                task.done = task.peer.next_stamp >= push.settles_up_to
                return

    async def _push(self, peer: PeerState, push: Push, slot: Slot) -> tuple[PeerState, bool]:
        """Send one push and store the follower's answer; also return whether the follower took only a part."""
        answer = await slot.call(partial(self._call, peer.domain, push))
        locks = frozenset((peer_lock(peer.domain), *map(group_lock, push.groups)))
        async with self._workers:
            peer = await self._store.write_or_refuse(partial(self._pushes.settle, peer, push, answer), locks=locks)
        self._messages += push.messages
        return peer, push.is_partly_taken(answer)

    async def _call(self, domain: ProviderId, push: Push) -> tuple[Counter, ...]:
        self._requests += 1
        answer = await self._peers.call(domain, "POST", "/ds/v1/push", push.body)
        counters = decode_answer(PushResponse, answer).next_counters
        if len(counters) != len(push.epochs):
            raise PeerFailed("the answer does not have one counter for each epoch")
        return counters

    async def _retry_later(self, peer: PeerState, error: MimiError) -> None:
        self._failures += 1
        failures = peer.failures + 1
        now = self._clock.now()
        at = Milliseconds(now + int(self._backoff.seconds_after(error, failures) * 1000))
        await self._store.write(lambda tx: peers.note_failure(tx, peer, failures, at, now))
        self._early.failed(peer.domain, error)


def _end_backoffs(domains: Sequence[ProviderId], tx: Tx) -> None:
    for domain in domains:
        peers.try_soon(tx, providers.provider_row(tx, domain) or 0)


def _everything_due(tx: Tx) -> tuple[Looked, dict[int, int]]:
    """Return the end of all stamps, and all followers with their cursors: each may have something due."""
    return Looked.up_to(moved.settled(tx)), {peer.provider: peer.next_stamp for peer in peers.every_peer(tx)}


def _look(looked: Looked, due: Sequence[int], tx: Tx) -> _Found:
    """Look at the next partitions that moved, and at the followers in `due`."""
    page = moved.next_page(tx, looked, limit=PARTITIONS_IN_A_LOOK)
    behind = follows.followers_behind(tx, page)
    found = {provider: peers.find_peer(tx, provider) for provider in {*due, *behind}}
    return _Found(
        page,
        behind,
        [peer for peer in found.values() if peer is not None],
        [provider for provider, peer in found.items() if peer is None],
        peers.count_peers(tx),
    )
