"""The job that sends the Welcomes of our own groups (semantics: welcomes-and-leaving).

The file is a little long because each outcome of an attempt changes the job's counts of tasks, senders and back-offs.

States
    There is one row for each Welcome and provider, written in the transaction that accepts the commit. The Welcome of a
    later commit is *held* until its branch is used (`SequencingTransaction` releases it); then it is *due*. All other
    Welcomes are due at once. If the provider accepted references (welcome/init) and did not get the Welcome in the same
    attempt, the row is *offered*. The row ends as *delivered*, *refused*, *cancelled* with its branch, or *expired*. If
    the provider accepts only some of the references, the remaining references get a row of their own, which is
    *refused*.

Sending
    The job finds the providers with rows that are due, and starts tasks for each: one for each sender with due rows, up
    to `TASKS_OF_A_PROVIDER`. A task offers and delivers one Welcome after the other, and records the result of each. A
    call needs a slot (`limits.call_slots`), so slow providers do not delay fast ones. A provider that did not answer
    the last call has one task. A slow provider has up to `TASKS_OF_A_SLOW_PROVIDER` tasks, but only one while many
    calls take long.

Contents
    A provider gets the Welcome without the secrets for other providers' KeyPackages, so it does not learn their
    references. The rows share the whole body; a provider's part is made when it is sent.

Fairness
    Each row has a sender: the device, or the other provider, that sent the commit. A task takes rows of the senders in
    turn. The rows of one sender are served by at most one task of each provider, and by at most `TASKS_OF_A_SENDER`
    tasks of all providers together. So a sender that names many providers, or one provider many times, delays only its
    own Welcomes.

Retry
    If a provider does not answer, or refuses for a reason that may pass, the row is tried again after a back-off. The
    task ends. If the provider cannot be reached or wants fewer calls, all rows of the provider wait for a back-off,
    which doubles with each failure in a row. After any other failure, they wait for `PAUSE_SECONDS`. A call from the
    provider ends all these back-offs (`ds.early_retries`). A refusal that a retry cannot change is final. There is one
    exception: if a provider no longer knows that it accepted a Welcome, it is asked again, because it may have been
    restored.

Catch-up
    After a restart everything is found in the rows. The job wakes up when a commit queues a Welcome, when a back-off
    ends, and at least once a minute, so a lost notification delays a Welcome by a minute at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol, cast

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.early_retries import EarlyRetries
from mimids.ds.following.incoming_welcomes import IncomingWelcomes
from mimids.ds.groups.judging import LONG_OCTETS
from mimids.ds.limits.call_slots import CallSlots, CallTooSlow
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.notifier import DELIVERY, OUTGOING, Notifier
from mimids.ds.peer_answers import decode_answer, expect_empty
from mimids.ds.ports import Clock, Peers
from mimids.errors import (
    Malformed,
    MimiError,
    PeerUnavailable,
    RateLimited,
    StorageUnavailable,
    TooLarge,
    TooMany,
    UnsupportedMediaType,
    WelcomeNotExpected,
)
from mimids.mls.framing import MLSMessage
from mimids.mls.welcome import Welcome
from mimids.store import follows, providers, welcomes
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.welcome_outcomes import split_refused
from mimids.store.welcomes import Offered, Outgoing
from mimids.values import Milliseconds
from mimids.wire.declare import decode, encode
from mimids.wire.ids import KeyPackageRef, ProviderId
from mimids.wire.messages import WelcomeInitRequest, WelcomeInitResponse

IDLE_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.2  # after a failure at a provider that can be reached, before its next attempt
TASKS_OF_A_PROVIDER: Final = 8
TASKS_OF_A_SLOW_PROVIDER: Final = 4
TASKS_OF_A_SENDER: Final = 16
QUICK_CALLS: Final = 48
SLOW_CALLS: Final = 16
PAUSES_REMEMBERED: Final = 10_000
NOT_ACCEPTED: Final = "not-accepted"  # why a reference was refused in welcome/init
_FINAL: Final = (
    Malformed,
    TooLarge,
    TooMany,
    UnsupportedMediaType,
    WelcomeNotExpected,
)  # a retry after these would fail in the same way


@attrs.frozen
class WelcomeStatistics:
    """Counts since the start."""

    delivered: int  # Welcomes, one for each provider
    refused: int  # KeyPackage references


class WelcomeRecipient(Protocol):
    """A provider to which a Welcome goes: another provider, or this server for its own devices."""

    @property
    def domain(self) -> ProviderId:
        """The domain of the provider."""
        ...

    async def offer(self, request: WelcomeInitRequest) -> WelcomeInitResponse:
        """Ask which references the provider accepts."""
        ...

    async def deliver(self, welcome: bytes) -> None:
        """Hand over a Welcome, an encoded MLSMessage."""
        ...


@attrs.frozen
class OtherProvider:
    """Another provider, over the network."""

    peers: Peers
    domain: ProviderId

    async def offer(self, request: WelcomeInitRequest) -> WelcomeInitResponse:
        """Ask which references the provider accepts."""
        answer = await self.peers.call(self.domain, "POST", "/ds/v1/welcome/init", encode(request))
        return decode_answer(WelcomeInitResponse, answer)

    async def deliver(self, welcome: bytes) -> None:
        """Hand over a Welcome, an encoded MLSMessage."""
        expect_empty(await self.peers.call(self.domain, "POST", "/ds/v1/welcome", welcome, media_type="message/mls"))


@attrs.frozen
class OwnDevices:
    """The devices of this server, which is both hub and recipient."""

    incoming: IncomingWelcomes
    domain: ProviderId

    async def offer(self, request: WelcomeInitRequest) -> WelcomeInitResponse:
        """Ask which references are of our own devices."""
        return await self.incoming.init(self.domain, request)

    async def deliver(self, welcome: bytes) -> None:
        """Put a Welcome, an encoded MLSMessage, into the inboxes of our own devices."""
        await self.incoming.store(self.domain, decode(MLSMessage, welcome))


def encode_part(offered: Offered) -> bytes:
    """Return a Welcome with only the secrets for this provider's KeyPackages, as an MLSMessage."""
    message = decode(MLSMessage, offered.body)
    welcome = cast("Welcome", message.message)  # checked when it was stored
    return encode(MLSMessage(message.version, message.wire_format, welcome.only_for(offered.refs)))


