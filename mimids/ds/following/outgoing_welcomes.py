"""The job that sends the Welcomes of our own groups (semantics: welcomes-and-leaving).

States
    There is one row for each Welcome and provider, written in the transaction that accepts the commit. A row is *held*
    until its branch is used (the Welcome of a later commit; `SequencingTransaction` releases it), then *due*, then
    *offered* once the provider accepted references (welcome/init). It ends as *delivered*, *refused*, *cancelled* with
    its branch, or *expired*.

Sending
    The job finds the providers with rows that are due, and starts one task for each. A task offers and delivers one
    Welcome after the other, and records the result of each. A call needs a slot (`limits.call_slots`), so providers
    that take long to answer don't hold up those that answer soon.

Fairness
    Each row has a sender: the device, or the other provider, that sent the commit. A task takes rows of the senders in
    turn, and at most `TASKS_OF_A_SENDER` tasks serve rows of one sender at a time. So a sender that names many
    providers, or one provider many times, delays only its own Welcomes.

Retry
    If a provider does not answer, or refuses for a reason that may pass, the row is tried again after a back-off. The
    task ends, and no row for this provider is tried for `PAUSE_SECONDS`. A refusal that a retry cannot change is
    final, except one: a provider that no longer knows the offer it accepted is asked again, because it may have been
    restored.

Catch-up
    After a restart everything is found in the rows. The job wakes up when a commit queues a Welcome, when a back-off
    ends, and at least once a minute, so a lost notification delays a Welcome by a minute at most.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Final, Protocol

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.following.incoming_welcomes import IncomingWelcomes
from mimids.ds.limits.call_slots import CallSlots, CallTooSlow
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.notifier import DELIVERY, OUTGOING, Notifier
from mimids.ds.peer_answers import decode_answer, expect_empty
from mimids.ds.ports import Clock, Peers
from mimids.errors import (
    Malformed,
    MimiError,
    StorageUnavailable,
    TooLarge,
    TooMany,
    UnsupportedMediaType,
    WelcomeNotExpected,
)
from mimids.mls.framing import MLSMessage
from mimids.store import follows, providers, welcomes
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.welcomes import Outgoing
from mimids.values import Milliseconds
from mimids.wire.declare import decode, encode
from mimids.wire.ids import ProviderId
from mimids.wire.messages import WelcomeInitRequest, WelcomeInitResponse

IDLE_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.2  # after a failure, before the next attempt for the same provider
TASKS_OF_A_SENDER: Final = 16
QUICK_CALLS: Final = 48
SLOW_CALLS: Final = 16
PAUSES_REMEMBERED: Final = 10_000
_FINAL: Final = (
    Malformed,
    TooLarge,
    TooMany,
    UnsupportedMediaType,
    WelcomeNotExpected,
)  # a retry would fail in the same way


class WelcomeRecipient(Protocol):
    """A provider that a Welcome goes to: another one, or this server for its own devices."""

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
    """The devices of this server, which is hub and recipient at once."""

    incoming: IncomingWelcomes
    domain: ProviderId

    async def offer(self, request: WelcomeInitRequest) -> WelcomeInitResponse:
        """Ask which references are of our own devices."""
        return await self.incoming.init(self.domain, request)

    async def deliver(self, welcome: bytes) -> None:
        """Put a Welcome, an encoded MLSMessage, into the inboxes of our own devices."""
        await self.incoming.store(self.domain, decode(MLSMessage, welcome))


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
    ) -> None:
        self._store = store
        self._clock = clock
        self._peers = peers
        self._notifier = notifier
        self._own_devices = OwnDevices(incoming, provider)
        self._backoff = backoff
        self._slots = CallSlots(quick_calls=QUICK_CALLS, slow_calls=SLOW_CALLS)
        self._busy: set[int] = set()
        self._serving: Counter[int] = Counter()  # tasks that serve rows of a sender
        self._paused_until = LeastRecentlyUsed[int, Milliseconds](PAUSES_REMEMBERED)  # by provider

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send what is due, until cancelled."""
        with self._notifier.listen(OUTGOING) as waiter:
            async with trio.open_nursery() as sending:
                task_status.started()
                while True:
                    now = self._clock.now()
                    due, next_at = await self._store.read(partial(_due, now))
                    resume_at = [until for number, _ in due if (until := self._paused_until.peek(number) or 0) > now]
                    for number, sender in due:
                        if number not in self._busy and self._may_serve(number, sender, now):
                            self._busy.add(number)
                            self._serving[sender] += 1
                            sending.start_soon(self._send_due, number, sender)
                    # A task notifies when it ends, and so does the commit that queues another Welcome.
                    wake_at = [*resume_at, *([next_at] if next_at is not None and next_at > now else [])]
                    idle = (min(wake_at) - now) / 1000 if wake_at else IDLE_SECONDS
                    await waiter.wait_at_most(self._clock, min(idle, IDLE_SECONDS))

    def _may_serve(self, number: int, sender: int, now: Milliseconds) -> bool:
        paused = (self._paused_until.peek(number) or 0) > now
        return not paused and self._serving[sender] < TASKS_OF_A_SENDER

    async def _send_due(self, number: int, sender: int) -> None:
        """Send one provider's Welcomes, senders in turn, until none is due or the provider does not answer."""
        serving: int | None = sender
        try:
            now = self._clock.now()
            domain = await self._store.read(lambda tx: providers.domain_of(tx, number))
            while serving is not None:
                outgoing = await self._store.read(partial(_next_of, number, serving, now))
                if outgoing is not None and not await self._attempt(self._recipient(domain), outgoing):
                    break
                following = await self._next_sender(number, serving, now)
                self._end_serving(serving)
                serving = following
        except StorageUnavailable:  # our own disk: nothing was written about this attempt, so it stays due
            await self._clock.sleep(self._backoff.seconds(1))
        finally:
            if serving is not None:
                self._end_serving(serving)
            self._busy.discard(number)
            self._notifier.notify(OUTGOING)

    async def _next_sender(self, number: int, served: int, now: Milliseconds) -> int | None:
        """Return the sender whose turn is after `served`, and count a task for it; None if there is none to serve."""
        senders = await self._store.read(lambda tx: welcomes.due_senders(tx, number, now))
        in_turn = [each for each in senders if each > served] + [each for each in senders if each <= served]
        for sender in in_turn:
            if sender == served or self._serving[sender] < TASKS_OF_A_SENDER:
                self._serving[sender] += 1
                return sender
        return None

    def _end_serving(self, sender: int) -> None:
        self._serving[sender] -= 1
        if not self._serving[sender]:
            del self._serving[sender]

    def _recipient(self, domain: ProviderId) -> WelcomeRecipient:
        return self._own_devices if domain == self._own_devices.domain else OtherProvider(self._peers, domain)

    async def _attempt(self, recipient: WelcomeRecipient, outgoing: Outgoing) -> bool:
        """Offer and deliver one Welcome; return False if the provider did not answer or may accept it later."""
        try:
            if outgoing.state == "due":
                offer = partial(recipient.offer, WelcomeInitRequest(outgoing.refs))
                async with self._slots.slot(outgoing.provider, 0) as slot:
                    accepted = (await slot.call(offer)).accepted
                if not set(accepted) & set(outgoing.refs):
                    await self._settle(outgoing, "refused", "none of its KeyPackages was accepted")
                    return True
                await self._settle(outgoing, "offered", None)
            async with self._slots.slot(outgoing.provider, outgoing.octets) as slot:
                body = await self._store.read(lambda tx: welcomes.offered_body(tx, outgoing.id))
                if body is None:
                    return True  # it was cancelled or it expired in the meantime
                await slot.call(partial(recipient.deliver, body))
        except _FINAL as error:
            forgotten = isinstance(error, WelcomeNotExpected) and outgoing.state == "offered"
            await self._settle(outgoing, "due" if forgotten else "refused", error.code)
            return True
        except CallTooSlow:
            return True  # the row is still due; from now on the provider waits with the slow ones
        except StorageUnavailable:
            raise
        except MimiError as error:
            self._paused_until.put(outgoing.provider, Milliseconds(self._clock.now() + int(PAUSE_SECONDS * 1000)))
            await self._retry_later(outgoing, error)
            return False
        await self._store.write(partial(self._note_delivery, outgoing))
        self._notifier.notify(DELIVERY)
        return True

    def _note_delivery(self, outgoing: Outgoing, tx: Tx) -> None:
        """Record that a Welcome was delivered: its provider follows the partition from now on.

        (semantics: following-and-delivery)
        """
        welcomes.settle_outgoing(tx, outgoing.id, "delivered", None)
        if providers.domain_of(tx, outgoing.provider) != self._own_devices.domain:
            follows.follow(tx, outgoing.provider, outgoing.partition, needs_opening=True)

    async def _settle(self, outgoing: Outgoing, state: str, outcome: str | None) -> None:
        await self._store.write(lambda tx: welcomes.settle_outgoing(tx, outgoing.id, state, outcome))

    async def _retry_later(self, outgoing: Outgoing, error: MimiError) -> None:
        failures = outgoing.failures + 1
        at = Milliseconds(self._clock.now() + int(self._backoff.seconds_after(error, failures) * 1000))
        await self._store.write(lambda tx: welcomes.put_off(tx, outgoing.id, failures, at, error.code))


def _due(now: Milliseconds, tx: Tx) -> tuple[list[tuple[int, int]], Milliseconds | None]:
    """Return the providers with Welcomes that are due and their senders, and when the next one is due after them."""
    return welcomes.due_pairs(tx, now), welcomes.next_outgoing_at(tx, after=now)


def _next_of(provider: int, sender: int, now: Milliseconds, tx: Tx) -> Outgoing | None:
    return welcomes.next_due(tx, provider, sender, now)
