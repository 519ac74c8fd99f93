"""Welcomes, at the hub that sends and the provider that takes them (semantics: welcomes-and-leaving).

Life of an outgoing Welcome, one row for each provider: *held* until its branch is used (the Welcome of a later
commit), *due*, *offered* once the provider accepted references of it, then *delivered*, *refused* for good,
*cancelled* with its branch, or *expired*. The row is written in the commit's own transaction; the job takes what is
due, asks (welcome/init), pushes, and settles the row. A provider that does not answer, or refuses for a reason that may
pass, puts its own rows off and holds up nobody else. One that has forgotten what it said yes to is asked again: it may
have been restored. After a restart the rows are all there is.

An incoming Welcome goes into the inbox of each device that a reference was accepted for, and leaves it only when that
device acknowledges.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import trio

from mimids.ds.backoff import Backoff
from mimids.ds.groups.rules import terms_of
from mimids.ds.notifier import DELIVERY, OUTGOING, Notifier, inbox_topic
from mimids.ds.peer_answers import expect_nothing
from mimids.ds.ports import Clock, Peers
from mimids.errors import (
    Malformed,
    MimiError,
    PeerFailed,
    StorageUnavailable,
    TooLarge,
    UnsupportedMediaType,
    WelcomeNotExpected,
)
from mimids.mls.framing import MLSMessage
from mimids.mls.welcome import Welcome
from mimids.store import accounts, follows, key_packages, providers, welcomes
from mimids.store.bans import EVERY_GROUP
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.welcomes import InInbox, Outgoing
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.declare import decode, encode
from mimids.wire.ids import KeyPackageRef, ProviderId
from mimids.wire.messages import WelcomeInitRequest, WelcomeInitResponse

IDLE_SECONDS: Final = 60.0  # a lost ring costs no more than this
_FOR_GOOD: Final = (Malformed, TooLarge, UnsupportedMediaType, WelcomeNotExpected)  # no repetition will mend these


def _due(now: Milliseconds, tx: Tx) -> tuple[list[int], Milliseconds | None]:
    return welcomes.due_providers(tx, now), welcomes.next_outgoing_at(tx)


class Welcomes:
    """Both ends of the two steps; `run` is the job that sends."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        peers: Peers,
        notifier: Notifier,
        *,
        provider: ProviderId,
        backoff: Backoff,
        workers: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._peers = peers
        self._notifier = notifier
        self._provider = provider
        self._backoff = backoff
        self._workers = trio.CapacityLimiter(workers)
        self._busy: set[int] = set()

    # --- the provider that takes them ---------------------------------------------------------------------------

    async def init(self, hub: ProviderId, request: WelcomeInitRequest) -> WelcomeInitResponse:
        """Say which references are of KeyPackages that we handed out, and expect their Welcome from this hub."""

        def accept(tx: Tx) -> tuple[KeyPackageRef, ...]:
            number = providers.ensure_provider(tx, hub)
            accepted = []
            for ref in request.key_package_refs:
                device = key_packages.device_of_ref(tx, ref)
                if device is not None and not self._bans(tx, number, hub, device):
                    welcomes.expect(tx, number, ref, device, self._clock.now())
                    accepted.append(ref)
            return tuple(accepted)

        return WelcomeInitResponse(await self._store.write(accept))

    async def take(self, hub: ProviderId, message: MLSMessage) -> None:
        """Put a Welcome into the inbox of each device it was accepted for; a repeat changes nothing.

        Raises `WelcomeNotExpected` if none of its references was accepted for this hub.
        """
        welcome = message.message
        if not isinstance(welcome, Welcome):
            raise Malformed("not a Welcome")

        def put(tx: Tx) -> set[DeviceRow]:
            number = providers.ensure_provider(tx, hub)
            now = self._clock.now()
            devices = {}
            for ref in welcome.key_package_refs:
                device = welcomes.expected_device(tx, number, ref)
                if device is not None and not self._bans(tx, number, hub, device):
                    devices[ref] = device
            if not devices:
                raise WelcomeNotExpected
            row = welcomes.keep_welcome(tx, message.encoded, now)
            for ref, device in devices.items():
                welcomes.put_in_inbox(tx, device, row, number, now)
                welcomes.note_arrival(tx, number, ref, now)
                key_packages.note_welcome(tx, ref)
            return set(devices.values())

        for device in await self._store.write_shielded(put):
            self._notifier.notify(inbox_topic(device))

    def _bans(self, tx: Tx, number: int, hub: ProviderId, device: DeviceRow) -> bool:
        """Tell whether a hub banned the device's user: then we take no Welcomes from it for them.

        (semantics: terms-and-reports)
        """
        user = accounts.user_of_device(tx, device)
        if user is None:
            return False
        return bool(terms_of(tx, number, [user], EVERY_GROUP, self._clock.now(), ours=hub == self._provider).banned)

    async def inbox(self, device: DeviceRow, *, after: int = 0) -> list[InInbox]:
        """Return Welcomes that a device has not acknowledged, oldest first, at most 100."""
        return await self._store.read(lambda tx: welcomes.inbox_of(tx, device, after=after))

    async def acknowledge(self, device: DeviceRow, *rows: int) -> int:
        """Take Welcomes out of a device's inbox; return how many were in it."""
        now = self._clock.now()
        return await self._store.write(lambda tx: sum(welcomes.acknowledge(tx, device, row, now) for row in rows))

    # --- the hub ------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send what is due, for ever; one task for each provider that is due, a bounded number at work."""
        with self._notifier.listen(OUTGOING) as waiter:
            async with trio.open_nursery() as sending:
                task_status.started()
                while True:
                    now = self._clock.now()
                    due, next_at = await self._store.read(partial(_due, now))
                    for number in set(due) - self._busy:
                        self._busy.add(number)
                        sending.start_soon(self._send_due, number)
                    # Whoever is busy rings when done, and so does the commit that queues another.
                    idle = IDLE_SECONDS if next_at is None or next_at <= now else (next_at - now) / 1000
                    await waiter.wait_at_most(self._clock, min(idle, IDLE_SECONDS))

    async def _send_due(self, number: int) -> None:
        try:
            async with self._workers:
                now = self._clock.now()
                domain = await self._store.read(lambda tx: providers.domain_of(tx, number))
                while outgoing := await self._store.read(lambda tx: welcomes.next_due(tx, number, now)):
                    if not await self._attempt(domain, outgoing):
                        break  # it does not answer: its other Welcomes wait for their own turn
        except StorageUnavailable:  # our own disk takes no word of it, so that all of it stays due
            await self._clock.sleep(self._backoff.seconds(1))
        finally:
            self._busy.discard(number)
            self._notifier.notify(OUTGOING)

    async def _attempt(self, domain: ProviderId, outgoing: Outgoing) -> bool:
        """Offer and deliver one Welcome; False if the provider did not answer, or may do better later."""
        try:
            if outgoing.state == "due":
                offer = WelcomeInitRequest(outgoing.refs)
                accepted = (await self._offer(domain, offer)).accepted
                if not set(accepted) & set(outgoing.refs):
                    await self._settle(outgoing, "refused", "none of its KeyPackages was accepted")
                    return True
                await self._settle(outgoing, "offered", None)
            body = await self._store.read(lambda tx: welcomes.offered_body(tx, outgoing.id))
            if body is None:
                return True  # its branch was ended meanwhile, or it took too long
            await self._deliver(domain, body)
        except _FOR_GOOD as error:
            forgotten = isinstance(error, WelcomeNotExpected) and outgoing.state == "offered"
            await self._settle(outgoing, "due" if forgotten else "refused", error.code)
            return True
        except StorageUnavailable:
            raise
        except MimiError as error:
            await self._put_off(outgoing, error)
            return False
        await self._store.write(partial(self._delivered, outgoing))
        self._notifier.notify(DELIVERY)
        return True

    def _delivered(self, outgoing: Outgoing, tx: Tx) -> None:
        """Settle a Welcome that its provider took: from now on it follows the partition.

        (semantics: following-and-delivery)
        """
        welcomes.settle_outgoing(tx, outgoing.id, "delivered", None)
        if providers.domain_of(tx, outgoing.provider) != self._provider:
            follows.follow(tx, outgoing.provider, outgoing.partition, needs_opening=True)

    async def _offer(self, domain: ProviderId, offer: WelcomeInitRequest) -> WelcomeInitResponse:
        if domain == self._provider:
            return await self.init(domain, offer)
        answer = await self._peers.call(domain, "POST", "/ds/v1/welcome/init", encode(offer))
        try:
            return decode(WelcomeInitResponse, answer.body)
        except ValueError as error:
            raise PeerFailed from error

    async def _deliver(self, domain: ProviderId, body: bytes) -> None:
        if domain == self._provider:
            await self.take(domain, decode(MLSMessage, body))
        else:
            answer = await self._peers.call(domain, "POST", "/ds/v1/welcome", body, media_type="message/mls")
            expect_nothing(answer)

    async def _settle(self, outgoing: Outgoing, state: str, outcome: str | None) -> None:
        await self._store.write(lambda tx: welcomes.settle_outgoing(tx, outgoing.id, state, outcome))

    async def _put_off(self, outgoing: Outgoing, error: MimiError) -> None:
        failures = outgoing.failures + 1
        asked = error.members.get("retry_after")
        seconds = self._backoff.seconds(failures, asked if isinstance(asked, int | float) else None)
        at = Milliseconds(self._clock.now() + int(seconds * 1000))
        await self._store.write(lambda tx: welcomes.put_off(tx, outgoing.id, failures, at, error.code))
