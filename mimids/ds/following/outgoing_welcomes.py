"""The job that sends the Welcomes of our own groups (semantics: welcomes-and-leaving).

States
    There is one row for each Welcome and provider, written in the transaction that accepts the commit. A row is *held*
    until its branch is used (the Welcome of a later commit; `SequencingTransaction` releases it), then *due*, then
    *offered* once the provider accepted references (welcome/init). It ends as *delivered*, *refused*, *cancelled* with
    its branch, or *expired*.

Sending
    The job finds the providers with rows that are due, and starts one task for each; at most `workers` of them send at
    a time. A task offers and delivers one Welcome after the other, and writes what became of each.

Retry
    If a provider does not answer, or refuses for a reason that may pass, the row is tried again after a back-off. The
    task ends, so a provider that is down does not delay others. A refusal that a retry cannot change is final, except
    one: a provider that no longer knows the offer it accepted is asked again, because it may have been restored.

Catch-up
    After a restart everything is found in the rows. The job wakes up when a commit queues a Welcome, when a back-off
    ends, and at least once a minute, so a lost notification delays a Welcome by a minute at most.
"""

from __future__ import annotations

from functools import partial
from typing import Final, Protocol

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.following.incoming_welcomes import IncomingWelcomes
from mimids.ds.notifier import DELIVERY, OUTGOING, Notifier
from mimids.ds.peer_answers import decode_answer, expect_empty
from mimids.ds.ports import Clock, Peers
from mimids.errors import (
    Malformed,
    MimiError,
    StorageUnavailable,
    TooLarge,
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
_FINAL: Final = (Malformed, TooLarge, UnsupportedMediaType, WelcomeNotExpected)  # a retry would fail in the same way


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
        workers: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._peers = peers
        self._notifier = notifier
        self._own_devices = OwnDevices(incoming, provider)
        self._backoff = backoff
        self._workers = trio.CapacityLimiter(workers)
        self._busy: set[int] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send what is due, until cancelled."""
        with self._notifier.listen(OUTGOING) as waiter:
            async with trio.open_nursery() as sending:
                task_status.started()
                while True:
                    now = self._clock.now()
                    due, next_at = await self._store.read(partial(_due, now))
                    for number in set(due) - self._busy:
                        self._busy.add(number)
                        sending.start_soon(self._send_due, number)
                    # A task notifies when it ends, and so does the commit that queues another Welcome.
                    idle = IDLE_SECONDS if next_at is None or next_at <= now else (next_at - now) / 1000
                    await waiter.wait_at_most(self._clock, min(idle, IDLE_SECONDS))

    async def _send_due(self, number: int) -> None:
        """Send one provider's Welcomes until none is due or the provider does not answer."""
        try:
            async with self._workers:
                now = self._clock.now()
                domain = await self._store.read(lambda tx: providers.domain_of(tx, number))
                while outgoing := await self._store.read(lambda tx: welcomes.next_due(tx, number, now)):
                    if not await self._attempt(self._recipient(domain), outgoing):
                        break
        except StorageUnavailable:  # our own disk: nothing was written about this attempt, so it stays due
            await self._clock.sleep(self._backoff.seconds(1))
        finally:
            self._busy.discard(number)
            self._notifier.notify(OUTGOING)

    def _recipient(self, domain: ProviderId) -> WelcomeRecipient:
        return self._own_devices if domain == self._own_devices.domain else OtherProvider(self._peers, domain)

    async def _attempt(self, recipient: WelcomeRecipient, outgoing: Outgoing) -> bool:
        """Offer and deliver one Welcome; return False if the provider did not answer or may accept it later."""
        try:
            if outgoing.state == "due":
                accepted = (await recipient.offer(WelcomeInitRequest(outgoing.refs))).accepted
                if not set(accepted) & set(outgoing.refs):
                    await self._settle(outgoing, "refused", "none of its KeyPackages was accepted")
                    return True
                await self._settle(outgoing, "offered", None)
            body = await self._store.read(lambda tx: welcomes.offered_body(tx, outgoing.id))
            if body is None:
                return True  # it was cancelled or it expired in the meantime
            await recipient.deliver(body)
        except _FINAL as error:
            forgotten = isinstance(error, WelcomeNotExpected) and outgoing.state == "offered"
            await self._settle(outgoing, "due" if forgotten else "refused", error.code)
            return True
        except StorageUnavailable:
            raise
        except MimiError as error:
            await self._retry_later(outgoing, error)
            return False
        await self._store.write(partial(self._note_delivery, outgoing))
        self._notifier.notify(DELIVERY)
        return True

    def _note_delivery(self, outgoing: Outgoing, tx: Tx) -> None:
        """Settle a Welcome that was delivered: its provider follows the partition from now on.

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


def _due(now: Milliseconds, tx: Tx) -> tuple[list[int], Milliseconds | None]:
    """Return the providers with Welcomes that are due, and when the next one is."""
    return welcomes.due_providers(tx, now), welcomes.next_outgoing_at(tx)