class OutgoingWelcomes:
    """Sends the Welcomes of our own groups; `run` is the job."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        peers: Peers,
        notifier: Notifier,
        incoming: IncomingWelcomes,
        *,
        provider: ProviderId,
        backoff: Backoff,
        on_refused: Callable[[ProviderId, int, str], None] = lambda provider, references, reason: None,
    ) -> None:
        """`on_refused` is called with the provider that refused, how many references, and the code of the reason."""
        self._store = store
        self._clock = clock
        self._peers = peers
        self._notifier = notifier
        self._own_devices = OwnDevices(incoming, provider)
        self._backoff = backoff
        self._on_refused = on_refused
        self._delivered = self._refused = 0
        self._encoding = trio.CapacityLimiter(1)
        self._slots = CallSlots(quick_calls=QUICK_CALLS, slow_calls=SLOW_CALLS)
        self._busy: dict[int, set[int]] = {}  # by provider: the senders whose rows are being served
        self._failures = LeastRecentlyUsed[int, int](PAUSES_REMEMBERED)  # failures in a row, by provider
        self._serving: Counter[int] = Counter()  # tasks that serve rows of a sender
        self._early = EarlyRetries(clock, partial(notifier.notify, OUTGOING))
        # by provider, in milliseconds of the monotonic clock
        self._paused_until = LeastRecentlyUsed[int, int](PAUSES_REMEMBERED)

    def heard(self, provider: ProviderId) -> None:
        """Send a provider that has called us the Welcomes that wait for the end of a back-off."""
        self._early.heard(provider)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send the Welcomes that are due, until cancelled."""
        with self._notifier.listen(OUTGOING) as waiter:
            async with trio.open_nursery() as sending:
                task_status.started()
                for domain in await self._store.read(partial(welcomes.providers_put_off, now=self._clock.now())):
                    self._early.failed(domain)  # the failure was before a restart
                while True:
                    if heard := self._early.take_due():
                        with suppress(StorageUnavailable):  # the back-offs end by themselves
                            for number in await self._store.write(partial(_end_backoffs, heard)):
                                self._paused_until.pop(number)
                    now, running = self._clock.now(), self._clock.running()
                    latest = Milliseconds(now + int(self._backoff.cap_seconds * 1000))
                    due, next_at, later = await self._store.read(partial(_due, now, latest))
                    if later:  # these Welcomes were put off while the clock was ahead
                        with suppress(StorageUnavailable):
                            await self._store.write(partial(welcomes.try_all_after, latest=latest))
                            self._notifier.notify(OUTGOING)
                    paused = [self._paused_until.peek(number) or 0 for number, _ in due]
                    for number, sender in due:
                        if self._may_start(number) and self._may_serve(number, sender):
                            self._begin_serving(number, sender)
                            sending.start_soon(self._send_due, number, sender)
                    # A task notifies when it ends; a commit notifies when it queues another Welcome.
                    idle = [(until - running) / 1000 for until in paused if until > running]
                    idle += [] if next_at is None else [(next_at - now) / 1000]
                    idle += self._early.seconds_left()
                    await waiter.wait_at_most(self._clock, min([*idle, IDLE_SECONDS]))

    def _may_start(self, number: int) -> bool:
        """Tell whether one more task may start for a provider."""
        is_slow = self._slots.is_slow(number)
        careful = self._failures.peek(number) or (is_slow and not self._slots.slow_are_few)
        most = 1 if careful else TASKS_OF_A_SLOW_PROVIDER if is_slow else TASKS_OF_A_PROVIDER
        is_paused = (self._paused_until.peek(number) or 0) > self._clock.running()
        return not is_paused and len(self._busy.get(number, ())) < most

    def _may_serve(self, number: int, sender: int) -> bool:
        """Tell whether a task of a provider may serve rows of a sender."""
        return sender not in self._busy.get(number, ()) and self._serving[sender] < TASKS_OF_A_SENDER

    def _begin_serving(self, number: int, sender: int) -> None:
        self._busy.setdefault(number, set()).add(sender)
        self._serving[sender] += 1

    def _end_serving(self, number: int, sender: int) -> None:
        self._busy[number].discard(sender)
        self._serving[sender] -= 1
        if not self._serving[sender]:
            del self._serving[sender]

    async def _send_due(self, number: int, sender: int) -> None:
        """Send one provider's Welcomes, senders in turn, until none is due or the provider does not answer.

        Other tasks may serve other senders' Welcomes to the provider meanwhile.
        """
        serving: int | None = sender
        domain = self._own_devices.domain
        try:
            now = self._clock.now()
            while serving is not None:
                domain, outgoing = await self._store.read(partial(_next_of, number, serving, now))
                self._early.begin(domain)
                if outgoing is not None and not await self._attempt(self._recipient(domain), outgoing):
                    break
                serving = await self._next_sender(number, serving, now)
        except StorageUnavailable:  # our own disk: nothing was written about this attempt, so it stays due
            await self._clock.sleep(self._backoff.seconds(1))
        finally:
            if serving is not None:
                self._end_serving(number, serving)
            if not self._busy[number]:
                del self._busy[number]
                self._early.end(domain)
            self._notifier.notify(OUTGOING)

    async def _next_sender(self, number: int, served: int, now: Milliseconds) -> int | None:
        """Finish with the sender `served`, and return the sender whose turn is next.

        Returns None if no sender has a due Welcome that this task may serve, or if another task's attempt failed.
        """
        senders = await self._store.read(lambda tx: welcomes.due_senders(tx, number, now))
        in_turn = [each for each in senders if each > served] + [each for each in senders if each <= served]
        self._end_serving(number, served)
        if self._may_start(number):
            for sender in in_turn:
                if self._may_serve(number, sender):
                    self._begin_serving(number, sender)
                    return sender
        return None

    def _recipient(self, domain: ProviderId) -> WelcomeRecipient:
        return self._own_devices if domain == self._own_devices.domain else OtherProvider(self._peers, domain)

    # Longer than 40 lines: each outcome of an attempt has its branch.
    async def _attempt(self, recipient: WelcomeRecipient, outgoing: Outgoing) -> bool:
        """Offer and deliver one Welcome; return False if the provider did not answer or may accept it later."""
        refs, accepts = outgoing.refs, outgoing.state == "offered"
        try:
            if not accepts:
                offer = partial(recipient.offer, WelcomeInitRequest(outgoing.refs))
                async with self._slots.slot(outgoing.provider, 0) as slot:
                    accepted = (await slot.call(offer)).accepted
                self._failures.pop(outgoing.provider)
                refs = await self._note_refused(recipient, outgoing, frozenset(accepted))
                accepts = bool(refs)
                if not accepts:
                    return True
            async with self._slots.slot(outgoing.provider, outgoing.octets) as slot:
                offered = await self._store.read(lambda tx: welcomes.unsent(tx, outgoing.id))
                if offered is None:
                    return True  # the Welcome was cancelled or expired in the meantime
                await slot.call(partial(recipient.deliver, await self._part_of(offered)))
        except _FINAL as error:
            self._failures.pop(outgoing.provider)
            forgotten = isinstance(error, WelcomeNotExpected) and outgoing.state == "offered"
            await self._settle(outgoing, "due" if forgotten else "refused", error.code)
            if not forgotten:
                self._count_refused(recipient, len(refs), error.code)
            return True
        except CallTooSlow:  # the row is still to be sent; from now on the provider counts as slow
            if accepts:
                await self._settle(outgoing, "offered", None)
            return True
        except StorageUnavailable:
            raise
        except MimiError as error:
            self._pause(outgoing.provider, error)
            await self._retry_later(outgoing, "offered" if accepts else "due", error)
            self._early.failed(recipient.domain, error)
            return False
        self._failures.pop(outgoing.provider)
        await self._store.write(partial(self._note_delivery, outgoing))
        self._delivered += 1
        self._notifier.notify(DELIVERY)
        return True

    def _pause(self, number: int, error: MimiError) -> None:
        """Try no Welcome for a provider for a while, because an attempt failed."""
        seconds = PAUSE_SECONDS
        if isinstance(error, PeerUnavailable | RateLimited):
            failures = (self._failures.peek(number) or 0) + 1
            self._failures.put(number, failures)
            seconds = self._backoff.seconds_after(error, failures)
        self._paused_until.put(number, self._clock.running() + int(seconds * 1000))

    async def _part_of(self, offered: Offered) -> bytes:
        """Return a Welcome for a provider, an encoded MLSMessage."""
        if len(offered.body) <= LONG_OCTETS:
            return encode_part(offered)
        return await trio.to_thread.run_sync(encode_part, offered, limiter=self._encoding)

    async def _note_refused(
        self, recipient: WelcomeRecipient, outgoing: Outgoing, accepted: frozenset[KeyPackageRef]
    ) -> tuple[KeyPackageRef, ...]:
        """Record which references the provider refused; return the accepted references."""
        taken = tuple(ref for ref in outgoing.refs if ref in accepted)
        refused = tuple(ref for ref in outgoing.refs if ref not in accepted)

        def note(tx: Tx) -> None:
            if taken:
                split_refused(tx, outgoing.id, taken, refused, NOT_ACCEPTED)
            else:
                welcomes.settle_outgoing(tx, outgoing.id, "refused", NOT_ACCEPTED)

        if refused:
            await self._store.write(note)
            self._count_refused(recipient, len(refused), NOT_ACCEPTED)
        return taken

    def _count_refused(self, recipient: WelcomeRecipient, references: int, reason: str) -> None:
        self._refused += references
        self._on_refused(recipient.domain, references, reason)

    def _note_delivery(self, outgoing: Outgoing, tx: Tx) -> None:
        """Record that a Welcome was delivered: its provider follows the partition from now on.

        (semantics: following-and-delivery)
        """
        welcomes.settle_outgoing(tx, outgoing.id, "delivered", None)
        if providers.domain_of(tx, outgoing.provider) != self._own_devices.domain:
            follows.follow(tx, outgoing.provider, outgoing.partition, needs_opening=True)

    def statistics(self) -> WelcomeStatistics:
        """Return the counts so far."""
        return WelcomeStatistics(self._delivered, self._refused)

    async def _settle(self, outgoing: Outgoing, state: str, outcome: str | None) -> None:
        await self._store.write(lambda tx: welcomes.settle_outgoing(tx, outgoing.id, state, outcome))

    async def _retry_later(self, outgoing: Outgoing, state: str, error: MimiError) -> None:
        failures = outgoing.failures + 1
        at = Milliseconds(self._clock.now() + int(self._backoff.seconds_after(error, failures) * 1000))
        await self._store.write(lambda tx: welcomes.put_off(tx, outgoing.id, state, failures, at, error.code))


def _end_backoffs(domains: Sequence[ProviderId], tx: Tx) -> list[int]:
    """Make the Welcomes to these providers due; return the rows of the providers."""
    numbers = [providers.provider_row(tx, domain) or 0 for domain in domains]
    for number in numbers:
        welcomes.try_soon(tx, number)
    return numbers


def _due(
    now: Milliseconds, latest: Milliseconds, tx: Tx
) -> tuple[list[tuple[int, int]], Milliseconds | None, Milliseconds | None]:
    """Return provider and sender of the Welcomes that are due, and two times at which further Welcomes become due.

    The second item is the first such time after `now`. The third item is the first such time after `latest`.
    """
    return (
        welcomes.due_pairs(tx, now),
        welcomes.next_outgoing_at(tx, after=now),
        welcomes.next_outgoing_at(tx, after=latest),
    )


def _next_of(provider: int, sender: int, now: Milliseconds, tx: Tx) -> tuple[ProviderId, Outgoing | None]:
    return providers.domain_of(tx, provider), welcomes.next_due(tx, provider, sender, now)
